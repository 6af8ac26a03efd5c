"""What a scan keeps in memory does not grow with the number of its cases."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from lobule.cohort import Case, Cohort
from lobule.engines.cases import Progress
from lobule.engines.passes import ScanOptions
from lobule.engines.scan import scan
from tests.engines.support import BUNDLE, SMALL, MeanPredictor, pixels_of, write_slide

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
