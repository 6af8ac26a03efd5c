"""Read a lattice that matches no stored level: area averages to shrink, cubic interpolation to enlarge.

The source is the coarsest level that is at least as fine as the lattice, decoded at libjpeg's reduced size if
possible. A lattice pixel is the average of the source area it covers, weighted by exact fractions of the two
steps. Weights and intermediate sums are integers that the floating-point type represents exactly. Therefore
a sum does not depend on the order of its terms, and a pixel does not depend on the box it is read in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lobule.geometry import Box, Lattice
from lobule.slides.backend import RGB, Backend, Level

SOURCE_SIDE = 2048
"""Side, in source pixels, of the area that is read for one block of the result. It bounds memory."""
BAND = 16
"""Number of result rows (or columns) that one matrix product computes."""


class Pyramid(Protocol):
    """The members of a slide that resampling uses."""

    @property
    def levels(self) -> tuple[Level, ...]: ...

    @property
    def backend(self) -> Backend: ...

    def steps(self, level: int) -> tuple[Fraction, Fraction]: ...

    def read_level(self, level: int, box: Box, reduce: int = 1) -> RGB: ...


@dataclass(frozen=True)
class Source:
    """The source of a lattice: a level, its reduction while decoding, and source pixels per lattice pixel."""

    level: int
    reduce: int
    ratio_x: Fraction
    ratio_y: Fraction


@dataclass(frozen=True)
class Precision:
    """Integer arithmetic in a floating-point type whose mantissa can represent the sums of both passes."""

    dtype: Any
    one: int
    """The weight 1."""
    fraction: int
    """Number of steps per grey level in the values between the passes."""

    @staticmethod
    def for_ratio(ratio: Fraction) -> Precision:
        # The more pixels share the weight 1, the more digits each of their weights needs.
        return _FEW if ratio <= 4 else _MANY


# 255 · 16 · 2048 · 5/4 (cubic weights add up to 5/4 in size) < 2^24, and 255 · 2^16 · 2^20 < 2^53
_FEW = Precision(np.float32, 1 << 11, 1 << 4)
_MANY = Precision(np.float64, 1 << 20, 1 << 16)


@dataclass(frozen=True)
class Taps:
    """For each result pixel of a run: its first source pixel and the integer weights of its source pixels."""

    first: NDArray[np.int64]
    """(pixels,)"""
    weights: NDArray[np.int64]
    """(pixels, taps); each row adds up to the weight 1."""

    @property
    def start(self) -> int:
        return int(self.first[0])

    @property
    def stop(self) -> int:
        return int(self.first[-1]) + int(self.weights.shape[1])

    def bands(self, dtype: Any, scale: float) -> Iterator[tuple[slice, slice, NDArray[Any]]]:
        """Yield slices of result pixels, of their source pixels (relative to `start`), and the weight matrix.

        `scale` is a power of two, so that the scaled integers stay exact.
        """
        taps = self.weights.shape[1]
        for at in range(0, len(self.first), BAND):
            first, weights = self.first[at : at + BAND], self.weights[at : at + BAND]
            begin, end = int(first[0]), int(first[-1]) + taps
            matrix = np.zeros((len(first), end - begin), dtype)
            columns = (first - begin)[:, None] + np.arange(taps)
            np.put_along_axis(matrix, columns, weights * scale, axis=1)
            yield slice(at, at + len(first)), slice(begin - self.start, end - self.start), matrix


def read_resampled(slide: Pyramid, lattice: Lattice, box: Box, levels: int | None = None) -> RGB:
    """Pixels of a box of lattice pixels, computed from the source of `choose_source`; white outside."""
    source = choose_source(slide, lattice, levels)
    if source.ratio_x == source.ratio_y == 1:
        return slide.read_level(source.level, box, source.reduce)
    out = np.empty((box.height, box.width, 3), np.uint8)
    width, height = _block_side(source.ratio_x), _block_side(source.ratio_y)
    for top in range(box.y, box.bottom, height):
        row = Box(box.x, top, box.width, height).intersect(box)
        if _is_blank(slide, source, row):  # sparse files can declare far more pixels than can be read
            out[row.y - box.y : row.bottom - box.y] = 255
            continue
        for left in range(box.x, box.right, width):
            block = Box(left, top, width, height).intersect(box)
            y, x = block.y - box.y, block.x - box.x
            into = out[y : y + block.height, x : x + block.width]
            into[:] = 255 if _is_blank(slide, source, block) else _block(slide, source, block)
    return out


def _is_blank(slide: Pyramid, source: Source, block: Box) -> bool:
    """Whether the file stores no tile in the source area of a block of the result."""
    is_blank = getattr(slide.backend, "is_blank", None)
    if is_blank is None:
        return False
    needed = source_box(slide, source, block)
    return needed.empty or bool(is_blank(source.level, needed, source.reduce))


def source_box(slide: Pyramid, source: Source, box: Box) -> Box:
    """Return the box of source pixels, inside their level, from which a box of lattice pixels is computed."""
    exact = source.ratio_x == source.ratio_y == 1
    margin = 0 if exact else 2  # source pixels that cubic interpolation needs beyond the box
    level = slide.levels[source.level].size
    level_box = Box(0, 0, -(-level.width // source.reduce), -(-level.height // source.reduce))
    return Box.of_edges(
        floor(box.x * source.ratio_x) - margin,
        floor(box.y * source.ratio_y) - margin,
        ceil(box.right * source.ratio_x) + margin,
        ceil(box.bottom * source.ratio_y) + margin,
    ).intersect(level_box)


def choose_source(slide: Pyramid, lattice: Lattice, levels: int | None = None) -> Source:
    """The coarsest level (or reduction) that is at least as fine as the lattice; level 0 if all are coarser.

    Only the first `levels` levels are considered, or all of them.

    If a stored level and a reduced one are equally fine, the stored one is chosen, as it has fewer tiles.
    """
    best = Source(0, 1, lattice.step_x, lattice.step_y)
    for level in range(len(slide.levels) if levels is None else levels):
        step_x, step_y = slide.steps(level)
        for reduce in slide.backend.reductions(level):
            ratio_x, ratio_y = lattice.step_x / (step_x * reduce), lattice.step_y / (step_y * reduce)
            if min(ratio_x, ratio_y) >= 1 and ratio_x * ratio_y <= best.ratio_x * best.ratio_y:
                best = Source(level, reduce, ratio_x, ratio_y)
    return best


def source_of(slide: Pyramid, lattice: Lattice) -> Source:
    """Return the source of a lattice: its own level if it has one, otherwise that of `choose_source`."""
    if lattice.level is None:
        return choose_source(slide, lattice)
    return Source(lattice.level, 1, Fraction(1), Fraction(1))


def _block_side(ratio: Fraction) -> int:
    return max(1, int(SOURCE_SIDE / max(ratio, Fraction(1))))


def _block(slide: Pyramid, source: Source, block: Box) -> RGB:
    precision = Precision.for_ratio(max(source.ratio_x, source.ratio_y))
    across = taps_of(source.ratio_x, block.x, block.width, precision.one)
    down = taps_of(source.ratio_y, block.y, block.height, precision.one)
    needed = Box.of_edges(across.start, down.start, across.stop, down.stop)
    return _apply_filter(slide.read_level(source.level, needed, source.reduce), across, down, precision)


def _apply_filter(pixels: RGB, across: Taps, down: Taps, precision: Precision) -> RGB:
    """Filter along y, then along x, as products with narrow bands of the weight matrix."""
    height, width = len(down.first), len(across.first)
    dtype, one, fraction = precision.dtype, precision.one, precision.fraction
    rows = pixels.reshape(len(pixels), -1)
    middle = np.empty((height, rows.shape[1]), dtype)
    for out_slice, source_slice, matrix in down.bands(dtype, fraction / one):
        np.matmul(matrix, rows[source_slice].astype(dtype), out=middle[out_slice])
        _round_within(middle[out_slice], 255 * fraction)
    out = np.empty((height, width, 3), np.uint8)
    for out_slice, source_slice, matrix in across.bands(dtype, 1 / (one * fraction)):
        colours_apart = np.kron(matrix.T, np.eye(3, dtype=dtype))
        sums = middle[:, 3 * source_slice.start : 3 * source_slice.stop] @ colours_apart
        _round_within(sums, 255)
        out[:, out_slice] = sums.reshape(height, -1, 3)
    return out


def _round_within(values: NDArray[Any], most: int) -> None:
    """Round half up and clip to 0..`most`, in place."""
    values += 0.5
    np.floor(values, out=values)
    np.clip(values, 0, most, out=values)


# -- weights ------------------------------------------------------------------------------------------------


def taps_of(ratio: Fraction, start: int, count: int, one: int) -> Taps:
    """Weights of `count` result pixels from `start`, each `ratio` source pixels long."""
    return _area_taps(ratio, start, count, one) if ratio >= 1 else _cubic_taps(ratio, start, count, one)


def _area_taps(ratio: Fraction, start: int, count: int, one: int) -> Taps:
    """Shares of source pixels in each result pixel, rounded cumulatively so that they add up to `one`."""
    length, unit = ratio.numerator, ratio.denominator
    left = _whole_numbers(start, count, max((abs(start) + count) * length, 4 * one * length)) * length
    first = left // unit
    taps = -(-(length + unit - 1) // unit)
    # the length of the result pixel up to the end of each of its source pixels, in 1/unit
    ends = (first[:, None] + np.arange(1, taps + 1)) * unit - left[:, None]
    covered = np.minimum(np.maximum(ends, 0), length)
    cumulative = (2 * covered * one + length) // (2 * length)
    weights = np.diff(cumulative, axis=1, prepend=0)
    return Taps(first.astype(np.int64), weights.astype(np.int64))


def _cubic_taps(ratio: Fraction, start: int, count: int, one: int) -> Taps:
    """Catmull-Rom weights of the four source pixels around the centre of each result pixel."""
    length, unit = ratio.numerator, ratio.denominator
    # twice the centre minus half a source pixel, in 1/(2·unit)
    centre = (2 * _whole_numbers(start, count, 4 * (abs(start) + count) * length) + 1) * length - unit
    first = centre // (2 * unit)
    t = ((centre - first * 2 * unit) / (2 * unit)).astype(np.float64)
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + t**2 - 0.5 * t
    opposite_far = 0.5 * (t**3 - t**2)
    weights = np.rint(np.stack([far, near, np.zeros_like(t), opposite_far], axis=1) * one).astype(np.int64)
    weights[:, 2] = one - weights.sum(axis=1)
    return Taps(first.astype(np.int64) - 1, weights)


def _whole_numbers(start: int, count: int, largest: int) -> NDArray[Any]:
    """`count` integers from `start`, as int64, or as Python integers if products up to `largest` overflow."""
    numbers = np.arange(start, start + count, dtype=np.int64)
    return numbers if largest < 1 << 62 else numbers.astype(object)
