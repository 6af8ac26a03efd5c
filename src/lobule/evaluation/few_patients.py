"""Leave intervals blank, with the reason, where there are too few patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FEW_PATIENTS = 10
"""With fewer patients, resampling gives no reliable interval or p-value."""


def without_intervals(report: Mapping[str, Any], patients: int) -> dict[str, Any]:
    """Return a block of measures whose intervals and p-values are None where there are too few patients.

    Every estimate keeps its value; `low` and `high` become None and `reason` says why. With enough patients
    the block is returned as it is.
    """
    if patients >= FEW_PATIENTS:
        return dict(report)
    blanked = {name: _blanked(value, patients) for name, value in report.items()}
    if "difference" in blanked and "p" in blanked:
        blanked["p"] = None
    return blanked


def _blanked(value: Any, patients: int) -> Any:
    if isinstance(value, list):
        return [_blanked(item, patients) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "value" in value and value.get("low") is not None:
        noun = "patient" if patients == 1 else "patients"
        reason = f"no interval: {patients} {noun}, and at least {FEW_PATIENTS} are needed"
        return {**value, "low": None, "high": None, "reason": reason}
    return without_intervals(value, patients)
