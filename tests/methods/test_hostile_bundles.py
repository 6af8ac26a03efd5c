"""A hand-edited or damaged `model.json` is a typed error that names the bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lobule.bundles import read_bundle
from lobule.errors import BundleError, ConfigError, LobuleError
from lobule.methods import load
from lobule.methods.four_view.config import Config as FourView
from tests.methods.scannet.support import write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "bundle", mpp=2.0)
    return tmp_path / "bundle"


def edit(bundle: Path, **fields: Any) -> None:
    path = bundle / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


WRONG: dict[str, dict[str, Any]] = {
    "method": {"method": 5},
    "classes": {"classes": [1, 2]},
    "resolution as text": {"mpp": "fine"},
    "negative resolution": {"mpp": -1},
    "resolution that is true": {"mpp": True},
    "patients": {"patients": [{}]},
    "metrics": {"metrics": []},
    "provenance": {"provenance": "here"},
    "calibration": {"calibration": [1]},
    "digests": {"files": {"weights.safetensors": 5}},
    "files": {"files": None},
    "config": {"config": [1]},
}


@pytest.mark.parametrize("name", WRONG)
def test_field_of_a_wrong_type_is_refused(name: str, bundle: Path) -> None:
    edit(bundle, **WRONG[name])
    with pytest.raises(BundleError, match=r"model\.json is damaged"):
        read_bundle(bundle)


@pytest.mark.parametrize("content", ["[" * 100_000, "5", "[]", '{"format": NaN}', "\0"])
def test_model_json_that_is_not_an_object_is_refused(content: str, bundle: Path) -> None:
    (bundle / "model.json").write_text(content)
    with pytest.raises(BundleError, match="bundle"):
        read_bundle(bundle)


@pytest.mark.parametrize("value", ["much", None, [], {}, True, 10**400])
@pytest.mark.parametrize("setting", ["mpp", "classes", "stride"])
def test_setting_of_a_wrong_type_is_refused(setting: str, value: Any, bundle: Path) -> None:
    config = dict(read_bundle(bundle).config)
    edit(bundle, config={**config, setting: value})
    with pytest.raises(LobuleError):
        load(read_bundle(bundle))


@pytest.mark.parametrize("fields", [{"mpp": 0.5}, {"classes": ["a", "b"]}])
def test_value_that_contradicts_the_settings_is_refused(fields: dict[str, Any], bundle: Path) -> None:
    load(read_bundle(bundle))
    edit(bundle, **fields)
    with pytest.raises(BundleError, match=f"two different values of {next(iter(fields))}"):
        load(read_bundle(bundle))


def test_four_view_refuses_a_switch_that_is_not_true_or_false() -> None:
    for value in ("maybe", 1, None):
        with pytest.raises(ConfigError, match=r"training.swap_sides = .* is neither true nor false"):
            FourView.from_dict({**FourView().to_dict(), "training.swap_sides": value})
