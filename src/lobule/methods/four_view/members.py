"""The networks of a bundle: one or several classifiers, which are averaged, and their patch networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lobule.bundles import Bundle, patient_hash, write_bundle
from lobule.errors import ModelError
from lobule.methods.four_view.config import Config
from lobule.nets.four_view import (
    TARGETS,
    Classifier,
    ImageWise,
    Joint,
    SideWise,
    ViewWise,
    patch_densenet,
)

PATCH_PREFIX = "patch."
"""Prefix of the first patch network's tensors in a bundle."""

VARIANTS: dict[str, type[ViewWise] | type[SideWise] | type[Joint] | type[ImageWise]] = {
    "view_wise": ViewWise,
    "side_wise": SideWise,
    "joint": Joint,
    "image_wise": ImageWise,
}


@dataclass(frozen=True, eq=False)
class Nets:
    """Every network of a bundle."""

    members: tuple[Classifier, ...]
    alone: tuple[Classifier, ...] = ()
    """Image-wise classifiers for the exams that lack a view."""
    patch_nets: tuple[nn.Module, ...] = ()

    def named(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield each network with the prefix of its tensors' names. The first classifier has no prefix."""
        for kind, nets in (("member", self.members), ("alone", self.alone), ("patch", self.patch_nets)):
            for number, net in enumerate(nets, start=1):
                if kind == "member" and number == 1:
                    yield "", net
                else:
                    yield (PATCH_PREFIX if (kind, number) == ("patch", 1) else f"{kind}{number}."), net


def build(config: Config) -> tuple[Any, nn.Module | None]:
    """Build the classifier of a configuration with random weights, and the patch network if it needs one."""
    net = VARIANTS[config.variant](config.channels, widths=config.widths, pool=config.pool)
    if not config.heatmaps:
        return net, None
    patch_net = patch_densenet(
        growth=config.patch_growth, blocks=config.patch_blocks, first_width=config.patch_first_width
    )
    return net, patch_net


def build_all(config: Config) -> Nets:
    """Build every network of a configuration, with random weights."""
    single = replace(config, variant="image_wise")
    return Nets(
        tuple(build(config)[0] for _ in range(config.members)),
        tuple(build(single)[0] for _ in range(config.alone)),
        tuple(net for _ in range(config.patch_nets) if (net := build(config)[1]) is not None),
    )


def fill(nets: Nets, weights: Mapping[str, Tensor], bundle: Bundle, config: Config) -> None:
    """Load the tensors of a bundle into its networks."""
    prefixes = [prefix for prefix, _ in nets.named() if prefix]
    try:
        for prefix, net in nets.named():
            if prefix:
                tensors = {
                    name.removeprefix(prefix): value
                    for name, value in weights.items()
                    if name.startswith(prefix)
                }
            else:
                tensors = {
                    name: value for name, value in weights.items() if not name.startswith(tuple(prefixes))
                }
            net.load_state_dict(tensors)
            net.eval()
    except RuntimeError as error:
        raise ModelError(
            "the weights do not fit the networks",
            subject=bundle.path,
            expected=f"the weights of a {config.variant} classifier with {config.channels} input channels",
            actual=str(error),
        ) from error


def weights_of(net: nn.Module, patch_net: nn.Module | None) -> dict[str, Tensor]:
    """Return the tensors of a bundle. Those of the patch network have a prefix."""
    return weights_of_all(Nets((net,), (), () if patch_net is None else (patch_net,)))  # type: ignore[arg-type]


def weights_of_all(nets: Nets) -> dict[str, Tensor]:
    return {prefix + name: value for prefix, net in nets.named() for name, value in net.state_dict().items()}


def save(
    path: str | Path,
    config: Config,
    net: nn.Module,
    patch_net: nn.Module | None = None,
    *,
    patients: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a bundle of one classifier and its patch network.

    `patients` are the patients in the training exams; the bundle stores only their hashes.
    """
    bundle = Bundle(
        "four_view",
        config.to_dict(),
        TARGETS,
        None,
        metrics or {},
        provenance or {},
        tuple(patient_hash(patient) for patient in patients),
    )
    return write_bundle(path, bundle, weights_of(net, patch_net))
