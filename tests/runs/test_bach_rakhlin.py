"""The reproduction on BACH, every step of it, on generated images laid out and named alike."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lobule.phantoms.images import CLASSES, write_images
from tests.methods.rakhlin.support import painted
from tests.scanning.support import write_slide

SCRIPT = Path(__file__).parents[2] / "runs" / "bach_rakhlin.sh"
SMALL = {
    "ENCODERS": "squeezenet1_1@features.3", "WEIGHTS": "random", "RECIPE": "quick", "DEVICE": "cpu",
    "SLIDES": "1",
    "SETTINGS": "sizes=30,40 boosting.folds=2 boosting.rounds=4 boosting.min_data_in_leaf=2 window=96",
    "MAP_SETTINGS": "stride=96", "RESAMPLES": "20", "OMP_NUM_THREADS": "1",
}  # fmt: skip


def run(data: Path, out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **SMALL, "BACH": str(data), "OUT": str(out), "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", str(SCRIPT)], env={**environment, **variables}, capture_output=True, text=True, timeout=600
    )


def test_a_missing_data_set_is_said(tmp_path: Path) -> None:
    done = run(tmp_path / "nowhere", tmp_path / "out")
    assert done.returncode == 2
    assert "no such folder" in done.stderr


@pytest.mark.campaign
def test_every_step_runs_on_images_laid_out_like_bach(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    write_images(data, 4, size=(160, 120), seed=2)
    (data / "cohort.csv").unlink()  # the public set has no manifest
    folder = data / "Test" / "Photos"
    folder.mkdir(parents=True)
    for number, label in ((0, "benign"), (11, "invasive"), (2, "normal")):
        Image.fromarray(painted(label, number)).save(folder / f"test{number}.tif")
    (data / "WSI").mkdir()
    micron = {"resolution": (1e4 / 0.42,) * 2, "resolutionunit": "CENTIMETER"}
    write_slide(data / "WSI" / "A01.tif", painted("invasive", 3, 400, 300), **micron)
    first = run(data, out)
    assert first.returncode == 0, first.stdout + first.stderr
    for line in ("87.2 ± 2.6", "two classes: accuracy", "3 predictions in", "1 slides"):
        assert line in first.stdout, first.stdout
    with (out / "pred.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["case"] for row in rows] == ["0", "2", "11"]
    assert {int(row["class"]) for row in rows} <= set(range(len(CLASSES)))
    assert (out / "maps/cases/A01/maps/map/zarr.json").exists()
    with (out / "bundle/training/out_of_fold.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == 16 * 3
    times_before = {path: path.stat().st_mtime_ns for path in (out / "bundle/model.json", out / "cohort.csv")}
    again = run(data, out)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in times_before} == times_before
