"""The weakly supervised reproduction on Camelyon16, every step, on generated slides laid out alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lobule.bundles import read_bundle
from lobule.phantoms.cohorts import write_slide_cohort
from lobule.phantoms.phantom import SlidePhantom

SCRIPT = Path(__file__).parents[2] / "runs" / "camelyon16_chowder.sh"
SMALL = {
    "BACKBONE": "lobule:tiny", "WEIGHTS": "random", "MPP": "1.0", "TILE": "128", "INPUT": "224",
    "MODELS": "chowder max_pool", "FOLDS": "2", "REPEATS": "1", "DEVICE": "cpu", "PRECISION": "float32",
    "SETTINGS": "members=1 epochs=4 standardise=true l2=0", "RESAMPLES": "50", "OMP_NUM_THREADS": "1",
}  # fmt: skip


def run(data: Path, out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **SMALL, "CAMELYON16": str(data), "OUT": str(out), "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", str(SCRIPT)], env={**environment, **variables}, capture_output=True, text=True, timeout=900
    )


def test_a_missing_data_set_is_said(tmp_path: Path) -> None:
    bare = subprocess.run(
        ["bash", str(SCRIPT)], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert bare.returncode != 0
    assert "the folder of the data set" in bare.stderr


@pytest.mark.campaign
def test_every_step_runs_on_slides_laid_out_like_camelyon16(tmp_path: Path) -> None:
    like = SlidePhantom(0, 1536, 1024, 1.0, tissue=0.6, mimics=1)
    write_slide_cohort(
        tmp_path / "data", slides=16, split=(12, 0, 4), like=like, lesions=[(0, 1, 1)], layout="camelyon16",
        seed=3,
    )  # fmt: skip
    (tmp_path / "data" / "cohort.csv").unlink()  # the public set has no manifest
    out = tmp_path / "out"
    first = run(tmp_path / "data", out)
    assert first.returncode == 0, first.stdout + first.stderr
    for line in ("here, chowder", "here, max_pool", "0.903", "Research use only"):
        assert line in first.stdout, first.stdout
    bundle = read_bundle(out / "chowder" / "bundle")
    assert bundle.config["model"] == "chowder"
    assert bundle.metrics["cv_auc"] is not None
    assert (out / "chowder" / "bundle" / "encoder.safetensors").exists()
    data = json.loads((out / "chowder" / "evaluation" / "evaluation.json").read_text())
    assert data["tasks"]
    times_before = {path: path.stat().st_mtime_ns for path in out.rglob("model.json")}
    again = run(tmp_path / "data", out)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in times_before} == times_before
