"""The state of a scan at any time and from any machine: counts, rate, time left and failures by cause."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lobule.errors import DamagedResults, LobuleError
from lobule.files import case_folder_name
from lobule.results.folder import RESULT, SCAN, CaseFolder, Results, open_results
from lobule.results.result import COMPLETE, FAILED, PARTIAL, UNSCORED
from lobule.results.runs import RUNNING, SILENT, SILENT_S, Run, read_runs
from lobule.results.work import read_work

FINISHED = (COMPLETE, PARTIAL, FAILED, UNSCORED)
SHOWN_CASES = 3
DAMAGED = "damaged"
"""The cause of an unfinished case whose result cannot be read."""


@dataclass(frozen=True)
class Cause:
    """A reason for which cases failed."""

    message: str
    cases: tuple[str, ...]


@dataclass(frozen=True)
class ScanStatus:
    """The state of a scan at one moment."""

    path: Path
    counts: dict[str, int]
    causes: tuple[Cause, ...]
    """The reasons of failed cases, the most frequent first."""
    runs: tuple[tuple[Run, str], ...]
    """Every run with its state, the oldest first."""
    work_left: float
    """Estimated work of the cases without a result; the number of these cases if it was not estimated."""
    damaged: tuple[str, ...] = ()
    """Cases whose result cannot be read. They count as unfinished, and the next scan writes them again."""

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def finished(self) -> int:
        return sum(self.counts[name] for name in FINISHED)

    @property
    def active(self) -> list[Run]:
        """The runs that are alive."""
        return [run for run, state in self.runs if state == RUNNING]

    @property
    def cases_per_hour(self) -> float | None:
        """Cases that all active runs together scan in an hour."""
        return _sum_of_rates([(run.scanned, run.seconds) for run in self.active], 3600.0)

    @property
    def seconds_left(self) -> float | None:
        """Estimated time until the active runs are done; None if no run is active or has scanned a case."""
        rate = _sum_of_rates([(run.scanned_work, run.seconds) for run in self.active])
        return None if rate is None else self.work_left / rate

    @property
    def machine_seconds(self) -> float:
        """Duration of all runs so far, multiplied by the number of machines of each."""
        return sum(run.seconds * run.hosts for run, _ in self.runs)

    @property
    def machine_seconds_left(self) -> float | None:
        """Estimated machine time for the rest, at the rate of all runs so far."""
        work = sum(run.scanned_work for run, _ in self.runs)
        return self.work_left * self.machine_seconds / work if work > 0 else None

    def to_dict(self, price_per_hour: float | None = None) -> dict[str, Any]:
        """Return the state as JSON-compatible values, with the cost if a price per machine hour is given."""
        data: dict[str, Any] = {
            "path": str(self.path),
            "counts": self.counts,
            "causes": [{"message": c.message, "count": len(c.cases), "cases": list(c.cases[:SHOWN_CASES])}
                       for c in self.causes],
            "damaged": list(self.damaged),
            "runs": [{**run.data, "state": state} for run, state in self.runs],
            "cases_per_hour": self.cases_per_hour,
            "seconds_left": self.seconds_left,
            "machine_seconds": self.machine_seconds,
            "machine_seconds_left": self.machine_seconds_left,
        }  # fmt: skip
        if price_per_hour is not None:
            left = self.machine_seconds_left
            data["cost"] = self.machine_seconds / 3600 * price_per_hour
            data["cost_left"] = None if left is None else left / 3600 * price_per_hour
        return data


def _sum_of_rates(amounts: list[tuple[float, float]], unit_s: float = 1.0) -> float | None:
    rate = sum(amount / seconds for amount, seconds in amounts if seconds > 0)
    return rate * unit_s if rate > 0 else None


@dataclass
class StatusReader:
    """Reads the state of a scan repeatedly. Results that did not change are read only once."""

    path: Path
    _cases: dict[str, tuple[tuple[int, int], str, str]] = field(default_factory=dict)
    """Time and size of each `result.json`, the status in it, and the reason of a failure."""
    _beats: dict[str, tuple[int, float]] = field(default_factory=dict)
    """The last beat of each run, and when this process first saw it."""
    _settings: tuple[int, list[str]] | None = None

    def read(self) -> ScanStatus:
        """Return the current state.

        Raises:
            ResultsError: The path is not a results folder, or has another format.
        """
        planned = self._planned()
        self._read_results()
        counts = dict.fromkeys((*FINISHED, "unfinished", "not started"), 0)
        causes: dict[str, list[str]] = {}
        for folder_name, (_, status, cause) in self._cases.items():
            counts[status] += 1
            if status == FAILED:
                causes.setdefault(cause, []).append(CaseFolder(Path(folder_name)).case_id)
        not_started = [name for name in planned if case_folder_name(name) not in self._cases]
        counts["not started"] = len(not_started)
        work = read_work(self.path)
        unfinished = [name for name, (_, status, _) in self._cases.items() if status == "unfinished"]
        left = [*not_started, *(CaseFolder(Path(name)).case_id for name in unfinished)]
        ordered = sorted(causes.items(), key=lambda item: (-len(item[1]), item[0]))
        return ScanStatus(
            self.path,
            counts,
            tuple(Cause(message, tuple(sorted(cases))) for message, cases in ordered),
            tuple((run, self._state_of(run)) for run in read_runs(self.path)),
            float(sum(work.get(name, 1.0) for name in left)),
            tuple(
                CaseFolder(Path(name)).case_id for name, entry in self._cases.items() if entry[2] == DAMAGED
            ),
        )

    def _planned(self) -> list[str]:
        """Return the names of the cases of the scan. `scan.json` is parsed again only when it changed."""
        results = Results(self.path)
        changed = (self.path / SCAN).stat().st_mtime_ns if (self.path / SCAN).is_file() else 0
        if self._settings is None or self._settings[0] != changed:
            try:
                self._settings = (changed, open_results(results.path).planned())
            except DamagedResults:  # The cases can still be counted.
                self._settings = (changed, [])
        return self._settings[1]

    def _read_results(self) -> None:
        current: dict[str, tuple[tuple[int, int], str, str]] = {}
        for case in Results(self.path).cases():
            try:
                file_status = (case.path / RESULT).stat()
                version = (file_status.st_mtime_ns, file_status.st_size)
            except OSError:
                version = (0, 0)
            earlier = self._cases.get(case.path.name)
            if earlier is not None and earlier[0] == version:
                current[case.path.name] = earlier
            else:
                current[case.path.name] = (version, *_status_and_cause(case))
        self._cases = current

    def _state_of(self, run: Run) -> str:
        if run.state != RUNNING:
            return run.state
        now = time.monotonic()
        beat, since = self._beats.get(run.name, (None, now))
        if beat is None:
            # The clocks of two machines may differ, so the first look is only a guess.
            since = now - abs(time.time() - float(run.data.get("updated", 0.0)))
        elif beat != run.beat:
            since = now
        self._beats[run.name] = (run.beat, since)
        return RUNNING if now - since <= SILENT_S else SILENT


def _status_and_cause(case: CaseFolder) -> tuple[str, str]:
    try:
        result = case.result
    except LobuleError:
        return "unfinished", DAMAGED
    if result is None:
        return "unfinished", ""
    error = result.get("error") or {}
    return str(result["status"]), cause_of(error) if error else ""


def cause_of(error: dict[str, Any]) -> str:
    """Return the reason of a failure without what differs between cases: the file, and numbers in it."""
    message = str(error.get("message", ""))
    subject = error.get("subject")
    if subject:
        message = message.replace(f"{subject}: ", "", 1).replace(str(subject), "the file")
    first_sentence = re.split(r"(?<=[.!?])\s", message.strip(), maxsplit=1)[0]
    return f"{error.get('type', 'Error')}: {re.sub(r'[0-9]+', 'N', first_sentence)[:200]}"


def counted(counts: Counter[str] | dict[str, int]) -> str:
    """Return counts by status as text, without zeros."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "no cases"
