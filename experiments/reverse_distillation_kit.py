"""Reverse distillation on the two real slides of the reference kit: trained on one, scored on the other.

The teacher is SqueezeNet with ImageNet weights; at most 100 tumour and 300 normal patches of one slide train
the student, by the focal loss and by the plain one. Tiles of 50 px of the other slide are cells of its map.
Beside them stand the kit's colour baseline (logistic regression on mean and spread of RGB, all tiles of the
other slide) and the same on the very patches of the budget. Intervals resample blocks of 5 × 5 tiles (1 mm),
since neighbouring tiles are alike. Nothing trained here is committed. Research use only.

    LOBULE_REFERENCE=… python experiments/reverse_distillation_kit.py OUT [--train 8863] [--train 8865]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import lobule
from lobule.bundles import Bundle, read_bundle
from lobule.cohort import Case, Cohort
from lobule.files import make_folder, write_json
from lobule.measures.compare import compare_scores
from lobule.measures.estimate import Resampling
from lobule.measures.roc import bootstrap_measure
from lobule.results.folder import open_results
from lobule.slides.slide import open_slide

SLIDES = ("8863", "8865")
MPP, TILE = 4.0, 50
BLOCK = 5 * TILE
SETTINGS: dict[str, Any] = {
    "teacher": "squeezenet1_1", "shortcut": 1, "mpp": MPP, "patch": TILE, "input": 96, "stride": TILE,
    "slides": 1, "tumour_patches": 100, "normal_patches": 300, "batch": 16, "epochs": 10, "rate": 5e-4,
    "augment.flips": True, "augment.quarter_turns": True, "augment.scale": 0.1, "augment.brightness": 0.12,
    "augment.saturation": 0.25, "augment.hue": 0.03, "augment.contrast": 0.3,
}  # fmt: skip
LOSSES = ("focal", "plain")


def case_of(kit: Path, name: str) -> Case:
    mask = str(kit / f"slides/idc_{name}_mask.png")
    return Case(name, name, "slide", str(kit / f"slides/idc_{name}.tif"), mpp=MPP, split="train", label="1",
                annotation=mask)  # fmt: skip


def tiles_of(kit: Path, name: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Corners (n, 2) and labels of the labelled tiles of a slide."""
    mask = np.asarray(Image.open(kit / f"slides/idc_{name}_mask.png"))
    middle = mask[TILE // 2 :: TILE, TILE // 2 :: TILE]
    rows, columns = np.nonzero(middle[: mask.shape[0] // TILE, : mask.shape[1] // TILE])
    return TILE * np.stack([columns, rows], axis=1), middle[rows, columns] == 2


def colours(kit: Path, name: str, corners: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean and spread of red, green and blue of tiles."""
    with open_slide(kit / f"slides/idc_{name}.tif", mpp=MPP) as slide:
        whole = slide.backend.read(0, slide.bounds, 1)
    tiles = [whole[y : y + TILE, x : x + TILE] for x, y in corners]
    return np.array([[*tile.mean(axis=(0, 1)), *tile.std(axis=(0, 1))] for tile in tiles])


def by_colour(
    features: NDArray[np.float64], labels: NDArray[np.bool_], of: NDArray[np.float64]
) -> NDArray[np.float64]:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(features, labels)
    scores: NDArray[np.float64] = model.decision_function(of)
    return scores


def places_of(bundle: Bundle) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Corners and labels of the patches that a bundle learned from."""
    rows = [line.split(",") for line in bundle.file("places.csv").read_text().splitlines()[1:]]
    corners = np.array([(round(float(x) - TILE / 2), round(float(y) - TILE / 2)) for _, _, x, y in rows])
    return np.maximum(corners, 0), np.array([kind == "tumour" for _, kind, _, _ in rows])


def distilled(
    kit: Path, folder: Path, loss: str, train: str, test: str
) -> tuple[Bundle, NDArray[np.float64]]:
    """Train on one slide with a loss; the raw scores of the other slide's tiles."""
    place = folder / f"{loss}-{train}"
    weights = str(kit / "weights/squeezenet1_1-imagenet-rgb.safetensors")
    if not (place / "bundle/model.json").exists():
        lobule.train(
            "reverse_distillation",
            Cohort((case_of(kit, train),)),
            place / "bundle",
            settings={**SETTINGS, "loss": loss, "weights": weights},
            machine={"device": "cpu", "workers": 1},
            val=None,
            fresh=True,
        )
    lobule.scan(place / "bundle", Cohort((case_of(kit, test),)), place / "results", tissue=None)
    (reader,) = open_results(place / "results").case_folder(test).maps.values()
    corners, _ = tiles_of(kit, test)
    scores = reader.read()[0][-1][corners[:, 1] // TILE, corners[:, 0] // TILE]
    return read_bundle(place / "bundle"), scores.astype(np.float64)


def direction(kit: Path, folder: Path, train: str, test: str) -> dict[str, Any]:
    """Every contender on the tiles of one slide, and the focal loss in pairs against the others."""
    corners, labels = tiles_of(kit, test)
    colour = colours(kit, test, corners)
    scores: dict[str, NDArray[np.float64]] = {}
    for loss in LOSSES:
        bundle, scores[loss] = distilled(kit, folder, loss, train, test)
        if loss == "focal":
            own, kinds = places_of(bundle)
            scores["colour, the same patches"] = by_colour(colours(kit, train, own), kinds, colour)
    other, truth = tiles_of(kit, train)
    scores["colour, all tiles of the other slide"] = by_colour(colours(kit, train, other), truth, colour)
    blocks = np.array([f"{x // BLOCK},{y // BLOCK}" for x, y in corners])
    how = Resampling(2000, seed=0)
    rows = {name: bootstrap_measure(labels, s, blocks, "auroc", how).to_dict() for name, s in scores.items()}
    against = {
        name: compare_scores(labels, scores["focal"], s, blocks, "auroc", how).to_dict()
        for name, s in scores.items()
        if name != "focal"
    }
    return {"tiles": len(labels), "tumour": int(labels.sum()), "auc": rows, "focal less": against}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", action="append", choices=SLIDES, help="both if not given")
    given = parser.parse_args()
    kit, out = Path(os.environ["LOBULE_REFERENCE"]) / "kit", make_folder(given.out)
    for train in given.train or SLIDES:
        test = SLIDES[1 - SLIDES.index(train)]
        found = direction(kit, out, train, test)
        write_json(out / f"{train}.json", found)
        print(f"trained on {train}, {found['tiles']} tiles of {test}, {found['tumour']} tumour")
        for name, auc in found["auc"].items():
            line = f"  {name:38s} {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]"
            if name in found["focal less"]:
                less = found["focal less"][name]["difference"]
                line += f"   focal less it {less['value']:+.3f} [{less['low']:+.3f}, {less['high']:+.3f}]"
            print(line, flush=True)


if __name__ == "__main__":
    main()
