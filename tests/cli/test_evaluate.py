"""A scan and its evaluation through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lobule.bundles import patient_hash
from tests.cli.conftest import Lobule


def test_training_patients_are_refused_in_an_evaluation(lobule: Lobule, workspace: Path) -> None:
    shutil.copytree(workspace / "BUNDLE", workspace / "trained")
    model = workspace / "trained" / "model.json"
    description = json.loads(model.read_text())
    model.write_text(json.dumps({**description, "patients": [patient_hash("p1")]}))
    (workspace / "labelled.csv").write_text(
        "case,patient,label,slide\none,p1,tumor,slide.tif\ntwo,p2,normal,slide.tif\n"
    )
    assert lobule("scan", "trained", "labelled.csv", "--out", "scanned").status == 0
    assert json.loads((workspace / "scanned/patients.json").read_text())["patients"] == [patient_hash("p1")]
    done = lobule("evaluate", "scanned", "labelled.csv")
    assert done.status == 2
    assert "1 of the 2 patients" in done.err and "--allow-overlap" in done.err
    done = lobule("evaluate", "scanned", "labelled.csv", "--allow-overlap", "--resamples", "5", "--json")
    assert done.status == 0, done.err
    data = json.loads(done.out)
    assert data["overlap"]["patients"] == ["p1"]
    assert data["bundle"]["method"] == "scannet"
    # The same slide has both labels, so both cases have the same score.
    assert data["tasks"]["tumor"]["all"]["auroc"]["value"] == 0.5


def test_missing_results_or_cohort_is_a_short_error(lobule: Lobule) -> None:
    for arguments in ([], ["RESULTS"], ["cohort.csv", "RESULTS"], ["photos", "cohort-scanned.csv"]):
        done = lobule("evaluate", *arguments)
        assert done.status in (1, 2)
        assert "bug" not in done.err and done.err.strip().count("\n") == 0
