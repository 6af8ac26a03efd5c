"""The five methods and their comparators, one file (or folder) each.

`METHODS` names them; each module has `Config`, `train(config, cohort, out)` and `load(bundle) -> Predictor`,
and where a scan may change some settings (`lobule scan --set`), `SCAN_SETTINGS`, their names. `REFINES` says
that a scan may be refined, `SCAN_IGNORES` which options of a scan mean nothing to the method.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lobule.errors import ConfigError

if TYPE_CHECKING:
    from lobule.bundles import Bundle
    from lobule.engines.passes import Predictor

METHODS: dict[str, str] = {
    "scannet": "lobule.methods.scannet",
    "classifier": "lobule.methods.classifier",
    "reverse_distillation": "lobule.methods.reverse_distillation",
    "colour": "lobule.methods.colour",
    "four_view": "lobule.methods.four_view",
    "gmic": "lobule.methods.four_view.gmic",
    "chowder": "lobule.methods.chowder",
    "chowder_modern": "lobule.methods.chowder.chowder_modern",
    "weldon": "lobule.methods.chowder.weldon",
    "mean_pool": "lobule.methods.chowder.mean_pool",
    "max_pool": "lobule.methods.chowder.max_pool",
    "abmil": "lobule.methods.chowder.abmil",
    "transmil": "lobule.methods.chowder.transmil",
    "rakhlin": "lobule.methods.rakhlin",
}
"""Method → its module, imported at first use."""


def method_module(name: str) -> Any:
    """The module of a method; hyphens and underscores are the same."""
    key = name.replace("-", "_")
    if key not in METHODS:
        raise ConfigError(f"no method '{name}'", expected=f"one of {', '.join(METHODS)}")
    return import_module(METHODS[key])


def load(bundle: Bundle, *, trust: bool = False) -> Predictor:
    """A bundle as a predictor, ready for the scanner. `trust` allows one that can run code."""
    predictor: Predictor = method_module(bundle.method).load(bundle, trust=trust)
    if bundle.calibration:
        from lobule.engines.calibrated import CalibratedPredictor

        return CalibratedPredictor(predictor, bundle.calibration)
    return predictor
