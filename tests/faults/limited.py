"""Run one function in a child process that may use 2 GB of memory and 20 seconds of processor time."""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MEMORY = 2 << 30
CPU_SECONDS = 20
PATIENCE = 300
"""Seconds after which the child process counts as hanging; the limit is long because test machines are often
busy."""


def run_limited(function: str, argument: Any) -> Any:
    """Call `module:function` with an argument in a limited child, and return what it returns.

    A crash, a hang, or more memory or time than allowed fails the test that called this.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.limited", function],
        input=json.dumps(argument),
        capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, check=False,
        env=os.environ | {"PYTHONFAULTHANDLER": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def _virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main() -> None:
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    argument = json.loads(sys.stdin.read())
    limit = _virtual_bytes() + MEMORY  # beyond what the imported libraries have mapped
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, used + CPU_SECONDS + 1))
    print(json.dumps(function(argument)), flush=True)


if __name__ == "__main__":
    main()
