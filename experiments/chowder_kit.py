"""Bag models on real bags, a smoke test: two breast sections, blocks of tiles with one label a block.

The reference kit's `cohorts/idc_bags.csv` (blocks of 10 × 10 tiles of 50 px), SqueezeNet 1.1 with ImageNet
weights (tiles enlarged to 224 px, mean of the last maps), trained on the bags of one patient and judged on
those of the other, both ways. Bags of all four half-block offsets are trained on and judged; the plain bags
are judged too. Twenty-one bags of two patients measure nothing: this shows that the path works on real
tissue.

    LOBULE_REFERENCE=… python experiments/chowder_kit.py --work DIR --out FILE
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from chowder_comparators import HEADER, SEEDS, Unseen, fit_all, line, rows
from numpy.typing import NDArray
from PIL import Image

from lobule.api import extract_features
from lobule.cohort import Case, Cohort, read_cohort
from lobule.features import open_features
from lobule.geometry import Box
from lobule.methods.chowder.bags import Bag, gather

TILE, BLOCK = 50, 500
TISSUE_TILES, TUMOUR_TILES = 30, 3
"""The kit's rule: so many tissue tiles at least; positive from so many IDC tiles, left out with 1 or 2."""
OFFSETS = ((0, 0), (BLOCK // 2, 0), (0, BLOCK // 2), (BLOCK // 2, BLOCK // 2))


def classes_of(kit: Path, patient: str) -> NDArray[np.uint8]:
    """Class of every tile by the kit's mask: 0 none, 1 non-IDC, 2 IDC."""
    mask = np.asarray(Image.open(kit / "slides" / f"idc_{patient}_mask.png"))
    return mask[TILE // 2 :: TILE, TILE // 2 :: TILE]


def blocks(kit: Path, patient: str, offset: tuple[int, int]) -> list[Case]:
    """Bags by the rule of the kit, on a grid that starts at an offset."""
    tiles = classes_of(kit, patient)
    left, top = offset[0] // TILE, offset[1] // TILE
    side = BLOCK // TILE
    block_bags = []
    for row in range(top, tiles.shape[0], side):
        for column in range(left, tiles.shape[1], side):
            block = tiles[row : row + side, column : column + side]
            tumour = int((block == 2).sum())
            if int((block > 0).sum()) < TISSUE_TILES or 0 < tumour < TUMOUR_TILES:
                continue
            box = Box(column * TILE, row * TILE, block.shape[1] * TILE, block.shape[0] * TILE)
            name = f"bag_{patient}_{offset[0]}_{offset[1]}_r{row:02d}c{column:02d}"
            block_bags.append(
                Case(
                    name, patient, "region", str(kit / "slides" / f"idc_{patient}.tif"),
                    label=str(int(tumour > 0)), mpp=4.0, l0_box=box,
                )
            )  # fmt: skip
    return block_bags


def inside_of(kit: Path, bag: Bag) -> NDArray[np.bool_]:
    column, row = ((bag.l0_coords + TILE / 2) // TILE).astype(np.int64).T
    tiles = classes_of(kit, bag.case.patient)
    rows, columns = np.minimum(row, tiles.shape[0] - 1), np.minimum(column, tiles.shape[1] - 1)
    return np.asarray(tiles[rows, columns] == 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder for the features")
    parser.add_argument("--out", type=Path, required=True, help="output file: one JSON line per model")
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--models", default="", help="only models whose name contains this text")
    options = parser.parse_args()
    kit = Path(os.environ["LOBULE_REFERENCE"]) / "kit"
    patients = ("8863", "8865")
    slides = Cohort(
        tuple(
            Case(f"idc_{name}", name, "slide", str(kit / f"slides/idc_{name}.tif"), mpp=4.0)
            for name in patients
        )
    )
    report = extract_features(
        slides,
        options.work,
        backbone="squeezenet1_1",
        weights=kit / "weights" / "squeezenet1_1-imagenet-rgb.safetensors",
        mpp=4.0,
        tile=TILE,
        input_px=224,
        tissue_share=0.3,
        device="cpu",
        precision="float32",
    )
    assert not report.failed, report.failed
    folder = open_features(options.work)
    plain_cases = {name: blocks(kit, name, (0, 0)) for name in patients}
    cohort = read_cohort(kit / "cohorts" / "idc_bags.csv")
    bags_by_rule = sorted(
        (case.patient, case.label, str(case.l0_box)) for name in patients for case in plain_cases[name]
    )
    assert bags_by_rule == sorted((case.patient, case.label, str(case.l0_box)) for case in cohort), (
        "the bags differ from those of the kit"
    )
    offset_cases = {
        name: [case for offset in OFFSETS for case in blocks(kit, name, offset)] for name in patients
    }
    print(
        ", ".join(
            f"{name}: {len(offset_cases[name])} bags with offsets, {len(plain_cases[name])} plain"
            for name in patients
        )
    )
    print(HEADER)
    summaries = []
    for source, target in (patients, patients[::-1]):
        train = gather(Cohort(tuple(offset_cases[source])), folder).bags
        tests = []
        for setting, cases in (("four offsets", offset_cases[target]), ("plain bags", plain_cases[target])):
            bags = gather(Cohort(tuple(cases)), folder).bags
            inside = {bag.case.id: inside_of(kit, bag) for bag in bags}
            tests.append(Unseen(f"{source} → {target}, {setting}", bags, inside))
        chosen_rows = [row for row in rows(options.members, transmil_epochs=4) if options.models in row.name]
        summaries += fit_all(chosen_rows, train, tests, options.seeds, out=options.out)
    print("\n".join([HEADER, *map(line, summaries)]))


if __name__ == "__main__":
    main()
