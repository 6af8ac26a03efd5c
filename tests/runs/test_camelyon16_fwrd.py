"""The reproduction of FW-RD on Camelyon16, every step of it, on generated slides laid out and named alike."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lobule.phantoms.cohorts import write_slide_cohort
from lobule.phantoms.phantom import SlidePhantom

SCRIPT = Path(__file__).parents[2] / "runs" / "camelyon16_fwrd.sh"
SMALL = {
    "SLIDES": "001 002", "TEACHER": "tiny", "WEIGHTS": "random", "VAL": "1", "FORM": "shared",
    "DEVICE": "cpu",
    "SETTINGS": "mpp=1 patch=32 input=32 stride=16 tumour_patches=24 normal_patches=40 epochs=2 batch=16 "
    "rate=0.005 val_patches=16",
    "RESAMPLES": "20", "OMP_NUM_THREADS": "1",
}  # fmt: skip


def run(data: Path, out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **SMALL, "CAMELYON16": str(data), "OUT": str(out), "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", str(SCRIPT)], env={**environment, **variables}, capture_output=True, text=True, timeout=900
    )


def test_a_missing_data_set_is_said(tmp_path: Path) -> None:
    done = run(tmp_path / "nowhere", tmp_path / "out")
    assert done.returncode == 2
    assert "no such folder" in done.stderr


@pytest.mark.campaign
def test_every_step_runs_on_slides_laid_out_like_camelyon16(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    like = SlidePhantom(0, 1024, 1024, 0.5, tissue=0.6)
    write_slide_cohort(
        data, slides=9, normal=0.4, split=(0.6, 0.0, 0.4), seed=2, like=like, layout="camelyon16",
        lesions=[(0, 0, 2)],
    )  # fmt: skip
    (data / "cohort.csv").unlink()  # the public set has no manifest
    first = run(data, out)
    assert first.returncode == 0, first.stdout + first.stderr
    for line in ("2 outlined slides learn", "FW-RD, ten slides", "learned from 2 outlined slides, 24 tumour"):
        assert line in first.stdout, first.stdout
    times_before = (out / "bundle/model.json").stat().st_mtime_ns
    again = run(data, out)
    assert again.returncode == 0, again.stderr
    assert (out / "bundle/model.json").stat().st_mtime_ns == times_before
