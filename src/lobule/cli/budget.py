"""`lobule budget`: compare models that were trained on different numbers of outlined slides."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from lobule.cli import options as shared
from lobule.cli.base import CommandOutput, format_fields, lobule_command, table
from lobule.errors import UsageError


@lobule_command("lobule budget reverse-distillation cohort.csv --out OUT --slides 1,2,5,10,20 --dry-run")
@click.argument("method")
@click.argument("cohort", metavar="COHORT")
@shared.out_option("DIR", "Folder for the results; each number of slides has a subfolder.")
@click.option(
    "--slides", default="1,2,5,10,20", metavar="N,N,…", help="Numbers of outlined slides to train on."
)
@shared.settings_option
@shared.val_option
@click.option("--split", default="test", help="Split on which the models are compared.")
@shared.seed_option
@shared.device_option
@shared.workers_option
@shared.dry_run_option
def command(
    method: str, cohort: str, out: str, slides: str, settings: dict[str, str], dry_run: bool, **options: Any
) -> CommandOutput:
    """Train on 1, 2, 5, … outlined slides and compare the models on unseen slides.

    Each larger set of slides contains the smaller ones. After an interruption, run the same command to
    continue. Writes budget.csv, budget.json and a plot (budget.svg, budget.png).
    """
    counts = parse_counts(slides)
    if dry_run:
        plan = {"method": method, "slides": counts, "settings": settings}
        plan_rows = [("method", method), ("outlined slides", ", ".join(map(str, counts))), ("results", out)]
        return CommandOutput(plan, format_fields(plan_rows))
    from lobule.budget import budget_curve

    points = budget_curve(method, cohort, out, counts, settings=settings, **options)
    table_rows = [
        (
            str(point.slides),
            str(point.patches),
            _interval(point.auc, point.auc_low, point.auc_high),
            _interval(point.froc, point.froc_low, point.froc_high),
        )
        for point in points
    ]
    text = table(("slides", "tumour patches", "slide AUC", "FROC"), table_rows)
    return CommandOutput({"out": out, "points": [asdict(point) for point in points]}, text)


def parse_counts(text: str) -> list[int]:
    """Parse a list of numbers such as `1,2,5`."""
    try:
        counts = [int(count) for count in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise UsageError(
            f"--slides '{text}' is not a list of positive numbers", expected="such as 1,2,5,10,20"
        )
    return counts


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    """Format a measure with its confidence interval, if there is one."""
    if value is None:
        return "undefined"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
