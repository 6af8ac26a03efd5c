"""Plots for publication: ROC, precision and recall, reliability and FROC, each as SVG and PNG."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobule.errors import MissingExtra
from lobule.evaluation.summary import Group, groups
from lobule.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Data = Mapping[str, Any]
Drawing = Callable[["Axes"], None]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""The palette of Okabe and Ito, which colour-blind readers can distinguish."""
DASHED: dict[str, Any] = {"color": "#808080", "linewidth": 0.6, "linestyle": (0, (4, 3))}
MOST_GROUPS = len(COLOURS) - 1
SIDE_INCHES = 3.35
"""The column width of most journals."""
DPI = 300
STYLE = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.facecolor": "white",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 6.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "lobule",
}


def need_plots() -> None:
    """Raise `MissingExtra` if matplotlib is missing; call it before the measures are computed."""
    if find_spec("matplotlib") is None:
        raise MissingExtra("plots", "Drawing plots")


def draw_evaluation(data: Data, folder: Path) -> list[Path]:
    """Draw the plots of an evaluation and return the paths of the files."""
    need_plots()
    import matplotlib as mpl

    files: list[Path] = []
    with mpl.rc_context(STYLE):
        for name, draw in _figures(data):
            figure, axes = _figure()
            draw(axes)
            files += save_figure(figure, folder / name)
    return files


def _figures(data: Data) -> Iterator[tuple[str, Drawing]]:
    many = len(data["tasks"]) > 1
    for target, report in data["tasks"].items():
        ending = f"-{_slug(target)}" if many else ""
        plotted_groups = _choose_groups(report, target)
        if report["all"]["roc"] is not None:
            yield f"roc{ending}", partial(draw_roc, plotted_groups=plotted_groups)
            yield f"precision-recall{ending}", partial(draw_precision_recall, plotted_groups=plotted_groups)
        if report["all"]["calibration"].get("bins"):
            yield f"reliability{ending}", partial(draw_reliability, block=report["all"])
    lesions = data["lesions"]
    if lesions is not None and lesions["all"]["froc"]["sensitivity"] is not None:
        yield "froc", partial(draw_froc, plotted_groups=_choose_groups(lesions, "lesions"))


def _choose_groups(report: Data, target: str) -> list[Group]:
    """All cases, and the values of the first column if there are few enough to distinguish them in a plot."""
    first_column = next(iter(report["by"]), None)
    candidates = [group for group in groups(report, target) if group.column in ("", first_column)]
    return candidates if len(candidates) <= 1 + MOST_GROUPS else candidates[:1]


def _title(group: Group) -> str:
    return f"{group.column} {group.value}" if group.column else "all"


# -- each plot ----------------------------------------------------------------------------------------------


def draw_roc(axes: Axes, plotted_groups: Sequence[Group]) -> None:
    axes.plot([0, 1], [0, 1], **DASHED)
    _draw_curves(axes, plotted_groups, "roc", "auroc")
    _square(axes, "1 − specificity", "sensitivity")
    _legend(axes, "AUROC (95 % interval)", "lower right")


def draw_precision_recall(axes: Axes, plotted_groups: Sequence[Group]) -> None:
    _draw_curves(axes, plotted_groups, "precision_recall", "ap")
    if plotted_groups[0].block["precision_recall"] is not None:
        axes.axhline(plotted_groups[0].block["prevalence"], **DASHED)
    _square(axes, "recall (sensitivity)", "precision (PPV)")
    _legend(axes, "average precision (95 % interval)", "lower left")


def _draw_curves(axes: Axes, plotted_groups: Sequence[Group], curve_name: str, area_name: str) -> None:
    for index, group in reversed(list(enumerate(plotted_groups))):
        curve = group.block[curve_name]
        if curve is not None:
            label = f"{_title(group)}: {_interval(group.block[area_name])}"
            axes.plot(curve["x"], curve["y"], label=label, clip_on=False, **_line(index))


def draw_reliability(axes: Axes, block: Data) -> None:
    calibration = block["calibration"]
    bins = [entry for entry in calibration["bins"] if entry["cases"]]
    most = max(entry["cases"] for entry in bins)
    lows, widths = zip(*((entry["low"], entry["high"] - entry["low"]) for entry in bins), strict=True)
    heights = [0.2 * entry["cases"] / most for entry in bins]
    axes.bar(lows, heights, widths, align="edge", color=COLOURS[0], alpha=0.18, linewidth=0)
    axes.plot([0, 1], [0, 1], **DASHED)
    x = [entry["mean_probability"] for entry in bins]
    y = [entry["share_positive"] for entry in bins]
    axes.plot(x, y, color=COLOURS[0], linewidth=1.0, marker="o", markersize=3, clip_on=False)
    _square(axes, "predicted probability", "share of positive cases")
    errors = f"ECE {calibration['expected_error']:.3f}\nBrier {calibration['brier']:.3f}"
    text = f"{errors}\nbars: cases, at most {most}"
    axes.text(0.04, 0.97, text, transform=axes.transAxes, va="top", fontsize=6.5)


def draw_froc(axes: Axes, plotted_groups: Sequence[Group]) -> None:
    rates = [float(rate) for rate in plotted_groups[0].block["froc"]["sensitivity_at"]]
    for index, group in reversed(list(enumerate(plotted_groups))):
        block = group.block
        if block["froc"]["sensitivity"] is None:
            continue
        x, y = block["froc"]["false_positives"], block["froc"]["sensitivity"]
        # Above the highest false-positive rate the official score uses the last sensitivity.
        x, y = [max(rates), *x], [y[0], *y]
        label = f"{_title(group)}: {_interval(block['froc_score'])}"
        line = _line(index)
        axes.plot(x, y, label=label, **line)
        at = list(block["froc"]["sensitivity_at"].values())
        axes.plot(rates, at, linestyle="none", marker="o", markersize=2.8, color=line["color"], clip_on=False)
    axes.set_xscale("log", base=2)
    axes.set_xlim(rates[0] / 2, rates[-1])
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.set_ylim(0, 1.01)
    axes.set_xlabel("mean false positives per slide")
    axes.set_ylabel("lesion sensitivity")
    at_low_rates = list(plotted_groups[0].block["froc"]["sensitivity_at"].values())[:3]
    location = "upper left" if max(at_low_rates) < 0.5 else "lower right"
    _legend(axes, "FROC score (95 % interval)", location)


# -- style --------------------------------------------------------------------------------------------------


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIDE_INCHES, SIDE_INCHES), layout="constrained")
    return figure, figure.add_subplot()


def _line(index: int) -> dict[str, Any]:
    """The style of a line; the first line shows all cases and is thicker."""
    emphasis = {"linewidth": 1.5, "zorder": 4} if index == 0 else {"linewidth": 0.9, "zorder": 3}
    return {"color": COLOURS[index], **emphasis}


def _square(axes: Axes, x: str, y: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _legend(axes: Axes, title: str, location: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles[::-1], labels[::-1], title=title, loc=location, title_fontsize=6.5)


def _interval(estimate: Data) -> str:
    if estimate["value"] is None:
        return "undefined"
    if estimate.get("low") is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f}–{estimate['high']:.3f})"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "target"


def save_figure(figure: Figure, base_path: Path) -> list[Path]:
    """Write a figure as SVG and PNG, and return the paths of the files."""
    files = []
    for suffix, metadata in ((".svg", {"Date": None}), (".png", None)):
        path = base_path.with_suffix(suffix)
        with write_atomic(path) as temporary_path:
            figure.savefig(temporary_path, dpi=DPI, metadata=metadata)
        files.append(path)
    return files
