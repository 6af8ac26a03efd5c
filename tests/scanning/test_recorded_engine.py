"""Engine settings in `scan.json` that are damaged or of another version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lobule.errors import DamagedResults, ResultsError
from lobule.files import read_json
from lobule.scanning.contract import EngineSettings
from lobule.scanning.recorded_engine import checked_engine
from lobule.scanning.scan import Machine, scan
from tests.scanning.support import BUNDLE, EVERYWHERE, MeanPredictor, cohort_of, pixels_of, write_slide

RECORDED = EngineSettings(batch=3, cells=4).deciding()


@pytest.mark.parametrize(
    "change",
    [
        {"runtime": "onnx"},
        {"precision": "int4"},
        {"precision": "int8", "runtime": "torch"},
        {"batch": "3"},
        {"batch": 2.5},
        {"cells": -1},
        {"pieces": 0},
        {"replica_threads": 10**9},
        {"channels_last": "no"},
        {"jpeg_decoder": "other"},
    ],
)
def test_damaged_settings_are_refused(change: dict[str, Any]) -> None:
    name = next(reversed(change))
    with pytest.raises(DamagedResults, match=rf"scan.json: .* damaged. Found .*{name} "):
        checked_engine({**RECORDED, **change}, "scan.json")


@pytest.mark.parametrize("recorded", [None, [], {}])
def test_missing_settings_are_refused(recorded: Any) -> None:
    with pytest.raises(DamagedResults, match="missing"):
        checked_engine(recorded, "scan.json")


def test_settings_of_another_version_are_named() -> None:
    with pytest.raises(ResultsError, match=r"another version.*unknown settings tiling"):
        checked_engine({**RECORDED, "tiling": 2}, "scan.json")
    older = {name: value for name, value in RECORDED.items() if name != "runtime"}
    assert checked_engine(older, "scan.json") == checked_engine(RECORDED, "scan.json")


def test_a_scan_with_a_negative_batch_stops(tmp_path: Path) -> None:
    """It found no field to compute, and recorded the slide as one without tissue."""
    slide = write_slide(tmp_path / "one.tif", pixels_of(200, 150))

    def run() -> None:
        machine = Machine(device="cpu", precision="float32", channels_last=True)
        scan(MeanPredictor(), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, machine)

    run()
    shutil.rmtree(tmp_path / "r" / "cases" / "one")
    settings = read_json(tmp_path / "r" / "scan.json")
    settings["engine"]["batch"] = -3
    (tmp_path / "r" / "scan.json").write_text(json.dumps(settings))
    with pytest.raises(DamagedResults, match="batch -3"):
        run()
    assert not (tmp_path / "r" / "cases" / "one").exists()
