"""The settings of a tile classifier, and their conversion from a configuration of WSInfer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lobule.cohort.labels import plain, polarity
from lobule.errors import ConfigError
from lobule.nets.published import TORCHVISION_MEAN, TORCHVISION_STD
from lobule.settings import Settings

if TYPE_CHECKING:
    from lobule.nets.scaling import InputScaling

BACKGROUND_NAMES = frozenset({"background", "other"})
"""Class names that count as background, in addition to the names that mean no tumour."""


@dataclass(frozen=True)
class Config(Settings):
    """Settings of a tile classifier."""

    architecture: str
    """`timm:NAME`, `torchvision:NAME` or `torchscript`."""
    classes: tuple[str, ...]
    mpp: float
    tile: int = 224
    """Side of the tiles that are read, in pixels."""
    input: int = 224
    """Side of the model's input in pixels; tiles of another size are resized on the device."""
    mean: tuple[float, float, float] = TORCHVISION_MEAN
    std: tuple[float, float, float] = TORCHVISION_STD
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """`none` if the model outputs probabilities."""
    background: tuple[str, ...] = ()
    """Classes without findings and slide scores; if empty, the class names decide."""
    tissue_share: float = 0.1
    """Tiles with a smaller share of tissue than this are not scored."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.classes:
            raise ConfigError("a classifier needs at least one class name")
        source, _, name = self.architecture.partition(":")
        # A name with a scheme, such as hf-hub:, would download files from an arbitrary repository.
        plain = re.fullmatch(r"[A-Za-z0-9_.-]+", name)
        if not (source == "torchscript" or (source in ("timm", "torchvision") and plain)):
            raise ConfigError(
                f"unknown architecture '{self.architecture}'",
                expected="timm:NAME, torchvision:NAME or torchscript",
            )

    @property
    def scaling(self) -> InputScaling:
        from lobule.nets.scaling import InputScaling

        return InputScaling(self.mean, self.std)

    @property
    def target_classes(self) -> tuple[str, ...]:
        """Classes with findings and slide scores; without `background`, chosen by the usual class names."""
        if self.background:
            return tuple(name for name in self.classes if name not in self.background)
        tumour_classes = tuple(
            name
            for name in self.classes
            if polarity(name) is not False and plain(name) not in BACKGROUND_NAMES
        )
        return (
            tumour_classes
            if tumour_classes and len(tumour_classes) < len(self.classes)
            else self.classes[-1:]
        )


def of_wsinfer(wsinfer_config: Mapping[str, Any], *, source: str = "torchscript") -> Config:
    """Convert the content of WSInfer's `config.json` to settings.

    Args:
        wsinfer_config: The parsed file. Supported transforms are Resize, ToTensor and Normalize.
        source: The architecture of the model.

    Raises:
        ConfigError: The configuration is incomplete or contains another transform.
    """
    try:
        classes = tuple(str(name) for name in wsinfer_config["class_names"])
        tile, mpp = int(wsinfer_config["patch_size_pixels"]), float(wsinfer_config["spacing_um_px"])
        steps: Sequence[Mapping[str, Any]] = wsinfer_config.get("transform", [])
        count = int(wsinfer_config.get("num_classes", len(classes)))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"this is not a WSInfer configuration: {error!r}",
            expected="class_names, patch_size_pixels, spacing_um_px, transform",
        ) from error
    if count != len(classes):
        raise ConfigError(f"num_classes is {count}, but there are {len(classes)} class names")
    mean, std, size = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), tile
    for step in steps:
        name, arguments = str(step.get("name")), step.get("arguments") or {}
        if name == "Resize":
            resize_to = arguments.get("size", tile)
            size = int(resize_to if isinstance(resize_to, int | float) else resize_to[0])
        elif name == "Normalize":
            (m0, m1, m2), (s0, s1, s2) = arguments["mean"], arguments["std"]
            mean, std = (float(m0), float(m1), float(m2)), (float(s0), float(s1), float(s2))
        elif name != "ToTensor":
            raise ConfigError(f"unsupported transform {name}", expected="Resize, ToTensor, Normalize")
    activation: Literal["softmax", "sigmoid"] = "softmax" if len(classes) > 1 else "sigmoid"
    return Config(source, classes, mpp, tile, size, mean, std, activation)
