"""`lobule budget`: compare models that were trained on different numbers of outlined slides."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command, parse_settings, table
from lobule.errors import UsageError


@lobule_command("lobule budget reverse-distillation cohort.csv --out OUT --slides 1,2,5,10,20 --dry-run")
@click.argument("method")
@click.argument("cohort", metavar="COHORT")
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    help="Folder for the results; each number of slides has a subfolder.",
)
@click.option(
    "--slides",
    default="1,2,5,10,20",
    show_default=True,
    metavar="N,N,…",
    help="Numbers of outlined slides to train on.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of the method; repeatable.",
)
@click.option(
    "--val",
    default="val",
    show_default=True,
    metavar="SPLIT",
    help="Split for validation: val, test or none.",
)
@click.option("--split", default="test", show_default=True, help="Split on which the models are compared.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:0, mps.")
@click.option(
    "--workers", type=click.IntRange(1), help="Workers that sample patches; by default one per core."
)
@click.option("--dry-run", is_flag=True, help="Print what would be trained and stop.")
def command(
    method: str, cohort: str, out: str, slides: str, settings: tuple[str, ...], dry_run: bool, **options: Any
) -> CommandOutput:
    """Train on 1, 2, 5, … outlined slides and compare the models on unseen slides.

    Each larger set of slides contains the smaller ones. After an interruption, run the same command to
    continue. Writes budget.csv, budget.json and a plot (budget.svg, budget.png).
    """
    counts = parse_counts(slides)
    setting_values = parse_settings(settings)
    if dry_run:
        plan = {"method": method, "slides": counts, "settings": setting_values}
        plan_rows = [("method", method), ("outlined slides", ", ".join(map(str, counts))), ("results", out)]
        return CommandOutput(plan, format_fields(plan_rows))
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
