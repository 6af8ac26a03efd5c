"""The interface of a slide backend: levels, metadata, and the pixels of one level. `Slide` does the rest.

A backend is one module with one function, `open_backend(path) -> Backend`. It is listed in
`slides.slide.READERS`, and its tests inherit the conformance suite `lobule.testing.slide_backend`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lobule.geometry import Box, Size
from lobule.units import Mpp

RGB = NDArray[np.uint8]
"""(height, width, 3), interleaved, uint8."""


@dataclass(frozen=True)
class Level:
    """One level of the pyramid as the file stores it."""

    size: Size
    tile: Size
    """Size of one compressed tile. If the file is not tiled, the size of a strip or of the whole level."""


@dataclass(frozen=True)
class FoundMpp:
    """µm/px of level 0 and the field of the file that states it."""

    mpp: Mpp
    source: str


FINEST_MPP, COARSEST_MPP = 0.01, 20.0
"""Range of plausible µm/px. Image files often state a printing resolution (72 dpi is 353 µm/px)."""


def plausible_mpp(x: float | None, y: float | None, source: str) -> FoundMpp | None:
    """The µm/px with its source, or None if a value is missing or implausible."""
    if x is None or y is None or not all(FINEST_MPP <= value <= COARSEST_MPP for value in (x, y)):
        return None
    return FoundMpp(Mpp(x, y), source)


class Backend(Protocol):
    """One opened file. Every method may be called from several threads at once.

    Optional members:
        `is_blank(level, box, reduce) -> bool`: whether the file stores no tile in a box, which then reads as
        white. Sparse files declare far more pixels than can be decoded.
        `decoding_bytes: int`: peak memory of decoding in addition to the tile cache, if it is more than a few
        megabytes. It is known before anything is decoded.
        `stored_jpeg(level, column, row) -> bytes | None`: one tile as the file stores it, as a JPEG stream.
    """

    @property
    def format(self) -> str:
        """A short name of the file format, such as `aperio-svs`."""
        ...

    @property
    def levels(self) -> tuple[Level, ...]:
        """Largest first."""
        ...

    @property
    def properties(self) -> Mapping[str, str]: ...

    @property
    def found_mpp(self) -> FoundMpp | None: ...

    @property
    def bounds(self) -> Box | None:
        """The level-0 box that contains pixels, if the file declares one."""
        ...

    @property
    def associated(self) -> Mapping[str, Size | None]:
        """Names and sizes of the associated images (label, macro, thumbnail)."""
        ...

    def reductions(self, level: int) -> tuple[int, ...]:
        """Factors by which this level can be reduced while it is decoded; always contains 1."""
        ...

    def read(self, level: int, box: Box, reduce: int = 1) -> RGB:
        """Pixels of `box`, which is in reduced pixels and lies inside the reduced level.

        Missing tiles and transparent pixels are white. Raises `DamagedTile`.
        """
        ...

    def read_associated(self, name: str) -> RGB: ...

    def close(self) -> None: ...
