"""Remove confidence intervals, and state the reason, where there are too few patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FEW_PATIENTS = 10
"""With fewer patients, resampling patients gives no reliable interval or p-value."""


def without_intervals(measures: Mapping[str, Any], patient_count: int) -> dict[str, Any]:
    """Return the measures without intervals and p-values if there are too few patients.

    Every estimate keeps its value; `low` and `high` become None and `reason` says why. With enough patients
    the measures are returned unchanged.

    Args:
        measures: Names and estimates, which may be nested in lists and dictionaries.
        patient_count: Number of patients that the measures were computed from.
    """
    if patient_count >= FEW_PATIENTS:
        return dict(measures)
    remaining = {name: _without_interval(measure, patient_count) for name, measure in measures.items()}
    # A comparison of two models has a difference and its p-value.
    if "difference" in remaining and "p" in remaining:
        remaining["p"] = None
    return remaining


def _without_interval(value: Any, patient_count: int) -> Any:
    """Remove the interval of one estimate, or of every estimate in a list or dictionary."""
    if isinstance(value, list):
        return [_without_interval(item, patient_count) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "value" in value and value.get("low") is not None:
        noun = "patient" if patient_count == 1 else "patients"
        reason = f"no interval: {patient_count} {noun}, and at least {FEW_PATIENTS} are needed"
        return {**value, "low": None, "high": None, "reason": reason}
    return without_intervals(value, patient_count)
