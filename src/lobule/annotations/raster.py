"""Annotations as masks, and tests of points against them.

The even-odd rule of each polygon decides whether a point is inside. It is half-open: a point on a left or
upper edge is inside, one on a right or lower edge is outside, so that neighbours share no point. A mask
applies this rule to the centres of its cells. All 40,000 sampled points published by NCRF obey the rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lobule.annotations.outline import Annotation, Polygon, Ring
from lobule.geometry import Box

BAND_CELLS = 1 << 24
"""Number of cells filled at once, which limits the memory of a large mask."""


def inside(polygons: Sequence[Polygon], l0_points: ArrayLike) -> NDArray[np.bool_]:
    """(n,) Whether each of the points (n, 2) lies in any of the polygons."""
    points = np.asarray(l0_points, dtype=np.float64).reshape(-1, 2)
    order = np.argsort(points[:, 1], kind="stable")
    x, y = points[order].T
    hit = np.zeros(len(points), dtype=bool)
    for polygon in polygons:
        row_index, crossing = _crossings(polygon.rings, y)
        left_of = row_index[crossing <= x[row_index]]
        hit |= np.bincount(left_of, minlength=len(points)) % 2 == 1
    out = np.empty_like(hit)
    out[order] = hit
    return out


def in_tumour(annotation: Annotation, l0_points: ArrayLike) -> NDArray[np.bool_]:
    """Whether each point lies in a tumour polygon but not in an exclusion."""
    in_positive = inside(annotation.of_kind("tumour"), l0_points)
    return in_positive & ~inside(annotation.of_kind("exclusion"), l0_points)


def rasterise(
    annotation: Annotation, step: int | Fraction | tuple[Fraction, Fraction], map_box: Box
) -> NDArray[np.bool_]:
    """The tumour mask of a box of cells: union of tumour polygons minus union of exclusions.

    Args:
        annotation: The annotation.
        step: Level-0 pixels per cell on each side, or a pair for x and y.
        map_box: The cells to compute. A cell does not depend on the box.

    Returns:
        (height, width) True for cells whose centre is in the tumour.
    """
    mask = fill(annotation.of_kind("tumour"), step, map_box)
    if mask.any():
        mask &= ~fill(annotation.of_kind("exclusion"), step, map_box)
    return mask


def fill(
    polygons: Sequence[Polygon], step: int | Fraction | tuple[Fraction, Fraction], map_box: Box
) -> NDArray[np.bool_]:
    """The union of polygons as a mask of a box of cells."""
    step_x, step_y = map(float, step if isinstance(step, tuple) else (step, step))
    if not (step_x > 0 and step_y > 0) or map_box.width < 0 or map_box.height < 0:
        raise ValueError(f"cannot fill the cells {map_box} at a step of {step_x:g} × {step_y:g}")
    mask = np.zeros((map_box.height, map_box.width), dtype=bool)
    for polygon in polygons:
        # A hole may extend beyond its exterior; the even-odd rule then fills the area outside.
        left, top = np.min([ring.min(axis=0) for ring in polygon.rings], axis=0)
        right, bottom = np.max([ring.max(axis=0) for ring in polygon.rings], axis=0)
        touched = Box.of_edges(
            int(left // step_x), int(top // step_y), int(right // step_x) + 1, int(bottom // step_y) + 1
        ).intersect(map_box)
        for band in _bands(touched):
            rows = slice(band.y - map_box.y, band.bottom - map_box.y)
            columns = slice(band.x - map_box.x, band.right - map_box.x)
            mask[rows, columns] |= _filled(polygon.rings, step_x, step_y, band)
    return mask


def _bands(box: Box) -> Iterator[Box]:
    if box.empty:
        return
    rows = max(1, BAND_CELLS // box.width)
    for top in range(box.y, box.bottom, rows):
        yield Box.of_edges(box.x, top, box.right, min(top + rows, box.bottom))


def _filled(rings: Sequence[Ring], step_x: float, step_y: float, band: Box) -> NDArray[np.bool_]:
    """Even-odd fill: each crossing flips the cells from the first centre that is not left of it."""
    centre_y = (np.arange(band.y, band.bottom, dtype=np.float64) + 0.5) * step_y
    row, crossing = _crossings(rings, centre_y)
    first = np.clip(np.ceil(crossing / step_x - 0.5) - band.x, 0, band.width).astype(np.int64)
    cells, times = np.unique(row * (band.width + 1) + first, return_counts=True)
    flips = np.zeros((band.height, band.width + 1), dtype=np.uint8)
    flips.ravel()[cells[times % 2 == 1]] = 1
    return np.asarray(np.bitwise_xor.accumulate(flips, axis=1)[:, :-1].astype(bool))


def _crossings(
    rings: Sequence[Ring], sorted_y: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Every crossing of an edge with a line of constant y: the index of the line, and the x."""
    ends = np.stack([np.concatenate(rings), np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])])
    # Edges are oriented downwards, so that an edge followed in both directions has identical crossings.
    downwards = ends[0, :, 1] <= ends[1, :, 1]
    upper, lower = np.where(downwards[:, None], ends, ends[::-1])
    low = np.searchsorted(sorted_y, upper[:, 1], "left")
    count = np.searchsorted(sorted_y, lower[:, 1], "left") - low
    edge = np.repeat(np.arange(len(upper)), count)
    line = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + low[edge]
    (x0, y0), (x1, y1) = upper[edge].T, lower[edge].T
    return line, x0 + (sorted_y[line] - y0) * ((x1 - x0) / (y1 - y0))
