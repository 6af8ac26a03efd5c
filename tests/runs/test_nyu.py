"""The run with NYU's published weights, every step of it, on stand-ins: their layout, made-up values."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lobule.bundles import read_bundle
from lobule.mammograms.views import VIEWS
from lobule.nets.four_view import ViewWise, patch_densenet
from lobule.phantoms.exams import write_exams
from lobule.results import open_results
from tests.methods.four_view.support import seeded
from tests.methods.four_view.test_convert import published

SCRIPT = Path(__file__).parents[2] / "runs" / "nyu.sh"


def run(**variables: object) -> subprocess.CompletedProcess[str]:
    settings = {name: str(value) for name, value in variables.items()}
    defaults = {"PYTHON": sys.executable, "DEVICE": "cpu", "OMP_NUM_THREADS": "1", "RESAMPLES": "20"}
    return subprocess.run(
        ["bash", str(SCRIPT)],
        env={**os.environ, **defaults, **settings},
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    bare = subprocess.run(
        ["bash", str(SCRIPT)], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert bare.returncode != 0
    assert "the folder of the published weights" in bare.stderr
    done = run(WEIGHTS=tmp_path / "nowhere", EXAMS=tmp_path)
    assert (done.returncode, "no such folder" in done.stderr) == (2, True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "cohort.csv").write_text("case,patient,l_cc\n")
    done = run(WEIGHTS=tmp_path / "empty", EXAMS=tmp_path / "cohort.csv", OUT=tmp_path / "out")
    assert done.returncode == 2
    assert "none of the published files" in done.stderr


def stand_ins(folder: Path) -> None:
    """Checkpoints of the published size and layout."""
    folder.mkdir()
    torch.save({"model": published(seeded(ViewWise(1), "view-image"))}, folder / "sample_image_model.p")
    torch.save(
        {"model": published(seeded(ViewWise(3), "view-heatmaps"))}, folder / "sample_imageheatmaps_model.p"
    )
    torch.save(seeded(patch_densenet(), "patch").state_dict(), folder / "sample_patch_model.p")


@pytest.mark.campaign
@pytest.mark.parametrize("form", ["dicom", "list"])
def test_every_step_runs_on_stand_ins(tmp_path: Path, form: str) -> None:
    stand_ins(tmp_path / "weights")
    manifest = write_exams(
        tmp_path / "made", exams=2, size=(960, 702), seed=6, form="dicom" if form == "dicom" else "png",
        malignant=0.6,
    )  # fmt: skip
    exams = tmp_path / "made" / "images"
    if form == "list":
        truth = json.loads((tmp_path / "made" / "truth.json").read_text())
        exam_list = [
            {
                "horizontal_flip": "NO",
                **{view: [f"{case}_{view}"] for view in VIEWS},
                "cancer_label": {name: int(value) for name, value in exam_truth["labels"].items()},
            }
            for case, exam_truth in sorted(truth.items())
        ]
        exams = tmp_path / "made" / "exam_list.pkl"
        exams.write_bytes(pickle.dumps(exam_list))
    else:
        manifest.unlink()
    out = tmp_path / "out"
    paths = {"WEIGHTS": tmp_path / "weights", "EXAMS": exams, "OUT": out, "COMPAT": "nyu"}
    if form == "list":
        paths["IMAGES"] = tmp_path / "made" / "images"
    done = run(**paths, SETTINGS="reading.epochs=1 reading.augmentation=false")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("image", "heatmaps"):
        assert read_bundle(out / name).provenance
        lines = (out / f"{name}.csv").read_text().splitlines()
        assert lines[0] == "case,left_benign,right_benign,left_malignant,right_malignant"
        scores = [[float(cell) for cell in line.split(",")[1:]] for line in lines[1:]]
        assert len(scores) == 2 and len({cell for row in scores for cell in row}) > 4
        assert all(
            case.result["status"] == "complete" for case in open_results(out / f"{name}-results").cases()
        )
    if form == "list":
        assert json.loads((out / "heatmaps-evaluation" / "evaluation.json").read_text())["against"]
    else:
        assert "no labels, so nothing to evaluate" in done.stdout
    written = {path: path.stat().st_mtime_ns for path in out.glob("*-results/cases/*/result.json")}
    assert len(written) >= 4
    again = run(**paths, SETTINGS="reading.epochs=1 reading.augmentation=false")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in written} == written  # nothing was scanned twice
