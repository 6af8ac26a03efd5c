"""The table of a comparison: one row of measures per entry, as JSON and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lobule.files import write_csv, write_json
from lobule.results.result import RESEARCH_USE

FORMAT = "lobule-comparison/1"
JSON, CSV = "table.json", "table.csv"
Data = Mapping[str, Any]

ESTIMATES = (
    "auroc",
    "froc",
    "jama",
    "cell_auc",
    "dice",
    "auroc_difference",
    "froc_difference",
    "cell_auc_difference",
)
PLAIN = (
    "name", "method", "encoder", "budget", "status", "reason", "learns_from", "training_cases",
    "annotation_minutes", "cases",
)  # fmt: skip
NUMBERS = (
    "expected_error",
    "brier",
    "auroc_p",
    "froc_p",
    "cell_auc_p",
    "sensitivity_at_half",
    "orientation_passed",
)
SECONDS = ("extracting_s", "training_s", "scanning_s", "validating_s")


def measures_of(evaluation: Data) -> dict[str, Any]:
    """The measures of a row from its evaluation; None where the cohort does not have what they need."""
    measures: dict[str, Any] = dict.fromkeys((*ESTIMATES, *NUMBERS))
    tasks = list(evaluation["tasks"].values())
    if tasks:
        block, against = tasks[0]["all"], (tasks[0].get("against") or {}).get("all")
        measures["cases"] = block[tasks[0]["unit"]]
        measures["auroc"] = _estimate(block["auroc"])
        measures["expected_error"] = block["calibration"].get("expected_error")
        measures["brier"] = block["calibration"].get("brier")
        if against is not None:
            measures["auroc_difference"] = _estimate(against["auroc"]["difference"])
            measures["auroc_p"] = against["auroc"]["p"]
    if (lesions := evaluation["lesions"]) is not None:
        block, against = lesions["all"], (lesions.get("against") or {}).get("all")
        measures["froc"] = _estimate(block["froc_score"])
        measures["jama"] = _estimate(block["jama_score"])
        measures["sensitivity_at_half"] = (block["froc"]["sensitivity_at"] or {}).get("0.5")
        if against is not None:
            measures["froc_difference"] = _estimate(against["froc"]["difference"])
            measures["froc_p"] = against["froc"]["p"]
    if (maps := evaluation["maps"]) is not None:
        measures["cell_auc"], measures["dice"] = _estimate(maps["cell_auc"]), _estimate(maps["dice"])
        measures["orientation_passed"] = maps["orientation_passed"]
        if (against := maps.get("against")) is not None:
            measures["cell_auc_difference"] = _estimate(against["cell_auc"]["difference"])
            measures["cell_auc_p"] = against["cell_auc"]["p"]
    return measures


def _estimate(estimate: Data) -> dict[str, Any]:
    return {name: estimate.get(name) for name in ("value", "low", "high")}


def table_data(rows: Sequence[Data], common: Data, reference: str | None) -> dict[str, Any]:
    """The content of `table.json`."""
    return {
        "format": FORMAT,
        "research_use": RESEARCH_USE,
        "reference": reference,
        **common,
        "rows": [dict(row) for row in rows],
    }


def write_table(data: Data, out: Path) -> None:
    """Write `table.json` and `table.csv`; in the latter, an estimate has three columns."""
    write_json(out / JSON, dict(data))
    columns = [*PLAIN]
    for name in ESTIMATES:
        columns += [name, f"{name}_low", f"{name}_high"]
    columns += [*NUMBERS, *SECONDS]
    write_csv(out / CSV, columns, [_flat(row) for row in data["rows"]])


def _flat(row: Data) -> dict[str, Any]:
    flat = {name: row.get(name) for name in (*PLAIN, *NUMBERS)}
    for name in ESTIMATES:
        estimate = row.get(name) or {}
        flat |= {name: estimate.get("value")}
        flat |= {f"{name}_{end}": estimate.get(end) for end in ("low", "high")}
    flat |= {f"{step}_s": seconds for step, seconds in (row.get("seconds") or {}).items()}
    return flat
