"""The settings of a tile classifier, and how WSInfer's configuration becomes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lobule.cohort.labels import plain, polarity
from lobule.errors import ConfigError
from lobule.nets.scaling import InputScaling
from lobule.settings import as_json, only_known

NOT_SOUGHT = frozenset({"background", "other"})
"""Class names that are not sought, beside those that mean no tumour."""


@dataclass(frozen=True)
class Config:
    """What decides a tile classifier."""

    architecture: str
    """`timm:NAME`, `torchvision:NAME` or `torchscript`."""
    classes: tuple[str, ...]
    mpp: float
    tile: int = 224
    """Pixels a side of the tile that is read."""
    input: int = 224
    """Pixels a side that the model wants; tiles of another size are resized on the device."""
    mean: tuple[float, float, float] = InputScaling().mean
    std: tuple[float, float, float] = InputScaling().std
    activation: str = "softmax"
    """softmax, sigmoid, or none where the model already gives probabilities."""
    background: tuple[str, ...] = ()
    """Classes that are not sought: neither findings nor slide scores come from them."""
    tissue_share: float = 0.1
    """Tiles with less tissue than this share are not looked at."""

    def __post_init__(self) -> None:
        if self.activation not in ("softmax", "sigmoid", "none"):
            raise ConfigError(f"no activation '{self.activation}'", expected="softmax, sigmoid or none")
        if not self.classes:
            raise ConfigError("a classifier needs class names")
        source, _, name = self.architecture.partition(":")
        # a name with a scheme, such as hf-hub:, would fetch files that nobody chose
        plain = re.fullmatch(r"[A-Za-z0-9_.-]+", name)
        if not (source == "torchscript" or (source in ("timm", "torchvision") and plain)):
            raise ConfigError(
                f"no architecture '{self.architecture}'",
                expected="timm:NAME, torchvision:NAME or torchscript",
            )

    @property
    def scaling(self) -> InputScaling:
        return InputScaling(self.mean, self.std)

    @property
    def sought(self) -> tuple[str, ...]:
        """Classes that make findings and slide scores; by the usual names where none is called background."""
        if self.background:
            return tuple(name for name in self.classes if name not in self.background)
        rest = tuple(
            name for name in self.classes if polarity(name) is not False and plain(name) not in NOT_SOUGHT
        )
        return rest if rest and len(rest) < len(self.classes) else self.classes[-1:]

    def to_dict(self) -> dict[str, Any]:
        return as_json(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Config:
        values = only_known(cls, facts, "classifier")
        return cls(**values)


def of_wsinfer(facts: Mapping[str, Any], *, source: str = "torchscript") -> Config:
    """WSInfer's `config.json` as settings. Transforms it may name: Resize, ToTensor, Normalize."""
    try:
        classes = tuple(str(name) for name in facts["class_names"])
        tile, mpp = int(facts["patch_size_pixels"]), float(facts["spacing_um_px"])
        steps: Sequence[Mapping[str, Any]] = facts.get("transform", [])
        count = int(facts.get("num_classes", len(classes)))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"not a WSInfer configuration: {error!r}",
            expected="class_names, patch_size_pixels, spacing_um_px, transform",
        ) from error
    if count != len(classes):
        raise ConfigError(f"{count} classes but {len(classes)} class names")
    mean, std, size = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), tile
    for step in steps:
        name, arguments = str(step.get("name")), step.get("arguments") or {}
        if name == "Resize":
            wanted = arguments.get("size", tile)
            size = int(wanted if isinstance(wanted, int | float) else wanted[0])
        elif name == "Normalize":
            (m0, m1, m2), (s0, s1, s2) = arguments["mean"], arguments["std"]
            mean, std = (float(m0), float(m1), float(m2)), (float(s0), float(s1), float(s2))
        elif name != "ToTensor":
            raise ConfigError(
                f"a transform that is not known: {name}", expected="Resize, ToTensor, Normalize"
            )
    activation = "softmax" if len(classes) > 1 else "sigmoid"
    return Config(source, classes, mpp, tile, size, mean, std, activation)
