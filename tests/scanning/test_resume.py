"""What a second scan of a results folder keeps, what it makes anew, and what it refuses."""

from __future__ import annotations

import logging
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, ResultsError
from lobule.files import read_json, write_json
from lobule.geometry import Box
from lobule.results import open_results
from lobule.results.result import Result
from lobule.scanning.cases import CaseRunner
from lobule.scanning.contract import EngineSettings, OpenCase, ScanOptions, Steps, fill_map
from lobule.scanning.scan import Machine, scan
from lobule.stitch import State
from tests.scanning.support import (
    BUNDLE,
    EVERYWHERE,
    SMALL,
    MeanPredictor,
    cohort_of,
    pixels_of,
    tree,
    write_slide,
)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "a.tif", pixels_of(400, 300))


def again(
    cohort: Cohort, out: Path, predictor: MeanPredictor | None = None, **scan_options: object
) -> MeanPredictor:
    predictor = predictor or MeanPredictor()
    settings = {"options": EVERYWHERE, "machine": SMALL, **scan_options}
    scan(predictor, BUNDLE, cohort, out, **settings)  # type: ignore[arg-type]
    return predictor


def forwards_of_a_scan(cohort: Cohort, out: Path) -> int:
    """Number of computed batches, without those of the measurement in a new folder."""
    return again(cohort, out).forwards


def test_a_slide_that_moved_keeps_its_result(slide: Path, tmp_path: Path) -> None:
    again(cohort_of(slide), tmp_path / "r")
    before = tree(tmp_path / "r")
    moved = tmp_path / "elsewhere" / "a.tif"
    moved.parent.mkdir()
    shutil.move(slide, moved)
    assert forwards_of_a_scan(cohort_of(moved), tmp_path / "r") == 0
    assert tree(tmp_path / "r") == before


def test_unreadable_slide_keeps_its_existing_result(slide: Path, tmp_path: Path) -> None:
    again(cohort_of(slide), tmp_path / "r")
    before = tree(tmp_path / "r")
    slide.rename(tmp_path / "away.tif")
    assert forwards_of_a_scan(cohort_of(slide), tmp_path / "r") == 0
    assert tree(tmp_path / "r") == before


@pytest.mark.parametrize("change", [{"mpp": 0.25}, {"l0_box": Box(0, 0, 128, 128), "kind": "region"}])
def test_case_with_changed_options_is_scanned_again(
    slide: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    (case,) = cohort_of(slide)
    other = Cohort((replace(case, **change),))  # type: ignore[arg-type]
    again(Cohort((case,)), tmp_path / "r")
    again(other, tmp_path / "r")
    again(other, tmp_path / "alone")
    mixed, alone = tree(tmp_path / "r"), tree(tmp_path / "alone")
    assert {n: mixed[n] for n in mixed if n.startswith("cases/")} == {
        n: alone[n] for n in alone if n.startswith("cases/")
    }


@pytest.mark.parametrize("name", ["plan.json", "result.json"])
def test_damaged_result_is_written_again(slide: Path, tmp_path: Path, name: str) -> None:
    again(cohort_of(slide), tmp_path / "r")
    before = tree(tmp_path / "r")
    (tmp_path / "r" / "cases" / "a" / name).write_text('{"case":')
    again(cohort_of(slide), tmp_path / "r")
    assert tree(tmp_path / "r") == before


def test_missing_scores_are_an_error_and_not_zero(slide: Path, tmp_path: Path) -> None:
    again(cohort_of(slide), tmp_path / "r")
    before = tree(tmp_path / "r")
    case = open_results(tmp_path / "r").case_folder("a")
    deleted_chunk = sorted((case.map_path("mean") / "score" / "c").rglob("*"))[-1]
    assert deleted_chunk.is_file()
    deleted_chunk.unlink()
    with pytest.raises(ResultsError, match="missing"):
        case.maps["mean"].read()
    (case.path / "result.json").unlink()
    again(cohort_of(slide), tmp_path / "r")
    assert tree(tmp_path / "r") == before


def test_clearing_a_case_leaves_its_plan_for_last(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again(cohort_of(slide), tmp_path / "r")
    case = open_results(tmp_path / "r").case_folder("a")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        case.clear()
    assert (case.path / "plan.json").exists() and not (case.path / "result.json").exists()
    monkeypatch.undo()
    case.clear()
    assert not list(case.path.iterdir())


def test_fresh_chooses_the_engine_settings_again(slide: Path, tmp_path: Path) -> None:
    again(cohort_of(slide), tmp_path / "r")
    again(cohort_of(slide), tmp_path / "r", machine=replace(SMALL, cells=2, batch=5), fresh=True)
    engine = read_json(tmp_path / "r" / "scan.json")["engine"]
    assert (engine["cells"], engine["batch"]) == (2, 5)


def test_lower_memory_limit_on_resume_logs_a_warning(
    slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    again(cohort_of(slide), tmp_path / "r")
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        again(cohort_of(slide), tmp_path / "r")
        assert not caplog.messages
        again(cohort_of(slide), tmp_path / "r", machine=replace(SMALL, max_ram=1 << 20))
    assert "was chosen for 2 GiB, so the scan may exceed the limit of 0.00098 GiB" in caplog.text


def test_another_kind_of_device_on_resume_logs_a_warning(
    slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    again(cohort_of(slide), tmp_path / "r")
    run = read_json(tmp_path / "r" / "run.json")
    write_json(tmp_path / "r" / "run.json", {**run, "device": "cuda:1"})
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        again(cohort_of(slide), tmp_path / "r")
    assert "this scan began on cuda:1 and continues on cpu, which rounds differently" in caplog.text


def test_fresh_is_refused_for_one_shard_of_several(slide: Path, tmp_path: Path) -> None:
    again(cohort_of(slide), tmp_path / "r", shard=(1, 2))
    with pytest.raises(ConfigError, match="other shards"):
        again(cohort_of(slide), tmp_path / "r", shard=(2, 2), fresh=True)
    assert open_results(tmp_path / "r").counts()["complete"] == 1


class Strict(MeanPredictor):
    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        if options.stride == 7:
            raise ConfigError("no such stride")
        return super().choose_batch(engine, max_bytes, options)


def test_settings_of_a_scan_without_cases_can_be_changed(slide: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        again(cohort_of(slide), tmp_path / "r", Strict(), options=replace(EVERYWHERE, stride=7))
    again(cohort_of(slide), tmp_path / "r", Strict())
    assert open_results(tmp_path / "r").settings["options"]["stride"] is None


def test_shards_that_begin_together_share_one_engine(tmp_path: Path) -> None:
    paths = [write_slide(tmp_path / f"{i}.tif", pixels_of(160, 160, i)) for i in range(2)]
    meet = threading.Barrier(2)
    used: list[int] = []

    class Late(MeanPredictor):
        def __init__(self, cells: int) -> None:
            super().__init__()
            self.cells = cells

        def images(self, case: Case, options: ScanOptions):  # type: ignore[no-untyped-def]
            return super().images(case, options)

        def choose_batch(
            self, engine: EngineSettings, max_bytes: int, options: ScanOptions
        ) -> EngineSettings:
            return replace(engine, cells=self.cells, batch=1)

        def steps(self, case: OpenCase) -> Steps[Result]:
            used.append(case.engine.cells)
            return super().steps(case)

    def shard(index: int) -> None:
        meet.wait()
        free = Machine(device="cpu", precision="float32", readers=1, replicas=1, channels_last=True)
        scan(Late(2 + index), BUNDLE, cohort_of(*paths), tmp_path / "r", EVERYWHERE, free, shard=(index, 2))

    threads = [threading.Thread(target=shard, args=(index,)) for index in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(used) == 2 and set(used) == {read_json(tmp_path / "r" / "scan.json")["engine"]["cells"]}


class Hot(MeanPredictor):
    """A second map over what the first found: its fields depend on the first map's failures."""

    broken = False

    def steps(self, case: OpenCase) -> Steps[Result]:
        grid = self.grid(case)
        everywhere = np.ones((grid.rows, grid.columns), np.bool_)
        first = yield from fill_map("mean", "mean", grid, self.classes, everywhere)
        scored = first.states() == State.SCORED
        second = yield from fill_map(
            "fine",
            "fine",
            grid,
            self.classes,
            scored,
            ~everywhere,
            promise=np.zeros((grid.field_rows, grid.field_columns), np.float32),
        )
        return Result({"scored": float(second.counts()["scored"])})

    def forward(self, key, batch):  # type: ignore[no-untyped-def]
        out = super().forward(key, batch)
        if self.broken:
            bright = batch.pixels.float().mean(dim=(1, 2, 3)) > 140
            out["map"][bright] = float("nan")
        return out


def test_retrying_failures_recomputes_later_passes(slide: Path, tmp_path: Path) -> None:
    predictor = Hot()
    predictor.broken = True
    again(cohort_of(slide), tmp_path / "r", predictor)
    failed = read_json(tmp_path / "r" / "cases" / "a" / "result.json")["failed"]
    assert {entry["pass"] for entry in failed} >= {"mean"}
    predictor.broken = False
    again(cohort_of(slide), tmp_path / "r", predictor, retry_failed=True)
    again(cohort_of(slide), tmp_path / "unbroken", Hot())
    result = read_json(tmp_path / "r" / "cases" / "a" / "result.json")
    assert result == read_json(tmp_path / "unbroken" / "cases" / "a" / "result.json")


def test_reading_threads_survive_an_error_of_the_method_between_batches(slide: Path, tmp_path: Path) -> None:
    class Breaks(MeanPredictor):
        def steps(self, case: OpenCase) -> Steps[Result]:
            grid = self.grid(case)
            everywhere = np.ones((grid.rows, grid.columns), np.bool_)
            yield from fill_map("mean", "mean", grid, self.classes, everywhere, go_on=lambda: 1 // 0 > 0)
            raise AssertionError("not reached")

    again(cohort_of(slide), tmp_path / "r", Breaks())
    assert open_results(tmp_path / "r").case_folder("a").result["error"]["type"] == "ZeroDivisionError"  # type: ignore[index]


def test_long_names_in_any_script_get_a_folder(slide: Path, tmp_path: Path) -> None:
    (case,) = cohort_of(slide)
    name = "乳腺" * 33
    again(Cohort((replace(case, id=name),)), tmp_path / "r")
    assert [folder.case_id for folder in open_results(tmp_path / "r").cases()] == [name]


def test_truncated_chunk_is_recomputed(tmp_path: Path) -> None:
    """What a power failure leaves: the record is there, its bytes are not."""
    slide = write_slide(tmp_path / "one.tif", pixels_of(300, 200))
    scan(MeanPredictor(), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, SMALL)
    want = tree(tmp_path / "r")
    case = tmp_path / "r" / "cases" / "one"
    (case / "result.json").unlink()
    chunk = next(path for path in (case / "maps" / "mean" / "score" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:5])
    scan(MeanPredictor(), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, SMALL)
    assert tree(tmp_path / "r") == want


def test_finished_cases_are_skipped_without_threads(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_slide(tmp_path / "b.tif", pixels_of(300, 300))
    cohort = cohort_of(slide, other)
    again(cohort, tmp_path / "r")
    before = tree(tmp_path / "r")
    started = []
    run_case = CaseRunner._run_case

    def record(self: CaseRunner, order: int, case: Case) -> None:
        started.append(case.id)
        run_case(self, order, case)

    monkeypatch.setattr(CaseRunner, "_run_case", record)
    again(cohort, tmp_path / "r")
    assert started == [] and tree(tmp_path / "r") == before
    write_slide(other, pixels_of(300, 300, 7))
    again(cohort, tmp_path / "r")
    assert started == [cohort.cases[1].id], "the slide has changed"
