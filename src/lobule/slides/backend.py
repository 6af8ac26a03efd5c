"""What a backend gives: levels, facts, and pixels of one level. Everything else is `Slide`'s.

A backend is one file with one function, `open_backend(path) -> Backend`; it is named in
`slides.slide.READERS` and inherits the conformance suite of `tests/slides/conformance.py`.
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
    """Size of one compressed tile; the strip or the whole level where the file is not tiled."""


@dataclass(frozen=True)
class FoundMpp:
    """µm/px of level 0 and the place in the file that said so."""

    mpp: Mpp
    source: str


class Backend(Protocol):
    """One opened file. Every method may be called from several threads at once.

    Optional members:
        `is_blank(level, box, reduce) -> bool`: the file stores nothing under a box, which reads as white.
        Sparse files declare far more pixels than anyone can decode.
        `decoding_bytes: int`: memory that decoding takes at its peak beside the cache of tiles, where that is
        more than a few megabytes; known before anything is decoded.
    """

    @property
    def format(self) -> str:
        """A short name of what the file is, such as `aperio-svs`."""
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
        """The level-0 box that holds pixels, where the file declares one."""
        ...

    @property
    def associated(self) -> Mapping[str, Size | None]:
        """Names of the images beside the pyramid (label, macro, thumbnail) with their sizes."""
        ...

    def reductions(self, level: int) -> tuple[int, ...]:
        """Factors at which this level decodes directly smaller; always contains 1."""
        ...

    def read(self, level: int, box: Box, reduce: int = 1) -> RGB:
        """Pixels of `box`, which lies inside the level as reduced, in its (reduced) pixels.

        Missing tiles and transparent pixels are white. Raises `DamagedTile`.
        """
        ...

    def read_associated(self, name: str) -> RGB: ...

    def close(self) -> None: ...
