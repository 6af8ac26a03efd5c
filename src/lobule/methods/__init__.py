"""The five methods and their comparators, one file (or folder) each.

`METHODS` names them; each module has `Config`, `train(config, cohort, out)` and `load(bundle) -> Predictor`.
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
    "four_view": "lobule.methods.four_view",
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
    return predictor
