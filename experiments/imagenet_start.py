"""What ScanNet gains when its trunk starts from ImageNet's weights in place of random ones.

Two trainings differ in the starting weights and in the trunk's learning rate, which is lower for weights that
were learned: same cohort, seed, batches and number of steps.

* `kit`: the two real slides of the reference kit, both directions, as in experiments/scannet_kit.py. Tile
  AUC; intervals resample blocks of 1 mm.
* `phantoms`: generated slides of new hospitals, half of them without tumour, as in
  experiments/scannet_mining.py. FROC; intervals resample slides.

ImageNet's VGG-16, ScanNet's own trunk, is 528 MB that torchvision downloads. The default of this script is
SqueezeNet 1.1, whose ImageNet weights are in the kit. Another trunk needs a file with its weights:

    LOBULE_REFERENCE=… python experiments/imagenet_start.py OUT --on kit
    LOBULE_REFERENCE=… python experiments/imagenet_start.py OUT --on phantoms --seed 0
    python experiments/imagenet_start.py OUT --on phantoms --trunk vgg16 --weights vgg16-397923af.pth

An interrupted run continues when it is started again. Research use only.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import scannet_kit
import scannet_mining
from scannet_kit import BLOCK, SLIDES

import lobule
from lobule.evaluation.lesions import match_slides
from lobule.evaluation.options import Options
from lobule.evaluation.sources import open_results_source
from lobule.files import make_folder, write_json
from lobule.measures.camelyon16 import SlideMatch
from lobule.measures.compare import compare_froc, compare_scores

ARMS = ("imagenet", "random")
STEPS, BATCH = 160, 16
DESIGN = scannet_mining.Design(train=(8, 2048, 4), test=(16, 2048, 6), steps=STEPS, second_steps=0)


def settings_of(arm: str, trunk: str, weights: Path) -> dict[str, Any]:
    """The settings of one training; random weights learn at the rate of the head, as by default."""
    common = {"trunk": trunk, "steps": STEPS, "batch": BATCH, "rate": 1e-3, "clip": 2.0}
    if arm == "random":
        return {**common, "weights": "random"}
    return {**common, "weights": str(weights), "trunk_rate": 3e-4}


def on_kit(kit: Path, folder: Path, trunk: str, weights: Path, seed: int) -> dict[str, Any]:
    """Tile AUC of both trainings on the slide that they did not see, and the paired difference."""
    for arm in ARMS:
        scannet_kit.ATTEMPTS[arm] = {
            **scannet_kit.STAINS, **scannet_kit.MILD, "enlarged": 2, "scan_stride": 8,
            **settings_of(arm, trunk, weights),
        }  # fmt: skip
    report = {}
    for train, test in (SLIDES, SLIDES[::-1]):
        tiles = {}
        for arm in ARMS:
            stored = folder / f"{arm}-{train}-{seed}-tiles.npz"
            if not stored.exists():
                scannet_kit.attempt(kit, folder, arm, train, test, seed)
            tiles[arm] = np.load(stored)
        corners, labels = tiles["random"]["corners"], tiles["random"]["labels"]
        blocks = [f"{x // BLOCK},{y // BLOCK}" for x, y in corners]
        paired = compare_scores(labels, tiles["imagenet"]["scores"], tiles["random"]["scores"], blocks)
        report[test] = {
            "imagenet": paired.a, "random": paired.b, "difference": paired.difference.to_dict(),
        }  # fmt: skip
        print(f"{test}: ImageNet {paired.a:.3f}, random {paired.b:.3f}, difference {paired.difference}")
    return report


def on_phantoms(folder: Path, trunk: str, weights: Path, seed: int) -> dict[str, Any]:
    """FROC of both trainings on unseen slides of unseen hospitals, and the paired difference."""
    cohort = scannet_mining.cohort_of(make_folder(folder / "slides"), seed, DESIGN)
    unseen = cohort.split("test")
    matches: dict[str, list[SlideMatch]] = {}
    for arm in ARMS:
        settings = {**scannet_mining.COMMON, "rounds": 0, **settings_of(arm, trunk, weights)}
        if arm == "random":
            del settings["trunk_rate"]
        bundle, results = folder / arm, folder / f"{arm}-results"
        if not (bundle / "model.json").exists():
            lobule.train("scannet", cohort, bundle, settings=settings, val=None, seed=seed)
        report = lobule.scan(bundle, unseen, results)
        assert not report.failed, report.failed
        source = open_results_source(results, Options())
        judged_cases = [(case, source.case_result(case), case.label == "tumor") for case in unseen]
        matches[arm] = list(match_slides(judged_cases, Options()).matches)
    paired = compare_froc(matches["imagenet"], matches["random"])
    print(f"FROC: ImageNet {paired.a:.3f}, random {paired.b:.3f}, difference {paired.difference}")
    return {"imagenet": paired.a, "random": paired.b, "difference": paired.difference.to_dict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--on", choices=("kit", "phantoms"), required=True)
    parser.add_argument("--trunk", default="squeezenet1_1")
    parser.add_argument("--weights", type=Path, help="ImageNet's weights (default: SqueezeNet's, in the kit)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kit = Path(os.environ.get("LOBULE_REFERENCE", "")) / "kit"
    weights = options.weights or kit / "weights/squeezenet1_1-imagenet-rgb.safetensors"
    folder = make_folder(options.out / f"{options.on}-{options.trunk}-{options.seed}")
    if options.on == "kit":
        report = on_kit(kit, folder, options.trunk, weights, options.seed)
    else:
        report = on_phantoms(folder, options.trunk, weights, options.seed)
    write_json(folder / "report.json", report)


if __name__ == "__main__":
    main()
