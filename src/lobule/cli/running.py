"""Long work of commands: a live line on a terminal, the end by SIGTERM, and the report of a scan."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lobule.scanning.scan import ScanReport

SHOWN_CASES = 20


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
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
def repeated(action: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call a function every `every_s` seconds on another thread."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(every_s):
            action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def live_line(line: Callable[[], str]) -> Iterator[None]:
    """Show a line that is updated four times a second on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with (
        Live(console=Console(stderr=True), refresh_per_second=4, transient=True) as live,
        repeated(lambda: live.update(Text(line())), 0.25),
    ):
        yield


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def report_data(report: ScanReport) -> dict[str, Any]:
    """Return the status of every case, for `--json`."""
    return {
        "cases": dict(report.counts),
        "failed": dict(report.failed),
        "partial": list(report.partial),
        "unscored": dict(report.unscored),
        "seconds": round(report.seconds, 2),
    }


def report_lines(report: ScanReport, work: tuple[str, str] | None) -> list[tuple[str, str]]:
    """Describe the outcome of a scan: counts, the work that was done, and the cases that need attention.

    Args:
        report: The outcome.
        work: Name and description of the work that was done, if any.
    """
    counts = ", ".join(f"{count} {status}" for status, count in sorted(report.counts.items()))
    lines = [("cases", counts), *([work] if work else [])]
    for status, reasons in (("failed", report.failed), ("unscored", report.unscored)):
        lines += [(f"{status} {name}", reason) for name, reason in list(reasons.items())[:SHOWN_CASES]]
        if len(reasons) > SHOWN_CASES:
            lines.append(("", f"and {len(reasons) - SHOWN_CASES} more, in results.csv"))
    if report.partial:
        lines.append(("partial", ", ".join(report.partial[:SHOWN_CASES])))
    if report.failed or report.partial:
        lines.append(("again", "run the same command with --retry-failed"))
    return lines
