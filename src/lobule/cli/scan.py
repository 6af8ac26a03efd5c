"""`lobule scan`: scan slides or a cohort with a bundle and write a results folder."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from lobule.cli import options as shared
from lobule.cli.base import CommandOutput, format_fields, lobule_command
from lobule.cli.running import duration, live_line, report_data, report_lines, sigterm_as_interrupt
from lobule.errors import UsageError
from lobule.files import is_url

if TYPE_CHECKING:
    from lobule.bundles import Bundle
    from lobule.cohort import Cohort
    from lobule.scanning.progress import Progress
    from lobule.scanning.scan import ScanReport


def as_shard(text: str | None) -> tuple[int, int] | None:
    """Parse I/N, such as 3/40."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard '{text}' is not valid", expected="I/N with I from 1 to N, such as 3/40")
    return int(match[1]), int(match[2])


@lobule_command(
    "lobule scan BUNDLE slide.tif --out results",
    "lobule scan BUNDLE cohort.csv --out finer --stride 16",
    "lobule scan BUNDLE cohort.csv --out results --shard 3/40",
)
@click.argument("bundle")
@click.argument("cases", nargs=-1, required=True, metavar="CASE...|COHORT")
@shared.out_option("DIR", "The results folder; an interrupted scan resumes there.")
@click.option(
    "--stride",
    type=click.IntRange(1),
    metavar="PX",
    help="Pixels per map cell, at the resolution of the model.",
)
@click.option("--refine", is_flag=True, help="Scan coarsely first, then refine where tumour is likely.")
@click.option(
    "--budget", type=click.FloatRange(0), metavar="S", help="Time limit per case in seconds, with --refine."
)
@shared.slide_options
@shared.scan_precision_option
@shared.scan_machine_options
@shared.jpeg_decoder_option
@shared.settings_option
@click.option(
    "--shard",
    metavar="I/N",
    callback=lambda context, parameter, text: as_shard(text),
    help="Scan only shard I of N; shards have about the same area of tissue.",
)
@shared.cluster_options
@shared.divide_above_option
@shared.fresh_option("existing results")
@shared.retry_failed_option
@click.option(
    "--allow-failed",
    is_flag=True,
    help="Exit with status 0 even if cases failed, so that batch systems do not repeat or stop.",
)
@click.option(
    "--verify",
    type=click.Choice(["changed", "full"]),
    default="changed",
    help="Input files to hash again: those whose size, time or inode changed, or all.",
)
@click.option(
    "--like",
    metavar="RUN",
    help="Repeat an earlier run with its options: runs/RUN/run.json in its results folder.",
)
@click.option("--trust", is_flag=True, help="Allow a TorchScript bundle, which can run code.")
@shared.dry_run_option
def command(
    bundle: str, cases: tuple[str, ...], out: str, dry_run: bool, allow_failed: bool, **options: Any
) -> CommandOutput:
    """Scan cases with a bundle and write maps, findings and scores.

    After an interruption, run the same command to continue.
    """
    from lobule.bundles import read_bundle
    from lobule.methods import check_scan

    _check_option_combinations(options)
    # All of these are checked here, because the scan begins with an import of torch that takes seconds.
    cohort, opened = shared.cohort_of(cases), read_bundle(bundle)
    shared.check_form(options, opened.has_int8)
    check_scan(opened, options, options["settings"])
    options["tissue"] = shared.tissue_of(options)
    if dry_run:
        return plan(opened, cohort, out, options)
    from lobule.api import scan
    from lobule.scanning.progress import Progress

    progress = Progress(on_preliminary=show_preliminary_scores)
    with sigterm_as_interrupt(), live_line(lambda: line_of(progress)):
        report = scan(bundle, cohort, out, progress=progress, **options)
    lines = [("results", out if is_url(out) else str(report.path)), ("computed by", progress.precision)]
    text = format_fields([*lines, *report_lines(report, _work(report))])
    data = as_data(report) | ({"results": out} if is_url(out) else {})
    failed = 0 if allow_failed else len(report.failed) + len(report.partial)
    return CommandOutput(data, text, failed=failed)


def _check_option_combinations(options: dict[str, Any]) -> None:
    if options["budget"] is not None and not options["refine"]:
        raise UsageError("--budget has an effect only with --refine", remedy="Add --refine")
    if options["fresh"] and options["shard"]:
        raise UsageError(
            "--fresh with --shard would delete the results of the other shards",
            remedy="Use another results folder, or delete this one before the first shard starts",
        )


def plan(bundle: Bundle, cohort: Cohort, out: str, options: dict[str, Any]) -> CommandOutput:
    """Describe a scan without starting it: the cases, and the settings that a scan may change."""
    from lobule.methods import find_method
    from lobule.settings import flattened

    method = find_method(bundle.method)
    changed = method.changed_for_scan(options["settings"])
    flat = flattened(bundle.config)
    settings = {name: changed.get(name, flat.get(name)) for name in method.scan_settings}
    if "stride" not in method.unsupported:
        settings["stride"] = options["stride"] or settings.get("stride", flat.get("stride"))
    data = {
        "bundle": str(bundle.path),
        "method": bundle.method,
        "mpp": bundle.mpp,
        "settings": settings,
        "cases": [case.id for case in cohort],
    }
    lines = [("method", bundle.method), ("cases", str(len(cohort))), ("results", out)]
    lines += [(f"  {name}", str(value)) for name, value in settings.items()]
    return CommandOutput(data, format_fields(lines))


def show_preliminary_scores(case: str, scores: Mapping[str, float]) -> None:
    """Print the scores of the coarse map of a case that is being refined."""
    values = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    with suppress(OSError, ValueError):  # A closed terminal must not end the scan.
        click.echo(f"{case}: the coarse map is complete ({values}); refining it", err=True)


def as_data(report: ScanReport) -> dict[str, Any]:
    return {
        "results": str(report.path),
        **report_data(report),
        "fields": report.counters.fields_done,
        "pixels": report.counters.pixels_done,
        "rows": report.counters.rows_done,
        "tiles_decoded": report.counters.tiles_decoded,
    }


def _work(report: ScanReport) -> tuple[str, str] | None:
    """Describe the amount of work and its rate, in pixels or in rows of stored features."""
    seconds = max(report.seconds, 1e-9)
    if pixels := report.counters.pixels_done:
        rate = pixels / 1e6 / seconds
        return "scanned", f"{pixels / 1e6:,.0f} Mpixel in {report.seconds:,.1f} s ({rate:,.1f} Mpixel/s)"
    if rows := report.counters.rows_done:
        return "scanned", f"{rows:,} rows in {report.seconds:,.1f} s ({rows / seconds:,.1f} rows/s)"
    return None


def line_of(progress: Progress) -> str:
    """Format the progress line: cases, fields/s, Mpixel/s, time left and the bottleneck."""
    counters = progress.counters
    seconds = max(time.monotonic() - progress.began, 1e-9)
    fields_done, fields_planned = counters.fields_done, counters.fields_planned
    segments = [f"case {len(progress.finished)}/{progress.cases}"]
    if progress.active:
        segments.append(", ".join(f"{name}: {stage}" for name, stage in list(progress.active.items())[:2]))
    if fields_done:
        segments.append(f"{fields_done}/{fields_planned} fields, {fields_done / seconds:.1f}/s")
        if counters.pixels_done:
            segments.append(f"{counters.pixels_done / 1e6 / seconds:.1f} Mpixel/s")
        cases_left = max(0, progress.cases - len(progress.finished) - len(progress.active))
        per_case = fields_planned / max(1, len(progress.finished) + len(progress.active))
        seconds_left = (fields_planned - fields_done + cases_left * per_case) / (fields_done / seconds)
        segments.append(f"about {duration(seconds_left)} left, waiting for {counters.bottleneck}")
    return "  ".join(segments)
