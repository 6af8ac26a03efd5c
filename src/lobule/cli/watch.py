"""`lobule info RESULTS --watch`: the state of a scan, shown again and again until no run is active."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

from lobule.cli.base import CommandOutput, format_fields
from lobule.cli.running import duration
from lobule.results import local_results
from lobule.results.runs import BEAT_S, FAILED_RUN, RUNNING, SILENT, Run
from lobule.results.status import ScanStatus, StatusReader, counted

SHOWN_CAUSES = 10
SHOWN_RUNS = 10


def watch(path: str, every_s: float, price_per_hour: float | None) -> CommandOutput:
    """Show the state of a scan until all its cases have a result or no run is active."""
    reader = StatusReader(local_results(path, only_records=True))
    status = reader.read()
    began = time.monotonic()
    with _display() as show:
        while not is_over(status, time.monotonic() - began):
            show(status_text(status, price_per_hour), status_line(status))
            time.sleep(every_s)
            local_results(path, only_records=True)
            status = reader.read()
    return CommandOutput(status.to_dict(price_per_hour), status_text(status, price_per_hour))


def is_over(status: ScanStatus, watched_s: float) -> bool:
    """Whether there is nothing more to watch.

    A run that was recorded as running but seems silent is observed for longer than the time between two of
    its records, because the clock of its machine may be wrong.
    """
    if status.active:
        return False
    is_recorded_as_running = any(run.state == RUNNING for run, _ in status.runs)
    return not is_recorded_as_running or watched_s > 1.5 * BEAT_S


@contextmanager
def _display() -> Iterator[Callable[[str, str], None]]:
    """Yield a function that shows a text in place on a terminal, and elsewhere a line if it changed."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        with Live(console=Console(stderr=True), refresh_per_second=4, transient=True) as live:
            yield lambda text, line: live.update(Text.from_ansi(text))
        return
    last_line = ""

    def print_changed_line(text: str, line: str) -> None:
        nonlocal last_line
        if line != last_line:
            click.echo(line, err=True)
            last_line = line

    yield print_changed_line


def status_line(status: ScanStatus) -> str:
    """Return the state in one line: cases, rate and time left."""
    segments = [f"{status.finished:,} of {status.total:,} cases"]
    if status.cases_per_hour is not None:
        segments.append(f"{status.cases_per_hour:,.0f} cases/h")
    if status.seconds_left is not None:
        segments.append(f"about {duration(status.seconds_left)} left")
    if failed := sum(len(cause.cases) for cause in status.causes):
        segments.append(f"{failed:,} failed")
    return ", ".join(segments)


def status_text(status: ScanStatus, price_per_hour: float | None) -> str:
    """Return the state as text: counts, rate, time left, cost, runs, and failures by cause."""
    lines = [
        ("results", str(status.path)),
        ("cases", f"{status.finished:,} of {status.total:,} finished: {counted(status.counts)}"),
        *_time_lines(status),
    ]
    if price_per_hour is not None:
        lines.append(("cost", _cost(status, price_per_hour)))
    lines += [("run", _run_text(run, state)) for run, state in status.runs[-SHOWN_RUNS:]]
    if status.damaged:
        remedy = "their results cannot be read; the same scan command writes them again"
        lines.append((f"{len(status.damaged):,} damaged", f"{remedy} ({_examples(status.damaged)})"))
    for cause in status.causes[:SHOWN_CAUSES]:
        lines.append((f"{len(cause.cases):,} failed", f"{cause.message} ({_examples(cause.cases)})"))
    if len(status.causes) > SHOWN_CAUSES:
        lines.append(("", f"and {len(status.causes) - SHOWN_CAUSES} more causes, in results.csv"))
    return format_fields(lines)


def _examples(cases: Sequence[str]) -> str:
    return ", ".join(cases[:3]) + (", …" if len(cases) > 3 else "")


def _time_lines(status: ScanStatus) -> list[tuple[str, str]]:
    is_complete = status.finished == status.total
    if status.active:
        rate, left = status.cases_per_hour, status.seconds_left
        if rate is None or left is None:
            return [("rate", "no case is finished yet")]
        return [
            ("rate", f"{rate:,.0f} cases/h"),
            ("left", "nothing" if is_complete else f"about {duration(left)}"),
        ]
    if is_complete:
        return [("left", "nothing: every case has a result")]
    left, cases = status.machine_seconds_left, status.total - status.finished
    estimate = "" if left is None else f", about {duration(left)} on one machine"
    cases_left = f"{cases:,} case" + ("" if cases == 1 else "s")
    return [("left", f"{cases_left}{estimate}; run the same command again to continue")]


def _cost(status: ScanStatus, price_per_hour: float) -> str:
    data = status.to_dict(price_per_hour)
    left = "unknown" if data["cost_left"] is None else f"about {data['cost_left']:,.2f}"
    return f"{data['cost']:,.2f} so far, {left} for the rest, at {price_per_hour:g} per machine and hour"


def _run_text(run: Run, state: str) -> str:
    hosts = run.data.get("hosts") or ["?"]
    shard = run.data.get("shard")
    location = hosts[0] if len(hosts) == 1 else f"{len(hosts)} machines"
    text = f"{state} on {location}, {run.scanned:,} cases in {duration(run.seconds)}"
    if shard:
        text = f"shard {shard[0]}/{shard[1]} {text}"
    if state == SILENT:
        text += "; its record is no longer written, so it was probably killed"
    if state == FAILED_RUN and run.data.get("error"):
        text += f": {run.data['error']}"
    return text
