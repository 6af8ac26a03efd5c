"""A scan killed at any instant is resumed to the very bytes of an unbroken one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lobule.results import describe, open_results
from lobule.scanning.scan import scan
from tests.scanning.support import (
    BUNDLE,
    EVERYWHERE,
    SMALL,
    TwoPassPredictor,
    cohort_of,
    pixels_of,
    tree,
    write_slide,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    return [write_slide(folder / f"{i}.tif", pixels_of(900 + 50 * i, 700, i)) for i in range(3)]


@pytest.fixture(scope="module")
def unbroken(slides: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """Every file of an unbroken scan, and the seconds that the slow one takes."""
    folder = tmp_path_factory.mktemp("unbroken")
    process = start(folder / "r", slides)
    began = time.monotonic()
    assert process.communicate()[0] == "done\n"
    return tree(folder / "r"), time.monotonic() - began


def start(out: Path, slides: list[Path]) -> subprocess.Popen[str]:
    """A child that scans; returns when it begins to."""
    command = [sys.executable, "-m", "tests.faults.victim", str(out), *map(str, slides)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    return process


def kill_and_resume(
    index: int, out: Path, slides: list[Path], unbroken: tuple[dict[str, bytes], float]
) -> str:
    want, seconds = unbroken
    process = start(out, slides)
    time.sleep(random.Random(index).uniform(0, seconds))
    process.send_signal(signal.SIGKILL)
    finished = process.communicate()[0] == "done\n"
    state = "finished before the kill" if finished else "killed"
    if (out / "scan.json").exists():
        described, text = describe(out)
        accounted = sum(described["counts"].values())
        assert accounted == len(slides), text
    scan(TwoPassPredictor(), BUNDLE, cohort_of(*slides), out, EVERYWHERE, SMALL)
    assert open_results(out).counts()["complete"] == len(slides)
    got = tree(out)
    assert got.keys() == want.keys(), got.keys() ^ want.keys()
    assert [name for name in want if got[name] != want[name]] == []
    return state


@pytest.mark.parametrize("index", range(5))
def test_a_killed_scan_resumes_to_the_same_bytes(
    index: int, slides: list[Path], unbroken: tuple[dict[str, bytes], float], tmp_path: Path
) -> None:
    kill_and_resume(index, tmp_path / "r", slides, unbroken)


@pytest.mark.campaign
def test_fifty_kills(slides: list[Path], unbroken: tuple[dict[str, bytes], float], tmp_path: Path) -> None:
    """Fifty in the middle of a scan: one that was done before its kill came is resumed, and not counted."""
    killed = late = 0
    while killed < 50:
        if kill_and_resume(100 + killed + late, tmp_path / str(killed + late), slides, unbroken) == "killed":
            killed += 1
        else:
            late += 1
        assert late < 100, f"of {killed + late} kills {late} came too late"
    print(f"\n50 kills in the middle of a scan, {late} more too late: all resumed to the same bytes")
