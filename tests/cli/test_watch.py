"""`lobule info RESULTS --watch`: what it prints, and when it ends."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lobule.cli import watch as watch_module
from tests.cli.conftest import Lobule
from tests.evaluation.support import begin, put

MADE_BY = {"method": "scannet", "fingerprint": "0" * 64, "classes": ["normal", "tumour"]}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of three cases, of which two are finished."""
    folder = begin(tmp_path / "R", ["one", "two", "three"], MADE_BY)
    for name in ("one", "two"):
        put(folder, name, {"tumour": 0.5}, [], size=(2048, 1536), mpp=0.5)
    return tmp_path / "R"


def write_record(results: Path, **changes: Any) -> None:
    record = {
        "format": "lobule-run/1", "run": "a", "state": "running", "beat": 1, "updated": time.time(),
        "seconds": 3600.0, "counts": {"complete": 2}, "hosts": ["node"], "shard": [1, 2], **changes,
    }  # fmt: skip
    folder = results / "runs" / "a"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "new.json").write_text(json.dumps(record))
    (folder / "new.json").replace(folder / "run.json")


def test_state_without_an_active_run_is_printed_once(lobule: Lobule, results: Path) -> None:
    write_record(results, state="interrupted")
    (results / "cases" / "two" / "result.json").write_text("{")
    assert "their results cannot be read" in lobule("info", str(results), "--watch").out
    shutil.copyfile(results / "cases" / "one" / "result.json", results / "cases" / "two" / "result.json")
    done = lobule("info", str(results), "--watch", "--price-per-hour", "3")
    assert done.status == 0 and done.err == ""
    assert "2 of 3 finished: 2 complete, 1 not started" in done.out
    assert "1 case, about 30 min on one machine" in done.out
    assert "3.00 so far, about 1.50 for the rest" in done.out
    assert "shard 1/2 interrupted on node, 2 cases in 60 min" in done.out


def test_watching_ends_with_the_run_and_prints_each_change(lobule: Lobule, results: Path) -> None:
    write_record(results)

    def finish() -> None:
        time.sleep(1.0)
        shutil.copytree(results / "cases" / "two", results / "cases" / "three")
        write_record(results, state="finished", beat=2, counts={"complete": 3})

    thread = threading.Thread(target=finish)
    thread.start()
    done = lobule("info", str(results), "--watch", "--every", "0.1", "--json")
    thread.join()
    lines = done.err.splitlines()
    assert lines[0] == "2 of 3 cases, 2 cases/h, about 30 min left"
    data = json.loads(done.out)
    assert data["counts"]["complete"] == 3 and data["runs"][0]["state"] == "finished"


def test_a_run_that_was_killed_does_not_keep_the_command_running(
    lobule: Lobule, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "BEAT_S", 0.2)
    write_record(results, updated=time.time() - 3600)
    done = lobule("info", str(results), "--watch", "--every", "0.1")
    assert done.status == 0 and "probably killed" in done.out
    assert "run the same command again" in done.out


def test_something_else_than_results_is_refused(lobule: Lobule, tmp_path: Path) -> None:
    done = lobule("info", str(tmp_path), "--watch")
    assert done.status == 1 and "not a results folder" in done.err
