"""A comparison that is killed at random instants ends with the table of an uninterrupted one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lobule.cohort import Cohort
from tests.methods.scannet.test_train import painted

KILLS = 10


def arguments(manifest: Path, out: Path) -> list[str]:
    return [
        sys.executable, "-m", "lobule", "compare", str(manifest), "--methods", "colour,probe,mean_pool",
        "--encoders", "lobule:tiny", "--weights", "random", "--tile", "224", "--resamples", "20",
        "--set", "colour.patches=2000", "--set", "colour.mpp=0.5", "--set", "probe.window=96",
        "--set", "probe.strides=8", "--set", "probe.tokens=2000", "--set", "mean_pool.members=4",
        "--device", "cpu", "--precision", "float32", "--out", str(out),
    ]  # fmt: skip


def table_of(out: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((out / "table.json").read_text())
    return {**table, "rows": [{**row, "seconds": None} for row in table["rows"]]}


@pytest.mark.campaign
def test_killed_comparison_gives_the_same_table(tmp_path: Path) -> None:
    cohort = Cohort(
        tuple(
            painted(tmp_path, f"s{number}", (200, 200, 360) if number % 2 else None, number, split)
            for number, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 4)
        )
    )
    manifest = tmp_path / "cohort.csv"
    lines = [
        f"{one.id},{one.patient},{one.split},{one.label},{one.path},{one.mpp},{one.annotation or ''}"
        for one in cohort
    ]
    manifest.write_text("\n".join(["case,patient,split,label,slide,mpp,annotation", *lines]) + "\n")
    began = time.monotonic()
    subprocess.run(arguments(manifest, tmp_path / "once"), check=True, capture_output=True)
    seconds = time.monotonic() - began
    rng = np.random.default_rng(7)
    killed = 0
    for _ in range(KILLS):
        process = subprocess.Popen(
            arguments(manifest, tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=float(rng.uniform(0.1, 0.5)) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    subprocess.run(arguments(manifest, tmp_path / "killed"), check=True, capture_output=True)
    assert killed > 0
    once, resumed = table_of(tmp_path / "once"), table_of(tmp_path / "killed")
    for expected, actual in zip(once["rows"], resumed["rows"], strict=True):
        assert actual == expected
    assert resumed == once
