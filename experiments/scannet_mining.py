"""The effect of hard-negative mining on FROC, on generated slides with many structures that resemble tumour.

For each seed, slides of new hospitals are generated and three models are trained for the same number of
steps. "mined": a second round in which half of the normal patches are hard negatives. "again": a second round
without them. "longer": a single round. Each model scans unseen slides, half of them without tumour. The
differences are paired by slide, over the slides of all seeds.

    python experiments/scannet_mining.py OUT --seed 0      (and 1, 2, …; --design small, rare, large, wide)
    python experiments/scannet_mining.py OUT --table       (of all finished seeds; writes OUT/table.json)

An interrupted run continues when it is started again. Research use only.
"""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lobule
from lobule.bundles import read_bundle
from lobule.cohort import Case, Cohort
from lobule.evaluation.lesions import match_slides
from lobule.evaluation.options import Options
from lobule.evaluation.sources import open_results_source
from lobule.files import make_folder
from lobule.measures.camelyon16 import SlideMatch, bootstrap_froc
from lobule.measures.compare import compare_froc
from lobule.measures.estimate import Resampling
from lobule.phantoms.noise import mixed
from lobule.phantoms.phantom import SlidePhantom
from lobule.phantoms.slides import truth_of, write_slide
from lobule.phantoms.truth import write_annotation_files

MPP = 0.5
CONFIDENT = 0.9


@dataclass(frozen=True)
class Design:
    """For each split the number of slides (half of them without tumour), their side in px and the structures
    that resemble tumour on each; steps of the first training and of the second round."""

    train: tuple[int, int, int]
    test: tuple[int, int, int]
    steps: int
    second_steps: int


DESIGNS = {
    "small": Design((8, 2560, 6), (16, 2560, 6), 240, 120),
    "rare": Design((8, 4096, 4), (16, 2560, 10), 240, 120),
    "large": Design((8, 8192, 8), (20, 2560, 8), 240, 160),
    "wide": Design((8, 2560, 6), (16, 5120, 24), 240, 120),
}
"""In "small" the training samples all normal tissue several times; in "large" a third of it, as on real
slides. "wide" is trained like "small", but tested on slides of four times the area with the same density of
lookalikes, so that a given number of false positives per slide is four times as strict."""


def arms_of(design: Design) -> dict[str, dict[str, Any]]:
    return {
        "longer": {"steps": design.steps + design.second_steps, "rounds": 0},
        "again": {"steps": design.steps, "rounds": 1, "hard_share": 0.0},
        "mined": {"steps": design.steps, "rounds": 1, "hard_share": 0.5},
    }


ARMS = ("longer", "again", "mined")
COMMON: dict[str, Any] = {
    "trunk": "tiny", "weights": "random", "mpp": MPP, "batch": 16, "rate": 0.03, "trunk_rate": 0.01,
    "schedule": "cosine", "evaluate_every": 10_000, "val_patches": 16, "stride": 16,
    "augment.hematoxylin": 0.2, "augment.eosin": 0.2, "augment.brightness": 0.1, "augment.contrast": 0.2,
    "augment.saturation": 0.1, "augment.hue": 0.01,
}  # fmt: skip


def cohort_of(folder: Path, seed: int, design: Design) -> Cohort:
    """Slides with micrometastases, follicles, histiocyte sheets, dense tissue and folds."""
    cases: list[Case] = []
    for split, (count, side, mimics) in (("train", design.train), ("test", design.test)):
        for number in range(count):
            name, tumour = f"{split}-{seed}-{number:02d}", number % 2 == 0
            phantom = SlidePhantom(
                mixed(seed, len(cases), 0x1417), side, side, MPP, site=f"{split}-{seed}-{number // 2 % 3}",
                tissue=0.7, micro=2 * tumour, itc=int(tumour), mimics=mimics, artefacts=("fold",),
            )  # fmt: skip
            slide_path = folder / f"{name}.tif"
            truth = truth_of(phantom) if slide_path.exists() else write_slide(phantom, slide_path)
            outlines = str(slide_path.with_suffix(".xml")) if truth.outlines else None
            if outlines:
                write_annotation_files(truth, Path(outlines))
            cases.append(
                Case(
                    name, f"patient-{name}", "slide", str(slide_path), mpp=MPP, split=split,
                    label="tumor" if tumour else "normal", annotation=outlines,
                )
            )  # fmt: skip
    return Cohort(tuple(cases))


def copy_first_round(other: Path, target: Path, overrides: dict[str, Any]) -> None:
    """Start a training from the first round and the hard negatives of another one."""
    make_folder(target / "round-1")
    settings = json.loads((other / "settings.json").read_text())
    settings["config"].update(overrides)
    (target / "settings.json").write_text(json.dumps(settings))
    shutil.copytree(other / "round-0", target / "round-0")
    shutil.copyfile(other / "round-1" / "hard.json", target / "round-1" / "hard.json")


def run(folder: Path, seed: int, design: Design) -> dict[str, list[SlideMatch]]:
    """Train each arm and match its findings on the unseen slides with the ground truth."""
    cohort = cohort_of(make_folder(folder / "slides"), seed, design)
    unseen = cohort.split("test")
    results_of_arm = {}
    for arm, overrides in arms_of(design).items():
        bundle = folder / arm
        has_started = (bundle / "training" / "settings.json").exists()
        if arm == "mined" and not has_started:
            copy_first_round(folder / "again" / "training", bundle / "training", overrides)
            has_started = True
        settings = {**COMMON, **overrides, "round_steps": design.second_steps}
        if (bundle / "model.json").exists():
            trained = read_bundle(bundle)
        else:
            trained = lobule.train("scannet", cohort, bundle, settings=settings, val=None, seed=seed)
        print(f"seed {seed}, {arm}: hard places {trained.metrics['hard_places']}", flush=True)
        results = folder / f"{arm}-results"
        lobule.scan(bundle, unseen, results)
        source = open_results_source(results, Options())
        judged_cases = [(case, source.case_result(case), case.label == "tumor") for case in unseen]
        matched = match_slides(judged_cases, Options())
        assert not matched.left_out, matched.left_out
        results_of_arm[arm] = list(matched.matches)
        print(
            f"seed {seed}, {arm}: FROC {bootstrap_froc(results_of_arm[arm], None, Resampling())}", flush=True
        )
    return results_of_arm


def table(folder: Path) -> dict[str, Any]:
    """Every arm and the paired differences, over the slides of all seeds."""
    seeds = [pickle.loads(path.read_bytes()) for path in sorted(folder.glob("seed-*.matches"))]
    pooled = {arm: [match for seed in seeds for match in seed[arm]] for arm in ARMS}
    slides = len(pooled["mined"])
    report: dict[str, Any] = {
        "seeds": len(seeds),
        "slides": slides,
        "arms": {},
        "differences": {},
        "sure": {},
    }
    for arm, matches in pooled.items():
        estimate_of_arm = bootstrap_froc(matches, None, Resampling())
        values_by_seed = [bootstrap_froc(seed[arm], None, Resampling()).value for seed in seeds]
        report["arms"][arm] = {
            **estimate_of_arm.to_dict(),
            "seeds": values_by_seed,
            "sure": float(confident_false_positives(matches).mean()),
        }
        print(
            f"{arm:8s} FROC {estimate_of_arm}   by seed "
            f"{', '.join(f'{value:.3f}' for value in values_by_seed)}; "
            f"{confident_false_positives(matches).mean():.2f} false positives above {CONFIDENT} a slide"
        )
    for arm in ("longer", "again"):
        difference = compare_froc(pooled["mined"], pooled[arm]).difference
        report["differences"][f"mined - {arm}"] = difference.to_dict()
        fewer = confident_false_positives(pooled[arm]) - confident_false_positives(pooled["mined"])
        estimate = Resampling().estimate(
            float(fewer.mean()),
            np.arange(slides),
            lambda weights, fewer=fewer: (weights @ fewer) / weights.sum(axis=1),  # type: ignore[misc]
            "slide",
        )
        report["sure"][f"{arm} - mined"] = estimate.to_dict()
        print(f"mined - {arm:7s} {difference}; {estimate} fewer false positives above {CONFIDENT} a slide")
    return report


def confident_false_positives(matches: list[SlideMatch]) -> NDArray[np.float64]:
    """For each slide, the number of false positives with a score above `CONFIDENT`."""
    return np.array([float((match.false_positives > CONFIDENT).sum()) for match in matches])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--design", choices=list(DESIGNS), default="large")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    folder = make_folder(options.out)
    if options.seed is not None:
        results = run(folder / f"seed-{options.seed}", options.seed, DESIGNS[options.design])
        (folder / f"seed-{options.seed}.matches").write_bytes(pickle.dumps(results))
    if options.table:
        (folder / "table.json").write_text(json.dumps(table(folder), indent=1))


if __name__ == "__main__":
    main()
