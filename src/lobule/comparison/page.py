"""The table of a comparison as a page: measures with intervals, costs, and accuracy against cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobule.errors import MissingExtra
from lobule.evaluation.plots import COLOURS, SIDE_INCHES, STYLE, need_plots, save_figure
from lobule.files import write_text
from lobule.reports.page import html_page, research_use, table, text, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE, PLOT = "index.html", "cost"
MARKERS = "osD^vP*X"
LEGEND_INCHES = 2.4
Data = Mapping[str, Any]


def write_page(data: Data, out: Path) -> None:
    """Write `index.html`, and the plot if rows differ in cost and matplotlib is installed."""
    plots = _write_plot(data, out)
    write_text(out / PAGE, comparison_page(data, plots))


def comparison_page(data: Data, plots: Sequence[str] = ()) -> str:
    """The page as HTML; `plots` are SVG pictures."""
    rows = [row for row in data["rows"] if row["status"] == "complete"]
    incomplete_rows = [row for row in data["rows"] if row["status"] != "complete"]
    sections = [research_use(), f"<p>{text(_introduction(data))}</p>", "<h2>Measures</h2>", _measures(rows)]
    if data["reference"] is not None:
        sections.append(
            f"<p class=note>Differences are those from {text(data['reference'])}, on the same resampled "
            "patients. In small type 95&nbsp;% intervals.</p>"
        )
    if failed := [row["name"] for row in rows if row["orientation_passed"] is False]:
        names = text(", ".join(failed))
        sections.append(
            f"<p class=note>Maps that failed the orientation check, so do not use them: {names}.</p>"
        )
    sections += ["<h2>What each row costs</h2>", _costs(rows)]
    sections.append(f"<p class=note>Assumed minutes per label: {text(words(data['minutes']))}.</p>")
    if plots:
        sections.append("<h2>Accuracy against annotation cost</h2>")
        sections += [f"<figure>{plot}</figure>" for plot in plots]
    if incomplete_rows:
        sections += ["<h2>Left out and failed</h2>", _incomplete(incomplete_rows)]
    return html_page("Comparison of methods", sections)


def _introduction(data: Data) -> str:
    counts = data["counts"]
    splits = ", ".join(f"{name} {count}" for name, count in counts.items())
    sites = data["sites"]
    origin = "one site" if len(sites) == 1 else f"{len(sites)} sites"
    return (
        f"All rows have the same cases: {splits}. "
        f"They are compared on the split '{data['split']}', with cases of {origin}."
    )


def _measures(rows: Sequence[Data]) -> str:
    header = [
        "row", "AUC", "difference", "p", "FROC", "difference", "p", "AUC of cells", "difference", "p", "Dice",
        "ECE", "Brier",
    ]  # fmt: skip
    return table(
        header,
        [
            [
                text(row["name"]), _cell(row["auroc"]), _cell(row["auroc_difference"]),
                _number(row["auroc_p"], 3), _cell(row["froc"]), _cell(row["froc_difference"]),
                _number(row["froc_p"], 3), _cell(row["cell_auc"]), _cell(row["cell_auc_difference"]),
                _number(row["cell_auc_p"], 3), _cell(row["dice"]), _number(row["expected_error"]),
                _number(row["brier"]),
            ]
            for row in rows
        ],
    )  # fmt: skip


def _costs(rows: Sequence[Data]) -> str:
    header = ["row", "learns from", "training cases", "annotation", "training", "scanning"]
    return table(
        header,
        [
            [
                text(row["name"]), text(row["learns_from"] or "not known"), str(row["training_cases"]),
                _duration(None if row["annotation_minutes"] is None else 60 * row["annotation_minutes"]),
                _duration(_sum(row["seconds"], ("extracting", "training"))),
                _duration(_sum(row["seconds"], ("scanning",))),
            ]
            for row in rows
        ],
    )  # fmt: skip


def _incomplete(rows: Sequence[Data]) -> str:
    cells = [[text(row["name"]), text(row["status"]), text(row["reason"])] for row in rows]
    return table(["row", "status", "reason"], cells)


def _sum(seconds: Mapping[str, float | None], steps: Sequence[str]) -> float | None:
    present = [value for step in steps if (value := seconds.get(step)) is not None]
    return sum(present) if present else None


def _cell(estimate: Data | None) -> str:
    from lobule.reports.page import estimate_cell

    return "–" if estimate is None else estimate_cell(estimate)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# -- the plot -----------------------------------------------------------------------------------------------


def _write_plot(data: Data, out: Path) -> list[str]:
    rows = [row for row in data["rows"] if row["status"] == "complete" and row["annotation_minutes"]]
    measures = [
        (name, title)
        for name, title in (("auroc", "AUC"), ("froc", "FROC score"))
        if any((row[name] or {}).get("value") is not None for row in rows)
    ]
    if len({row["annotation_minutes"] for row in rows}) < 2 or not measures:
        return []
    try:
        need_plots()
    except MissingExtra:  # The table is complete without the plot.
        return []
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        size = (SIDE_INCHES * len(measures) + LEGEND_INCHES, SIDE_INCHES * 0.9)
        figure = Figure(figsize=size, layout="constrained")
        all_axes = figure.subplots(1, len(measures), squeeze=False)[0]
        for axes, (name, title) in zip(all_axes, measures, strict=True):
            _draw(axes, rows, name, title)
        # Both plots have the same series; beside them, the legend covers no point.
        fullest = max((axes.get_legend_handles_labels() for axes in all_axes), key=lambda one: len(one[1]))
        figure.legend(*fullest, loc="outside right center")
        paths = save_figure(figure, out / PLOT)
    content = next(path for path in paths if path.suffix == ".svg").read_text(encoding="utf-8")
    return [content[content.index("<svg") :]]


def _draw(axes: Axes, rows: Sequence[Data], name: str, title: str) -> None:
    """One line per method and encoder, over the hours of annotation."""
    for number, (series, points) in enumerate(_series(rows, name)):
        x = [point["annotation_minutes"] / 60 for point in points]
        y = [point[name]["value"] for point in points]
        low = [point[name]["value"] - _end(point[name], "low") for point in points]
        high = [_end(point[name], "high") - point[name]["value"] for point in points]
        axes.errorbar(
            x, y, yerr=[low, high], label=series, color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)], markersize=3.5, linewidth=1, capsize=2, elinewidth=0.6,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("hours of annotation")
    axes.set_ylabel(f"{title}, with 95 % interval")


def _end(estimate: Data, end: str) -> float:
    value = estimate[end] if estimate[end] is not None else estimate["value"]
    return float(value)


def _series(rows: Sequence[Data], name: str) -> Iterator[tuple[str, list[Data]]]:
    """The rows of each method and encoder that have a measure, in the order of their cost."""
    groups: dict[tuple[str, str], list[Data]] = {}
    for row in rows:
        if (row[name] or {}).get("value") is not None:
            groups.setdefault((row["method"], row["encoder"] or ""), []).append(row)
    for (method, encoder), points in groups.items():
        yield (
            f"{method}, {encoder}" if encoder else method,
            sorted(points, key=lambda row: row["annotation_minutes"]),
        )
