"""ScanNet on the two real slides of the reference kit, compared with colour and with frozen features.

A dense model is trained on one slide and on the kit's patches of other patients (never the other slide's),
and then scans the other slide. The score of a 50-px tile is the mean of the map's cells in it. Patient
8913, the only other patient with normal tissue, is the validation split, on which the threshold for findings
is chosen; it is not used for training, because the normal tissue of training patients scores much lower than
that of unseen patients. The baselines
are those of the kit's BASELINES.md: logistic regression on colour, and on pooled SqueezeNet maps. Intervals
resample blocks of 5 × 5 tiles (1 mm), because neighbouring tiles are similar. Research use only.

    LOBULE_REFERENCE=… python experiments/scannet_kit.py OUT [--attempt NAME] [--direction 8863] [--seed 0]

prints a table and writes OUT/ATTEMPT-SEED.json. OUT also contains the model, the scans and the tile scores.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

import lobule
from lobule.bundles import read_bundle
from lobule.cohort import Case, Cohort
from lobule.files import make_folder
from lobule.measures.compare import compare_scores
from lobule.results.folder import open_results
from lobule.slides.slide import open_slide

SLIDES = ("8863", "8865")
MPP, TILE = 4.0, 50
BLOCK = 5 * TILE
TUMOUR_VALUE = 2
"""Value of tumour in the class masks; 1 is normal."""
VAL = ("8913",)
PATCHES = ("8913", "8917", "8918", "8950", "8951", "8955", "8956", "8957", "8959", "8974")

STAINS = {"augment.hematoxylin": 0.25, "augment.eosin": 0.25}
MILD = {"augment.brightness": 0.1, "augment.contrast": 0.2, "augment.saturation": 0.15, "augment.hue": 0.02}
COMMON: dict[str, Any] = {
    "rounds": 0, "schedule": "cosine", "val_patches": 64, "evaluate_every": 10_000,
}  # fmt: skip
TINY: dict[str, Any] = {
    "trunk": "tiny",
    "weights": "random",
    "enlarged": 4,
    "steps": 400,
    "batch": 32,
    "rate": 0.03,
    **STAINS,
    **MILD,
}
SQUEEZE: dict[str, Any] = {
    "trunk": "squeezenet1_1", "pretrained": True, "enlarged": 2, "steps": 200, "batch": 32, "rate": 3e-4,
    "trunk_rate": 1e-4, "clip": 2.0, **STAINS, **MILD,
}  # fmt: skip
ATTEMPTS: dict[str, dict[str, Any]] = {
    "tiny-2x": {**TINY, "enlarged": 2, "scan_stride": 8},
    "tiny-2x-short": {**TINY, "enlarged": 2, "scan_stride": 8, "steps": 120},
    "tiny-2x-slide-only": {**TINY, "enlarged": 2, "scan_stride": 8, "patches": ()},
    "tiny-2x-slide-only-short": {**TINY, "enlarged": 2, "scan_stride": 8, "patches": (), "steps": 70},
    "tiny-2x-macenko": {
        **TINY,
        "enlarged": 2,
        "scan_stride": 8,
        "steps": 70,
        "patches": VAL,
        "stains": "macenko",
    },
    "tiny-4x": TINY,
    "tiny-4x-slide-only": {**TINY, "patches": ()},
    "squeezenet-2x": {**SQUEEZE, "scan_stride": 8},
    "squeezenet-4x": {**SQUEEZE, "enlarged": 4},
}
"""Settings of `lobule train scannet`. "enlarged" is the factor by which slides and patches are enlarged
first, and "patches" are the patients whose patches are used for training in addition to the slide."""


# -- the cohort ---------------------------------------------------------------------------------------------


def mosaic(kit: Path, patient: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The patches of a patient at their original positions on white, and the classes of the pixels."""
    with (kit / "patches/idc/labels.csv").open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["patient"] == patient]
    left, top = (min(int(row[name]) for row in rows) - TILE for name in "xy")
    width, height = (max(int(row[name]) for row in rows) + 2 * TILE for name in "xy")
    pixels = np.full((height - top, width - left, 3), 255, np.uint8)
    mask = np.zeros(pixels.shape[:2], np.uint8)
    for row in rows:
        patch = np.asarray(Image.open(kit / "patches/idc" / row["file"]).convert("RGB"))
        x, y = int(row["x"]) - left, int(row["y"]) - top
        pixels[y : y + len(patch), x : x + patch.shape[1]] = patch
        mask[y : y + len(patch), x : x + patch.shape[1]] = 1 + int(row["label"])
    return pixels, mask


def enlarged_case(kit: Path, name: str, times: int, folder: Path) -> Case:
    """An enlarged slide of the kit, or a patient's mosaic, both stored with the same JPEG compression."""
    slide_path, mask_path = folder / f"{name}-{times}x.tif", folder / f"{name}_mask.png"
    if not slide_path.exists():
        if name in SLIDES:
            with open_slide(kit / f"slides/idc_{name}.tif", mpp=MPP) as slide:
                pixels = slide.backend.read(0, slide.bounds, 1)
            mask = np.asarray(Image.open(kit / f"slides/idc_{name}_mask.png"))
        else:
            pixels, mask = mosaic(kit, name)
        size = (pixels.shape[1] * times, pixels.shape[0] * times)
        Image.fromarray(mask).save(mask_path)
        write_tiff(
            slide_path,
            np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)),
            MPP / times,
        )
    has_tumour = bool((np.asarray(Image.open(mask_path)) == TUMOUR_VALUE).any())
    return Case(name, name, "slide", str(slide_path), mpp=MPP / times,
                split="val" if name in VAL else "train",
                label="1" if has_tumour else "0", annotation=str(mask_path))  # fmt: skip


def write_tiff(path: Path, pixels: NDArray[np.uint8], mpp: float, side: int = 256) -> None:
    """Write a tiled JPEG TIFF with the quality of the kit's slides."""
    rows, columns = -(-pixels.shape[0] // side), -(-pixels.shape[1] // side)
    padded = np.full((rows * side, columns * side, 3), 255, np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    tiles = (
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(padded[y : y + side, x : x + side]), quality=90, colorsubsampling="420"
        )
        for y in range(0, len(padded), side)
        for x in range(0, padded.shape[1], side)
    )
    tifffile.imwrite(
        path, tiles, shape=pixels.shape, dtype=np.uint8, tile=(side, side), photometric="ycbcr",
        subsampling=(2, 2), compression="jpeg", resolution=(1e4 / mpp,) * 2, resolutionunit="CENTIMETER",
    )  # fmt: skip


# -- tiles --------------------------------------------------------------------------------------------------


def tiles_of(kit: Path, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Corners (n, 2) and labels of the labelled tiles of a slide."""
    mask = np.asarray(Image.open(kit / f"slides/idc_{name}_mask.png"))
    tiles = [
        (x, y, int(mask[y + TILE // 2, x + TILE // 2]) - 1)
        for y in range(0, mask.shape[0] - TILE + 1, TILE)
        for x in range(0, mask.shape[1] - TILE + 1, TILE)
        if mask[y + TILE // 2, x + TILE // 2]
    ]
    table = np.array(tiles, np.int64)
    return table[:, :2], table[:, 2]


def tile_scores(results: Path, name: str, corners: NDArray[np.int64], times: int) -> NDArray[np.float64]:
    """The mean of the map's cells whose centres lie in each tile."""
    (reader,) = open_results(results).case_folder(name).maps.values()
    scores = reader.read()[0][0]
    step_x, step_y = (step / times for step in reader.info.l0_stride)
    column = (np.arange(scores.shape[1]) + 0.5) * step_x // TILE
    row = (np.arange(scores.shape[0]) + 0.5) * step_y // TILE
    return np.array([scores[row == y // TILE][:, column == x // TILE].mean() for x, y in corners])


# -- baselines ----------------------------------------------------------------------------------------------


def pixels_of(slide_path: Path, corners: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    with open_slide(slide_path, mpp=MPP) as slide:
        pixels = slide.backend.read(0, slide.bounds, 1)
    return [pixels[y : y + TILE, x : x + TILE] for x, y in corners]


def colour_features(tiles: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    return np.array([[*tile.mean(axis=(0, 1)), *tile.std(axis=(0, 1))] for tile in tiles])


def frozen_features(kit: Path, tiles: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Means of SqueezeNet's fire5 and fire9 maps of tiles enlarged to 224 px."""
    from safetensors.torch import load_file
    from torchvision.models import squeezenet1_1

    net = squeezenet1_1(weights=None)
    net.load_state_dict(load_file(kit / "weights/squeezenet1_1-imagenet-rgb.safetensors"))
    net.eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    features = []
    with torch.inference_mode():
        for start in range(0, len(tiles), 32):
            enlarged = [
                np.asarray(Image.fromarray(tile).resize((224, 224), Image.Resampling.BICUBIC))
                for tile in tiles[start : start + 32]
            ]
            images = ((torch.from_numpy(np.stack(enlarged)) / 255 - mean) / std).permute(0, 3, 1, 2)
            fire5 = net.features[:8](images)
            features.append(torch.cat([y.mean((2, 3)) for y in (fire5, net.features[8:](fire5))], dim=1))
    return torch.cat(features).double().numpy()


def baselines(kit: Path, folder: Path, train: str, test: str) -> dict[str, NDArray[np.float64]]:
    """Scores of the test slide's tiles by logistic regressions, trained as in BASELINES.md."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    store = folder / "features.npz"
    if not store.exists():
        stored: dict[str, Any] = {}
        for name in (*SLIDES, *PATCHES):
            if name in SLIDES:
                corners, labels = tiles_of(kit, name)
                tiles = pixels_of(kit / f"slides/idc_{name}.tif", corners)
            else:
                with (kit / "patches/idc/labels.csv").open(encoding="utf-8") as lines:
                    rows = [row for row in csv.DictReader(lines) if row["patient"] == name]
                labels = np.array([int(row["label"]) for row in rows])
                tiles = [
                    np.asarray(Image.open(kit / "patches/idc" / row["file"]).convert("RGB")) for row in rows
                ]
            stored[f"{name}/label"] = labels
            stored[f"{name}/colour"] = colour_features(tiles)
            stored[f"{name}/frozen"] = frozen_features(kit, tiles)
        np.savez(store, **stored)
    features = np.load(store)
    scores = {}
    for kind in ("colour", "frozen"):
        for source, names in (("other slide", (train,)), ("all other patients", (train, *PATCHES))):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
            x = np.concatenate([features[f"{name}/{kind}"] for name in names])
            model.fit(x, np.concatenate([features[f"{name}/label"] for name in names]))
            scores[f"{kind}, {source}"] = model.decision_function(features[f"{test}/{kind}"])
    return scores


# -- an attempt ---------------------------------------------------------------------------------------------


def attempt(kit: Path, folder: Path, name: str, train: str, test: str, seed: int) -> dict[str, Any]:
    """Train on one slide and patches, scan the other slide, and compare with every baseline."""
    settings = {**COMMON, **ATTEMPTS[name]}
    patients = settings.pop("patches", PATCHES)
    stride = settings.pop("scan_stride", 16)
    if settings.pop("pretrained", False):
        settings["weights"] = str(kit / "weights/squeezenet1_1-imagenet-rgb.safetensors")
    times = settings.pop("enlarged")
    settings["mpp"] = MPP / times
    store = make_folder(folder / "slides")
    bundle, results = folder / f"{name}-{train}-{seed}", folder / f"{name}-{train}-{seed}-scan"
    if not (bundle / "model.json").exists():
        cases = tuple(enlarged_case(kit, case_name, times, store) for case_name in (train, *patients))
        val = "val" if patients else None
        lobule.train("scannet", Cohort(cases), bundle, settings=settings, val=val, seed=seed)
    scanned = Cohort((enlarged_case(kit, test, times, store),))
    lobule.scan(bundle, scanned, results, stride=stride, tissue=False)
    corners, labels = tiles_of(kit, test)
    scores = tile_scores(results, test, corners, times)
    blocks = [f"{x // BLOCK},{y // BLOCK}" for x, y in corners]
    against = {}
    for baseline, baseline_scores in baselines(kit, folder, train, test).items():
        comparison = compare_scores(labels, scores, baseline_scores, blocks)
        against[baseline] = {"auc": comparison.b, "difference": comparison.difference.to_dict()}
        print(
            f"  {test}: {name} {comparison.a:.3f}, {baseline} {comparison.b:.3f}, difference "
            f"{comparison.difference}",
            flush=True,
        )
    np.savez(folder / f"{name}-{train}-{seed}-tiles.npz", corners=corners, labels=labels, scores=scores)
    return {
        "train": train,
        "test": test,
        "auc": comparison.a,
        "against": against,
        "above_threshold": above_threshold(bundle, scores, labels),
    }


def above_threshold(bundle: Path, scores: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """The threshold for findings, and the shares of normal and tumour tiles with a mean score above it."""
    chosen = read_bundle(bundle).calibration.get("cells", {}).get("threshold", 0.5)
    shares = {kind: float((scores[labels == label] > chosen).mean())
              for label, kind in ((0, "normal"), (1, "tumour"))}  # fmt: skip
    print(f"  above the threshold {chosen:.3f}: normal {shares['normal']:.3f}, tumour {shares['tumour']:.3f}")
    return {"threshold": chosen, **shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--attempt", default="tiny-2x", choices=list(ATTEMPTS))
    parser.add_argument(
        "--direction", choices=SLIDES, help="the slide for training (default: both, one after the other)"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kit, folder = Path(os.environ["LOBULE_REFERENCE"]) / "kit", make_folder(options.out)
    pairs = [(a, b) for a, b in (SLIDES, SLIDES[::-1]) if options.direction in (None, a)]
    directions = [attempt(kit, folder, options.attempt, train, test, options.seed) for train, test in pairs]
    report = {
        "attempt": options.attempt,
        "seed": options.seed,
        "settings": ATTEMPTS[options.attempt],
        "found": directions,
    }
    suffix = f"-{options.direction}" if options.direction else ""
    (folder / f"{options.attempt}-{options.seed}{suffix}.json").write_text(json.dumps(report, indent=1))
    print(f"mean AUC {np.mean([direction['auc'] for direction in directions]):.3f}")


if __name__ == "__main__":
    main()
