"""The interface of a slide backend: levels, metadata, and the pixels of one level. `Slide` does the rest.

A backend is one module with one function, `open_backend(path) -> Backend`. It is listed in
`slides.slide.READERS`, and its tests inherit the conformance suite `lobule.testing.slide_backend`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lobule.errors import DamagedTile
from lobule.geometry import Box, Lattice, Size, level_step, tiles_over
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
class StatedMpp:
    """µm/px of level 0 and the field of the file that states it."""

    mpp: Mpp
    source: str


FINEST_MPP, COARSEST_MPP = 0.01, 20.0
"""Range of plausible µm/px. Image files often state a printing resolution (72 dpi is 353 µm/px)."""


def plausible_mpp(x: float | None, y: float | None, source: str) -> StatedMpp | None:
    """The µm/px with its source, or None if a value is missing or implausible."""
    if x is None or y is None or not all(FINEST_MPP <= value <= COARSEST_MPP for value in (x, y)):
        return None
    return StatedMpp(Mpp(x, y), source)


MAX_SIDE = 4_000_000
"""Largest declared side of a slide in pixels; the largest real slides have about 300,000."""

LARGE_TILE_PIXELS = 1 << 22
"""Larger tiles are decoded one at a time, so that several threads do not multiply the memory."""


def assemble(box: Box, tile: Size, tile_at: Callable[[int, int], RGB]) -> RGB:
    """The pixels of a box, copied from the tiles under it.

    Args:
        box: The box in pixels.
        tile: Size of a tile; tiles are anchored at (0, 0).
        tile_at: Gives the pixels of the tile in a column and row.
    """
    out = np.empty((box.height, box.width, 3), np.uint8)
    for column, row in tiles_over(box, tile):
        left, top = column * tile.width - box.x, row * tile.height - box.y
        y, x = max(-top, 0), max(-left, 0)
        target = out[top + y : top + tile.height, left + x : left + tile.width]
        target[...] = tile_at(column, row)[y : y + target.shape[0], x : x + target.shape[1]]
    return out


def damaged_tile(
    path: str, levels: Sequence[Level], level: int, tile_index: tuple[int, int], cause: str
) -> DamagedTile:
    """The error for a tile that cannot be decoded, with the level-0 box that it covers."""
    size, tile, l0_size = levels[level].size, levels[level].tile, levels[0].size
    step_x, step_y = level_step(l0_size.width, size.width), level_step(l0_size.height, size.height)
    box = Box(tile_index[0] * tile.width, tile_index[1] * tile.height, *tile).intersect(Box(0, 0, *size))
    l0_box = Lattice(step_x, step_y, l0_size, None).to_l0(box)
    return DamagedTile(path, level, tile_index, cause, l0_box=l0_box)


class Backend(Protocol):
    """One opened file. Every method may be called from several threads at once.

    Optional members:
        `is_blank(level, box, reduce) -> bool`: whether the file stores no tile in a box, which then reads as
        white. Sparse files declare far more pixels than can be decoded.
        `decoding_bytes: int`: peak memory of decoding in addition to the tile cache, if it is more than a few
        megabytes. It is known before anything is decoded.
        `colour_profile: bytes | None`: the ICC profile of the pixels.
        `stored_jpeg(level, column, row) -> bytes | None`: one tile as the file stores it, as a JPEG stream.
        `decoded_tile(level, column, row) -> RGB | None`: one tile, at least as large as its area inside the
        level, without the copy that `read` makes.
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
    def stated_mpp(self) -> StatedMpp | None: ...

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
