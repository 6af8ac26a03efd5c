"""Rakhlin's method on the two real slides of the reference kit, against colour and frozen features, in pairs.

For X = 8863 and 8865: trained on labelled 50-px tiles without patient X (regions of the other slide, and
patches of the ten patients who have one class each, written as JPEG as the slides are), then scanned over
slide X with a map cell a tile. Encoder: fire5 and fire9 of SqueezeNet with tiles enlarged 5 times and crops
of 224 px, as the kit's baselines have them; stains are not normalised, since a tile is too small to say them.
Baselines are those of the kit's BASELINES.md, made again by experiments/scannet_kit.py. Intervals resample
blocks of 5 × 5 tiles (1 mm), since neighbouring tiles are alike. Research use only.

    LOBULE_REFERENCE=… python experiments/rakhlin_kit.py OUT train|scan|ucsb [--without 8863]

`train` and `scan` are steps of one run, which continues where it was stopped; `scan` prints the table and
writes OUT/kit-X.json. `ucsb` runs the kit's UCSB images through a model that `train` made.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scannet_kit import BLOCK, MPP, PATCHES, SLIDES, TILE, baselines, tiles_of

import lobule
from lobule.cohort import Case, Cohort
from lobule.files import make_folder, write_json
from lobule.geometry import Box
from lobule.measures.compare import compare_scores
from lobule.results.folder import open_results

EACH = 60
"""Patches of a patient, and normal tiles of the training slide over five: the first of a seeded shuffle."""
SETTINGS: dict[str, Any] = {
    "encoders": ["squeezenet1_1@features.7+features.12"], "mpp": MPP, "scale": 5.0, "sizes": [224],
    "stains": "none", "augmentations": 2, "crops": 1, "boosting.folds": 5, "boosting.seeds": 3,
    "window": TILE, "stride": TILE, "map_augmentations": 1, "attributions": 0,
}  # fmt: skip


def cohort(kit: Path, folder: Path, slide: str) -> Cohort:
    """Tiles of one slide as its regions, and patches of the patients who have no slide."""
    rng = np.random.default_rng(0)
    corners, labels = tiles_of(kit, slide)
    chosen = np.concatenate(
        [np.flatnonzero(labels == 1), rng.permutation(np.flatnonzero(labels == 0))[: 5 * EACH]]
    )
    cases = [
        Case(f"{slide}-{x}-{y}", slide, "region", str(kit / f"slides/idc_{slide}.tif"), mpp=MPP,
             label=str(label), l0_box=Box(int(x), int(y), TILE, TILE))
        for (x, y), label in zip(corners[chosen], labels[chosen], strict=True)
    ]  # fmt: skip
    with (kit / "patches/idc/labels.csv").open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["patient"] in PATCHES]
    patch_folder = make_folder(folder / "patches")
    for patient in PATCHES:
        patient_rows = [row for row in rows if row["patient"] == patient]
        count = 5 * EACH if {row["label"] for row in patient_rows} == {"0"} else EACH
        for index in rng.permutation(len(patient_rows))[:count]:
            row = patient_rows[index]
            path = patch_folder / (Path(row["file"]).stem + ".jpg")
            if not path.exists():
                patch = Image.open(kit / "patches/idc" / row["file"]).convert("RGB")
                if patch.size != (TILE, TILE):
                    continue
                patch.save(path, quality=90)
            cases.append(Case(path.stem, patient, "image", str(path), mpp=MPP, label=row["label"]))
    return Cohort(tuple(cases))


def train(kit: Path, out: Path, without: str) -> None:
    (slide,) = set(SLIDES) - {without}
    bundle_folder = out / f"without-{without}"
    settings = {
        **SETTINGS,
        "weights": [str(kit / "weights/squeezenet1_1-imagenet-rgb.safetensors")],
        "features": str(out / "features"),
    }
    bundle = lobule.train("rakhlin", cohort(kit, out, slide), bundle_folder, settings=settings,
                          device="cpu")  # fmt: skip
    print(f"without {without}: out-of-fold accuracy {bundle.metrics['accuracy']:.3f}")


def scan(kit: Path, out: Path, slide: str) -> dict[str, Any]:
    case = Case(slide, slide, "slide", str(kit / f"slides/idc_{slide}.tif"), mpp=MPP, label="1")
    results = out / f"scan-{slide}"
    lobule.scan(
        out / f"without-{slide}", Cohort((case,)), results, device="cpu",
        settings={"map_augmentations": 1},
    )  # fmt: skip
    (reader,) = open_results(results).case_folder(slide).maps.values()
    scores = reader.read()[0][reader.info.classes.index("1")]
    corners, labels = tiles_of(kit, slide)
    tile_scores = scores[corners[:, 1] // TILE, corners[:, 0] // TILE].astype(np.float64)
    (other,) = set(SLIDES) - {slide}
    blocks = [f"{x // BLOCK},{y // BLOCK}" for x, y in corners]
    against = {}
    for name, theirs in baselines(kit, make_folder(out / "baselines"), other, slide).items():
        comparison = compare_scores(labels, tile_scores, theirs, blocks)
        against[name] = {"auc": comparison.b, "difference": comparison.difference.to_dict()}
        areas = f"rakhlin {comparison.a:.3f}, {name} {comparison.b:.3f}"
        print(f"{slide}: {areas}, difference {comparison.difference}")
    unscored = int((tile_scores == 0).sum())
    return {"slide": slide, "auc": comparison.a, "against": against, "tiles_without_a_score": unscored}


def ucsb(kit: Path, out: Path) -> dict[str, Any]:
    """Nine images of another laboratory and µm/px: every one ends with probabilities."""
    results = out / "ucsb"
    settings = {"scan_augmentations": 1}
    # their µm/px is unknown; with that of the model they are read unscaled
    report = lobule.scan(
        out / "without-8863", sorted((kit / "histology/ucsb/images").glob("*.jpg")), results, slide_mpp=MPP,
        settings=settings, device="cpu",
    )  # fmt: skip
    print(f"UCSB: {dict(report.counts)}")
    return {"counts": dict(report.counts), "failed": dict(report.failed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("step", choices=["train", "scan", "ucsb"])
    parser.add_argument("--without", choices=SLIDES, help="both if not given")
    options = parser.parse_args()
    kit, out = Path(os.environ["LOBULE_REFERENCE"]) / "kit", make_folder(options.out)
    if options.step == "ucsb":
        write_json(out / "ucsb.json", ucsb(kit, out))
        return
    for slide in [options.without] if options.without else SLIDES:
        if options.step == "train":
            train(kit, out, slide)
        else:
            write_json(out / f"kit-{slide}.json", json.loads(json.dumps(scan(kit, out, slide))))


if __name__ == "__main__":
    main()
