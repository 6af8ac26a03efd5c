"""The methods and their comparators, one file (or folder) each.

`METHODS` names them. Each module declares one value, `METHOD`, with all that commands, the Python API and
other code need to know about the method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, Unpack

from lobule.errors import BundleError, ConfigError
from lobule.settings import Settings, convert, parse

if TYPE_CHECKING:
    from lobule.bundles import Bundle
    from lobule.cohort import Cohort, Kind
    from lobule.scanning.contract import Predictor
    from lobule.training.division import TrainingSplit
    from lobule.training.job import TrainOptions

Config = TypeVar("Config", bound=Settings)
TrainedConfig = TypeVar("TrainedConfig", bound=Settings, contravariant=True)


class Train(Protocol[TrainedConfig]):
    """The training of a method; see `TrainOptions` for the options."""

    def __call__(
        self, config: TrainedConfig, cohort: Cohort, out: str | Path, **options: Unpack[TrainOptions]
    ) -> Bundle: ...


class Load(Protocol):
    """Loads a bundle as a predictor."""

    def __call__(self, bundle: Bundle, *, trust: bool = ...) -> Predictor: ...


Split = Callable[["Cohort", "str | None", int], "TrainingSplit"]
"""Divides a cohort, given the name of the validation split and the seed."""


@dataclass(frozen=True)
class Method(Generic[Config]):
    """A method: what it learns from, its settings, and its functions."""

    name: str
    summary: str
    """What it learns and computes, in one line."""
    config: type[Config]
    """The dataclass of its settings."""
    load: Load
    train: Train[Config] | None = None
    """None if the method only scans with converted weights."""
    kinds: tuple[Kind, ...] = ("slide", "region")
    """The kinds of cases that it learns from and scans."""
    split: Split | None = None
    """How it divides a cohort for a training; None for `training_split`."""
    resolve: Callable[[Config, Cohort], Config] | None = None
    """Returns the settings of a training in which each default that depends on another setting or on the
    cohort has its value. It raises `ConfigError` if a setting is missing."""
    scan_settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings that a scan may change, with their types."""
    check_scan: Callable[[Config, Mapping[str, Any], Mapping[str, Any]], object] | None = None
    """Raises `ConfigError` if a bundle with this config cannot be scanned with these changed settings and
    options (such as `stride`). It is called before networks are loaded, so it should not import torch. If it
    is None, the changed settings only have to be valid ones of the config."""
    unsupported: tuple[str, ...] = ("refine",)
    """The options of a scan that the method does not have."""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Names under which the method is also known, each with the settings that it changes."""
    changed: Mapping[str, Any] = field(default_factory=dict)
    """The settings that this preset changes; none for the method itself."""

    def trainer(self) -> Train[Config]:
        """Return `train`, or raise `ConfigError` if the method is not trained by Lobule."""
        if self.train is None:
            raise ConfigError(
                f"'{self.name}' is not trained by Lobule",
                remedy="Convert existing weights with `lobule weights convert`",
            )
        return self.train

    def configured(self, settings: Mapping[str, Any]) -> Config:
        """Return the settings of the method or preset, some of them changed; see `lobule.settings.parse`."""
        return parse(self.config, {**self.changed, **settings})

    def divided(self, cohort: Cohort, val: str | None, seed: int) -> TrainingSplit:
        """Divide a cohort into training and validation cases in the way of the method."""
        from lobule.training.division import training_split

        if self.split is not None:
            return self.split(cohort, val, seed)
        return training_split(cohort, val, seed, self.kinds)

    def changed_for_scan(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Convert the settings that a scan changes to their types.

        Raises:
            ConfigError: A scan may not change the setting, or a value does not have the type of its setting.
        """
        for name in settings:
            if name not in self.scan_settings:
                near = get_close_matches(name, self.scan_settings, 1)
                raise ConfigError(
                    f"'{name}' cannot be set for a scan with {self.name}",
                    expected=", ".join(self.scan_settings) or "no settings: the bundle fixes all of them",
                    remedy=f"Did you mean '{near[0]}'?" if near else None,
                )
        return {name: convert(name, value, self.scan_settings[name]) for name, value in settings.items()}


def imported_when_called(module: str, name: str) -> Any:
    """Return a function that imports its module at its first call.

    A method is declared with such functions, so that its settings are known without importing torch.
    """

    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(import_module(module), name)(*arguments, **options)

    return call


def attributes_imported_when_used(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package that imports its modules only when their names are used.

    Args:
        package: Name of the package.
        modules: For each name, the module of the package that defines it.
    """

    def get(name: str) -> Any:
        if name in modules:
            return getattr(import_module(f"{package}.{modules[name]}"), name)
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return get


METHODS: dict[str, str] = {
    "scannet": "lobule.methods.scannet",
    "classifier": "lobule.methods.classifier",
    "reverse_distillation": "lobule.methods.reverse_distillation",
    "colour": "lobule.methods.colour",
    "four_view": "lobule.methods.four_view",
    "gmic": "lobule.methods.gmic",
    "chowder": "lobule.methods.chowder",
    "chowder_modern": "lobule.methods.chowder",
    "weldon": "lobule.methods.chowder",
    "mean_pool": "lobule.methods.chowder",
    "max_pool": "lobule.methods.chowder",
    "max_features": "lobule.methods.chowder",
    "abmil": "lobule.methods.chowder",
    "transmil": "lobule.methods.chowder",
    "rakhlin": "lobule.methods.rakhlin",
    "probe": "lobule.methods.probe",
}
"""Each method or preset and the module of its `METHOD`, imported at first use."""


def refuse_unsupported(method: Method[Any], options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for an option that the method would ignore."""
    for name in method.unsupported:
        if options.get(name) not in (None, False):
            option = "--" + name.replace("_", "-")
            problem = f"{method.name} does not support {option}"
            raise ConfigError(problem, remedy=f"Remove the option {option}")


def check_scan(bundle: Bundle, options: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options and the changed settings of a scan, and return the settings with their types.

    This imports torch only for methods of other packages that import it themselves.

    Args:
        bundle: The bundle.
        options: Options of the scan by name; others than those of the method are ignored.
        settings: Changed settings, as values or as text.

    Raises:
        ConfigError: The method does not support an option, or a setting is unknown or invalid.
        BundleError: The settings in model.json contradict each other or cannot be used.
    """
    method = find_method(bundle.method)
    _refuse_disagreement(bundle)
    config = _stored_config(bundle, method)
    refuse_unsupported(method, options)
    changed = method.changed_for_scan(settings)
    if method.check_scan is not None:
        method.check_scan(config, changed, options)
    else:
        replace(config, **changed)
    return changed


def find_method(name: str) -> Method[Any]:
    """Return a method or a preset by its name; hyphens and underscores are the same.

    Raises:
        ConfigError: There is no such method.
    """
    key = name.replace("-", "_")
    if key not in METHODS:
        return _load_installed(name, key)
    method: Method[Any] = import_module(METHODS[key]).METHOD
    return method if key == method.name else replace(method, name=key, changed=method.presets[key])


def installed_methods() -> dict[str, EntryPoint]:
    """Return the methods of other packages, which declare them by the entry point `lobule.methods`."""
    return {entry.name: entry for entry in entry_points(group="lobule.methods")}


def _load_installed(name: str, key: str) -> Method[Any]:
    installed = installed_methods()
    if key not in installed:
        names = [*METHODS, *installed]
        near = get_close_matches(key, names, 1)
        raise ConfigError(
            f"there is no method '{name}'",
            expected=f"one of {', '.join(names)}",
            remedy=f"Did you mean '{near[0]}'?" if near else None,
        )
    try:
        method: object = installed[key].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the method '{name}' of another package cannot be loaded",
            subject=installed[key].value,
            actual=f"{type(error).__name__}: {error}",
            remedy="Install the package again, or correct its entry point lobule.methods",
        ) from error
    if not isinstance(method, Method):
        raise ConfigError(
            f"the entry point of the method '{name}' is not a Method",
            subject=installed[key].value,
            expected="a value of the class lobule.methods.Method",
            actual=type(method).__name__,
        )
    return method


def load(bundle: Bundle, *, trust: bool = False) -> Predictor:
    """Load a bundle as a predictor, ready for the scanner.

    Args:
        bundle: The bundle.
        trust: Allow a TorchScript bundle, which can run code.

    Raises:
        BundleError: The settings in model.json contradict each other or cannot be used.
    """
    method = find_method(bundle.method)
    _refuse_disagreement(bundle)
    _stored_config(bundle, method)
    try:
        predictor = method.load(bundle, trust=trust)
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


def _stored_config(bundle: Bundle, method: Method[Any]) -> Any:
    """Return the settings of a bundle; refuse those that do not have the types that the method declares."""
    names = {item.name for item in fields(method.config)}
    try:
        return parse(method.config, {name: value for name, value in bundle.config.items() if name in names})
    except ConfigError as error:
        raise BundleError(
            f"model.json has an invalid setting: {error.problem[:200]}",
            subject=bundle.path,
            expected=error.expected,
            actual=error.actual,
            remedy="Copy the bundle again from where it came",
        ) from error
