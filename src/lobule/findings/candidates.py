"""From a map to findings: maxima one by one (as in NCRF), or connected regions above a threshold."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lobule.findings.finding import Finding, lesion_class, longest_extent
from lobule.findings.outlines import Outline, mask_outlines
from lobule.geometry import Box
from lobule.units import Mpp

Scores = NDArray[np.float32] | NDArray[np.float64]
"""(rows, columns) of a map; NaN where nothing was scored."""

NCRF_RADIUS_L0_PX = 12 * 64
"""Level-0 pixels: NCRF suppresses 12 cells of its level-6 map to each side."""

Stride = float | Fraction | tuple[float, float]
"""Level-0 pixels a cell; x and y apart where they differ."""

EIGHT = np.ones((3, 3), dtype=bool)
SORTED_AT_ONCE = 4096


def suppression_radius(stride: int) -> int:
    """Cells of a map with this stride (level-0 pixels per cell) that make NCRF's 12 cells of 64."""
    return max(1, round(NCRF_RADIUS_L0_PX / stride))


def non_maximum_suppression(
    scores: Scores,
    stride: int,
    *,
    radius: int | None = None,
    threshold: float = 0.5,
    l0_origin: tuple[int, int] = (0, 0),
) -> list[Finding]:
    """Findings by NCRF's non-maximum suppression, highest score first.

    While a score exceeds the threshold, the highest is taken and the half-open window [x - r, x + r) by
    [y - r, y + r) is cleared; so the cell at x + r survives. Of equal scores the one with the smallest x,
    then the smallest y is taken first: NCRF stores maps as [x, y], where this one is (row, column).
    Scores carry 5 decimals, as NCRF writes them.
    """
    r = suppression_radius(stride) if radius is None else radius
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
        some_y, some_x = y[start : start + SORTED_AT_ONCE], x[start : start + SORTED_AT_ONCE]
        left = alive[some_y, some_x]
        for row, column in zip(some_y[left].tolist(), some_x[left].tolist(), strict=True):
            if alive[row, column]:
                chosen.append((row, column))
                alive[max(0, row - r) : row + r, max(0, column - r) : column + r] = False
    return [
        Finding(*cell_centre(row, column, stride, l0_origin), round(float(scores[row, column]), 5))
        for row, column in chosen
    ]


def cell_centre(
    row: int, column: int, stride: Stride, l0_origin: tuple[int, int] = (0, 0)
) -> tuple[int, int]:
    """Level-0 x and y of the centre of a cell."""
    half, (x, y) = Fraction(1, 2), _both(stride)
    return l0_origin[0] + int((column + half) * x), l0_origin[1] + int((row + half) * y)


def _both(stride: Stride) -> tuple[float | Fraction, float | Fraction]:
    return stride if isinstance(stride, tuple) else (stride, stride)


def components(
    scores: Scores,
    stride: Stride,
    *,
    mpp: Mpp | None = None,
    threshold: float = 0.5,
    opening: int = 0,
    l0_origin: tuple[int, int] = (0, 0),
    label: str | None = None,
) -> list[Finding]:
    """One finding for each 8-connected region of cells above the threshold, in raster order.

    Its score is the region's highest, its point the centre of that cell. `opening` clears whatever a square
    of 2·opening + 1 cells does not fit into. With `mpp` (of level 0) sizes and lesion classes are added.
    """
    mask = scores > threshold
    if opening:
        mask = ndimage.binary_opening(mask, EIGHT, iterations=opening)
    regions, count = ndimage.label(mask, EIGHT)
    if count == 0:
        return []
    y, x = np.nonzero(regions)
    region, score = regions[y, x], scores[y, x]
    order = np.lexsort((-score, region))
    best = order[np.searchsorted(region[order], np.arange(1, count + 1))]
    cells = np.bincount(region, minlength=count + 1)[1:]
    step_x, step_y = map(float, _both(stride))
    outlines: list[list[Outline]] = [[] for _ in range(count)]
    for outline, (row, column) in zip(*mask_outlines(mask), strict=True):
        outlines[regions[row, column] - 1].append(outline.scaled(step_x, step_y, *l0_origin))
    return [
        _region_finding(
            cell_centre(int(y[top]), int(x[top]), stride, l0_origin),
            float(score[top]), int(cells[index]), tuple(outlines[index]), stride, mpp, label,
        )
        for index, top in enumerate(best)
    ]  # fmt: skip


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
    if mpp is None:
        return Finding(*l0_point, score, "polygon", label, box, polygon, cells)
    extent = longest_extent(corners * (mpp.x, mpp.y))
    step_x, step_y = map(float, _both(stride))
    area = cells * step_x * step_y * mpp.x * mpp.y
    return Finding(
        *l0_point, score, "polygon", label, box, polygon, cells, extent, area, lesion_class(extent)
    )


def slide_score_max(
    scores: Scores, tissue: NDArray[np.bool_] | None = None, *, smooth: bool = False
) -> float | None:
    """The highest score over tissue, of single cells or of 3 × 3 means; None where nothing was scored."""
    scored = np.isfinite(scores) if tissue is None else np.isfinite(scores) & tissue
    if not scored.any():
        return None
    values = np.where(scored, scores, 0.0)
    if smooth:
        # cells without a score take no part, so that the edge of the tissue is not pulled down
        weight = ndimage.uniform_filter(scored.astype(np.float64), 3, mode="constant")
        values = ndimage.uniform_filter(values.astype(np.float64), 3, mode="constant") / np.where(
            scored, weight, 1
        )
    return float(values[scored].max())
