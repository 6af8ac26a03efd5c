"""Boosting against the recorded losses; folds by their properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest

from lobule.methods.rakhlin.boosting import BoostingConfig, boost, dataset


def golden_data(s: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r, c = np.ogrid[:240, :30]
    x = np.sin(0.37 * r * (1 + 0.05 * c) + c + s) + 0.3 * np.cos(0.11 * r * c)
    y = (7 * np.arange(240) + s) % 4
    x[:, 0] += 0.8 * y
    x[:, 7] -= 0.5 * (y == 2)
    x[:, 11] += 0.6 * (y > 1)
    return x, y, np.arange(240) % 3 != 0


def boosted(x: np.ndarray, y: np.ndarray, config: BoostingConfig, fold: int) -> lightgbm.Booster:
    """A model of images with one augmentation each."""
    return boost(dataset(x[:, None], y, config), None, 4, config, seed=0, fold=fold)


def log_loss(model: lightgbm.Booster, x: np.ndarray, y: np.ndarray, rounds: int) -> float:
    p = np.asarray(model.predict(x, num_iteration=rounds))
    return float(-np.log(p[np.arange(len(y)), y]).mean())


@pytest.fixture(scope="module")
def model() -> lightgbm.Booster:
    x, y, train = golden_data()
    return boosted(x[train], y[train], BoostingConfig(), fold=0)


def test_losses_are_the_recorded_ones(goldens: Path, model: lightgbm.Booster) -> None:
    golden: Any = json.loads((goldens / "rakhlin/goldens.json").read_text())["lightgbm"]
    x, y, train = golden_data()
    rtol = 1e-9 if lightgbm.__version__ == golden["version"] else 0.05
    for rounds, loss in golden["train_logloss_at_rounds"].items():
        assert log_loss(model, x[train], y[train], int(rounds)) == pytest.approx(loss, rel=rtol)
    for rounds, loss in golden["test_logloss_at_rounds"].items():
        assert log_loss(model, x[~train], y[~train], int(rounds)) == pytest.approx(loss, rel=rtol)
    if lightgbm.__version__ == golden["version"]:
        np.testing.assert_allclose(
            np.asarray(model.predict(x[~train]))[:3], golden["first3_test_predictions"], rtol=1e-9
        )
    assert model.num_trees() == golden["trees"]


def test_a_model_has_seventy_rounds_of_four_trees_and_survives_as_text(model: lightgbm.Booster) -> None:
    assert model.num_trees() == 280
    again = lightgbm.Booster(model_str=model.model_to_string())
    x, _, _ = golden_data()
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


def test_bagging_is_off_and_the_seed_matters(model: lightgbm.Booster) -> None:
    x, y, train = golden_data()
    unbagged = boosted(x[train], y[train], BoostingConfig(bagging_fraction=1.0), fold=0)
    np.testing.assert_array_equal(unbagged.predict(x), model.predict(x))
    other = boosted(x[train], y[train], BoostingConfig(), fold=1)
    assert np.abs(np.asarray(other.predict(x)) - np.asarray(model.predict(x))).max() > 0.01


def test_fifty_models_have_fifty_streams() -> None:
    config = BoostingConfig()
    parameters = [config.parameters(4, seed, fold) for seed, fold in config.models()]
    assert sorted(p["feature_fraction_seed"] for p in parameters) == list(range(1, 51))
    assert all(p["bagging_seed"] == p["feature_fraction_seed"] + 1 for p in parameters)
