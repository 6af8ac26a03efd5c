"""The networks that training starts from: new ones or those of a bundle, with the settings of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from torch import nn

from lobule.bundles import Bundle, plain_weights, read_bundle
from lobule.errors import BundleError, ConfigError
from lobule.fingerprints import fingerprint
from lobule.imagenet import imagenet_weights
from lobule.methods.four_view.bundle import load_nets
from lobule.methods.four_view.config import Architecture, Config, Reading
from lobule.methods.four_view.model import Nets, build
from lobule.nets.four_view import Classifier
from lobule.nets.four_view_weights import load_published

IMAGENET = "imagenet"
PATCH_SETTINGS = ("patch", "patch_stride", "patch_growth", "patch_blocks", "patch_first_width")


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
    sources: dict[str, str] = {}
    loaded = patch_source = None
    architecture, reading, training = config.architecture, config.reading, config.training
    if training.weights:
        bundle, source_config, loaded = _read_single(training.weights)
        architecture = inherited(architecture, source_config.architecture, training.weights)
        reading = inherited(reading, source_config.reading, training.weights, ["quirks"])
        sources["weights"] = bundle.fingerprint
    if architecture.heatmaps and training.patch_weights and Path(training.patch_weights).is_dir():
        bundle, source_config, patch_source = _read_single(training.patch_weights)
        source = source_config.architecture
        architecture = inherited(architecture, source, training.patch_weights, PATCH_SETTINGS)
        sources["patch_weights"] = bundle.fingerprint
    architecture = replace(architecture, pool=architecture.pool or "mean")
    config = replace(config, architecture=architecture, reading=reading)
    fresh = build(config)
    (net,) = (loaded or fresh).members
    trained_nets = (patch_source or loaded or Nets((net,))).patch_nets if architecture.heatmaps else ()
    (patch_net,) = trained_nets or fresh.patch_nets or (None,)
    if patch_source is not None and not trained_nets:
        raise BundleError("the bundle has no patch network", subject=training.patch_weights)
    if patch_net is not None and training.patch_weights and not trained_nets:
        _load_densenet(patch_net, training.patch_weights)
        is_file = training.patch_weights != IMAGENET
        sources["patch_weights"] = fingerprint(training.patch_weights, full=True) if is_file else IMAGENET
    return Start(config, net, patch_net, loaded is not None, bool(trained_nets), sources)


Group = TypeVar("Group", Architecture, Reading)


def inherited(settings: Group, fixed: Group, source: str, names: Sequence[str] | None = None) -> Group:
    """Return settings with those that the weights determine.

    Args:
        settings: The requested settings.
        fixed: The settings of the bundle that has the weights.
        source: Path of the bundle, for messages.
        names: The settings that the weights determine; by default all.

    Raises:
        ConfigError: if a requested setting has neither its default nor the value of the weights.
    """
    changes = {}
    for item in fields(settings):
        if names is not None and item.name not in names:
            continue
        requested, value = getattr(settings, item.name), getattr(fixed, item.name)
        if requested not in (value, item.default):
            raise ConfigError(
                f"{item.name} belongs to the weights and cannot be changed",
                subject=source,
                expected=str(value),
                actual=str(requested),
                remedy=f"Leave {item.name} out, or train from fresh weights",
            )
        changes[item.name] = value
    return replace(settings, **changes)


def _read_single(path: str) -> tuple[Bundle, Config, Nets]:
    """Read a bundle of one classifier."""
    bundle = read_bundle(path, "four_view")
    config, nets = load_nets(bundle)
    members, alone = config.architecture.members, config.architecture.alone
    if members > 1 or alone:
        raise ConfigError(
            "the bundle averages several classifiers, but training starts from a single one",
            subject=path,
            actual=f"{members} classifiers, and {alone} for exams that lack a view",
            remedy="Name one of the bundles that it was combined from",
        )
    return bundle, config, nets


def _load_densenet(net: nn.Module, path: str) -> None:
    """Load the weights of a DenseNet trained for another task, except its last layer."""
    head = {name: value for name, value in net.state_dict().items() if name.startswith("classifier.")}
    option = "--set training.patch_weights=FILE"
    weights = imagenet_weights("densenet121", option) if path == IMAGENET else plain_weights(path)
    load_published(net, {**weights, **head}, path)
