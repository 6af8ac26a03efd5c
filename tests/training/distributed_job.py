"""What each process of `test_ranks.py` runs: trainings of a net without batch statistics, and the command."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lobule.cli import main
from lobule.cohort import read_cohort
from lobule.methods.scannet import Config
from lobule.methods.scannet.train import train
from lobule.nets.backbones import BACKBONES
from lobule.nets.vgg import he_normal
from lobule.tissue import TissueConfig
from lobule.training.fitting import TrainMachine
from tests.training.interrupting import InterruptingProgress

MACHINE = TrainMachine(device="cpu", precision="float32", workers=1, replicas=1)
CONFIG = Config(
    trunk="plain", weights="random", mpp=0.5, steps=6, batch=8, rate=0.01, trunk_rate=0.003, evaluate_every=3,
    val_patches=8, rounds=0, round_steps=2, hard_cap=4, schedule="constant",
)  # fmt: skip
SETTINGS = (
    "trunk=plain",
    "weights=random",
    "mpp=0.5",
    "steps=2",
    "batch=4",
    "val-patches=4",
    "rounds=0",
    "rate=0.01",
)


def plain(classes: int) -> nn.Module:
    """Neither batch norms nor dropout: what it learns does not depend on how a batch is shared."""
    trunk = (nn.Conv2d(3, 6, 5, 4), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(2, 2))
    net = nn.Sequential(*trunk, nn.Conv2d(8, classes, 1))
    he_normal(net)
    return net


def train_by_name(name: str, cohort: Path, out: Path, rounds: int = 0, **train_options: Any) -> None:
    config = replace(CONFIG, rounds=rounds)
    tissue = TissueConfig(mpp=8.0)
    train(config, read_cohort(cohort), out / name, tissue=tissue, machine=MACHINE, seed=3, **train_options)


def run(cohort: Path, out: Path) -> None:
    """Run trainings that mine, are uninterrupted, or are interrupted and resumed; then the command."""
    torch.set_num_threads(1)
    BACKBONES["plain"] = plain
    train_by_name("mined", cohort, out, rounds=1)
    train_by_name("whole", cohort, out)
    with suppress(KeyboardInterrupt):
        train_by_name("broken", cohort, out, progress=InterruptingProgress("round 0", 4))
    train_by_name("broken", cohort, out, resume=True)
    settings = [word for pair in SETTINGS for word in ("--set", pair)]
    main(["train", "scannet", str(cohort), "--out", str(out / "command"), "--device", "cpu", *settings])


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
