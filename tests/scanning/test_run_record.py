"""The record of a run, the state of a scan that it shows, and the repetition of a run from its record."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lobule.cohort import Cohort
from lobule.errors import ConfigError, ResultsError
from lobule.results import status as status_module
from lobule.results.runs import FAILED_RUN, INTERRUPTED, RUNNING, SILENT, read_run, read_runs
from lobule.results.status import ScanStatus, StatusReader, cause_of
from lobule.scanning import run_record
from lobule.scanning.contract import Batch, EngineSettings, OpenCase, ScanOptions, Steps
from lobule.scanning.run_repeat import options_of_run
from lobule.scanning.scan import Machine, scan
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
def cohort(tmp_path: Path) -> Cohort:
    good = [write_slide(tmp_path / f"s{i}.tif", pixels_of(200 + i, 150, i)) for i in range(3)]
    for index in range(2):
        (tmp_path / f"bad{index}.tif").write_bytes(b"not a slide")
    return cohort_of(*good, tmp_path / "bad0.tif", tmp_path / "bad1.tif")


def run_scan(cohort: Cohort, out: Path, predictor: MeanPredictor | None = None, **options: Any) -> None:
    scan(
        predictor or MeanPredictor(),
        BUNDLE,
        cohort,
        out,
        **{"options": EVERYWHERE, "machine": SMALL} | options,
    )


def test_contents_of_the_record(cohort: Cohort, tmp_path: Path) -> None:
    run_scan(cohort, tmp_path / "r")
    (run,) = read_runs(tmp_path / "r")
    assert run.state == "finished" and run.scanned == 5
    assert run.data["counts"] == {"complete": 3, "failed": 2}
    assert run.data["engine"] == json.loads((tmp_path / "r" / "scan.json").read_text())["engine"]
    assert run.data["bundle"]["fingerprint"] == BUNDLE["fingerprint"]
    assert {"lobule", "python", "torch", "numpy"} <= set(run.data["versions"])
    assert run.data["cohort"]["cases"] == 5 and len(run.data["inputs_sha256"]) == 64
    assert run.data["hosts"] and run.data["machine"]["processor"] and run.data["seconds"] > 0
    run_scan(cohort, tmp_path / "r")
    assert [(run.scanned, run.data["counts"]["skipped"]) for run in read_runs(tmp_path / "r")[1:]] == [(0, 5)]


class Stopping(MeanPredictor):
    error: BaseException = KeyboardInterrupt()

    def steps(self, case: OpenCase) -> Steps[Any]:
        if case.case.id == "s1":
            raise self.error
        return super().steps(case)


@pytest.mark.parametrize(
    ("error", "state"), [(KeyboardInterrupt(), INTERRUPTED), (ResultsError("no space is left"), FAILED_RUN)]
)
def test_the_record_says_how_the_run_ended(
    cohort: Cohort, tmp_path: Path, error: BaseException, state: str
) -> None:
    predictor = Stopping()
    predictor.error = error
    with pytest.raises(type(error)):
        run_scan(cohort, tmp_path / "r", predictor)
    (run,) = read_runs(tmp_path / "r")
    assert run.state == state
    assert ("no space" in (run.data["error"] or "")) == (state == FAILED_RUN)


def test_state_of_a_scan_while_it_is_running(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_record, "BEAT_S", 0.02)
    states: list[tuple[ScanStatus, ScanStatus]] = []

    class Observed(MeanPredictor):
        def forward(self, key: Any, batch: Batch) -> Any:
            if (tmp_path / "r" / "runs").exists() and self.forwards > 8 and not states:
                reader = StatusReader(tmp_path / "r")
                first = reader.read()
                time.sleep(0.1)
                states.append((first, reader.read()))
            return super().forward(key, batch)

    run_scan(cohort, tmp_path / "r", Observed())
    first, second = states[0]
    assert first.total == 5 and first.finished < 5
    assert [state for _, state in first.runs] == [RUNNING] and len(second.active) == 1
    assert second.runs[0][0].beat > first.runs[0][0].beat
    last = StatusReader(tmp_path / "r").read()
    assert last.finished == 5 and not last.active and last.work_left == 0
    assert last.counts["failed"] == 2 and last.seconds_left is None


def test_failures_are_grouped_by_cause(cohort: Cohort, tmp_path: Path) -> None:
    run_scan(cohort, tmp_path / "r")
    (cause,) = StatusReader(tmp_path / "r").read().causes
    assert (
        cause.cases == ("bad0", "bad1") and "bad0" not in cause.message and "UnknownFormat" in cause.message
    )


def test_causes_leave_out_the_file_and_numbers() -> None:
    first = {"type": "DamagedFile", "message": "/a/1.tif: only 5 of 7 bytes. Copy it.", "subject": "/a/1.tif"}
    second = {
        "type": "DamagedFile",
        "message": "/b/22.tif: only 9 of 70 bytes. Copy it.",
        "subject": "/b/22.tif",
    }
    assert cause_of(first) == cause_of(second) == "DamagedFile: only N of N bytes."


def write_record(root: Path, name: str, **changes: Any) -> None:
    record = {
        "format": "lobule-run/1", "run": name, "state": RUNNING, "beat": 1, "updated": time.time(),
        "seconds": 100.0, "counts": {"complete": 10}, "hosts": ["node"], **changes,
    }  # fmt: skip
    (root / "runs" / name).mkdir(parents=True, exist_ok=True)
    (root / "runs" / name / "run.json").write_text(json.dumps(record))


def test_rate_time_left_and_cost_of_two_runs(cohort: Cohort, tmp_path: Path) -> None:
    root = tmp_path / "r"
    run_scan(Cohort(cohort.cases[:1]), root)
    (first,) = read_runs(root)
    settings = json.loads((root / "scan.json").read_text())
    settings["cases"] += [f"more {index}" for index in range(60)]
    (root / "scan.json").write_text(json.dumps(settings))
    write_record(root, "a", counts={"complete": 10, "skipped": 99}, seconds=100.0)
    write_record(root, "b", counts={"complete": 20}, seconds=100.0)
    status = StatusReader(root).read()
    assert status.cases_per_hour == pytest.approx(0.3 * 3600)
    assert status.seconds_left == pytest.approx(60 / 0.3)
    hours = (200 + first.seconds) / 3600
    data = status.to_dict(price_per_hour=2.0)
    assert data["cost"] == pytest.approx(2 * hours)
    assert data["cost_left"] == pytest.approx(2 * hours / 31 * 60)


def test_run_whose_record_is_no_longer_written_is_lost(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_scan(Cohort(cohort.cases[:1]), tmp_path / "r")
    moments = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: moments[0])
    reader = StatusReader(tmp_path / "r")
    write_record(tmp_path / "r", "a")
    assert reader.read().runs[0][1] == RUNNING or reader.read().runs[-1][1] == RUNNING
    moments[0] += 3600
    assert SILENT in [state for _, state in reader.read().runs]
    write_record(tmp_path / "r", "a", beat=2)
    assert SILENT not in [state for _, state in reader.read().runs]


@pytest.mark.parametrize("skew_s", [-7200, 7200])
def test_a_wrong_clock_on_another_machine_is_noticed_at_the_second_look(
    cohort: Cohort, tmp_path: Path, skew_s: float
) -> None:
    run_scan(Cohort(cohort.cases[:1]), tmp_path / "r")
    reader = StatusReader(tmp_path / "r")
    write_record(tmp_path / "r", "a", beat=7, updated=time.time() + skew_s)
    assert SILENT in [state for _, state in reader.read().runs]
    write_record(tmp_path / "r", "a", beat=8, updated=time.time() + skew_s)
    assert RUNNING in [state for _, state in reader.read().runs]


def test_damaged_records_and_results_do_not_hide_the_others(cohort: Cohort, tmp_path: Path) -> None:
    run_scan(cohort, tmp_path / "r")
    (tmp_path / "r" / "cases" / "s0" / "result.json").write_text("{")
    write_record(tmp_path / "r", "damaged", beat="many")
    (tmp_path / "r" / "runs" / "empty").mkdir()
    status = StatusReader(tmp_path / "r").read()
    assert status.counts["complete"] == 2 and status.counts["unfinished"] == 1 and len(status.runs) == 1
    assert status.damaged == ("s0",) and status.to_dict()["damaged"] == ["s0"]
    run_scan(cohort, tmp_path / "r")
    assert StatusReader(tmp_path / "r").read().damaged == ()


def test_results_that_did_not_change_are_read_once(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_scan(cohort, tmp_path / "r")
    reader = StatusReader(tmp_path / "r")
    first = reader.read()
    monkeypatch.setattr(status_module, "_status_and_cause", None)
    assert reader.read().counts == first.counts


class OtherMachine(MeanPredictor):
    """Chooses other fields than the machine of the first run."""

    def choose_batch(self, engine: EngineSettings, room: int, options: ScanOptions) -> EngineSettings:
        return EngineSettings(**{**engine.__dict__, "cells": 2, "batch": 5})


def test_a_run_is_repeated_from_its_record(cohort: Cohort, tmp_path: Path) -> None:
    run_scan(cohort, tmp_path / "first")
    (path,) = (tmp_path / "first" / "runs").glob("*/run.json")
    machine = Machine(device="cpu", replicas=1)
    run = read_run(path)
    options = options_of_run(run, ScanOptions())
    assert options == EVERYWHERE
    run_scan(cohort, tmp_path / "second", OtherMachine(), options=options, machine=machine, repeat=run)
    assert tree(tmp_path / "second") == tree(tmp_path / "first")
    run_scan(cohort, tmp_path / "third", OtherMachine(), options=options, machine=machine)
    assert tree(tmp_path / "third") != tree(tmp_path / "first")


def test_a_run_is_not_repeated_with_another_cohort_bundle_or_options(cohort: Cohort, tmp_path: Path) -> None:
    run_scan(cohort, tmp_path / "r")
    run = read_runs(tmp_path / "r")[0]
    with pytest.raises(ConfigError, match="cohort differs"):
        run_scan(Cohort(cohort.cases[1:]), tmp_path / "s", repeat=run)
    with pytest.raises(ConfigError, match="options differ"):
        run_scan(cohort, tmp_path / "s", repeat=run, options=ScanOptions())
    with pytest.raises(ConfigError, match=r"options differ.*Found stride 3\."):
        options_of_run(run, ScanOptions(stride=3, tissue=None))
    with pytest.raises(ConfigError, match="bundle differs"):
        scan(
            MeanPredictor(),
            {**BUNDLE, "fingerprint": "1" * 64},
            cohort,
            tmp_path / "s",
            EVERYWHERE,
            repeat=run,
        )
    assert not (tmp_path / "s").exists()


def test_repeating_a_run_with_changed_files_gives_a_warning(
    cohort: Cohort, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_scan(cohort, tmp_path / "r")
    run = read_runs(tmp_path / "r")[0]
    write_slide(tmp_path / "s0.tif", pixels_of(220, 150, 9))
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        run_scan(cohort, tmp_path / "s", repeat=run)
    assert "input files differ" in caplog.text


def test_a_shard_is_repeated_as_the_same_shard_or_with_a_warning(
    cohort: Cohort, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_scan(cohort, tmp_path / "r", shard=(1, 2))
    run = read_runs(tmp_path / "r")[0]
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        run_scan(cohort, tmp_path / "same", repeat=run, shard=(1, 2))
        assert "to repeat" not in caplog.text
        run_scan(cohort, tmp_path / "all", repeat=run)
    warnings = [message for message in caplog.messages if "to repeat" in message]
    assert warnings == ["The run to repeat scanned only shard 1/2; add --shard 1/2 for the same cases"]


def test_a_run_is_not_repeated_into_results_with_other_engine_settings(
    cohort: Cohort, tmp_path: Path
) -> None:
    run_scan(cohort, tmp_path / "r")
    run_scan(cohort, tmp_path / "other", machine=replace(SMALL, cells=2))
    run = read_runs(tmp_path / "r")[0]
    with pytest.raises(ResultsError, match=r"other engine settings.*Found.*cells 2"):
        run_scan(cohort, tmp_path / "other", repeat=run)
    run_scan(cohort, tmp_path / "r", repeat=run)


def test_a_file_that_is_not_a_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ResultsError, match="not the record of a run"):
        read_run(tmp_path / "run.json")
    with pytest.raises(ResultsError, match=r"this is a folder.*Found .*run\.json"):
        read_run(tmp_path)


def test_a_fresh_scan_deletes_the_records(cohort: Cohort, tmp_path: Path) -> None:
    run_scan(cohort, tmp_path / "r")
    run_scan(cohort, tmp_path / "r", fresh=True)
    assert [run.scanned for run in read_runs(tmp_path / "r")] == [5]
