"""Options of ScanNet that the paper or public code describe: margins of mining, means, records, tissue."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from lobule.annotations import Annotation, Polygon
from lobule.cohort import Case, Cohort
from lobule.geometry import Size
from lobule.methods.scannet import Config
from lobule.methods.scannet.mining import far_from_outlines
from lobule.methods.scannet.predictor import highest_cell
from lobule.methods.scannet.train import train
from lobule.training.batch_record import BatchRecord
from lobule.training.fitting import FitProgress
from lobule.training.patch_sampling import Outlined, Runs, SlidePositions
from tests.methods.scannet.test_train import BRIEF, MACHINE, TISSUE, painted


def slide_with(*polygons: Polygon) -> SlidePositions:
    nothing = Runs.of(np.zeros((1, 1), np.bool_))
    case = Case("s", "p", "slide", "s.tif")
    slide: Any = None
    outlined = Outlined.of(Annotation(polygons)) if polygons else None
    return SlidePositions(
        case, slide, Size(9000, 9000), 0.25, (64.0, 64.0), 1, (nothing, nothing), nothing, (), outlined
    )


def test_mined_positions_keep_their_distance_from_outlines() -> None:
    rng = np.random.default_rng(2)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    ring = 4000 + 2500 * rng.uniform(0.3, 1, 9)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    hole = 4000 + np.array([(-60.0, -60), (60, -60), (60, 60), (-60, 60)])
    square = np.array([(8000.0, 100), (8800, 100), (8800, 900), (8000, 900)])
    excluded = np.array([(100.0, 8000), (900, 8000), (900, 8900), (100, 8900)])
    slide = slide_with(Polygon(ring, holes=(hole,)), Polygon(square), Polygon(excluded, kind="exclusion"))
    points = rng.uniform(0, 9000, (4000, 2))
    boundaries = shapely.union_all([shapely.LinearRing(r) for r in (ring, hole, square)])
    distance = shapely.distance(shapely.points(points), boundaries)
    clear = np.abs(distance - 122) > 0.5
    far = far_from_outlines(slide, points, 122)
    np.testing.assert_array_equal(far[clear], (distance >= 122)[clear])
    assert 20 < (~far).sum() < 2000
    assert far_from_outlines(slide, points, 0).all()
    assert far_from_outlines(slide_with(), points, 122).all()


def test_the_highest_mean_of_nine_cells_ignores_a_single_cell() -> None:
    rng = np.random.default_rng(4)
    layer = rng.random((7, 9)).astype(np.float32) / 10
    layer[3, 4] = 1.0
    padded = np.pad(layer, 1)
    means = [padded[row : row + 3, column : column + 3].mean() for row in range(7) for column in range(9)]
    assert highest_cell(layer) == 1.0
    assert highest_cell(layer, 3) == pytest.approx(max(means), abs=1e-6)
    assert Config().mean_cells == 1


def records(folder: Path) -> list[dict[str, str]]:
    with (folder / "training" / "round-0" / "batches.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_record_of_batches_survives_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = Cohort(
        (painted(tmp_path, "a", (200, 200, 360), 1, "train"), painted(tmp_path, "c", None, 3, "train"))
    )
    config = replace(BRIEF, steps=6, batch=4, evaluate_every=2, rounds=0, record_batches=True)
    arguments: dict[str, Any] = {"val": None, "tissue": TISSUE, "machine": MACHINE, "seed": 5}
    train(config, cohort, tmp_path / "whole", **arguments)
    uninterrupted = records(tmp_path / "whole")
    assert [row["batch"] for row in uninterrupted] == [str(n) for n in range(6) for _ in range(4)]
    assert {row["case"] for row in uninterrupted} == {"a", "c"}
    assert sum(row["class"] == "tumour" for row in uninterrupted) == 12
    for row in uninterrupted:
        inside = 200 <= float(row["l0_x"]) < 560 and 200 <= float(row["l0_y"]) < 560 and row["case"] == "a"
        assert inside == (row["class"] == "tumour")

    original = BatchRecord.__next__

    def stopped(self: BatchRecord) -> Any:
        if self._next == 5:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(BatchRecord, "__next__", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(config, cohort, tmp_path / "cut", progress=FitProgress(), **arguments)
    assert len(records(tmp_path / "cut")) == 20
    monkeypatch.setattr(BatchRecord, "__next__", original)
    train(config, cohort, tmp_path / "cut", resume=True, **arguments)
    assert records(tmp_path / "cut") == uninterrupted
