"""Boxes, sizes and the lattice on which a case is read.

Everything stored is in level-0 pixels of the uncropped OpenSlide frame: origin top left, half-open, int64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, floor

from lobule.units import Mpp


@dataclass(frozen=True, order=True)
class Size:
    """Width and height in pixels. The name of the variable states the coordinate frame."""

    width: int
    height: int

    @property
    def area(self) -> int:
        return self.width * self.height

    def __iter__(self) -> Iterator[int]:
        return iter((self.width, self.height))

    def __str__(self) -> str:
        return f"{self.width} × {self.height} px"


@dataclass(frozen=True, order=True)
class Box:
    """A half-open box: left, top, width and height. The name of the variable states the coordinate frame."""

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def of_edges(cls, left: int, top: int, right: int, bottom: int) -> Box:
        return cls(left, top, right - left, bottom - top)

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height

    @property
    def size(self) -> Size:
        return Size(self.width, self.height)

    @property
    def empty(self) -> bool:
        return self.width <= 0 or self.height <= 0

    def intersect(self, other: Box) -> Box:
        """Return the intersection of two boxes. If they are disjoint, its width or height is 0."""
        left, top = max(self.x, other.x), max(self.y, other.y)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Box.of_edges(left, top, max(left, right), max(top, bottom))

    def contains(self, other: Box) -> bool:
        return (
            self.x <= other.x
            and self.y <= other.y
            and self.right >= other.right
            and self.bottom >= other.bottom
        )

    def grown(self, margin: int) -> Box:
        return Box(self.x - margin, self.y - margin, self.width + 2 * margin, self.height + 2 * margin)

    def __str__(self) -> str:
        return f"({self.x}, {self.y}) {self.width} × {self.height}"


@dataclass(frozen=True)
class Lattice:
    """A pixel lattice over a case, anchored at level-0 (0, 0).

    Pixel (i, j) covers level-0 [i·step_x, (i+1)·step_x) × [j·step_y, (j+1)·step_y). The steps are exact
    ratios, so a coordinate never depends on the path by which it was reached.
    """

    step_x: Fraction
    step_y: Fraction
    l0_size: Size
    mpp: Mpp | None
    """The true µm/px of the lattice; None if neither the file nor the user states it."""
    level: int | None = None
    """The level that is read without scaling; None if pixels are resampled."""

    @cached_property
    def size(self) -> Size:
        """Lattice pixels that cover the image. The last column and row may extend beyond its edge."""
        return Size(ceil(self.l0_size.width / self.step_x), ceil(self.l0_size.height / self.step_y))

    def to_l0(self, box: Box) -> Box:
        """Return the smallest level-0 box that covers a lattice box."""
        return Box.of_edges(
            floor(box.x * self.step_x),
            floor(box.y * self.step_y),
            ceil(box.right * self.step_x),
            ceil(box.bottom * self.step_y),
        )

    def of_l0(self, l0_box: Box) -> Box:
        """Return the lattice box closest to a level-0 box: corner rounded down, size rounded, at least 1."""
        x, y = floor(l0_box.x / self.step_x), floor(l0_box.y / self.step_y)
        width = max(1, _round_half_up(Fraction(l0_box.width) / self.step_x))
        height = max(1, _round_half_up(Fraction(l0_box.height) / self.step_y))
        return Box(x, y, width, height)

    def coarser(self, factor: int) -> Lattice:
        """Return the lattice whose pixels are `factor` × `factor` pixels of this one."""
        mpp = None if self.mpp is None else self.mpp.scaled(factor)
        return Lattice(self.step_x * factor, self.step_y * factor, self.l0_size, mpp)


def _round_half_up(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))


def level_step(l0_length: int, level_length: int) -> Fraction:
    """Return the level-0 pixels per pixel of a level, as the exact ratio with which the level was created.

    Pyramids use integer factors and round the lengths to whole pixels, so 2220 / 554 means 4, not 4.0072. If
    no integer factor explains the length, the ratio of the lengths is returned.
    """
    ratio = Fraction(l0_length, level_length)
    factor = _round_half_up(ratio)
    if factor >= 1 and level_length in (l0_length // factor, -(-l0_length // factor)):
        return Fraction(factor)
    return ratio


def tiles_over(box: Box, tile: Size) -> Iterator[tuple[int, int]]:
    """Yield (column, row) of every tile that a box touches, row by row, for tiles anchored at (0, 0)."""
    for row in range(box.y // tile.height, -(-box.bottom // tile.height)):
        for column in range(box.x // tile.width, -(-box.right // tile.width)):
            yield column, row
