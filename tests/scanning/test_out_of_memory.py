"""The memory of a device is exhausted in the middle of a scan, or limits its batches from the start."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lobule.results import open_results
from lobule.results.runs import read_runs
from lobule.scanning import device
from lobule.scanning.contract import Batch
from lobule.scanning.scan import Machine, scan
from tests.scanning.support import (
    BUNDLE,
    EVERYWHERE,
    MeanPredictor,
    TwoPassPredictor,
    cohort_of,
    pixels_of,
    tree,
    write_slide,
)

MACHINE = Machine(
    device="cpu", precision="float32", batch=7, cells=3, readers=2, replicas=2, channels_last=True
)


class SmallCard(TwoPassPredictor):
    """A model on a card whose memory holds `room` fields at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.sizes: list[int] = []

    def sample_batch(self, engine: Any, options: Any) -> Any:
        return "sample", super().sample_batch(engine, options)[1]

    def forward(self, key: Any, batch: Batch) -> dict[str, torch.Tensor]:
        if key == "sample":  # The form is chosen before the memory is exhausted.
            return super().forward("mean", batch)
        if len(batch.pixels) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        self.sizes.append(len(batch.pixels))
        return super().forward(key, batch)


def tree_without_pieces(root: Path, pieces: int) -> dict[str, bytes]:
    """The files of a results folder, without the two lines that record the pieces of a batch."""
    line = re.compile(rb',\n +"pieces": %d' % pieces)
    files = tree(root)
    for name in ("scan.json", "cases/one/result.json"):
        files[name], count = line.subn(b"", files[name])
        assert count == 1
    return files


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "one.tif", pixels_of(500, 400))


@pytest.mark.parametrize("room", [1, 2, 6])
def test_batches_are_halved_until_they_fit(
    slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, room: int
) -> None:
    card = SmallCard(room)
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        report = scan(card, BUNDLE, cohort_of(slide), tmp_path / "small", EVERYWHERE, MACHINE)
    scan(TwoPassPredictor(), BUNDLE, cohort_of(slide), tmp_path / "large", EVERYWHERE, MACHINE)
    assert dict(report.counts) == {"complete": 1}
    # This model computes each field alone, so that the pieces give the same bytes as the batch.
    pieces = {6: 2, 2: 4, 1: 8}[room]
    assert open_results(tmp_path / "small").settings["engine"]["pieces"] == pieces
    assert tree_without_pieces(tmp_path / "small", pieces) == tree(tmp_path / "large")
    halvings = {6: 1, 2: 2, 1: 3}[room]  # 7 fields in 2, 4 or 7 pieces
    assert report.counters.batch_halvings == halvings
    assert read_runs(tmp_path / "small")[0].data["batch_halvings"] == halvings
    assert "pieces" in caplog.text and max(card.sizes) <= room


def test_a_field_that_does_not_fit_alone_fails_its_case(slide: Path, tmp_path: Path) -> None:
    report = scan(SmallCard(0), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, MACHINE)
    assert dict(report.counts) == {"failed": 1}
    assert "exhausted by a single field" in report.failed["one"] and "20.00 GiB" in report.failed["one"]
    assert read_runs(tmp_path / "r")[0].data["batch_halvings"] == 3


def test_fields_on_a_gpu_follow_its_free_memory_and_not_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 << 30, 80 << 30))
    assert device.max_bytes_on("cuda:0", 1 << 30) == int(device.DEVICE_SHARE * (10 << 30))
    assert device.max_bytes_on("cpu", 1 << 30) == 1 << 30


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")],
)
def test_the_batch_is_halved_while_the_form_is_chosen(
    error: RuntimeError, slide: Path, tmp_path: Path
) -> None:
    class Fussy(MeanPredictor):
        """Not even the sample batch fits before the batch is small enough."""

        def forward(self, key: Any, batch: Batch) -> dict[str, torch.Tensor]:
            if len(batch.pixels) > 2:
                raise error
            return super().forward(key, batch)

    report = scan(Fussy(), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, MACHINE)
    assert dict(report.counts) == {"complete": 1}
    assert open_results(tmp_path / "r").settings["engine"]["batch"] == 1
