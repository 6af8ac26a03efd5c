"""The verbs: settings that a scan may change are typed and the others refused."""

from __future__ import annotations

import pytest

from lobule.bundles import Bundle
from lobule.errors import ConfigError
from lobule.methods.four_view import Config
from lobule.verbs import _refuse_ignored, scan_settings


def bundle(method: str, config: dict[str, object]) -> Bundle:
    return Bundle(method=method, config=config, classes=("normal", "tumour"), mpp=None)


def test_text_becomes_what_the_setting_is() -> None:
    opened = bundle("four_view", Config().to_dict())
    asked = {"epochs": "3", "augmentation": "no", "compat": "nyu"}
    assert scan_settings(opened, asked) == {"epochs": 3, "augmentation": False, "compat": "nyu"}


def test_what_the_weights_fix_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'variant'.*four_view"):
        scan_settings(bundle("four_view", Config().to_dict()), {"variant": "joint"})
    with pytest.raises(ConfigError, match="'epochs' cannot be set for a scan with scannet"):
        scan_settings(bundle("scannet", {}), {"epochs": "3"})
    with pytest.raises(ConfigError, match="epochs = 'many' is not a whole number"):
        scan_settings(bundle("four_view", Config().to_dict()), {"epochs": "many"})


def test_an_option_that_would_not_be_heeded_is_refused() -> None:
    for method in ("classifier", "four_view", "gmic", "colour"):
        with pytest.raises(ConfigError, match=f"--refine means nothing to a scan with {method}"):
            _refuse_ignored(bundle(method, {}), {"refine": True, "stride": None})
    with pytest.raises(ConfigError, match="--stride"):
        _refuse_ignored(bundle("four_view", {}), {"stride": 16, "refine": False})
    _refuse_ignored(bundle("scannet", {}), {"refine": True, "stride": 16, "mpp": 0.5, "upsample": True})
    _refuse_ignored(bundle("classifier", {}), {"refine": False, "stride": 16, "tissue": None})
