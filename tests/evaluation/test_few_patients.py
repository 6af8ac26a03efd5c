"""Intervals are blank for fewer than ten patients; the values remain."""

from __future__ import annotations

from pathlib import Path

import pytest

from lobule.cohort import Case
from lobule.evaluation import Options, evaluate_readers
from lobule.evaluation.few_patients import without_intervals
from lobule.evaluation.labels import plan_targets
from lobule.evaluation.sources import CaseResult
from lobule.evaluation.summary import shown
from lobule.evaluation.tasks import measure_classes

ESTIMATE = {"value": 0.8, "low": 0.6, "high": 0.9, "level": 0.95, "method": "bootstrap"}
BLOCK = {
    "cases": 30,
    "auroc": ESTIMATE,
    "operating_points": [{"threshold": 0.5, "sensitivity": ESTIMATE}],
    "calibration": {"bins": [{"low": 0.0, "high": 0.1, "cases": 3}]},
    "comparison": {"a": 0.8, "b": 0.7, "difference": ESTIMATE, "p": 0.03},
}


def test_ten_patients_have_intervals() -> None:
    assert without_intervals(BLOCK, 10) == BLOCK


def test_nine_patients_have_values_without_intervals() -> None:
    block = without_intervals(BLOCK, 9)
    point = block["operating_points"][0]["sensitivity"]
    for estimate in (block["auroc"], point, block["comparison"]["difference"]):
        assert (estimate["value"], estimate["low"], estimate["high"]) == (0.8, None, None)
        assert estimate["reason"] == "no interval: 9 patients, and at least 10 are needed"
    assert shown(block["auroc"]) == "0.8000"
    assert block["comparison"]["p"] is None
    assert block["comparison"]["a"] == 0.8
    assert block["calibration"] == BLOCK["calibration"], "the edges of a bin are not an interval"
    assert block["operating_points"][0]["threshold"] == 0.5


@pytest.mark.parametrize("patients", [9, 10])
def test_reader_study_has_intervals_from_ten_patients_on(tmp_path: Path, patients: int) -> None:
    rows = [
        f"p{number % patients},{number % 2},{number % 7},{number % 5},{number % 3}" for number in range(30)
    ]
    path = tmp_path / "study.csv"
    path.write_text("\n".join(["patient,malignant,reader1,reader2,ai", *rows]) + "\n")
    study = evaluate_readers(path, Options(resamples=20))
    assert [row["kind"] for row in study["rows"]] == [
        "reader",
        "reader",
        "model",
        "mean",
        "together",
        "mixed",
    ]
    for row in study["rows"]:
        for measure in ("auroc", "auprc", "ap"):
            assert row[measure]["value"] is not None
            assert (row[measure]["low"] is None) == (patients < 10)
            assert ("at least 10" in row[measure].get("reason", "")) == (patients < 10)


@pytest.mark.parametrize("patients", [9, 10])
def test_accuracy_of_classes_has_an_interval_from_ten_patients_on(patients: int) -> None:
    labels = ("normal", "benign", "invasive")
    case_results = [
        (
            Case(f"c{number}", f"p{number % patients}", "image", label=labels[number % 3]),
            CaseResult("complete", {name: float(name == labels[number % 2]) for name in labels}),
        )
        for number in range(30)
    ]
    accuracy = measure_classes(case_results, plan_targets(labels, labels))["accuracy"]
    assert accuracy["value"] == pytest.approx(1 / 3)
    assert (accuracy["low"] is None) == (patients < 10)
