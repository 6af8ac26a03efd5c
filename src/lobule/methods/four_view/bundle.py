"""Bundles of four-view classifiers: loading, saving, and conversion of published checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from lobule.bundles import (
    MODEL,
    Bundle,
    TrainingRecord,
    plain_weights,
    read_bundle,
    trained_bundle,
    write_bundle,
)
from lobule.errors import BundleError, ConfigError
from lobule.methods.four_view.config import Config, Variant
from lobule.methods.four_view.model import Nets, build
from lobule.methods.four_view.predictor import FourViewPredictor
from lobule.nets.digest import weights_digest
from lobule.nets.four_view import TARGETS, Classifier
from lobule.nets.four_view_weights import load_published, published_source, resolved
from lobule.settings import parse

SETTINGS_FORMAT = 2


def load_nets(bundle: Bundle) -> tuple[Config, Nets]:
    """Return the settings and the networks of a bundle.

    Raises:
        ModelError: The weights do not fit the networks.
    """
    if "variant" in bundle.config:  # the format before settings were grouped
        raise BundleError(
            "the bundle has settings of four_view in format 1, which is no longer read",
            subject=bundle.path,
            expected=f"format {SETTINGS_FORMAT}, with the settings in three groups",
            remedy="Repeat `lobule train four-view` or `lobule weights convert … --method four-view`",
        )
    config = Config.from_dict(bundle.config)
    architecture = replace(config.architecture, pool=config.architecture.pool or "mean")
    config = replace(config, architecture=architecture)
    nets = build(config)
    bundle.fill(nets, f"{architecture.variant} with {architecture.channels} input channels")
    return config, nets


def load(bundle: Bundle, *, trust: bool = False) -> FourViewPredictor:
    """Load a four-view bundle as a predictor. Its weights are plain tensors, so `trust` has no effect."""
    config, nets = load_nets(bundle)
    for net in (*nets.classifiers, *nets.patch_nets):
        net.eval()
    return FourViewPredictor(config, nets)


def save(
    path: str | Path,
    config: Config,
    net: Classifier,
    patch_net: nn.Module | None = None,
    **record: Unpack[TrainingRecord],
) -> Bundle:
    """Write a bundle of one classifier and its patch network, with the record of the training."""
    bundle = trained_bundle("four_view", config.to_dict(), TARGETS, None, **record)
    nets = Nets((net,), (), () if patch_net is None else (patch_net,))
    return write_bundle(path, bundle, nets.state_dict())


# -- conversion ---------------------------------------------------------------------------------------------


OF_ONE_BUNDLE = ("variant", "members", "alone", "patch_of")
"""Settings that describe which classifiers a bundle has."""


@dataclass(frozen=True, eq=False)
class _Source:
    """The classifiers of one checkpoint or bundle."""

    path: str | Path
    config: Config
    nets: Nets
    provenance: dict[str, Any]
    patients: tuple[str, ...] = ()


def convert(
    weights: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    patch: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Bundle:
    """Convert published checkpoints, or combine existing bundles, into one bundle.

    The scores of several classifiers are averaged. Image-wise classifiers next to classifiers of another
    variant score the exams that lack a view. The variant and the number of input channels are read from the
    tensors.

    Args:
        weights: One or several PyTorch checkpoints, safetensors files or four-view bundles. Only tensors are
            read from a checkpoint.
        out: Folder of the new bundle.
        patch: Checkpoint of the patch network, for classifiers that read heatmaps.
        settings: Settings of `Config` by their dotted names, for networks of another size.

    Returns:
        The bundle that was written.

    Raises:
        ConfigError: if the classifiers do not fit together, or if `patch` is missing or not needed.
        BundleError: if a file is not a four-view checkpoint.
    """
    paths = [weights] if isinstance(weights, str | Path) else list(weights)
    config = parse(Config, {"architecture.pool": "mean", **(settings or {})})
    sources = [
        _of_bundle(path) if (Path(path) / MODEL).is_file() else _of_checkpoint(path, patch, config)
        for path in paths
    ]
    if patch is not None and not any(source.nets.patch_nets for source in sources):
        raise ConfigError(
            "a patch network was given, but the classifier reads no heatmaps",
            subject=paths[0],
            remedy="Remove --patch, or convert a checkpoint that reads heatmaps",
        )
    config, nets = _combine(sources)
    provenance: dict[str, Any] = {"classifier": sources[0].provenance}
    if len(sources) > 1:
        provenance = {"classifiers": [source.provenance for source in sources]}
    if patch is not None:
        provenance["patch"] = published_source(Path(patch))
    patients = tuple(sorted({patient for source in sources for patient in source.patients}))
    bundle = Bundle("four_view", config.to_dict(), TARGETS, None, provenance=provenance, patients=patients)
    return write_bundle(out, bundle, nets.state_dict())


def _of_bundle(path: str | Path) -> _Source:
    bundle = read_bundle(path, "four_view")
    config, nets = load_nets(bundle)
    provenance = {"source": Path(path).name, "fingerprint": bundle.fingerprint}
    return _Source(path, config, nets, provenance, bundle.patients)


def _of_checkpoint(path: str | Path, patch: str | Path | None, config: Config) -> _Source:
    checkpoint = plain_weights(path)
    variant, heatmaps = _detect_variant(checkpoint, path)
    config = replace(config, architecture=replace(config.architecture, variant=variant, heatmaps=heatmaps))
    nets = build(config)
    load_published(nets.members[0], checkpoint, path)
    for patch_net in nets.patch_nets:
        if patch is None:
            raise ConfigError(
                "this classifier reads heatmaps and needs the patch network that computes them",
                subject=path,
                remedy="Pass the patch network's checkpoint with --patch",
            )
        load_published(patch_net, plain_weights(patch), patch)
    return _Source(path, config, nets, published_source(Path(path)))


def _detect_variant(checkpoint: Mapping[str, Any], path: str | Path) -> tuple[Variant, bool]:
    """Detect the variant, and whether it reads heatmaps, from the names and shapes of the tensors."""
    first = resolved(checkpoint, path).get("four_view_resnet.cc.first_conv.weight")
    if first is None or first.ndim != 4 or first.shape[1] not in (1, 3):
        raise BundleError(
            "the file is not a four-view classifier",
            subject=path,
            expected="a trunk with 1 or 3 input channels under four_view_resnet",
            actual=f"tensors such as {next(iter(checkpoint), 'none')}",
        )
    return ("image_wise" if "fc1_lcc.weight" in checkpoint else "view_wise"), first.shape[1] == 3


def _combine(sources: Sequence[_Source]) -> tuple[Config, Nets]:
    """Put all classifiers into one bundle. Equal patch networks are stored once."""
    joining = (source.config for source in sources if source.config.architecture.joins_views)
    first = next(joining, sources[0].config)
    members: list[tuple[Classifier, int]] = []
    alone: list[tuple[Classifier, int]] = []
    patch_nets: dict[str, nn.Module] = {}
    for source in sources:
        _require_equal_settings(first, source)
        architecture = source.config.architecture
        digests = [weights_digest(net) for net in source.nets.patch_nets]
        for digest, net in zip(digests, source.nets.patch_nets, strict=True):
            patch_nets.setdefault(digest, net)
        indices = [list(patch_nets).index(digest) for digest in digests] or [0]
        for number, net in enumerate(source.nets.classifiers):
            is_member = number < architecture.members and architecture.variant == first.architecture.variant
            (members if is_member else alone).append((net, indices[architecture.patch_net_of[number]]))
    architecture = replace(
        first.architecture,
        members=len(members),
        alone=len(alone),
        patch_of=tuple(index for _, index in (*members, *alone)) if len(patch_nets) > 1 else (),
    )
    nets = Nets(tuple(net for net, _ in members), tuple(net for net, _ in alone), tuple(patch_nets.values()))
    return replace(first, architecture=architecture), nets


def _require_equal_settings(first: Config, source: _Source) -> None:
    """A bundle has only one config, so all of its classifiers must agree in architecture and reading."""
    architecture = source.config.architecture
    if architecture.variant not in (first.architecture.variant, "image_wise"):
        raise ConfigError(
            "classifiers of several variants cannot be averaged",
            subject=source.path,
            expected=first.architecture.variant,
            actual=architecture.variant,
        )
    for group, other in ((first.architecture, architecture), (first.reading, source.config.reading)):
        for name, expected in vars(group).items():
            actual = getattr(other, name)
            if expected != actual and name not in OF_ONE_BUNDLE:
                raise ConfigError(
                    f"the classifiers of one bundle must agree in {name}",
                    subject=source.path,
                    expected=str(expected),
                    actual=str(actual),
                )
