"""Records of the runs that wrote a results folder: `runs/RUN/run.json`.

A run is one call of `lobule scan`, which may be one of several shards or a later call that continues the
scan. Its record names everything that is needed to repeat it, and shows the progress while it is running.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lobule.errors import LobuleError, ResultsError
from lobule.files import read_json

RUNS = "runs"
RECORD = "run.json"
RUN_FORMAT = "lobule-run/1"
BEAT_S = 10.0
"""Seconds after which a running scan writes its record again."""
SILENT_S = 3.5 * BEAT_S
"""A run that has not written its record for this long is no longer considered running."""

RUNNING, FINISHED, INTERRUPTED, FAILED_RUN, SILENT = "running", "finished", "interrupted", "failed", "silent"
"""States of a run. A silent run was probably killed: its record is no longer written."""


def new_run_name() -> str:
    """Return a name for a new run, which sorts by its beginning and is different on every machine."""
    host = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in platform.node())
    moment = time.time()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(moment)) + f".{int(moment * 1000) % 1000:03d}Z"
    return f"{stamp}-{host[:80] or 'host'}-{os.getpid()}"


@dataclass(frozen=True)
class Run:
    """The record of one run."""

    name: str
    data: dict[str, Any]

    @property
    def state(self) -> str:
        """The state that the run wrote itself; it cannot tell that it was killed."""
        return str(self.data.get("state", ""))

    @property
    def beat(self) -> int:
        """How often the record was written; it increases while the run is alive."""
        return int(self.data.get("beat", 0))

    @property
    def seconds(self) -> float:
        """Duration of the run so far, by the clock of its machine."""
        return float(self.data.get("seconds", 0.0))

    @property
    def hosts(self) -> int:
        """The number of machines that the run uses."""
        return max(1, len(self.data.get("hosts", [])))

    @property
    def scanned(self) -> int:
        """The number of cases that the run has scanned, without those that were finished before."""
        counts: dict[str, int] = self.data.get("counts", {})
        return sum(int(count) for status, count in counts.items() if status != "skipped")

    @property
    def scanned_work(self) -> float:
        """The estimated work of the scanned cases, in the unit of the other runs of this folder."""
        return float(self.data.get("scanned_work", self.scanned))


def read_run(path: str | Path) -> Run:
    """Read the record of a run.

    Raises:
        ResultsError: The file is not the record of a run.
    """
    if (folder := Path(path)).is_dir():
        records = [*folder.glob(RECORD), *sorted(folder.glob(f"{RUNS}/*/{RECORD}"))[-3:]]
        raise ResultsError(
            "this is a folder, not the record of a run",
            subject=path,
            expected=f"{RUNS}/RUN/{RECORD} of a results folder",
            actual=", ".join(map(str, records)) or "no records",
        )
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != RUN_FORMAT or not isinstance(data.get("run"), str):
        raise ResultsError(
            "this is not the record of a run",
            subject=path,
            expected=f"a file with the format {RUN_FORMAT}",
            remedy=f"Use {RUNS}/RUN/{RECORD} of a results folder",
        )
    run = Run(data["run"], data)
    try:
        _ = run.beat, run.seconds, run.hosts, run.scanned, run.scanned_work
    except (TypeError, ValueError, AttributeError) as error:
        raise ResultsError("the record of a run is damaged", subject=path, actual=str(error)) from error
    return run


def read_runs(root: Path) -> list[Run]:
    """Return the runs of a results folder, the oldest first. Damaged records are left out."""
    runs = []
    for path in sorted((root / RUNS).glob(f"*/{RECORD}")):
        try:
            runs.append(read_run(path))
        except LobuleError:
            continue
    return runs
