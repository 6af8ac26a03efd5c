"""Intervals are blank for fewer than ten patients; the values remain."""

from __future__ import annotations

from lobule.evaluation.few_patients import without_intervals
from lobule.evaluation.summary import shown

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
