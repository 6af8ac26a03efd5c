"""Freed memory stays with the process and is returned at the end; each test runs in a separate process."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc of glibc alone is asked")

CHILD = """
import json, resource, sys, threading
from pathlib import Path
keep = sys.argv[1] == "keep"
from lobule.allocator import return_freed_memory, keep_freed_memory
told = [keep_freed_memory(), keep_freed_memory()] if keep else []

def pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

def work(times):
    for _ in range(times):
        [b"1" * (48 << 20) for _ in range(2)]

def faults_of(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=work, args=(times,))
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

at_first = pages()
first, later, held = faults_of(1), faults_of(4), pages() - at_first
return_freed_memory()
print(json.dumps({"told": told, "first": first, "later": later, "held": held, "after": pages() - at_first}))
"""


def measured_by(mode: str, **environment: str) -> dict[str, Any]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC", "GLIBC"))}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, mode],
        env=clean | {"OPENBLAS_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_large_blocks_of_a_thread_are_used_again() -> None:
    keeping, plain = measured_by("keep"), measured_by("plain")
    block = (48 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert keeping["told"] == [True, True]
    assert plain["later"] > 4 * block  # each round takes its pages anew
    assert keeping["later"] < block  # of three and more blocks a round
    # Otherwise the test would not see faults. A few pages of the heap were used before.
    assert keeping["first"] > 2 * block - 16
    assert keeping["held"] > 2 * block > 4 * keeping["after"]


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_"])
def test_what_the_user_says_stays(name: str) -> None:
    value = "glibc.malloc.arena_max=4" if name == "GLIBC_TUNABLES" else "4"
    assert measured_by("keep", **{name: value})["told"] == [False, False]


@pytest.mark.parametrize("frozen", [False, True])
def test_old_objects_are_ignored_and_those_of_the_application_stay_frozen(frozen: bool) -> None:
    code = """
import gc, sys
from lobule.allocator import old_objects_ignored
if sys.argv[1] == "True":
    gc.freeze()
before = gc.get_freeze_count()
with old_objects_ignored():
    within = gc.get_freeze_count()
print(before > 0, within > 0, gc.get_freeze_count() > 0)
"""
    command = [sys.executable, "-c", code, str(frozen)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == [str(frozen), "True", str(frozen)]
