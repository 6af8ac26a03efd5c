"""A slide at a small scale, read from the best level. Tissue detection and pictures start from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import log2

import numpy as np
from numpy.typing import NDArray

from lobule.errors import DamagedTile
from lobule.geometry import Box, Lattice
from lobule.slides.backend import RGB
from lobule.slides.resample import choose_source, read_resampled
from lobule.slides.slide import Slide

MAX_PIXELS = 100_000_000
"""Largest number of pixels of an overview. Larger slides are read at a coarser resolution."""
BLOCK_SIDES = (512, 64, 8)
"""Sides, in pixels, of the successively smaller blocks into which the area of a damaged tile is divided."""
MAX_REPAIR_PIXELS = 1 << 28
"""At most this many pixels of finer levels are read to replace damaged tiles; the rest stays unreadable."""


@dataclass(frozen=True, eq=False)
class Overview:
    """A whole slide at a small scale."""

    pixels: RGB
    """White where `unreadable` is set."""
    lattice: Lattice
    unreadable: NDArray[np.bool_]
    """Pixels that no level of the file could supply."""
    damaged_levels: tuple[int, ...] = ()
    """Levels on which damaged tiles were encountered."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about damaged tiles; empty if the file is undamaged."""
        if not self.damaged_levels:
            return ()
        levels = ", ".join(map(str, self.damaged_levels))
        start = f"Tissue detection met damaged tiles on level {levels}"
        if not self.unreadable.any():
            return (f"{start}; it read the same areas from a finer level.",)
        share = f"{self.unreadable.mean():.2%}"
        return (f"{start}; {share} of the slide could not be read from any level and counts as tissue.",)


def overview_lattice(slide: Slide, mpp: float) -> Lattice:
    """The lattice of an overview near a µm/px: that of a level if one lies within a factor of two."""
    base = slide.mpp.mean
    while slide.size.area * (base / max(mpp, base)) ** 2 > MAX_PIXELS:
        mpp = max(mpp, base) * 2
    off = {level: abs(log2(base * float(slide.steps(level)[0]) / mpp)) for level in range(len(slide.levels))}
    nearest = min(off, key=lambda level: off[level])
    if off[nearest] <= 1 or mpp <= base:
        return slide.lattice(level=nearest)
    return slide.lattice(mpp=mpp)


def read_overview(slide: Slide, mpp: float) -> Overview:
    """Read the whole slide near a µm/px, in the colours of the file.

    Damaged tiles are replaced from finer levels if possible.
    """
    slide = slide.as_scanned
    lattice = overview_lattice(slide, mpp)
    box = Box(0, 0, *lattice.size)
    try:
        pixels = slide.read_lattice(lattice, box)
    except DamagedTile as error:
        return _Repair(slide, lattice, {error.level}).overview(box)
    return Overview(pixels, lattice, np.zeros(pixels.shape[:2], np.bool_))


@dataclass
class _Repair:
    """Reads an overview block by block, and blocks with damaged tiles from finer levels."""

    slide: Slide
    lattice: Lattice
    damaged: set[int]
    pixels_read: int = field(default=0)

    def overview(self, box: Box) -> Overview:
        pixels = np.full((box.height, box.width, 3), 255, np.uint8)
        unreadable = np.zeros((box.height, box.width), np.bool_)
        self._fill(box, BLOCK_SIDES, pixels, unreadable)
        return Overview(pixels, self.lattice, unreadable, tuple(sorted(self.damaged)))

    def _fill(self, box: Box, sides: tuple[int, ...], pixels: RGB, unreadable: NDArray[np.bool_]) -> None:
        for block in _blocks(box, sides[0]):
            inside = slice(block.y, block.bottom), slice(block.x, block.right)
            block_pixels = self._read(block)
            if block_pixels is None and sides[0] < BLOCK_SIDES[0]:
                block_pixels = self._read_finer(block)
            if block_pixels is not None:
                pixels[inside] = block_pixels
            elif len(sides) > 1:
                self._fill(block, sides[1:], pixels, unreadable)
            else:
                unreadable[inside] = True

    def _read(self, block: Box) -> RGB | None:
        try:
            return self.slide.read_lattice(self.lattice, block)
        except DamagedTile as error:
            self.damaged.add(error.level)
            return None

    def _read_finer(self, block: Box) -> RGB | None:
        """The block from the coarsest finer level that is undamaged there, within the pixel budget."""
        level = self.lattice.level
        if level is None:
            level = choose_source(self.slide, self.lattice).level
        free = replace(self.lattice, level=None)
        while level > 0:
            source = choose_source(self.slide, free, levels=level)
            cost = int(block.size.area * source.ratio_x * source.ratio_y)
            if self.pixels_read + cost > MAX_REPAIR_PIXELS:
                return None
            self.pixels_read += cost
            try:
                return read_resampled(self.slide, free, block, levels=level)
            except DamagedTile as error:
                self.damaged.add(error.level)
            level = source.level
        return None


def _blocks(box: Box, side: int) -> Iterator[Box]:
    """Divide the box into blocks with sides of at most `side` pixels, row by row."""
    for top in range(box.y, box.bottom, side):
        for left in range(box.x, box.right, side):
            yield Box(left, top, side, side).intersect(box)
