"""`lobule compare`: several methods and encoders on one cohort, in one table."""

from __future__ import annotations

from typing import Any

import click

from lobule.cli import options as shared
from lobule.cli.base import CommandOutput, format_fields, lobule_command, note, table
from lobule.errors import UsageError
from lobule.results.result import RESEARCH_USE


@lobule_command(
    "lobule compare cohort.csv --methods probe,colour --out OUT --dry-run",
    "lobule compare cohort.csv --methods scannet,probe,chowder --encoders efficientnet-lite0 --budgets 10,40 "
    "--out OUT --dry-run",
)
@click.argument("cohort", metavar="COHORT")
@click.option("--methods", required=True, metavar="NAME,…", help="Methods and presets to compare.")
@click.option(
    "--encoders", default="", metavar="NAME,…", help="Encoders for the methods that have a choice of one."
)
@click.option(
    "--weights",
    default="pretrained",
    metavar="pretrained|random|FILE,…",
    help="Weights of the encoders: one for all, or one for each.",
)
@click.option(
    "--budgets",
    default="",
    metavar="N,…",
    help="Train on N labelled cases, half of them positive, for each N; by default on all.",
)
@shared.out_option("DIR", "Folder for the table, with a subfolder for each row.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="METHOD.NAME=VALUE",
    help="Change a setting of one of the methods; repeatable.",
)
@click.option(
    "--minutes",
    default="",
    metavar="KIND=M,…",
    help="Minutes of annotation per label; by default outlines=30 (per slide), slide=2, image=1, breast=1.",
)
@click.option(
    "--reference", metavar="ROW", help="Row from which differences are computed; by default the first."
)
@shared.val_option
@click.option("--split", default="test", help="Split on which the rows are compared.")
@shared.seed_option
@click.option(
    "--resamples",
    type=click.IntRange(2),
    default=2000,
    help="Number of bootstrap resamples for the intervals.",
)
@shared.mpp_option("--mpp", "Resolution of the tiles of features in µm/px.", 0.5)
@click.option("--tile", type=click.IntRange(1), metavar="PX", help="Width of these tiles in pixels.")
@shared.device_option
@shared.precision_option
@shared.workers_option
@shared.dry_run_option
def command(cohort: str, out: str, dry_run: bool, **options: Any) -> CommandOutput:
    """Train, scan and evaluate methods and encoders on one cohort, and write one table.

    All rows have the same splits. The table (index.html, table.csv, table.json) has slide AUC, FROC and
    calibration with intervals, paired differences from the first row, the time of training and scanning, and
    the cost of the labels. A method that cannot learn from the labels of the cohort is left out with the
    reason; a row that fails says so, and the others are finished. Running the command again continues;
    with further methods, encoders or budgets, their rows are added.
    """
    from lobule.comparison.entries import parse_settings

    lists = {name: _items(options.pop(name)) for name in ("methods", "encoders", "weights")}
    options["budgets"] = _numbers(options["budgets"])
    options["minutes"] = _minutes(options["minutes"])
    options["settings"] = parse_settings(_pairs("--set", options["settings"]))
    if dry_run:
        return _plan(cohort, out, lists, options)
    from lobule.comparison import compare

    comparison = compare(
        cohort, out, lists["methods"], encoders=lists["encoders"], weights=lists["weights"],
        on_row=lambda name: note(f"{name} …"), **options,
    )  # fmt: skip
    return CommandOutput(dict(comparison.data), as_text(comparison.data, out), failed=comparison.failed)


def _plan(cohort: str, out: str, lists: dict[str, list[str]], options: dict[str, Any]) -> CommandOutput:
    """Show the rows without running them."""
    from lobule.comparison.entries import Encoder, plan_entries

    encoders = [Encoder(name) for name in lists["encoders"]]
    entries = plan_entries(lists["methods"], encoders, options["budgets"], options["settings"])
    rows = [(entry.name, entry.learns_from or "not known", str(entry.budget or "all")) for entry in entries]
    text = format_fields([("cohort", cohort), ("results", out)])
    text += "\n\n" + table(("row", "learns from", "labelled cases"), rows)
    return CommandOutput({"cohort": cohort, "rows": [entry.name for entry in entries]}, text)


def as_text(data: dict[str, Any] | Any, out: str) -> str:
    """Format the table for a terminal."""
    header = ("row", "AUC", "difference", "FROC", "annotation", "status")
    rows = []
    for row in data["rows"]:
        minutes = row["annotation_minutes"]
        rows.append((
            row["name"], _estimate(row.get("auroc")), _estimate(row.get("auroc_difference")),
            _estimate(row.get("froc")), "–" if minutes is None else f"{minutes / 60:.1f} h",
            row["status"] if row["reason"] is None else f"{row['status']}: {row['reason']}",
        ))  # fmt: skip
    reference = data["reference"]
    heading = f"differences from {reference}" if reference else "no row is complete"
    return "\n\n".join([heading, table(header, rows), f"The table was written to {out}.", RESEARCH_USE])


def _estimate(estimate: Any) -> str:
    if estimate is None or estimate["value"] is None:
        return "–"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _numbers(text: str) -> list[int]:
    if not all(item.isdecimal() for item in _items(text)):
        raise UsageError(f"--budgets '{text}' is not a list of numbers", expected="such as 10,20,40")
    return [int(item) for item in _items(text)]


def _minutes(text: str) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in _pairs("--minutes", _items(text)).items()}
    except ValueError:
        raise UsageError(
            f"--minutes '{text}' has no minutes", expected="such as outlines=30,slide=2"
        ) from None


def _pairs(option: str, items: Any) -> dict[str, str]:
    pairs = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"{option} '{item}' has no value", expected="NAME=VALUE")
        pairs[name.strip()] = value.strip()
    return pairs
