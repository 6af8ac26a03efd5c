"""The Python API: settings that a scan may change are converted, and all others are refused."""

from __future__ import annotations

from typing import Literal

import pytest

from lobule.api import _refuse_ignored, config_of, scan_settings
from lobule.bundles import Bundle
from lobule.cli.base import parse_settings
from lobule.errors import ConfigError
from lobule.methods import METHODS, method_module
from lobule.methods.four_view import Config
from lobule.methods.reverse_distillation import Config as ReverseDistillationConfig
from lobule.settings import converted


def bundle(method: str, config: dict[str, object]) -> Bundle:
    return Bundle(method=method, config=config, classes=("normal", "tumour"), mpp=None)


def test_text_is_converted_to_the_type_of_the_setting() -> None:
    opened = bundle("four_view", Config().to_dict())
    requested = {"epochs": "3", "augmentation": "no", "compat": "nyu"}
    assert scan_settings(opened, requested) == {"epochs": 3, "augmentation": False, "compat": "nyu"}


def test_settings_fixed_by_the_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'variant'.*four_view"):
        scan_settings(bundle("four_view", Config().to_dict()), {"variant": "joint"})
    with pytest.raises(ConfigError, match="'epochs' cannot be set for a scan with scannet"):
        scan_settings(bundle("scannet", {}), {"epochs": "3"})
    with pytest.raises(ConfigError, match="epochs = 'many' is not a whole number"):
        scan_settings(bundle("four_view", Config().to_dict()), {"epochs": "many"})


def test_unsupported_scan_options_are_refused() -> None:
    for method in ("classifier", "four_view", "gmic", "colour"):
        with pytest.raises(ConfigError, match=f"{method} does not support --refine"):
            _refuse_ignored(bundle(method, {}), {"refine": True, "stride": None})
    with pytest.raises(ConfigError, match="--stride"):
        _refuse_ignored(bundle("four_view", {}), {"stride": 16, "refine": False})
    _refuse_ignored(bundle("scannet", {}), {"refine": True, "stride": 16, "mpp": 0.5, "upsample": True})
    _refuse_ignored(bundle("classifier", {}), {"refine": False, "stride": 16, "tissue": None})


def test_a_zero_default_accepts_fractions_where_the_annotation_is_float() -> None:
    # This is the documented call of reverse distillation, whose augmentation is off (zero) by default.
    settings = parse_settings(("augment.saturation=0.25", "augment.scale=0.1"))
    config = config_of(ReverseDistillationConfig, settings)
    assert (config.augment.saturation, config.augment.scale) == (0.25, 0.1)


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", int, 3),
        ("1e3", int, 1000),
        ("12345678901234567891", int, 12345678901234567891),
        ("3", float, 3.0),
        ("yes", bool, True),
        ("none", int | None, None),
        ("7", int | None, 7),
        ("400,650", tuple[int, ...], (400, 650)),
        ("", tuple[str, ...], ()),
        ("1024x512", tuple[int, int] | None, (1024, 512)),
        ("a, b", tuple[str, ...], ("a", "b")),
        ("none", Literal["none", "platt"], "none"),
        (0.5, int, 0.5),
    ],
)
def test_text_is_converted_to_the_annotated_type(text: object, annotation: object, value: object) -> None:
    result = converted("name", text, annotation)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("text", "annotation", "message"),
    [
        ("2.5", int, "name = '2.5' is not a whole number"),
        ("2.5", int | None, "name = '2.5' is not a whole number"),
        ("inf", int, "is not a whole number"),
        ("fast", float, "name = 'fast' is not a number"),
        ("1,2,3", tuple[float, float], r"name = '1,2,3' has the wrong length.*2 values"),
        ("1,b", tuple[int, ...], "name = 'b' is not a whole number"),
        ("maybe", bool, "neither true nor false"),
    ],
)
def test_text_of_another_type_is_refused(text: str, annotation: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        converted("name", text, annotation)


@pytest.mark.parametrize("method", sorted(name for name in METHODS if hasattr(method_module(name), "train")))
def test_every_setting_of_every_method_accepts_its_default_as_text(method: str) -> None:
    config_type = method_module(method).Config

    def as_text(value: object) -> str:
        return ",".join(map(str, value)) if isinstance(value, list) else str(value).lower()

    values = config_type().to_dict()
    texts = {name: as_text(value) for name, value in values.items() if not isinstance(value, dict)}
    texts |= {
        f"{group}.{name}": as_text(value)
        for group, inner in values.items()
        if isinstance(inner, dict)
        for name, value in inner.items()
    }
    # Text such as a class name keeps its case.
    texts |= {name: value for name, value in values.items() if isinstance(value, str)}
    assert config_of(config_type, texts) == config_type()
