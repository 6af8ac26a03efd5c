"""Train on generated exams, and measure malignancy detection in test exams without and with heatmaps.

Two small four-view classifiers of equal size are trained on the same exams. One reads only the images. The
other also reads heatmaps, whose patch network is trained on the outlined lesions. Both score the same test
exams. The confidence interval of the difference of their areas comes from resampling exams.

    python experiments/four_view_training.py --folder exams-experiment

The script takes some minutes on one core. `--steps` selects the steps to run (exams, plain, heatmaps,
compare), and an interrupted step continues from its last checkpoint. All exams are generated.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import lobule
from lobule.phantoms.exams import write_exams

EXAMS, SIZE, SEED = 300, (1040, 760), 20
SPLITS = (("train", 0.62), ("val", 0.10), ("test", 0.28))
ARCHITECTURE: dict[str, Any] = {
    "window": "960x600", "move": "32,32", "resize": 0, "crop_iterations": 20, "crop_buffer": 10, "shrink": 8,
    "widths": "16,16,32,32,64", "pool": "max", "heatmap_cell": 16,
}  # fmt: skip
"""The classifiers read whole views at an eighth of the resolution; the patch network reads full
resolution."""
TRAINING: dict[str, Any] = {
    "swap_sides": True, "batch": 6, "steps": 1200, "rate": 0.002, "trunk_rate": 0.002, "birads_steps": 0,
    "evaluate_every": 100, "schedule": "cosine", "stop_after": 99, "positive_share": 0.7,
    "malignant_share": 0.8,
}  # fmt: skip
PATCH_ARCHITECTURE: dict[str, Any] = {
    "heatmaps": True, "patch": 96, "patch_stride": 40, "patch_growth": 8, "patch_blocks": "2,2,2,2",
    "patch_first_width": 16,
}  # fmt: skip
PATCH_TRAINING: dict[str, Any] = {
    "patch_steps": 6000, "patch_batch": 24, "patch_rate": 0.01, "val_patches": 480,
    "patch_shares": "0.3,0.2,0.2,0.3",
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"architecture": ARCHITECTURE, "reading": {"epochs": 3}, "training": TRAINING},
    "heatmaps": {
        "architecture": {**ARCHITECTURE, **PATCH_ARCHITECTURE},
        "reading": {"epochs": 3},
        "training": {**TRAINING, **PATCH_TRAINING},
    },
}
MACHINE: dict[str, Any] = {"device": "cpu", "precision": "float32", "workers": 1, "max_ram": 20 << 30}
"""The memory limit has room for all views and heatmaps, so that each is read or computed only once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("exams-experiment"))
    parser.add_argument("--steps", default="exams,plain,heatmaps,compare")
    parser.add_argument("--exams", type=int, default=EXAMS)
    options = parser.parse_args()
    steps = options.steps.split(",")
    manifest = options.folder / "exams" / "cohort.csv"
    if "exams" in steps and not manifest.exists():
        write_exams(options.folder / "exams", exams=options.exams, size=SIZE, seed=SEED, splits=SPLITS)
    for name in ("plain", "heatmaps"):
        if name in steps:
            learn_and_scan(name, manifest, options.folder)
    if "compare" in steps:
        compare(manifest, options.folder)


def learn_and_scan(name: str, manifest: Path, folder: Path) -> None:
    began, used = time.perf_counter(), time.process_time()
    if not (folder / name / "model.json").exists():
        lobule.train("four_view", manifest, folder / name, settings=RUNS[name], **MACHINE)
    unseen = lobule.read_cohort(manifest).split("test")
    lobule.scan(folder / name, unseen, folder / f"{name}-results", precision="float32")
    print(f"{name}: {time.process_time() - used:.0f} s of CPU, {time.perf_counter() - began:.0f} s in all")


def compare(manifest: Path, folder: Path) -> None:
    evaluation = lobule.evaluate(
        folder / "heatmaps-results", manifest, split="test", against=folder / "plain-results"
    )
    figures: dict[str, Any] = {}
    for task, report in evaluation.tasks.items():
        block = report["against"]["all"]["auroc"]
        figures[task] = {
            "breasts": report["all"]["breasts"],
            "positive": report["all"]["positive"],
            "with_heatmaps": report["all"]["auroc"],
            "image_only": block["b"],
            "difference": block["difference"],
            "p": block["p"],
        }
    (folder / "figures.json").write_text(json.dumps(figures, indent=1))
    print("| breasts | with heatmaps | image only | difference (95 % interval) | p |")
    print("|---|---|---|---|---|")
    for task, row in figures.items():
        area, gap = row["with_heatmaps"], row["difference"]
        print(
            f"| {task}: {row['positive']} of {row['breasts']} | {area['value']:.3f} "
            f"({area['low']:.3f} to {area['high']:.3f}) | {row['image_only']:.3f} | {gap['value']:+.3f} "
            f"({gap['low']:+.3f} to {gap['high']:+.3f}) | {row['p']:.3g} |"
        )
    print(f"written to {folder / 'figures.json'}")


if __name__ == "__main__":
    main()
