"""The DICOM layout: exams by visit, slides by series, and what was left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lobule.cohort import read_cohort
from tests.cli.conftest import Lobule

pytest.importorskip("gdcm", reason="mammograms need the extra")


def test_exams_are_grouped_as_they_were_made(lobule: Lobule, workspace: Path) -> None:
    made = lobule("phantom", "exams", "dicom", "--count", "2", "--size", "300x400", "--form", "dicom")
    assert made.status == 0, made.err
    done = lobule("cohort", "dicom", "--from", "dicom", "--out", "found.csv", "--json")
    assert done.status == 0, done.err
    found, truth = read_cohort(workspace / "found.csv"), read_cohort(workspace / "dicom" / "cohort.csv")
    assert [case.views for case in found] == [case.views for case in truth]
    assert json.loads(done.out)["left_out"] == {}
    assert "good (mammogram, L-CC" in lobule("doctor", found.cases[0].views["l_cc"][0]).out


def test_slides_are_found_by_series(kit: Path, lobule: Lobule, workspace: Path) -> None:
    done = lobule("cohort", str(kit / "slides" / "fixtures"), "--from", "dicom", "--out", "series.csv")
    assert done.status == 0, done.err
    (case,) = read_cohort(workspace / "series.csv")
    assert case.kind == "slide"
    assert case.path == str(kit / "slides" / "fixtures")


def test_a_folder_without_dicom_says_so(lobule: Lobule) -> None:
    done = lobule("cohort", "photos", "--from", "dicom", "--out", "none.csv")
    assert done.status == 2
    assert "no DICOM slides and no DICOM mammograms" in done.err
