"""A process that scans on a local Ray: `python driver.py JOB.pickle`. It prints a line of JSON at the end.

A separate process ends Ray with everything that it started, and can be killed like the driver of a user.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from lobule.cluster.scan import scan_on_ray
from lobule.cluster.session import ClusterOptions
from lobule.cohort import Cohort
from lobule.scanning.progress import Progress
from tests.cluster.support import SlowSource
from tests.scanning.support import EVERYWHERE, SMALL

ROOT = Path(__file__).parents[2]
ONE_THREAD = replace(SMALL, readers=1, replicas=1)


@dataclass(frozen=True)
class Job:
    """The scan of a driver: a pause per batch, and a folder in which workers note their processes."""

    cohort: Cohort
    out: str
    pause_s: float = 0.0
    processes: str | None = None
    workers: int = 2
    attempts: int = 4
    address: str | None = None
    divided_bytes: int = 4 << 30


@contextmanager
def driver(job: Job, *prefix: str) -> Iterator[subprocess.Popen[str]]:
    """Start a driver, and end it with its group if the test leaves it running."""
    path = Path(f"{job.out}.pickle")
    path.write_bytes(pickle.dumps(asdict(job) | {"cohort": job.cohort}))
    command = [*prefix, sys.executable, __file__, str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def outcome_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a driver and return what it printed."""
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    outcome: dict[str, Any] = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    return outcome


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    """Wait until a condition is true while a driver runs."""
    while not condition():
        assert process.poll() is None, "the driver ended too early"
        time.sleep(0.05)


def main() -> None:
    job = Job(**pickle.loads(Path(sys.argv[1]).read_bytes()))
    progress = Progress()
    report = scan_on_ray(
        SlowSource(job.pause_s, job.processes), job.cohort, job.out, EVERYWHERE, ONE_THREAD,
        ClusterOptions(job.address, job.workers, 1, job.attempts, job.divided_bytes), progress=progress,
    )  # fmt: skip
    outcome = {
        "counts": report.counts,
        "failed": report.failed,
        "skipped": sorted(name for name, status in progress.finished.items() if status == "skipped"),
        "fields": progress.counters.fields_done,
        "sends_usage": import_module("ray._common.usage.usage_lib").usage_stats_enabled(),
    }
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
