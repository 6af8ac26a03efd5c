"""Settings of the bag models: names, defaults of the papers, conversion from text, and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lobule.errors import ConfigError
from lobule.methods import METHODS, find_method
from lobule.methods.chowder import Config
from lobule.methods.chowder.config import MODEL_DEFAULTS
from lobule.methods.chowder.models import build
from lobule.nets.mil import Chowder
from lobule.settings import parse


def test_every_model_is_a_method_with_its_own_defaults() -> None:
    entries = {
        "chowder": "chowder", "chowder_modern": "modern", "weldon": "weldon", "mean_pool": "mean",
        "max_pool": "max", "max_features": "max_features", "abmil": "abmil", "transmil": "transmil",
    }  # fmt: skip
    for method, model in entries.items():
        assert method in METHODS
        preset = find_method(method)
        assert preset.name == method
        assert preset.configured({}).model == model
        assert preset.configured({}).resolved().r == MODEL_DEFAULTS[model]["r"]
        assert list(preset.scan_settings) == ["features"]
    assert set(entries.values()) == set(MODEL_DEFAULTS)


def test_defaults_are_those_of_the_papers() -> None:
    config = Config().resolved()
    assert (config.model, config.r, config.epochs, config.batch, config.rate) == ("chowder", 5, 30, 10, 1e-3)
    assert (config.l2, config.dropout, config.members, config.tiles) == (0.5, 0.5, 10, 1000)
    model = build(config, 2048)
    assert isinstance(model, Chowder)
    assert [layer.out_features for layer in model.head if isinstance(layer, torch.nn.Linear)] == [200, 100, 1]
    modern = Config(model="modern").resolved()
    assert (modern.r, modern.epochs, modern.batch, modern.l2, modern.dropout) == (10, 50, 16, 0.0, 0.0)


def test_settings_are_converted_from_text() -> None:
    text_settings = {
        "r": "7",
        "rate": "2e-3",
        "grid_rates": "0.1,0.2",
        "positive": "LUAD,LUSC",
        "standardise": "yes",
    }
    config = parse(Config, text_settings)
    assert (config.r, config.rate, config.grid_rates, config.standardise) == (7, 2e-3, (0.1, 0.2), True)
    assert config.positive == ("LUAD", "LUSC")
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": "huge"}, "model = 'huge' is not one of its values.*chowder, modern"),
        ({"r": "many"}, "is not a whole number"),
        ({"folds": 1}, "at least two folds"),
        ({"threshold": 1.0}, "threshold"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"classes": ["a", "b", "c"]}, "two classes"),
        ({"colour": 1}, "no setting 'colour'"),
    ],
)
def test_invalid_settings_are_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Config.from_dict(change)
