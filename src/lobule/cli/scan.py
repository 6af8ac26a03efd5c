"""`lobule scan`: scan slides or a cohort with a bundle and write a results folder."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command, parse_settings
from lobule.errors import UsageError

if TYPE_CHECKING:
    from lobule.scanning.cases import Progress
    from lobule.scanning.scan import ScanReport


LAYOUTS = {"auto": None, "channels-last": True, "contiguous": False}
"""The value of `Machine.channels_last` for each memory layout."""


@lobule_command(
    "lobule scan BUNDLE slide.tif --out results",
    "lobule scan BUNDLE cohort.csv --out finer --stride 16",
    "lobule scan BUNDLE cohort.csv --out results --shard 3/40",
)
@click.argument("bundle")
@click.argument("cases", nargs=-1, required=True, metavar="CASE...|COHORT")
@click.option(
    "--out", required=True, metavar="DIR", help="The results folder; an interrupted scan resumes there."
)
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
@click.option("--mpp", type=float, metavar="UM", help="µm/px of slides that do not state it.")
@click.option("--upsample", is_flag=True, help="Allow a resolution finer than that of the slide.")
@click.option("--tissue/--no-tissue", default=True, help="Scan only tissue, or the whole slide.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="auto measures the fastest choice once per machine and model, and stores it.",
)
@click.option(
    "--layout",
    type=click.Choice(list(LAYOUTS)),
    default="auto",
    show_default=True,
    help="Memory layout of the model; auto works as for --precision.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:0, mps.")
@click.option(
    "--max-ram",
    default="2GiB",
    show_default=True,
    metavar="SIZE",
    help="Memory to use in addition to the model.",
)
@click.option("--readers", type=click.IntRange(1), help="Reading threads; by default one per core.")
@click.option("--batch", type=click.IntRange(1), help="Number of fields per batch.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting for this scan; repeatable.",
)
@click.option("--shard", metavar="I/N", help="Scan only every N-th case, starting with the I-th.")
@click.option("--fresh", is_flag=True, help="Delete the existing results first.")
@click.option("--retry-failed", is_flag=True, help="Try failed cases and fields again.")
@click.option(
    "--verify",
    type=click.Choice(["changed", "full"]),
    default="changed",
    show_default=True,
    help="Input files to hash again: those whose size, time or inode changed, or all.",
)
@click.option("--trust", is_flag=True, help="Allow a TorchScript bundle, which can run code.")
@click.option("--dry-run", is_flag=True, help="Print what would be scanned and stop.")
def command(bundle: str, cases: tuple[str, ...], out: str, dry_run: bool, **options: Any) -> CommandOutput:
    """Scan cases with a bundle and write maps, findings and scores.

    After an interruption, run the same command to continue.
    """
    from lobule.api import as_cohort
    from lobule.bundles import read_bundle

    cohort = as_cohort(cases[0] if len(cases) == 1 else list(cases))
    shard, max_ram = as_shard(options["shard"]), as_bytes(options["max_ram"])
    _check_option_combinations(options)
    opened = read_bundle(bundle)
    if dry_run:
        data = {"bundle": bundle, "method": opened.method, "mpp": opened.mpp, "cases": [c.id for c in cohort]}
        return CommandOutput(
            data, format_fields([("method", opened.method), ("cases", str(len(cohort))), ("results", out)])
        )
    report = _scan(bundle, cohort, out, shard, max_ram, options)
    return CommandOutput(as_data(report), as_text(report), failed=len(report.failed) + len(report.partial))


def _scan(
    bundle: str, cohort: Any, out: str, shard: tuple[int, int] | None, max_ram: int, options: dict[str, Any]
) -> ScanReport:
    from lobule.api import scan
    from lobule.scanning.cases import Progress

    scan_options: dict[str, Any] = {
        name: options[name] for name in ("stride", "refine", "budget", "mpp", "upsample")
    }
    scan_options["settings"] = parse_settings(options["settings"])
    if not options["tissue"]:
        scan_options["tissue"] = None
    progress = Progress()
    with _sigterm_as_interrupt(), _live_progress(progress):
        return scan(
            bundle,
            cohort,
            out,
            trust=options["trust"],
            shard=shard,
            fresh=options["fresh"],
            retry_failed=options["retry_failed"],
            verify=options["verify"],
            progress=progress,
            machine={
                "device": options["device"],
                "precision": options["precision"],
                "channels_last": LAYOUTS[options["layout"]],
                "max_ram": max_ram,
                "readers": options["readers"],
                "batch": options["batch"],
            },
            **scan_options,
        )


def _check_option_combinations(options: dict[str, Any]) -> None:
    if options["budget"] is not None and not options["refine"]:
        raise UsageError("--budget has an effect only with --refine", remedy="Add --refine")
    if options["mpp"] is not None and not 0 < options["mpp"] < float("inf"):
        raise UsageError(
            f"--mpp {options['mpp']:g} is not a valid resolution", expected="µm per pixel, such as 0.25"
        )
    if options["fresh"] and options["shard"]:
        raise UsageError(
            "--fresh with --shard would delete the results of the other shards",
            remedy="Use another results folder, or delete this one before the first shard starts",
        )


def as_shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard '{text}' is not valid", expected="I/N with I from 1 to N, such as 3/40")
    return int(match[1]), int(match[2])


def as_bytes(text: str) -> int:
    """Parse a size such as 2GiB, 500MB, 1.5g or a number of bytes."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?)(i?)b?\s*", text.lower())
    try:
        assert match is not None
        number = float(match[1])
    except (AssertionError, ValueError):
        raise UsageError(f"--max-ram '{text}' is not a size", expected="such as 2GiB or 1500MB") from None
    base = 1000 if match[2] and not match[3] and text.lower().rstrip().endswith("b") else 1024
    size = int(number * base ** " kmgt".index(match[2] or " "))
    if size <= 0:
        raise UsageError(f"--max-ram '{text}' leaves no memory", expected="such as 2GiB")
    return size


def as_data(report: ScanReport) -> dict[str, Any]:
    return {
        "results": str(report.path),
        "cases": dict(report.counts),
        "failed": dict(report.failed),
        "partial": list(report.partial),
        "unscored": dict(report.unscored),
        "seconds": round(report.seconds, 2),
        "fields": report.counters.fields_done,
        "pixels": report.counters.pixels_done,
        "rows": report.counters.rows_done,
        "tiles_decoded": report.counters.tiles_decoded,
    }


def as_text(report: ScanReport) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in sorted(report.counts.items()))
    lines = [("results", str(report.path)), ("cases", counts)]
    pixels = report.counters.pixels_done
    if pixels:
        rate = pixels / 1e6 / max(report.seconds, 1e-9)
        lines.append(
            ("scanned", f"{pixels / 1e6:,.0f} Mpixel in {report.seconds:,.1f} s ({rate:,.1f} Mpixel/s)")
        )
    elif rows := report.counters.rows_done:
        rate = rows / max(report.seconds, 1e-9)
        lines.append(("scanned", f"{rows:,} rows in {report.seconds:,.1f} s ({rate:,.1f} rows/s)"))
    lines += [(f"failed {name}", cause) for name, cause in list(report.failed.items())[:20]]
    if len(report.failed) > 20:
        lines.append(("", f"and {len(report.failed) - 20} more, in results.csv"))
    if report.partial:
        lines.append(("partial", ", ".join(report.partial[:20])))
    lines += unscored_lines(report)
    if report.failed or report.partial:
        lines.append(("again", "run the same command with --retry-failed"))
    return format_fields(lines)


def unscored_lines(report: ScanReport, most: int = 20) -> list[tuple[str, str]]:
    """Return a line with the reason for each case in which nothing was scored."""
    lines = [(f"unscored {name}", note) for name, note in list(report.unscored.items())[:most]]
    if len(report.unscored) > most:
        lines.append(("", f"and {len(report.unscored) - most} more, in results.csv"))
    return lines


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C: written results stay valid and the lock is released."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    previous_handler = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


@contextmanager
def _live_progress(progress: Progress) -> Iterator[None]:
    """Show a live progress line on a terminal: cases, fields/s, Mpixel/s, time left and the bottleneck."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), refresh_per_second=4, transient=True) as live:
        stop = threading.Event()

        def draw() -> None:
            while not stop.wait(0.25):
                live.update(Text(line_of(progress)))

        thread = threading.Thread(target=draw, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def line_of(progress: Progress) -> str:
    """Format the progress line."""
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
        segments.append(f"about {_duration(seconds_left)} left, waiting for {counters.bottleneck}")
    return "  ".join(segments)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
