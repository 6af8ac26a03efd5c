"""What a scan keeps in memory does not grow with the number of its cases."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from lobule.cohort import Case, Cohort
from lobule.scanning import cases as cases_module
from lobule.scanning.contract import ScanOptions
from lobule.scanning.progress import Progress
from lobule.scanning.scan import scan
from tests.scanning.support import BUNDLE, EVERYWHERE, SMALL, MeanPredictor, pixels_of, write_slide

WARM_UP, END = 20, 60
BYTES_PER_CASE = 2048
"""A case leaves its name and status in the progress and in the list of cases, and no more."""


class MemoryLog(dict[str, str]):
    """The finished cases of a scan; notes the traced memory when enough of them are there."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes_after: dict[int, int] = {}

    def __setitem__(self, case: str, status: str) -> None:
        super().__setitem__(case, status)
        if len(self) in (WARM_UP, END):
            gc.collect()
            self.bytes_after[len(self)] = tracemalloc.get_traced_memory()[0]


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def write_cases(folder: Path, count: int) -> Cohort:
    """Slides of JPEG tiles: their readers keep decoded tiles and room for compressed ones."""
    first = write_slide(folder / "first.tif", pixels_of(300, 280), compression="jpeg")
    cases = []
    for index in range(count):
        path = folder / f"{index}.tif"
        path.hardlink_to(first)
        cases.append(Case(f"case {index}", f"patient {index}", "slide", str(path), mpp=0.5))
    return Cohort(tuple(cases))


@pytest.mark.usefixtures("traced")
def test_memory_does_not_grow_with_the_cases(tmp_path: Path) -> None:
    cohort, progress, log = write_cases(tmp_path, END), Progress(), MemoryLog()
    progress.finished = log
    report = scan(MeanPredictor(), BUNDLE, cohort, tmp_path / "r", ScanOptions(), SMALL, progress=progress)
    assert sum(report.counts.values()) == END
    growth = log.bytes_after[END] - log.bytes_after[WARM_UP]
    assert growth < BYTES_PER_CASE * (END - WARM_UP), f"{growth} bytes, {sys.version}"


def test_free_memory_goes_back_to_the_system_while_cases_are_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slides of different sizes leave gaps in memory that is kept, and only the system can close them."""
    returned: list[int] = []
    progress = Progress()
    monkeypatch.setattr(cases_module, "return_free_pages", lambda: returned.append(len(progress.finished)))
    count = 2 * cases_module.CASES_PER_TRIM + 5
    scan(
        MeanPredictor(), BUNDLE, write_cases(tmp_path, count), tmp_path / "r", EVERYWHERE, SMALL,
        progress=progress,
    )  # fmt: skip
    assert {cases_module.CASES_PER_TRIM, 2 * cases_module.CASES_PER_TRIM} <= set(returned)


RESIDENT = """
import sys
from lobule.allocator import keep_freed_memory
keep_freed_memory()
import json
import numpy as np
import psutil
from pathlib import Path
from lobule.scanning.progress import Progress
from lobule.scanning.contract import ScanOptions
from lobule.scanning.scan import scan
from tests.scanning.support import BUNDLE, SMALL, MeanPredictor, cohort_of, pixels_of, write_slide

class ResidentLog(dict):
    def __setitem__(self, case, status):
        super().__setitem__(case, status)
        if len(self) in (50, 300):
            print(psutil.Process().memory_info().rss / 2**20, flush=True)

folder, sides = Path(sys.argv[1]), np.random.default_rng(0)
pixels = pixels_of(1000, 1000)
slides = [write_slide(folder / f"{i}.tif", pixels[: sides.integers(200, 1000), : sides.integers(200, 1000)])
          for i in range(300)]
progress = Progress()
progress.finished = ResidentLog()
scan(MeanPredictor(), BUNDLE, cohort_of(*slides), folder / "r", ScanOptions(), SMALL, progress=progress)
"""


@pytest.mark.campaign
def test_resident_memory_is_flat_over_300_cases_of_different_sizes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RESIDENT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after_50, after_300 = map(float, done.stdout.split())
    assert after_300 - after_50 < 10, f"{after_50:.1f} MiB after 50 cases, {after_300:.1f} MiB after 300"
