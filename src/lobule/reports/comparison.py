"""The table that compares models on the same cases: one row per model, and their differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lobule.evaluation.summary import number
from lobule.reports.page import estimate_cell, table, text

Data = Mapping[str, Any]
RATES = ("0.25", "0.5", "1", "2", "4", "8")
"""False positives per slide at which sensitivity is shown."""


def comparison_table(
    models: Mapping[str, Data],
    *,
    difference: Data | None = None,
    colours: Mapping[str, str] | None = None,
) -> str:
    """Build the table from evaluations of the same cohort.

    Args:
        models: The data of each evaluation, by the name of its model.
        difference: The data of an evaluation with `against`, whose differences become the last row.
        colours: A CSS colour for the dot before the name of a model, as in the plots beside the table.
    """
    tasks = list(dict.fromkeys(name for data in models.values() for name in data["tasks"]))
    has_lesions = any(data.get("lesions") for data in models.values())
    header = ["model", *(["FROC", *(f"at {rate}" for rate in RATES)] if has_lesions else [])]
    header += [f"AUC of {text(task)}" for task in tasks]
    rows = [
        [_name(name, (colours or {}).get(name)), *_cells(data, tasks, has_lesions)]
        for name, data in models.items()
    ]
    if difference is not None:
        rows.append(["difference", *_differences(difference, tasks, has_lesions)])
    return table(header, rows)


def _name(name: str, colour: str | None) -> str:
    dot = "" if colour is None else f"<span class=dot style='background:{colour}'></span>"
    return dot + text(name)


def _cells(data: Data, tasks: list[str], has_lesions: bool) -> list[str]:
    cells = []
    if has_lesions:
        block = (data.get("lesions") or {}).get("all")
        at = {} if block is None else block["froc"]["sensitivity_at"] or {}
        cells += ["–" if block is None else estimate_cell(block["froc_score"])]
        cells += [number(at.get(rate), 2) for rate in RATES]
    for task in tasks:
        of_task = data["tasks"].get(task)
        cells.append("–" if of_task is None else estimate_cell(of_task["all"]["auroc"]))
    return cells


def _differences(data: Data, tasks: list[str], has_lesions: bool) -> list[str]:
    cells = []
    if has_lesions:
        lesions = (data.get("lesions") or {}).get("against")
        cells.append("–" if lesions is None else estimate_cell(lesions["all"]["froc"]["difference"]))
        cells += [""] * len(RATES)
    for task in tasks:
        against = (data["tasks"].get(task) or {}).get("against")
        cells.append("–" if against is None else estimate_cell(against["all"]["auroc"]["difference"]))
    return cells
