"""The DICOM layout: exams are grouped by visit and slides by series."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lobule.cohort import read_cohort
from tests.cli.conftest import Lobule

pytest.importorskip("gdcm", reason="mammograms need the optional dependencies")


def test_exams_are_grouped_by_visit(lobule: Lobule, workspace: Path) -> None:
    generated = lobule("phantom", "exams", "dicom", "--count", "2", "--size", "300x400", "--form", "dicom")
    assert generated.status == 0, generated.err
    done = lobule("cohort", "dicom", "--from", "dicom", "--out", "found.csv", "--json")
    assert done.status == 0, done.err
    cohort, truth = read_cohort(workspace / "found.csv"), read_cohort(workspace / "dicom" / "cohort.csv")
    assert [case.views for case in cohort] == [case.views for case in truth]
    assert json.loads(done.out)["left_out"] == {}
    assert "good (mammogram, L-CC" in lobule("doctor", cohort.cases[0].views["l_cc"][0]).out


def test_slides_are_grouped_by_series(kit: Path, lobule: Lobule, workspace: Path) -> None:
    done = lobule("cohort", str(kit / "slides" / "fixtures"), "--from", "dicom", "--out", "series.csv")
    assert done.status == 0, done.err
    (case,) = read_cohort(workspace / "series.csv")
    assert case.kind == "slide"
    assert case.path == str(kit / "slides" / "fixtures")


def test_folder_without_dicom_is_an_error(lobule: Lobule) -> None:
    done = lobule("cohort", "photos", "--from", "dicom", "--out", "none.csv")
    assert done.status == 2
    assert "no DICOM slides and no DICOM mammograms" in done.err
