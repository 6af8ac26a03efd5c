"""How many batches of pixels a scan holds at once, and what it imports before it writes tables."""

from __future__ import annotations

import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from lobule.scanning import pipeline
from lobule.scanning.loader import LoadedBatch, load_batch
from lobule.scanning.pipeline import Pipeline
from lobule.scanning.scan import scan
from tests.scanning.support import BUNDLE, EVERYWHERE, SMALL, MeanPredictor, cohort_of, pixels_of, write_slide


def test_computed_batches_wait_for_the_writing_thread_without_their_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[LoadedBatch]] = []
    alive: list[int] = []

    def load_and_remember(*arguments: Any) -> LoadedBatch:
        batch = load_batch(*arguments)
        loaded.append(weakref.ref(batch))
        return batch

    def until_nothing_is_loaded() -> None:
        count, since = -1, time.monotonic()
        while time.monotonic() - since < 0.5:
            if len(loaded) != count:
                count, since = len(loaded), time.monotonic()
            time.sleep(0.02)

    deliver = Pipeline._deliver

    def deliver_when_all_queues_are_full(self: Pipeline, *arguments: Any) -> None:
        if not alive:
            until_nothing_is_loaded()
            alive.append(sum(batch() is not None for batch in loaded))
        deliver(self, *arguments)

    monkeypatch.setattr(pipeline, "load_batch", load_and_remember)
    monkeypatch.setattr(Pipeline, "_deliver", deliver_when_all_queues_are_full)
    slide = write_slide(tmp_path / "one.tif", pixels_of(700, 451))
    report = scan(MeanPredictor(), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, SMALL)
    assert dict(report.counts) == {"complete": 1}
    assert SMALL.readers == SMALL.replicas == 2 and len(loaded) > 20
    assert alive[0] <= 5, "one for each reading thread and each replica, and one that waits"


SCAN = """
import sys
from pathlib import Path
from lobule.scanning.pipeline import Pipeline
from lobule.scanning.scan import scan
from tests.scanning.support import BUNDLE, EVERYWHERE, SMALL, MeanPredictor, cohort_of

run_pass = Pipeline.run_pass

def run_pass_without_pyarrow(*arguments):
    run_pass(*arguments)
    assert "pyarrow" not in sys.modules

Pipeline.run_pass = run_pass_without_pyarrow
slide, out = map(Path, sys.argv[1:])
report = scan(MeanPredictor(), BUNDLE, cohort_of(slide), out, EVERYWHERE, SMALL)
assert dict(report.counts) == {"complete": 1}, report.failed
assert "pyarrow" in sys.modules
"""


def test_a_scan_imports_pyarrow_when_its_map_is_complete(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "one.tif", pixels_of(300, 200))
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", SCAN, str(slide), str(tmp_path / "r")], check=True, cwd=root)
