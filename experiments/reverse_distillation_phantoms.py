"""Reverse distillation from ten outlined slides, compared with its plain loss and with ScanNet on generated
slides.

Each contender trains, scans the test split and is evaluated by the functions of the commands; the table gives
slide AUC (DeLong) and FROC (bootstrap over patients). The teacher is SqueezeNet with ImageNet weights, read
from LOBULE_REFERENCE and never committed. The contenders run one after another. Finished ones are stored in
the folder, so that an interrupted run continues when it is started again.

    LOBULE_REFERENCE=… python experiments/reverse_distillation_phantoms.py FOLDER [--only NAME …]
    LOBULE_REFERENCE=… python experiments/reverse_distillation_phantoms.py FOLDER --budgets 1,2,5,10,20
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lobule
from lobule.budget import budget_curve
from lobule.bundles import read_bundle
from lobule.cli.budget import parse_counts
from lobule.cohort import Cohort, read_cohort
from lobule.files import write_json
from lobule.phantoms.cohorts import write_slide_cohort
from lobule.phantoms.phantom import SlidePhantom

COUNT, SIDE, SEED = 84, 4096, 5
SPLIT = (0.5, 0.12, 0.38)
WEIGHTS = "kit/weights/squeezenet1_1-imagenet-rgb.safetensors"

DISTILLED: dict[str, Any] = {
    "teacher": "squeezenet1_1", "shortcut": 1, "mpp": 1.5, "patch": 64, "input": 64, "stride": 16,
    "form": "shared", "tumour_patches": 250, "normal_patches": 750, "batch": 32, "epochs": 4, "rate": 1e-3,
    "val_patches": 128, "augmentation": False,
}  # fmt: skip
SCANNET: dict[str, Any] = {
    "trunk": "tiny", "weights": "random", "mpp": 1.0, "stride": 16, "steps": 400, "batch": 32, "rate": 0.03,
    "schedule": "cosine", "rounds": 0, "evaluate_every": 100, "val_patches": 128,
}  # fmt: skip
CONTENDERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "focal, ten slides": ("reverse_distillation", DISTILLED, False),
    "plain, ten slides": ("reverse_distillation", {**DISTILLED, "loss": "plain"}, False),
    "scannet, the same ten": ("scannet", SCANNET, True),
    "scannet, all slides": ("scannet", SCANNET, False),
}
"""For each name: method, settings, and whether only the ten slides of the first contender are used."""


def cohort_in(folder: Path) -> Cohort:
    """The generated cohort, which is written only once."""
    manifest = folder / "cohort" / "cohort.csv"
    if not manifest.exists():
        like = SlidePhantom(0, SIDE, SIDE, 0.5, tissue=0.5, mimics=3)
        write_slide_cohort(
            manifest.parent, slides=COUNT, normal=0.45, sites=3, split=SPLIT, seed=SEED, like=like, threads=1
        )
    return read_cohort(manifest)


def run(name: str, folder: Path, cohort: Cohort, weights: Path) -> dict[str, Any]:
    """Train, scan and evaluate one contender; finished steps are not repeated."""
    method, settings, same_slides = CONTENDERS[name]
    run_folder = folder / name.replace(" ", "-").replace(",", "")
    if (run_folder / "evaluation.json").exists():
        report: dict[str, Any] = json.loads((run_folder / "evaluation.json").read_text())
        return report
    if same_slides:
        run("focal, ten slides", folder, cohort, weights)
        cohort = only_slides_of(read_bundle(folder / "focal-ten-slides" / "bundle").provenance, cohort)
    if method == "reverse_distillation":
        settings = {**settings, "weights": str(weights)}
    if not (run_folder / "bundle" / "model.json").exists():
        lobule.train(method, cohort, run_folder / "bundle", settings=settings, **ONE_WORKER)
    lobule.scan(
        run_folder / "bundle",
        cohort.split("test"),
        run_folder / "results",
        readers=1,
    )
    evaluation = lobule.evaluate(run_folder / "results", cohort, split="test", plots=False)
    write_json(run_folder / "evaluation.json", evaluation.data)
    return dict(evaluation.data)


ONE_WORKER: dict[str, Any] = {"device": "cpu", "workers": 1}


def only_slides_of(provenance: Mapping[str, Any], cohort: Cohort) -> Cohort:
    """The cohort with its training split reduced to the training cases of another model."""
    case_ids = set(provenance["train_cases"])
    return cohort.where(lambda case: case.split != "train" or case.id in case_ids)


def row_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Slide AUC and FROC with their intervals, from an evaluation."""
    (task,) = data["tasks"].values()
    return {"auc": task["all"]["auroc_delong"], "froc": data["lesions"]["all"]["froc_score"]}


def interval_text(value: Mapping[str, Any]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--budgets", help="run a label-budget curve instead of the contenders: 1,2,5,10,20")
    options = parser.parse_args(arguments)
    weights = Path(os.environ["LOBULE_REFERENCE"]) / WEIGHTS
    cohort = cohort_in(options.folder)
    if options.budgets:
        counts, settings = parse_counts(options.budgets), {**DISTILLED, "weights": str(weights)}
        for point in budget_curve(
            "reverse_distillation",
            cohort,
            options.folder / "curve",
            counts,
            settings=settings,
            **ONE_WORKER,
        ):
            print(point, flush=True)
        return
    rows = {}
    for name in options.only:
        rows[name] = row_of(run(name, options.folder, cohort, weights))
        print(
            f"{name:24s} AUC {interval_text(rows[name]['auc'])}  FROC {interval_text(rows[name]['froc'])}",
            flush=True,
        )
        write_json(options.folder / "table.json", rows)


if __name__ == "__main__":
    main()
