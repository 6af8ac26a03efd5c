"""Tile AUC of Rakhlin's method and of CHOWDER on the two kit slides, with two versions of Lobule, in pairs.

Each version is a checkout. For each of the slides 8863 and 8865, both versions train on the same data without
the patient of that slide, with the defaults of that version wherever the experiment does not set something:

* `rakhlin`: the cohort and the settings of experiments/rakhlin_kit.py (labelled tiles and patches).
* `chowder`: the blocks of the other slide as bags (experiments/chowder_kit.py, four offsets), on features of
  SqueezeNet. The map of the whole slide is compared with the outlines, tile by tile.

Every tile that has a label counts; a tile that a map leaves out has the score 0. Intervals resample blocks of
5 × 5 tiles (1 mm), because neighbouring tiles are similar. Research use only.

    LOBULE_REFERENCE=… python experiments/kit_before_after.py OLD_CHECKOUT NEW_CHECKOUT OUT [--method chowder]

The script starts itself once per checkout and method with `--measure`, with the sources of that checkout.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from chowder_kit import OFFSETS, blocks
from rakhlin_kit import SETTINGS, cohort
from scannet_kit import BLOCK, MPP, SLIDES, TILE, tiles_of

import lobule
from lobule.cohort import Case, Cohort
from lobule.files import make_folder, write_json
from lobule.measures.compare import compare_scores
from lobule.results.folder import open_results

METHODS = ("rakhlin", "chowder")
WEIGHTS = "weights/squeezenet1_1-imagenet-rgb.safetensors"


def on_cpu() -> dict[str, Any]:
    """The argument that chooses the CPU, in the API of the checkout that is measured."""
    import lobule.methods

    return {"device": "cpu"} if hasattr(lobule.methods, "find_method") else {"machine": {"device": "cpu"}}


def train_rakhlin(kit: Path, out: Path, slide: str) -> None:
    """Train as experiments/rakhlin_kit.py does, without the patient of `slide`."""
    (other,) = set(SLIDES) - {slide}
    settings = {**SETTINGS, "weights": [str(kit / WEIGHTS)], "features": str(out / "features")}
    lobule.train("rakhlin", cohort(kit, out, other), out / f"without-{slide}", settings=settings, **on_cpu())


def train_chowder(kit: Path, out: Path, slide: str) -> None:
    """Train CHOWDER's default ensemble on the bags of the other slide."""
    (other,) = set(SLIDES) - {slide}
    bags = Cohort(tuple(case for offset in OFFSETS for case in blocks(kit, other, offset)))
    settings = {"features": str(features_of(kit, out))}
    lobule.train("chowder", bags, out / f"without-{slide}", settings=settings, val=None, **on_cpu())


def features_of(kit: Path, out: Path) -> Path:
    """The features of both slides, extracted by the checkout that is measured."""
    slides = Cohort(tuple(slide_case(kit, name) for name in SLIDES))
    report = lobule.extract_features(
        slides, out / "features", backbone="squeezenet1_1", weights=kit / WEIGHTS, mpp=MPP, tile=TILE,
        input_px=224, tissue_share=0.3, **on_cpu(),
    )  # fmt: skip
    assert not report.failed, report.failed
    return out / "features"


def slide_case(kit: Path, slide: str) -> Case:
    return Case(f"idc_{slide}", slide, "slide", str(kit / f"slides/idc_{slide}.tif"), mpp=MPP, label="1")


def measure(kit: Path, out: Path, method: str) -> None:
    """Train on one slide and scan the other, both ways, and write the score of every labelled tile."""
    for slide in SLIDES:
        settings: dict[str, Any] = {"map_augmentations": 1}
        if method == "rakhlin":
            train_rakhlin(kit, out, slide)
        else:
            train_chowder(kit, out, slide)
            settings = {"features": str(out / "features")}
        results = out / f"scan-{slide}"
        case = slide_case(kit, slide)
        report = lobule.scan(
            out / f"without-{slide}", Cohort((case,)), results, settings=settings, **on_cpu()
        )
        assert not report.failed, report.failed
        (reader,) = open_results(results).case_folder(case.id).maps.values()
        scores = reader.scores("1" if "1" in reader.info.classes else None)
        corners, labels = tiles_of(kit, slide)
        rows, columns = (corners // TILE).T[::-1]
        inside = (rows < scores.shape[0]) & (columns < scores.shape[1])
        tile_scores = np.zeros(len(corners))
        tile_scores[inside] = scores[rows[inside], columns[inside]]
        np.savez(out / f"tiles-{slide}.npz", corners=corners, labels=labels, scores=tile_scores)


def compare(before: Path, after: Path) -> dict[str, Any]:
    """The tile AUC of both versions on each slide, and the paired difference."""
    comparison_of_slide = {}
    for slide in SLIDES:
        old, new = (np.load(folder / f"tiles-{slide}.npz") for folder in (before, after))
        assert (old["corners"] == new["corners"]).all(), "the two versions scored different tiles"
        tile_blocks = [f"{x // BLOCK},{y // BLOCK}" for x, y in new["corners"]]
        paired = compare_scores(new["labels"], new["scores"], old["scores"], tile_blocks)
        comparison_of_slide[slide] = {
            "after": paired.a,
            "before": paired.b,
            "difference": paired.difference.to_dict(),
            "tiles": len(tile_blocks),
            "without_score": [int((tiles["scores"] == 0).sum()) for tiles in (old, new)],
        }
        print(f"{slide}: before {paired.b:.3f}, after {paired.a:.3f}, difference {paired.difference}")
    return comparison_of_slide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", choices=METHODS, help="both if not given")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    kit = Path(os.environ["LOBULE_REFERENCE"]) / "kit"
    if options.measure:
        measure(kit, make_folder(options.out), options.method)
        return
    for method in [options.method] if options.method else METHODS:
        folders = []
        for name, checkout in (("before", options.old), ("after", options.new)):
            folders.append(make_folder(options.out / method / name))
            experiments = checkout.resolve() / "experiments"
            environment = {**os.environ, "PYTHONPATH": f"{checkout.resolve() / 'src'}:{experiments}"}
            command = [sys.executable, "-P", __file__, str(options.old), str(options.new), str(folders[-1])]
            subprocess.run([*command, "--method", method, "--measure"], env=environment, check=True)
        print(method)
        write_json(options.out / f"{method}.json", compare(*folders))


if __name__ == "__main__":
    main()
