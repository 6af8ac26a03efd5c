"""Extract findings from a map: maxima one by one (as in NCRF), or connected regions above a threshold."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lobule.findings.finding import Finding, lesion_class, longest_extent
from lobule.findings.outlines import Outline, mask_outlines
from lobule.geometry import Box
from lobule.units import Mpp

Scores = NDArray[np.float32] | NDArray[np.float64]
"""(rows, columns) of a map; NaN for cells without a score."""

NCRF_RADIUS_L0_PX = 12 * 64
"""Radius in level-0 pixels: NCRF suppresses 12 cells of its level-6 map to each side."""

Stride = float | Fraction | tuple[float, float]
"""Level-0 pixels per cell, or a pair if x and y differ."""

EIGHT = np.ones((3, 3), dtype=bool)
SORTED_AT_ONCE = 4096


def suppression_radius(stride: float | Fraction) -> int:
    """NCRF's radius (12 cells of 64 px) in cells of a map with this stride (level-0 pixels per cell)."""
    return max(1, round(NCRF_RADIUS_L0_PX / stride))


def non_maximum_suppression(
    scores: Scores,
    stride: Stride,
    *,
    radius: int | None = None,
    threshold: float = 0.5,
    label: str | None = None,
) -> list[Finding]:
    """Findings by NCRF's non-maximum suppression, highest score first.

    While a score exceeds the threshold, the highest one becomes a finding and the half-open window
    [x - r, x + r) by [y - r, y + r) is cleared, so the cell at x + r survives. Equal scores are ordered by x,
    then by y, because NCRF stores maps as [x, y]. Scores are rounded to 5 decimals, as in NCRF's files.

    Args:
        scores: The map as (rows, columns).
        stride: Level-0 pixels per cell.
        radius: Radius of suppression r in cells; NCRF's radius by default.
        threshold: Only higher scores become findings.
        label: The class that the findings belong to.
    """
    r = suppression_radius(_both(stride)[0]) if radius is None else radius
    if r < 1 or threshold < 0:
        raise ValueError(
            f"suppression needs a radius of at least 1 and a threshold of at least 0, not {r}, {threshold}"
        )
    x, y = np.nonzero((scores > threshold).T)
    order = np.argsort(-scores[y, x], kind="stable")
    y, x = y[order], x[order]
    alive = np.ones(scores.shape, dtype=bool)
    chosen: list[tuple[int, int]] = []
    for start in range(0, len(x), SORTED_AT_ONCE):
        chunk_y, chunk_x = y[start : start + SORTED_AT_ONCE], x[start : start + SORTED_AT_ONCE]
        still_alive = alive[chunk_y, chunk_x]
        for row, column in zip(chunk_y[still_alive].tolist(), chunk_x[still_alive].tolist(), strict=True):
            if alive[row, column]:
                chosen.append((row, column))
                alive[max(0, row - r) : row + r, max(0, column - r) : column + r] = False
    return [
        Finding(*cell_centre(row, column, stride), round(float(scores[row, column]), 5), label=label)
        for row, column in chosen
    ]


def cell_centre(row: int, column: int, stride: Stride) -> tuple[int, int]:
    """Level-0 x and y of the centre of a cell."""
    half, (x, y) = Fraction(1, 2), _both(stride)
    return int((column + half) * x), int((row + half) * y)


def _both(stride: Stride) -> tuple[float | Fraction, float | Fraction]:
    return stride if isinstance(stride, tuple) else (stride, stride)


def components(
    scores: Scores,
    stride: Stride,
    *,
    mpp: Mpp | None = None,
    threshold: float = 0.5,
    opening: int = 0,
    label: str | None = None,
) -> list[Finding]:
    """One finding for each 8-connected region of cells above the threshold, in raster order.

    The score of a finding is the highest one in its region, and its point is the centre of that cell.

    Args:
        scores: The map as (rows, columns).
        stride: Level-0 pixels per cell.
        mpp: µm/px of level 0. If given, the findings have sizes and lesion classes.
        threshold: Only cells with higher scores belong to regions.
        opening: Remove areas into which a square of 2·opening + 1 cells does not fit.
        label: The class that the findings belong to.
    """
    from scipy import ndimage

    mask = scores > threshold
    if opening:
        mask = ndimage.binary_opening(mask, EIGHT, iterations=opening)
    regions, count = ndimage.label(mask, EIGHT)
    if count == 0:
        return []
    y, x = np.nonzero(regions)
    region, score = regions[y, x], scores[y, x]
    best = _first_maxima(region - 1, score, count)
    cells = np.bincount(region, minlength=count + 1)[1:]
    step_x, step_y = map(float, _both(stride))
    outlines: list[list[Outline]] = [[] for _ in range(count)]
    for outline, (row, column) in zip(*mask_outlines(mask), strict=True):
        outlines[regions[row, column] - 1].append(outline.scaled(step_x, step_y))
    return [
        _region_finding(
            cell_centre(int(y[top]), int(x[top]), stride),
            float(score[top]), int(cells[index]), tuple(outlines[index]), stride, mpp, label,
        )
        for index, top in enumerate(best)
    ]  # fmt: skip


def _first_maxima(groups: NDArray[np.intp], values: Scores, count: int) -> NDArray[np.intp]:
    """Return the index of the first of the largest values of each group, of which each has a value."""
    largest: Scores = np.full(count, -np.inf, values.dtype)
    np.maximum.at(largest, groups, values)
    hits = np.flatnonzero(values == largest[groups])
    first = np.full(count, len(values), np.intp)
    np.minimum.at(first, groups[hits], hits)
    return first


def _region_finding(
    l0_point: tuple[int, int],
    score: float,
    cells: int,
    polygon: tuple[Outline, ...],
    stride: Stride,
    mpp: Mpp | None,
    label: str | None,
) -> Finding:
    corners = np.concatenate([outline.exterior for outline in polygon])
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    box = Box.of_edges(int(left), int(top), int(right), int(bottom))
    finding = Finding(*l0_point, score, "polygon", label, box, polygon, cells)
    if mpp is None:
        return finding
    extent = longest_extent(corners * (mpp.x, mpp.y))
    step_x, step_y = map(float, _both(stride))
    area = cells * step_x * step_y * mpp.x * mpp.y
    return replace(finding, size_um=extent, area_um2=area, lesion_class=lesion_class(extent))
