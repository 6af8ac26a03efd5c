"""The label-budget curve: the performance of a method trained on 1, 2, 5, 10 or 20 outlined slides.

Each budget is trained, scanned and evaluated in a separate folder, so an interrupted curve can be continued.
The slides of a smaller budget are a subset of those of a larger budget.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lobule.errors import ConfigError, ResultsError, UsageError
from lobule.files import make_folder, read_json, write_json, write_text
from lobule.settings import describe

if TYPE_CHECKING:
    from lobule.cohort import Cohort

SLIDES = (1, 2, 5, 10, 20)
SETTING = "slides"
"""The setting of a method that limits its outlined slides."""
REQUEST_FILE = "asked.json"
"""The file with the settings of a budget; a curve is continued only with the same settings."""
CURVE = "budget"
"""The name of the table and the plot."""


@dataclass(frozen=True)
class Point:
    """The measures of one budget: slide AUC and FROC score, each with its interval.

    `asked` is the requested number of slides.
    """

    asked: int
    slides: int
    """Outlined slides used for training; fewer than requested if the cohort has fewer."""
    patches: int
    """Tumour patches used for training."""
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    froc: float | None
    froc_low: float | None
    froc_high: float | None


def budget_curve(
    method: str,
    cohort: Cohort | str | Path,
    out: str | Path,
    slides: Sequence[int] = SLIDES,
    *,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    workers: int | None = None,
    val: str | None = "val",
    split: str = "test",
    seed: int = 0,
) -> list[Point]:
    """Train a method once for each number of outlined slides, and evaluate each on a split.

    Writes `budget.json`, `budget.csv` and, if matplotlib is installed, `budget.svg` and `budget.png`. Each
    budget has a folder in `out` with its bundle and results. A repeated call continues an interrupted curve.

    Args:
        method: The name of a method that has the setting `slides`.
        cohort: The cases, or the path of their manifest.
        out: Folder of the curve.
        slides: The numbers of outlined slides.
        settings: Settings of the method.
        device: "auto", "cpu", "mps", "cuda:0", or several cards such as "cuda:0,cuda:2".
        workers: Workers that sample patches; by default one per core.
        val: The split for validation during training; None for none.
        split: The split on which budgets are compared. It is not used for training.
        seed: Seed of the trainings.

    Returns:
        One point per budget, from the smallest budget to the largest.

    Raises:
        ConfigError: The method has no setting `slides`.
        ResultsError: `out` contains a curve with other settings.
        UsageError: A budget is below one slide, or no case is in the split.
    """
    from lobule.cohort import as_cohort
    from lobule.methods import find_method

    cases = as_cohort(cohort)
    if SETTING not in {setting.name for setting in describe(find_method(method).config)}:
        raise ConfigError(f"'{method}' has no label budget", expected="a method with the setting 'slides'")
    if not cases.split(split):
        raise UsageError(f"no case is in the split '{split}', on which budgets are compared")
    if not slides or min(slides) < 1:
        raise UsageError("a budget must be at least one slide", actual=", ".join(map(str, slides)))
    points = []
    for count in sorted(set(slides)):
        folder = make_folder(Path(out) / f"slides-{count}")
        budget_settings = {**(settings or {}), SETTING: count}
        machine = {"device": device, "workers": workers}
        points.append(
            _measure_budget(method, cases, folder, count, budget_settings, machine, val, split, seed)
        )
        _write_curve(points, Path(out))
    return points


def _measure_budget(
    method: str,
    cohort: Cohort,
    folder: Path,
    count: int,
    settings: Mapping[str, Any],
    machine: dict[str, Any],
    val: str | None,
    split: str,
    seed: int,
) -> Point:
    from lobule.api import evaluate, scan, train
    from lobule.bundles import MODEL, read_bundle

    bundle, results = folder / "bundle", folder / "results"
    training_cases = cohort.where(lambda case: case.split != split)
    _check_request(
        folder,
        {
            "method": method.replace("-", "_"),
            "settings": dict(settings),
            "val": val,
            "seed": seed,
            "cases": [[case.id, case.patient, case.split, case.label] for case in training_cases],
        },
    )
    if not (bundle / MODEL).exists():
        train(method, cohort, bundle, settings=settings, val=val, seed=seed, **machine)
    scan(bundle, cohort.split(split), results, device=machine["device"])
    evaluation = evaluate(results, cohort, split=split, out=folder / "evaluation", plots=False)
    budget = read_bundle(bundle).provenance.get("budget", {})
    if len(evaluation.tasks) != 1:
        raise ResultsError(
            f"the cases of the split '{split}' give no slide AUC",
            subject=results,
            expected="labelled cases that could be scored",
            actual=f"{len(evaluation.tasks)} tasks to evaluate",
            remedy="Run `lobule scan --retry-failed` with the same bundle, cohort and results",
        )
    (task,) = evaluation.tasks.values()
    auc = task["all"]["auroc"]
    froc = evaluation.lesions["all"]["froc_score"] if evaluation.lesions else {}
    return Point(
        count,
        int(budget.get("slides", count)),
        int(budget.get("tumour_patches", 0)),
        *(auc.get(name) for name in ("value", "low", "high")),
        *(froc.get(name) for name in ("value", "low", "high")),
    )


def _check_request(folder: Path, request: Mapping[str, Any]) -> None:
    """Raise `ResultsError` if the folder contains a budget that was trained with other settings."""
    request_values = json.loads(json.dumps(request, default=str))
    request_path = folder / REQUEST_FILE
    if not request_path.exists():
        write_json(request_path, request_values)
        return
    earlier_request = read_json(request_path)
    if earlier_request != request_values:
        key = next(key for key in request_values if earlier_request.get(key) != request_values[key])
        raise ResultsError(
            f"this budget was trained with another {key}",
            subject=folder,
            expected=str(earlier_request.get(key))[:200],
            actual=str(request_values[key])[:200],
            remedy="Write the curve to another folder",
        )


def _write_curve(points: Sequence[Point], out: Path) -> None:
    rows = [asdict(point) for point in points]
    write_json(out / f"{CURVE}.json", rows)
    names = [entry.name for entry in fields(Point)]
    lines = [",".join(names)]
    lines += [",".join("" if row[name] is None else f"{row[name]:g}" for name in names) for row in rows]
    write_text(out / f"{CURVE}.csv", "\n".join(lines) + "\n")
    from lobule.errors import MissingExtra
    from lobule.evaluation.plots import need_plots

    try:
        need_plots()
    except MissingExtra:  # The tables are complete without the plot.
        return
    _draw_curve(points, out)


def _draw_curve(points: Sequence[Point], out: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from lobule.evaluation.plots import COLOURS, SIDE_INCHES, STYLE, save_figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(SIDE_INCHES, SIDE_INCHES * 0.8), layout="constrained")
        axes = figure.add_subplot()
        for name, title, colour in (("auc", "slide AUC", COLOURS[0]), ("froc", "FROC score", COLOURS[1])):
            defined = [asdict(p) for p in points if getattr(p, name) is not None]
            x, y = [p["slides"] for p in defined], [p[name] for p in defined]
            ends = [
                [p[name] if p[f"{name}_{end}"] is None else p[f"{name}_{end}"] for p in defined]
                for end in ("low", "high")
            ]
            axes.errorbar(x, y, yerr=np.abs(np.subtract(ends, y)), label=title, color=colour, marker="o",
                          markersize=3, linewidth=1, capsize=2, elinewidth=0.7)  # fmt: skip
        axes.set_xscale("log")
        ticks = sorted({point.slides for point in points})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("outlined slides learned from")
        axes.set_ylabel("with 95 % interval")
        axes.legend(loc="lower right")
        save_figure(figure, out / CURVE)
