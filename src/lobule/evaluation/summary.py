"""An evaluation as tables: one measure per row for `table.csv`, one group per row for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Data = Mapping[str, Any]

COLUMNS = (
    "level", "target", "column", "value", "measure", "estimate", "low", "high", "interval", "cases",
    "positive", "patients", "reason",
)  # fmt: skip
AREAS = ("auroc", "auroc_delong", "auprc", "ap")
SHOWN_STATUSES = (
    "partial", "failed", "unscored", "unfinished", "not_scanned", "without_label", "not_in_cohort",
)  # fmt: skip
CALIBRATION = ("expected_error", "largest_error", "brier", "log_loss")


@dataclass(frozen=True)
class Group:
    """The measures of one group of cases; `column` is empty for the group of all cases."""

    target: str
    column: str
    value: str
    block: Data


def groups(report: Data | None, target: str) -> Iterator[Group]:
    """The group of all cases, then one group for each value of each column; none without a report."""
    if report is not None:
        yield Group(target, "", "all", report["all"])
        for column, values in report.get("by", {}).items():
            for value, block in values.items():
                yield Group(target, column, value, block)


def measure_rows(data: Data) -> list[dict[str, Any]]:
    """Every measure of an evaluation, one per row."""
    rows: list[dict[str, Any]] = []
    for name, report in data["tasks"].items():
        for group in groups(report, name):
            rows += _task_rows(group, report["unit"])
        rows += _difference_rows(report, name, report["unit"], ("auroc", "auprc", "ap"))
    for name, report in patient_reports(data).items():
        for group in groups(report, name):
            rows += _task_rows(group, report["unit"])
        rows += _difference_rows(report, name, report["unit"], ("auroc", "auprc", "ap"))
    if data.get("maps") is not None:
        rows += _map_rows(data["maps"])
    if data["lesions"] is not None:
        for group in groups(data["lesions"], "lesions"):
            rows += _lesion_rows(group)
        rows += _difference_rows(data["lesions"], "lesions", "slides", ("froc", "jama_froc"))
    return rows


def _map_rows(maps: Data) -> list[dict[str, Any]]:
    group = Group("maps", "", "all", maps)
    counts = {"cases": maps["slides"], "positive": maps["outlined"]}
    return [
        _table_row("map", group, name, maps[name]) | counts for name in ("cell_auc", "dice", "orientation")
    ]


def map_table(maps: Data) -> tuple[list[str], list[list[str]]]:
    """The measures of maps in one row."""
    header = ["maps", "outlined", "AUC of cells (95 % interval)", "Dice", "orientation", "smoothing"]
    row = [str(maps["slides"]), str(maps["outlined"]), *[shown(maps[n]) for n in ("cell_auc", "dice")]]
    return header, [[*row, shown(maps["orientation"]), f"{maps['smooth']:g} cells"]]


def patient_reports(data: Data) -> Data:
    """The measures of patients for each target; empty if scores were not combined by patient."""
    patients = data.get("patients") or {}
    reports: Data = patients.get("tasks", {})
    return reports


def patient_sentence(patients: Data) -> str:
    """How the score and the label of a patient come about."""
    sentence = f"{patients['rule']}; {patients['labels']}"
    if patients["fitted_on"]:
        counts = sorted({fit["patients"] for fit in patients["fits"].values()})
        sentence += (
            f"; fitted to {', '.join(map(str, counts))} patients of the split '{patients['fitted_on']}'"
        )
    if patients["incomplete"]:
        sentence += f"; {patients['incomplete']} patients have slides without a score"
    return sentence


def _difference_rows(report: Data, target: str, unit: str, measures: Sequence[str]) -> list[dict[str, Any]]:
    return [
        _table_row("difference", group, measure, group.block[measure]["difference"])
        | {"cases": group.block[unit]}
        for group in groups(report.get("against"), target)
        for measure in measures
    ]


def _table_row(level: str, group: Group, measure: str, entry: Any) -> dict[str, Any]:
    estimate = entry if isinstance(entry, Mapping) else {"value": entry}
    return {
        "level": level,
        "target": group.target,
        "column": group.column,
        "value": group.value,
        "measure": measure,
        "estimate": estimate["value"],
        "low": estimate.get("low"),
        "high": estimate.get("high"),
        "interval": estimate.get("method"),
        "reason": estimate.get("reason"),
    }


def _task_rows(group: Group, unit: str) -> list[dict[str, Any]]:
    block, level = group.block, unit.removesuffix("s")
    counts = {"cases": block[unit], "positive": block["positive"], "patients": block["patients"]}
    measures: list[tuple[str, Any]] = [(name, block[name]) for name in AREAS]
    measures += [(name, block["calibration"].get(name)) for name in CALIBRATION]
    for point in block["operating_points"]:
        at = f"{point['chosen']} (threshold {point['threshold']:.6g})"
        measures += [(f"{rate}, {at}", point[rate]) for rate in ("sensitivity", "specificity")]
    return [_table_row(level, group, measure, value) | counts for measure, value in measures]


def _lesion_rows(group: Group) -> list[dict[str, Any]]:
    block = group.block
    counts = {"cases": block["slides"], "positive": block["lesions"], "patients": block["patients"]}
    measures: list[tuple[str, Any]] = [(name, block[name]) for name in ("froc_score", "jama_score")]
    curves = {"froc": block["froc"], "jama": block["jama"], **block["sensitivity_by_class"]}
    for name, curve in curves.items():
        at = curve["sensitivity_at"]
        measures += [(f"{name} sensitivity at {rate} false positives", value) for rate, value in at.items()]
    measures.append(("auroc of the highest confidence", block["highest_confidence_auc"]))
    return [_table_row("lesion", group, measure, value) | counts for measure, value in measures]


# -- for people ---------------------------------------------------------------------------------------------


def task_table(report: Data, target: str) -> tuple[list[str], list[list[str]]]:
    """One group per row: counts, areas with intervals, calibration."""
    unit = report["unit"]
    header = ["group", unit, "positive", "AUROC (95 % interval)", "DeLong", "AUPRC", "AP", "ECE", "Brier"]
    rows = []
    for group in groups(report, target):
        block = group.block
        rows.append([
            _title(group), str(block[unit]), str(block["positive"]), shown(block["auroc"]),
            shown(block["auroc_delong"], value=False), shown(block["auprc"]), shown(block["ap"]),
            number(block["calibration"].get("expected_error")), number(block["calibration"].get("brier")),
        ])  # fmt: skip
    return header, rows


def lesion_table(report: Data) -> tuple[list[str], list[list[str]]]:
    """One group per row: counts, the FROC score with its interval, sensitivity at each rate."""
    rates = list(report["all"]["froc"]["sensitivity_at"])
    header = ["group", "slides", "lesions", "FROC (95 % interval)", *[f"at {rate}" for rate in rates], "JAMA"]
    rows = []
    for group in groups(report, "lesions"):
        block = group.block
        at = block["froc"]["sensitivity_at"]
        rows.append([
            _title(group), str(block["slides"]), str(block["lesions"]), shown(block["froc_score"]),
            *[number(at[rate]) for rate in rates], number(block["jama_score"]["value"]),
        ])  # fmt: skip
    return header, rows


def class_table(block: Data) -> tuple[list[str], list[list[str]]]:
    """Sensitivity by the size of the lesion, at the rates of the official curve."""
    by_class = block["sensitivity_by_class"]
    rates = list(next(iter(by_class.values()))["sensitivity_at"])
    rows = [
        [name, str(entry["lesions"]), *[number(entry["sensitivity_at"][rate]) for rate in rates]]
        for name, entry in by_class.items()
    ]
    return ["size", "lesions", *[f"at {rate}" for rate in rates]], rows


def point_table(block: Data) -> tuple[list[str], list[list[str]]]:
    """One operating point per row: how its threshold was chosen, and its measures."""
    header = ["operating point", "threshold", "sensitivity", "specificity", "PPV", "NPV"]
    names = ("sensitivity", "specificity", "positive_predictive_value", "negative_predictive_value")
    rows = [
        [point["chosen"], f"{point['threshold']:.4g}", *[shown(point[name], digits=3) for name in names]]
        for point in block["operating_points"]
    ]
    return header, rows


def difference_table(report: Data) -> tuple[list[str], list[list[str]]]:
    """The difference, this source minus the other, for all cases and for each group."""
    header = ["group", "measure", "this", "other", "difference (95 % interval)", "p"]
    rows = []
    for group in groups(report.get("against"), ""):
        for measure, entry in group.block.items():
            if isinstance(entry, Mapping):
                rows.append([
                    _title(group), measure, number(entry["a"]),
                    number(entry["b"]), shown(entry["difference"]), number(entry["p"], 3),
                ])  # fmt: skip
    return header, rows


def reader_table(data: Data) -> tuple[list[str], list[list[str]]]:
    """One rater per row, with four digits as in published tables."""
    header = ["rater", "AUROC (95 % interval)", "AUPRC", "AP", "spread of AUROC"]
    partial = data.get("max_fpr")
    if partial is not None:
        header.append(f"partial AUROC to {partial:g}")
    rows = [
        [
            row["name"], shown(row["auroc"]), number(row["auprc"]["value"]), number(row["ap"]["value"]),
            number(row.get("spread", {}).get("auroc")),
            *([] if partial is None else [number(row["partial_auc"])]),
        ]
        for row in data["rows"]
    ]  # fmt: skip
    return header, rows


def reader_comparison_table(data: Data) -> tuple[list[str], list[list[str]]]:
    """The paired differences of models and readers in AUROC."""
    header = ["model", "reader", "AUROC of the model minus the reader's (95 % interval)", "p"]
    rows = [
        [row["model"], row["reader"], shown(row["difference"]), number(row["p"])]
        for row in data["comparisons"]
    ]
    return header, rows


def _title(group: Group) -> str:
    return f"{group.column} = {group.value}" if group.column else "all"


def number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def shown(estimate: Data, *, value: bool = True, digits: int = 4) -> str:
    """An estimate as "0.9123 (0.8801 to 0.9402)", or its interval alone; a dash if it is undefined."""
    if estimate["value"] is None:
        return "–"
    text = number(estimate["value"], digits)
    if estimate.get("low") is None:
        return text if value else "–"
    interval = f"{number(estimate['low'], digits)} to {number(estimate['high'], digits)}"
    return f"{text} ({interval})" if value else interval


def case_sentences(data: Data) -> list[tuple[str, str]]:
    """The status of the cases, as pairs of a name and a sentence."""
    cases = data["cases"]
    lines = [("cases", f"{cases['cohort']} of {cases['patients']} patients, {cases['complete']} complete")]
    for name in SHOWN_STATUSES:
        if cases[name]:
            lines.append((name.replace("_", " "), f"{len(cases[name])}: {_first_few(cases[name])}"))
    if left_out := data["lesions_left_out"]:
        lines.append(("no lesion level", f"{len(left_out)}: {_first_few(left_out)}"))
    return lines


def _first_few(names: Mapping[str, str] | Sequence[str], limit: int = 4) -> str:
    if isinstance(names, Mapping):
        entries = [name if cause == name else f"{name} ({cause})" for name, cause in names.items()]
    else:
        entries = list(names)
    remainder = f" and {len(entries) - limit} more" if len(entries) > limit else ""
    return ", ".join(entries[:limit]) + remainder
