"""`lobule budget`: how few outlined slides are enough."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from lobule.cli.base import Answer, as_settings, format_fields, lobule_command, table
from lobule.errors import UsageError


@lobule_command("lobule budget reverse-distillation cohort.csv --out OUT --slides 1,2,5,10,20 --dry-run")
@click.argument("method")
@click.argument("cohort", metavar="COHORT")
@click.option("--out", required=True, metavar="DIR", help="The curve, and a folder for each budget.")
@click.option(
    "--slides", default="1,2,5,10,20", show_default=True, metavar="N,N,…", help="Numbers of outlined slides."
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the method; repeatable."
)
@click.option(
    "--val", default="val", show_default=True, metavar="SPLIT", help="Validated on: val, test or none."
)
@click.option("--split", default="test", show_default=True, help="The split on which budgets are compared.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:0, mps.")
@click.option("--workers", type=click.IntRange(1), help="Workers that draw patches; one a core if not given.")
@click.option("--dry-run", is_flag=True, help="Say which budgets would be tried.")
def command(
    method: str, cohort: str, out: str, slides: str, settings: tuple[str, ...], dry_run: bool, **options: Any
) -> Answer:
    """Train on 1, 2, 5, … outlined slides, and draw how well each does on slides that none of them saw.

    The slides of a smaller budget are among those of a larger one. Stopped at any instant, the same command
    goes on. Writes budget.csv, budget.json and the plot (budget.svg, budget.png).
    """
    counts = as_counts(slides)
    setting_values = as_settings(settings)
    if dry_run:
        data = {"method": method, "slides": counts, "settings": setting_values}
        lines = [("method", method), ("outlined slides", ", ".join(map(str, counts))), ("curve", out)]
        return Answer(data, format_fields(lines))
    from lobule.budget import budget_curve

    points = budget_curve(
        method,
        cohort,
        out,
        counts,
        settings=setting_values,
        machine={"device": options["device"], "workers": options["workers"]},
        val=None if options["val"] == "none" else options["val"],
        split=options["split"],
        seed=options["seed"],
    )
    rows = [
        (
            str(point.slides),
            str(point.patches),
            _interval(point.auc, point.auc_low, point.auc_high),
            _interval(point.froc, point.froc_low, point.froc_high),
        )
        for point in points
    ]
    text = table(("slides", "tumour patches", "slide AUC", "FROC"), rows)
    return Answer({"out": out, "points": [asdict(point) for point in points]}, text)


def as_counts(text: str) -> list[int]:
    """`1,2,5` as numbers."""
    try:
        counts = [int(count) for count in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise UsageError(f"not numbers of slides: '{text}'", expected="such as 1,2,5,10,20")
    return counts


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
