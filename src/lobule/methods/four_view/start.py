"""The networks that training starts from: new ones or those of a bundle, with the settings of its weights."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from torch import Tensor, nn

from lobule.bundles import Bundle, plain_weights, read_bundle
from lobule.errors import BundleError, ConfigError
from lobule.files import fingerprint
from lobule.methods.four_view.config import Config
from lobule.methods.four_view.members import PATCH_PREFIX, build
from lobule.nets.four_view import Classifier
from lobule.nets.four_view_weights import canonical

PATCH_SETTINGS = ("patch", "patch_stride", "patch_growth", "patch_blocks", "patch_first_width")
FIXED = (
    "variant", "heatmaps", "quirks", "window", "move", "resize", "crop_iterations", "crop_buffer",
    "heatmap_cell", "widths", "pool", "shrink", *PATCH_SETTINGS,
)  # fmt: skip
"""Settings that the weights determine, and that are read from their bundle."""


@dataclass(frozen=True, eq=False)
class Start:
    config: Config
    net: Classifier
    patch_net: nn.Module | None
    is_pretrained: bool
    """Whether the classifier starts from trained weights."""
    patch_is_trained: bool
    """Whether the patch network is already trained and is used unchanged."""
    sources: dict[str, str]
    """Hashes of the weights that were loaded, by setting."""


def build_start(config: Config) -> Start:
    """Build the networks of a configuration and load the bundles and files that it names."""
    sources = {}
    weights: dict[str, Tensor] = {}
    if config.weights:
        bundle = _read_four_view_bundle(config.weights)
        config = with_fixed_settings(config, Config.from_dict(bundle.config), FIXED, config.weights)
        weights, sources["weights"] = bundle.weights(), bundle.fingerprint
    patch_weights: dict[str, Tensor] = {}
    if config.patch_weights and config.heatmaps and _is_bundle(config.patch_weights):
        bundle = _read_four_view_bundle(config.patch_weights)
        config = with_fixed_settings(
            config, Config.from_dict(bundle.config), PATCH_SETTINGS, config.patch_weights
        )
        patch_weights, sources["patch_weights"] = bundle.weights(), bundle.fingerprint
    net, patch_net = build(config)
    if weights:
        classifier_tensors = {
            name: value for name, value in weights.items() if not name.startswith(PATCH_PREFIX)
        }
        _load_tensors(net, classifier_tensors, config.weights)
    if patch_net is None:
        return Start(config, net, None, bool(weights), False, sources)
    patch_tensors = _patch_tensors(patch_weights or weights)
    if patch_tensors:
        _load_tensors(patch_net, patch_tensors, config.patch_weights or config.weights)
    elif patch_weights:
        raise BundleError("the bundle has no patch network", subject=config.patch_weights)
    elif config.patch_weights:
        _load_densenet(patch_net, config.patch_weights)
        sources["patch_weights"] = fingerprint(config.patch_weights, full=True)
    return Start(config, net, patch_net, bool(weights), bool(patch_tensors), sources)


def with_fixed_settings(config: Config, source_config: Config, names: tuple[str, ...], source: str) -> Config:
    """Return the config with the settings that the weights determine.

    Raises:
        ConfigError: if the config sets one of them to another value.
    """
    default = {item.name: item.default for item in fields(Config)}
    for name in names:
        requested, fixed = getattr(config, name), getattr(source_config, name)
        if requested not in (fixed, default[name]):
            raise ConfigError(
                f"{name} belongs to the weights and cannot be changed",
                subject=source,
                expected=str(fixed),
                actual=str(requested),
                remedy=f"Leave {name} out, or train from fresh weights",
            )
    return replace(config, **{name: getattr(source_config, name) for name in names})


def _is_bundle(path: str) -> bool:
    return Path(path).is_dir()


def _read_four_view_bundle(path: str) -> Bundle:
    bundle = read_bundle(path)
    if bundle.method != "four_view":
        raise ConfigError(
            "the weights are of another method", subject=path, expected="four_view", actual=bundle.method
        )
    config = Config.from_dict(bundle.config)
    if config.members > 1 or config.alone:
        raise ConfigError(
            "the bundle averages several classifiers, but training starts from a single one",
            subject=path,
            actual=f"{config.members} classifiers, and {config.alone} for exams that lack a view",
            remedy="Name one of the bundles that it was combined from",
        )
    return bundle


def _patch_tensors(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(PATCH_PREFIX): value
        for name, value in weights.items()
        if name.startswith(PATCH_PREFIX)
    }


def _load_tensors(net: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise BundleError("the weights do not fit the network", subject=source, actual=str(error)) from error


def _load_densenet(net: nn.Module, path: str) -> None:
    """Load the weights of a DenseNet trained for another task, except its last layer."""
    tensors = {canonical(name): value for name, value in plain_weights(path).items()}
    expected = net.state_dict()
    usable = {name: value for name, value in tensors.items() if not name.startswith("classifier.")}
    mismatched = [
        name
        for name, value in expected.items()
        if not name.startswith("classifier.")
        and not name.endswith("num_batches_tracked")
        and (name not in usable or usable[name].shape != value.shape)
    ]
    if mismatched:
        raise BundleError(
            "the weights do not fit the patch network",
            subject=path,
            expected="a DenseNet of the patch network's size",
            actual=f"{len(mismatched)} tensors missing or of another shape, such as {mismatched[0]}",
        )
    net.load_state_dict({name: usable.get(name, value) for name, value in expected.items()})
