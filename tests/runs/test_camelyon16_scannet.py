"""The reproduction on Camelyon16, every step of it, on generated slides laid out and named alike."""

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

SCRIPT = Path(__file__).parents[2] / "runs" / "camelyon16_scannet.sh"
SMALL = {
    "TRUNK": "tiny", "WEIGHTS": "random", "STEPS": "8", "BATCH": "4", "ROUNDS": "1", "ROUND_STEPS": "2",
    "STRIDE": "32", "SETTINGS": "mpp=0.5 rate=0.03 evaluate_every=8 val_patches=16 threshold=0.3 trees=20",
    "DEVICE": "cpu", "RESAMPLES": "50", "OMP_NUM_THREADS": "1",
}  # fmt: skip


def run(data: Path, out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **SMALL, "CAMELYON16": str(data), "OUT": str(out), "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", str(SCRIPT)], env={**environment, **variables}, capture_output=True, text=True, timeout=900
    )


def test_a_missing_data_set_is_said(tmp_path: Path) -> None:
    done = run(tmp_path / "nowhere", tmp_path / "out")
    assert done.returncode != 0
    assert "no such folder" in done.stderr
    bare = subprocess.run(
        ["bash", str(SCRIPT)], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert bare.returncode != 0
    assert "the folder of the data set" in bare.stderr


@pytest.mark.campaign
def test_every_step_runs_on_slides_laid_out_like_camelyon16(tmp_path: Path) -> None:
    """Fourteen training slides, enough of each kind for a forest, and four test slides."""
    like = SlidePhantom(0, 2560, 2048, 0.5, tissue=0.6, mimics=1)
    write_slide_cohort(
        tmp_path / "data", slides=18, split=(14, 0, 4), like=like, lesions=[(0, 1, 1)], layout="camelyon16",
        seed=4,
    )  # fmt: skip
    (tmp_path / "data" / "cohort.csv").unlink()  # the public set has no manifest
    out = tmp_path / "out"
    first = run(tmp_path / "data", out)
    assert first.returncode == 0, first.stdout + first.stderr
    for line in ("14 slides for training, 4 for testing", "gallery.html", "The submission gives the same"):
        assert line in first.stdout, first.stdout
    bundle = read_bundle(out / "bundle")
    assert bundle.config["slide_score"] == "forest"
    assert 0 <= bundle.metrics["slide_auc_out_of_fold"] <= 1
    for name in ("evaluation", "evaluation-nms", "evaluation-submission"):
        data = json.loads((out / name / "evaluation.json").read_text())
        assert data["cases"]["complete"] == 4
        assert data["lesions"]["all"]["slides"] == 4
        assert data["lesions"]["all"]["lesions"] >= 1
        assert data["lesions"]["all"]["froc_score"]["value"] is not None
    assert len(list((out / "submission" / "detections").glob("Test_*.csv"))) == 4
    # a second run repeats nothing: neither the cohort nor the training nor a scan
    times_before = {
        path: path.stat().st_mtime_ns for path in [out / "cohort.csv", out / "bundle" / "model.json"]
    }
    times_before |= {path: path.stat().st_mtime_ns for path in out.glob("results/cases/*/result.json")}
    assert len(times_before) == 6
    again = run(tmp_path / "data", out)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in times_before} == times_before
    assert again.stdout.splitlines()[-8:] == first.stdout.splitlines()[-8:]
