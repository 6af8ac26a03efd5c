"""The Python API: options and settings are converted to their types, and wrong ones are refused."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from typing import Literal

import pytest

import lobule
from lobule.cli.options import parse_settings
from lobule.errors import ConfigError
from lobule.methods import METHODS, find_method, refuse_unsupported
from lobule.methods.classifier import Config as ClassifierConfig
from lobule.methods.reverse_distillation import Config as ReverseDistillationConfig
from lobule.methods.scannet import Config as ScannetConfig
from lobule.settings import Settings, convert, describe, parse


def test_text_is_converted_to_the_type_of_the_setting() -> None:
    requested = {"epochs": "3", "augmentation": "no", "compat": "nyu", "painting": "fast"}
    requested = {f"reading.{name}": text for name, text in requested.items()}
    assert find_method("four_view").changed_for_scan(requested) == {
        "reading.epochs": 3, "reading.augmentation": False, "reading.compat": "nyu",
        "reading.painting": "fast",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("four_view", {"architecture.variant": "joint"}, "'architecture.variant' cannot be set for a scan"),
        ("scannet", {"epochs": "3"}, "'epochs' cannot be set for a scan with scannet"),
        ("scannet", {"treshold": "0.3"}, "Did you mean 'threshold'"),
        ("four_view", {"reading.epochs": "many"}, "reading.epochs = 'many' is not a whole number"),
        ("four_view", {"reading.painting": "slow"}, "'slow' is not one of its values.*exact, fast"),
        ("colour", {"threshold": "0.3"}, "Expected no settings"),
    ],
)
def test_settings_that_a_scan_cannot_change_are_refused(
    method: str, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find_method(method).changed_for_scan(settings)


def test_unsupported_scan_options_are_refused() -> None:
    for method in ("classifier", "four_view", "gmic", "colour", "weldon"):
        with pytest.raises(ConfigError, match=f"{method} does not support --refine"):
            refuse_unsupported(find_method(method), {"refine": True, "stride": None})
    for option, value in (("stride", 16), ("slide_mpp", 0.5), ("upsample", True)):
        with pytest.raises(ConfigError, match="--" + option.replace("_", "-")):
            refuse_unsupported(find_method("four_view"), {option: value, "refine": False})
    everything = {"refine": True, "stride": 16, "slide_mpp": 0.5, "upsample": True}
    refuse_unsupported(find_method("scannet"), everything)
    refuse_unsupported(find_method("classifier"), {"refine": False, "stride": 16, "tissue": None})


@pytest.mark.parametrize(
    ("function", "option", "near"),
    [
        ("train", "sede", "seed"),
        ("scan", "max_ramm", "max_ram"),
        ("extract_features", "backbones", "backbone"),
        ("evaluate", "resample", "resamples"),
    ],
)
def test_a_misspelt_option_is_refused_with_its_near_miss(function: str, option: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"has no option '{option}'.*Did you mean '{near}'"):
        getattr(lobule, function)("a", "b", "c", **{option: 1})


def test_everything_public_is_importable_and_documented() -> None:
    for name in lobule.__all__:
        if name == "__version__":
            continue
        function = getattr(lobule, name)
        assert function.__doc__, name
        if inspect.isfunction(function):
            signature = inspect.signature(function)
            assert all(p.kind is not p.VAR_KEYWORD for p in signature.parameters.values()), name
            if len(signature.parameters) > 2:
                missing = [p for p in signature.parameters if f"        {p}: " not in function.__doc__]
                assert not missing, (name, missing)
    with pytest.raises(AttributeError):
        lobule.__getattr__("scna")


def test_a_zero_default_accepts_fractions_where_the_annotation_is_float() -> None:
    # This is the documented call of reverse distillation, whose augmentation is off (zero) by default.
    settings = parse_settings(("augment.saturation=0.25", "augment.scale=0.1"))
    config = parse(ReverseDistillationConfig, settings)
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
        (1e5, int, 100_000),
        (3, float, 3.0),
        ([400, 650], tuple[int, ...], (400, 650)),
        (None, int | None, None),
        ("3", Literal[1, 3], 3),
    ],
)
def test_values_are_converted_to_the_annotated_type(text: object, annotation: object, value: object) -> None:
    result = convert("name", text, annotation)
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
        (1, bool, "name = 1 is neither true nor false"),
        (0.5, int, "name = 0.5 is not a whole number"),
        (True, int, "name = True is not a whole number"),
        (10**400, float, "is not a number"),
        (float("nan"), float, "is not a number"),
        (None, float, "name = None is not a number"),
        (3, str, "name = 3 is not text"),
        (3, tuple[int, ...], "name = 3 is not a list"),
        ([1, 2.5], tuple[int, ...], "name = 2.5 is not a whole number"),
        ("maxi", Literal["mean", "max"], "is not one of its values.*mean, max.*Did you mean 'max'"),
        (True, Literal[1, 3], "name = True is not one of its values"),
    ],
)
def test_values_of_another_type_are_refused(text: object, annotation: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert("name", text, annotation)


def test_names_of_settings_are_checked() -> None:
    for name, near in (("stepz", "steps"), ("augment.hues", "augment.hue"), ("hue", "augment.hue")):
        with pytest.raises(ConfigError, match=f"no setting '{name}'.*Did you mean '{near}'"):
            parse(ScannetConfig, {name: "1"})
    for name in ("", "augment.", ".hue", "trunk.x", "augment.hue.x"):
        with pytest.raises(ConfigError, match="there is no setting"):
            parse(ScannetConfig, {name: "1"})
    with pytest.raises(ConfigError, match=r"augment = '3' is not a group.*augment\.hue"):
        parse(ScannetConfig, {"augment": "3"})
    with pytest.raises(ConfigError, match="the setting 'architecture' is missing"):
        parse(ClassifierConfig, {})


def test_a_group_keeps_its_other_defaults() -> None:
    default = ReverseDistillationConfig().augment
    for changed in (
        {"augment.hue": "0.5"},
        {"augment": {"hue": 0.5}},
        {"augment": replace(default, hue=0.5)},
    ):
        assert parse(ReverseDistillationConfig, changed).augment == replace(default, hue=0.5)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_setting_of_every_method_accepts_its_default_as_text_and_as_json(method: str) -> None:
    chosen = find_method(method)
    required = (
        {"architecture": "torchscript", "classes": "a,b", "mpp": "0.5"} if method == "classifier" else {}
    )
    config: Settings = chosen.configured(required)

    def as_text(value: object) -> str:
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)

    described = describe(chosen.config, config.to_dict())
    assert chosen.configured({setting.name: as_text(setting.default) for setting in described}) == config
    assert chosen.config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_settings_are_described_by_their_docstrings() -> None:
    by_name = {setting.name: setting for setting in describe(ReverseDistillationConfig)}
    assert by_name["mpp"].meaning == "µm/px of the patches; level 0 of Camelyon16 has 0.243."
    assert (by_name["shortcut"].type, by_name["shortcut"].default) == ("1 | 3", 3)
    assert by_name["classes"].type == "list of texts"
    # The default of a group is that of the method, not that of its class.
    assert by_name["augment.hematoxylin"].default == 0.25
    assert "amount of the stain" in by_name["augment.hematoxylin"].meaning
    required = {setting.name for setting in describe(ClassifierConfig) if setting.required}
    assert required == {"architecture", "classes", "mpp"}
