"""What every benchmark shares: timing side by side, peak memory of a child, the machine, the last line."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field


def arguments(description: str, work: str | None = None, keys: Collection[str] = ()) -> argparse.Namespace:
    """The options of a benchmark: `--quick` stays under 45 s, `--work DIR` if `work` says what it keeps.

    `keys` are the ratios of which `--only KEY` measures one, with those that are measured together with it.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under 45 s")
    if work:
        parser.add_argument("--work", metavar="DIR", help=work)
    if keys:
        parser.add_argument("--only", choices=list(keys), metavar="KEY", help=f"one of {', '.join(keys)}")
    return parser.parse_args()


@dataclass
class Times:
    """Seconds that several tasks took for the same number of items, each the best of its rounds."""

    count: int = 0
    """Number of items."""
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, task: str, seconds: float) -> None:
        self.seconds[task] = min(seconds, self.seconds.get(task, seconds))

    def without(self, fewer: Times) -> Times:
        """What the additional items took, without what every task takes once."""
        difference = {task: seconds - fewer.seconds[task] for task, seconds in self.seconds.items()}
        return Times(self.count - fewer.count, difference)


def side_by_side(tasks: Mapping[str, Callable[[int], None]], pieces: int, rounds: int) -> dict[str, float]:
    """Seconds each task takes for all its pieces: the sum over pieces of the best of some rounds.

    The tasks take turns on each piece, so that whatever else the machine does meets them alike; the best
    round is the one that was disturbed least.
    """
    best = {name: [float("inf")] * pieces for name in tasks}
    for _ in range(rounds):
        for piece in range(pieces):
            for name, task in tasks.items():
                start = time.perf_counter()
                task(piece)
                best[name][piece] = min(best[name][piece], time.perf_counter() - start)
    return {name: sum(seconds) for name, seconds in best.items()}


def peak_bytes(command: Sequence[str]) -> int:
    """Peak resident memory of a Python child that runs `command`."""
    # started from a small process: a child's peak would count what this one held when it forked
    starter = (
        "import resource, subprocess, sys; "
        "status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", starter, sys.executable, *command],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}")
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


def machine() -> str:
    """Processor and cores; enough to judge whether two numbers may be compared."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def report(name: str, ratios: Mapping[str, float]) -> None:
    """Print the last line of every benchmark."""
    rounded = {key: round(value, 4) for key, value in ratios.items()}
    print(json.dumps({"name": name, "ratios": rounded, "machine": machine()}), flush=True)
