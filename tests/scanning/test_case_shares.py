"""A case divided among workers: the same bytes as a scan by one worker, whatever is lost or fails."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lobule.cluster.worker import NO_SHARE, SHARE, CaseWorker, ScanJob
from lobule.results import map_creation
from lobule.results.folder import CaseFolder, begin_results
from lobule.results.maps import MapInfo, MapReader, MapWriter
from lobule.scanning import stores
from lobule.scanning.case_shares import SCOUT, SHARES, Share, merge_shares
from lobule.scanning.contract import Batch, Predictor
from lobule.scanning.engine import options_to_dict
from lobule.scanning.scan import scan
from lobule.stitch import State
from tests.scanning.support import (
    BUNDLE,
    EVERYWHERE,
    SMALL,
    MeanPredictor,
    TwoPassPredictor,
    cohort_of,
    pixels_of,
    tree,
    write_slide,
)

ONE_THREAD = replace(SMALL, readers=1, replicas=1)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "CHUNK_CELLS", 8)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(1, 9))
def test_every_chunk_is_in_exactly_one_share(chunks: list[int], count: int) -> None:
    chunk_of_row = np.array(chunks, np.int64)
    shares = [Share(number, count).rows(chunk_of_row) for number in range(count)]
    assert (np.sum(shares, axis=0) == 1).all()
    for share in shares:
        assert not set(chunk_of_row[share]) & set(chunk_of_row[~share])
    largest = np.unique(chunk_of_row, return_counts=True)[1].max()
    assert max(share.sum() for share in shares) <= len(chunks) / count + largest


class Fragile(MeanPredictor):
    """Returns NaN for one field the first time it is computed in each process."""

    def __init__(self) -> None:
        super().__init__()
        self.has_failed = False

    def forward(self, key: Any, batch: Batch) -> dict[str, torch.Tensor]:
        outputs = super().forward(key, batch)
        if not self.has_failed:
            self.has_failed = True
            outputs["map"][0] = float("nan")
        return outputs


class Source:
    """Loads one kind of predictor."""

    bundle = BUNDLE

    def __init__(self, kind: type[Predictor]) -> None:
        self.kind = kind

    def load(self) -> Predictor:
        return self.kind()


def workers_of(kind: type[Predictor], cohort: Any, out: Path, count: int) -> list[CaseWorker]:
    settings = {"bundle": BUNDLE, "options": options_to_dict(EVERYWHERE), "cases": [cohort.cases[0].id]}
    begin_results(out, settings | {"lobule": "0.1.0"})
    job = ScanJob(Source(kind), str(out), EVERYWHERE, ONE_THREAD, cohort, False, "changed")
    workers = [CaseWorker(job) for _ in range(count)]
    for worker in workers:
        worker.start()
    return workers


@pytest.mark.parametrize("kind", [MeanPredictor, TwoPassPredictor, Fragile])
def test_a_divided_slide_has_the_bytes_of_a_whole_one(kind: type[Predictor], tmp_path: Path) -> None:
    cohort = cohort_of(write_slide(tmp_path / "giant.tif", pixels_of(700, 500)))
    (case,) = cohort
    undivided = MeanPredictor if kind is Fragile else kind
    scan(undivided(), BUNDLE, cohort, tmp_path / "whole", EVERYWHERE, ONE_THREAD)

    workers = workers_of(kind, cohort, tmp_path / "divided", 2)
    folder = tmp_path / "divided/cases/giant"
    passes = 2 if kind is TwoPassPredictor else 1
    for number in range(passes):
        outcomes = [worker.scan(0, case, Share(index, 2)) for index, worker in enumerate(workers)]
        assert [outcome.status for outcome in outcomes] == [SHARE, SHARE]
        if number == 0:
            shares = [outcome.counters["fields_done"] for outcome in outcomes]
            assert min(shares) > 0.3 * max(shares)
            assert len(list((folder / SHARES).iterdir())) == 2 and not (folder / "maps").exists()
        merge_shares(CaseFolder(folder))
        if kind is not Fragile:
            computed = workers[1].progress.counters.fields_done
            is_left = workers[1].scan(0, case, SCOUT).status == SHARE
            assert is_left == (number + 1 < passes) and workers[1].progress.counters.fields_done == computed
    if kind is not Fragile:
        assert workers[1].scan(0, case, Share(1, 2)).status == NO_SHARE, "every pass is complete"
    before = workers[0].progress.counters.fields_done
    assert workers[0].scan(0, case).status == "complete"
    computed = workers[0].progress.counters.fields_done - before
    assert computed == 0 or kind is Fragile, "the whole case only had to be put together"
    for worker in workers:
        worker.stop()
    files = [tree(tmp_path / name / "cases") for name in ("divided", "whole")]
    assert files[0] == files[1] and any("/maps/" in name for name in files[0])


def test_shares_that_were_lost_are_computed_with_the_whole_case(tmp_path: Path) -> None:
    cohort = cohort_of(write_slide(tmp_path / "giant.tif", pixels_of(700, 500)))
    (case,) = cohort
    scan(MeanPredictor(), BUNDLE, cohort, tmp_path / "whole", EVERYWHERE, ONE_THREAD)
    (worker,) = workers_of(MeanPredictor, cohort, tmp_path / "divided", 1)
    folder = tmp_path / "divided/cases/giant"
    worker.scan(0, case, Share(0, 3))
    worker.scan(0, case, Share(2, 3))
    state = folder / SHARES / "0002/maps/mean/state/c"  # As if the worker was killed between two files.
    shutil.rmtree(sorted(state.iterdir())[-1])
    assert worker.scan(0, case).status == "complete" and not (folder / SHARES).exists()
    worker.stop()
    assert tree(tmp_path / "divided/cases") == tree(tmp_path / "whole/cases")


def test_a_share_leaves_a_damaged_map_to_the_scan_of_the_whole_case(tmp_path: Path) -> None:
    cohort = cohort_of(write_slide(tmp_path / "giant.tif", pixels_of(700, 500)))
    (case,) = cohort
    (worker,) = workers_of(MeanPredictor, cohort, tmp_path / "r", 1)
    folder = tmp_path / "r/cases/giant"
    assert worker.scan(0, case).status == "complete"
    undamaged_files = tree(folder)
    (folder / "result.json").unlink()
    (folder / "maps/mean/score/zarr.json").write_text("{}")
    assert worker.scan(0, case, Share(0, 2)).status == NO_SHARE
    assert worker.scan(0, case).status == "complete"
    worker.stop()
    assert tree(folder) == undamaged_files


INFO = MapInfo("map", "slide", ("a", "b"), 40, 64, (1.0, 1.0), None, (16, 32))


def write_chunks(writer: MapWriter, chunks: list[tuple[int, int]]) -> None:
    """Write chunks with a score in each cell; the last chunk of the map has no scores."""
    for chunk in chunks:
        rows, columns = writer.info.chunk_cells(chunk)
        shape = rows.stop - rows.start, columns.stop - columns.start
        if chunk == writer.info.chunks[-1]:
            writer.write_chunk(chunk, None, np.full(shape, State.GLASS, np.uint8))
        else:
            scores = np.full((2, *shape), 1 + writer.info.chunks.index(chunk), np.float32)
            writer.write_chunk(chunk, scores, np.full(shape, State.SCORED, np.uint8))


def test_shares_are_merged_into_a_divided_map_of_an_earlier_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CaseFolder(tmp_path / "case")
    with monkeypatch.context() as earlier:
        earlier.setattr(map_creation, "INNER", 16)
        write_chunks(MapWriter(folder.map_path("map"), INFO), INFO.chunks[:1])
        write_chunks(MapWriter(tmp_path / "whole", INFO), INFO.chunks)
    for number, chunks in enumerate((INFO.chunks[:3], INFO.chunks[3:])):
        path = Share(number, 2).folder(folder).map_path("map")
        write_chunks(MapWriter(path, INFO), chunks)
        assert "sharding" not in (path / "score/zarr.json").read_text()
    merge_shares(folder)
    assert not (folder.path / SHARES).exists()
    assert "sharding" in (folder.map_path("map") / "score/zarr.json").read_text()
    assert tree(folder.map_path("map")) == tree(tmp_path / "whole")
    scores, states = MapReader(folder.map_path("map")).read()
    assert scores[0, ::16, ::32].tolist() == [[1, 2], [3, 4], [5, 0]]
    assert states[::16, ::32].tolist() == [[State.SCORED] * 2] * 2 + [[State.SCORED, State.GLASS]]


@pytest.mark.parametrize("is_damaged", [True, False])
def test_a_share_that_cannot_be_copied_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_damaged: bool
) -> None:
    folder = CaseFolder(tmp_path / "case")
    with monkeypatch.context() as earlier:
        earlier.setattr(map_creation, "INNER", 16)
        write_chunks(MapWriter(folder.map_path("map"), INFO), INFO.chunks[:1])
    before = tree(folder.map_path("map"))
    path = Share(0, 1).folder(folder).map_path("map")
    write_chunks(MapWriter(path, INFO if is_damaged else replace(INFO, rows=48)), INFO.chunks[1:2])
    if is_damaged:
        (path / "score/c/0/0/1").write_bytes(b"no scores")
    merge_shares(folder)
    assert not (folder.path / SHARES).exists() and tree(folder.map_path("map")) == before
