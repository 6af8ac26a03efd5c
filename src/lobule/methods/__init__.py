"""The five methods and their comparators, one file (or folder) each.

`METHODS` names them; each module has `Config`, `train(config, cohort, out)` and `load(bundle) -> Predictor`,
and where a scan may change some settings (`lobule scan --set`), `SCAN_SETTINGS`, their names. `REFINES` says
that a scan may be refined, `SCAN_IGNORES` which options of a scan mean nothing to the method.
"""

from __future__ import annotations

from importlib import import_module
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from lobule.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from lobule.bundles import Bundle
    from lobule.scanning.contract import Predictor

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


def _refuse_disagreement(bundle: Bundle) -> None:
    """Refuse a bundle whose `mpp` or `classes` are not those of its settings, which are what a scan uses."""
    for name, stored in (("mpp", bundle.mpp), ("classes", list(bundle.classes))):
        if name in bundle.config and (bundle.config[name] or None) != stored:
            raise BundleError(
                f"model.json holds two different values of {name}",
                subject=bundle.path,
                expected=f"{bundle.config[name]} as in its config",
                actual=str(stored),
                remedy="Change both, or convert the model again",
            )


def _refuse_wrong_types(bundle: Bundle, config_type: type) -> None:
    """Refuse settings that are not of the plain type that the method's `Config` declares."""
    for name, annotation in get_type_hints(config_type).items():
        if name in bundle.config and not _has_type(bundle.config[name], annotation):
            raise BundleError(
                f"model.json holds a setting of a wrong type: {name}",
                subject=bundle.path,
                expected=getattr(annotation, "__name__", str(annotation)),
                actual=repr(bundle.config[name])[:100],
                remedy="Copy the bundle again from where it came",
            )


def _has_type(value: object, annotation: Any) -> bool:
    """Whether a JSON value fits a plain annotation; of others, the method's own checks decide."""
    if get_origin(annotation) in (Union, UnionType):
        return any(_has_type(value, kind) for kind in get_args(annotation))
    if get_origin(annotation) is tuple:
        return isinstance(value, list | tuple)
    if annotation in (int, float):
        kinds = int if annotation is int else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < 2**63
    return not (annotation in (bool, str, NoneType) and not isinstance(value, annotation))


def load(bundle: Bundle, *, trust: bool = False) -> Predictor:
    """A bundle as a predictor, ready for the scanner. `trust` allows one that can run code."""
    module = method_module(bundle.method)
    _refuse_disagreement(bundle)
    _refuse_wrong_types(bundle, module.Config)
    try:
        predictor: Predictor = module.load(bundle, trust=trust)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise BundleError(
            "the bundle cannot be loaded: model.json or another of its files lacks what the method needs",
            subject=bundle.path,
            actual=f"{type(error).__name__}: {str(error)[:300]}",
            remedy="Copy the bundle again from where it came",
        ) from error
    # ScanNet applies the calibration of its cells by itself.
    if bundle.calibration and set(bundle.calibration) != {"cells"}:
        from lobule.scanning.calibrated import CalibratedPredictor

        return CalibratedPredictor(predictor, bundle.calibration)
    return predictor
