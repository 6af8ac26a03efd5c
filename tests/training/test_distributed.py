"""Two processes under torchrun learn and resume like one; only the first writes files and messages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lobule.cohort import write_cohort
from lobule.nets.backbones import BACKBONES
from tests.methods.scannet.test_train import Cohort, painted
from tests.training import distributed_job as ranks_job


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    cases = (
        painted(folder, "a", (200, 200, 360), 1, "train"),
        painted(folder, "c", None, 3, "train", alike=(400, 250, 260)),
        painted(folder, "d", (300, 150, 320), 4, "val"),
    )
    write_cohort(Cohort(cases), folder / "cohort.csv")
    return folder / "cohort.csv"


def columns(path: Path) -> np.ndarray:
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    return np.array([[float(value or "nan") for value in row] for row in rows])


def test_two_processes_learn_the_same_as_one(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = [str(manifest), str(tmp_path / "two")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "tests.training.distributed_job", *job],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("val auc") == 1
    two, one = tmp_path / "two", tmp_path / "one"
    for name in ("model.json", "weights.safetensors", "training/round-0/log.csv"):
        assert (two / "whole" / name).read_bytes() == (two / "broken" / name).read_bytes()
    threads = torch.get_num_threads()
    monkeypatch.setitem(BACKBONES, "plain", ranks_job.plain)
    ranks_job.train_by_name("mined", manifest, one, rounds=1)
    torch.set_num_threads(threads)
    for round_ in ("round-0", "round-1"):
        ours, theirs = (columns(folder / "mined/training" / round_ / "log.csv") for folder in (two, one))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    weights, alone = (load_file(folder / "mined/weights.safetensors") for folder in (two, one))
    start = ranks_job.plain(2).state_dict()
    for name, value in weights.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-5)
        assert not torch.equal(value, start[name])
