"""Settings: the paper's by default, every ambiguity by name, and what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lobule.errors import ConfigError
from lobule.methods.rakhlin import Config
from lobule.settings import parse


def models(config: Config) -> int:
    return len(config.sets) * len(list(config.boosting.models()))


def test_the_defaults_are_the_papers() -> None:
    config = Config()
    assert models(config) == 300
    assert [set_.name for set_ in config.sets] == [
        "resnet50-400", "resnet50-650", "inception_v3-400", "inception_v3-650", "vgg16-400", "vgg16-650",
    ]  # fmt: skip
    assert (config.augmentations, config.crops, config.scale, config.p_norm) == (50, 20, 0.5, 3)
    assert config.augmentations * len(config.sets) == 300  # descriptors an image


def test_the_papers_text_counts_six_hundred_models() -> None:
    config = replace(Config(), full_scale=True)
    assert models(config) == 600
    assert config.scales == (0.5, 1.0)
    assert {set_.size for set_ in config.sets if set_.full} == {800, 1300}


def test_the_quick_recipe_replaces_what_was_not_set() -> None:
    quick = parse(Config, {"recipe": "quick", "crops": "7", "boosting.rounds": "30"}).resolved()
    assert (quick.augmentations, quick.crops, quick.boosting.folds, quick.boosting.seeds) == (4, 7, 5, 1)
    assert quick.boosting.rounds == 30
    assert Config().resolved() == Config()


def test_settings_survive_as_text_and_as_json() -> None:
    config = parse(
        Config,
        {"sizes": "300,200", "encoders": "tiny,vgg16@features.8", "stain_range": "1,1", "keras": "yes"},
    )
    assert config.sizes == (300, 200)
    assert config.stain_range == (1.0, 1.0)
    assert config.keras
    assert [set_.name for set_ in config.sets][:3] == ["tiny-200", "tiny-300", "vgg16_features_8-200"]
    assert Config.from_dict(config.to_dict()) == config


def test_inputs_follow_the_weights() -> None:
    assert [Config().input_of(n) for n in range(3)] == ["torchvision", "tf", "torchvision"]
    assert [Config(keras=True).input_of(n) for n in range(3)] == ["caffe", "tf", "caffe"]
    assert Config(inputs=("caffe",)).input_of(1) == "caffe"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "slow"}, "recipe = 'slow' is not one of its values.*full, quick"),
        ({"stains": "vahadane"}, "stains = 'vahadane' is not one of its values"),
        ({"sizes": "four"}, "sizes = .four. is not a whole number"),
        ({"weights": "a,b"}, "weights for 3 encoders"),
        ({"stain_range": "1"}, "stain_range.* wrong length. Expected 2 values"),
        ({"augmentations": "0"}, "at least 1"),
        ({"attributions": "-1"}, "at least 0"),
        ({"tissue_share": "-1"}, "from 0 to 1"),
        ({"encoders": "tiny,tiny"}, "are the same"),
        ({"boosting.folds": "1"}, "boosting.folds is too small"),
        ({"mp": "1"}, "Did you mean 'mpp'"),
    ],
)
def test_what_does_not_fit_is_told(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Config, settings)
