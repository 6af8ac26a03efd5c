"""Tests of resuming: an interrupted training gives the same bundle, or an error if it cannot continue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lobule.cohort import Cohort
from lobule.errors import ConfigError, ResultsError
from lobule.methods.chowder import Config
from lobule.methods.chowder.train import train
from lobule.training.fitting import TrainMachine
from tests.methods.chowder.support import make_cohort, make_slide, write_tiles
from tests.training.interrupting import InterruptingProgress

MACHINE = TrainMachine(device="cpu", precision="float32")
QUICK = Config(model="modern", members=2, epochs=1, rate=5e-3, standardise=True)


def test_training_does_not_resume_with_changed_features(tmp_path: Path) -> None:
    cohort, features = make_cohort(tmp_path, 10)
    config, out = replace(QUICK, features=str(features)), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(config, cohort, out, machine=MACHINE, progress=InterruptingProgress("member 2"))
    write_tiles(features, "tumor_003", make_slide(77, True))
    with pytest.raises(ResultsError, match=r"another feature_set.* Found tumor_003 .*--fresh"):
        train(config, cohort, out, machine=MACHINE, resume=True)
    assert train(config, cohort, out, machine=MACHINE, fresh=True).metrics["members"]


def test_one_positive_patient_cannot_be_cross_validated(tmp_path: Path) -> None:
    cohort, features = make_cohort(tmp_path, 8)
    alone = Cohort(tuple(replace(case, label="normal") if n != 1 else case for n, case in enumerate(cohort)))
    config = replace(QUICK, features=str(features), folds=3)
    with pytest.raises(ConfigError, match="all cases of the class 'positive' are in one fold"):
        train(config, alone, tmp_path / "out", machine=MACHINE)
    few = replace(config, nested=True, inner_folds=7)
    with pytest.raises(ConfigError, match=r"7 folds need as many patients.*inner_folds=N"):
        train(few, cohort, tmp_path / "nested", machine=MACHINE)
    assert not list(tmp_path.glob("*/training/fold-*")), "no fold was trained before the error"
