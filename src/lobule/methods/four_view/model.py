"""The networks of a bundle: one or several classifiers, which are averaged, and their patch networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lobule.methods.four_view.config import Architecture, Config
from lobule.nets.four_view import Classifier, ImageWise, Joint, SideWise, ViewWise, patch_densenet

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

    @property
    def classifiers(self) -> tuple[Classifier, ...]:
        """Every classifier by number: the members, then those for exams that lack a view."""
        return (*self.members, *self.alone)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of a bundle. The names of all but the first classifier have a prefix."""
        return {**self.members[0].state_dict(), **self._prefixed().state_dict()}

    def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Load the tensors of a bundle; `RuntimeError` if they do not fit."""
        prefixed = self._prefixed()
        has_prefix = {name: name.partition(".")[0] in prefixed for name in weights}
        prefixed.load_state_dict({name: t for name, t in weights.items() if has_prefix[name]})
        self.members[0].load_state_dict({name: t for name, t in weights.items() if not has_prefix[name]})

    def _prefixed(self) -> nn.ModuleDict:
        nets: dict[str, nn.Module] = {f"member{n}": net for n, net in enumerate(self.members, 1) if n > 1}
        nets |= {f"alone{n}": net for n, net in enumerate(self.alone, 1)}
        nets |= {f"patch{n if n > 1 else ''}": net for n, net in enumerate(self.patch_nets, 1)}
        return nn.ModuleDict(nets)


def build(config: Config) -> Nets:
    """Build every network of a bundle, with random weights."""
    architecture = config.architecture
    return Nets(
        tuple(_classifier(architecture, architecture.variant) for _ in range(architecture.members)),
        tuple(_classifier(architecture, "image_wise") for _ in range(architecture.alone)),
        tuple(_patch_net(architecture) for _ in range(architecture.patch_nets)),
    )


def _classifier(architecture: Architecture, variant: str) -> Classifier:
    pool = architecture.pool or "mean"
    return VARIANTS[variant](architecture.channels, widths=architecture.widths, pool=pool)


def _patch_net(architecture: Architecture) -> nn.Module:
    net: nn.Module = patch_densenet(
        growth=architecture.patch_growth,
        blocks=architecture.patch_blocks,
        first_width=architecture.patch_first_width,
    )
    return net
