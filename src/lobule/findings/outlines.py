"""Exact outlines of the cells of a mask: the polygons along cell edges, with their holes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.float64]
"""(n, 2): x and y, closed implicitly."""


@dataclass(frozen=True, eq=False)
class Outline:
    """One polygon: an exterior and holes, which are simple rings that may touch at single points."""

    exterior: Ring
    holes: tuple[Ring, ...] = ()

    def scaled(self, step_x: float, step_y: float) -> Outline:
        """Convert from cells to level-0 pixels."""
        step = np.array([step_x, step_y])
        return Outline(self.exterior * step, tuple(hole * step for hole in self.holes))

    @property
    def area(self) -> float:
        return abs(shoelace(self.exterior)) - sum(abs(shoelace(hole)) for hole in self.holes)


def shoelace(ring: Ring) -> float:
    """Signed area of a simple ring."""
    x, y = (ring - ring[0]).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def mask_outlines(mask: NDArray[np.bool_]) -> tuple[list[Outline], NDArray[np.int64]]:
    """The outlines of a mask in cells, and a (row, column) inside each outline.

    Cells that share an edge share an outline. Cells that touch only at a corner do not, so that every outline
    is a valid polygon.
    """
    from scipy import ndimage

    component_labels, _ = ndimage.label(mask)
    exteriors: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = {}
    seeds: dict[int, tuple[int, int]] = {}
    for ring in _rings(mask):
        # The cell below the topmost edge of a ring is inside the mask, except for holes.
        row = int(ring[:, 1].min())
        column = int(ring[ring[:, 1] == row, 0].min())
        if mask[row, column]:
            component = int(component_labels[row, column])
            exteriors[component], seeds[component] = ring.astype(np.float64), (row, column)
        else:
            holes.setdefault(int(component_labels[row - 1, column]), []).append(ring.astype(np.float64))
    components = sorted(exteriors)
    outlines = [Outline(exteriors[each], tuple(holes.get(each, ()))) for each in components]
    seed_points = np.array([seeds[each] for each in components], dtype=np.int64)
    return outlines, seed_points.reshape(-1, 2)


def _rings(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """The corners (x, y) of every simple boundary ring."""
    points, along_row, along_column = _corners(mask)
    x, y = points.T.tolist()
    partner = [along_row.tolist(), along_column.tolist()]
    visited = bytearray(len(x))
    rings = []
    for first in range(len(x)):
        if visited[first]:
            continue
        ring: list[tuple[int, int]] = []
        corner, axis = first, 0
        while not visited[corner]:
            visited[corner] = 1
            ring.append((x[corner], y[corner]))
            corner, axis = partner[axis][corner], 1 - axis
        rings += _simple(ring)
    return rings


def _corners(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Corners of the boundary, and the corners at the other ends of the two edges of each corner.

    Along each grid line, consecutive corners form pairs. A point where two cells touch only at a corner
    counts as two corners, one for each cell.
    """
    padded = np.pad(mask, 1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    single = nw ^ ne ^ sw ^ se
    falling, rising = nw & se & ~ne & ~sw, ne & sw & ~nw & ~se
    kinds = [(single, 0, 0), (falling, 0, 0), (falling, 1, 1), (rising, 0, 1), (rising, 1, 0)]
    rows = []
    for corner_mask, rank_in_row, rank_in_column in kinds:
        y, x = np.nonzero(corner_mask)
        rows.append(np.column_stack([x, y, np.full(len(x), rank_in_row), np.full(len(x), rank_in_column)]))
    x, y, rank_in_row, rank_in_column = np.concatenate(rows).astype(np.int64).T
    by_row = np.lexsort((rank_in_row, x, y))
    by_column = np.lexsort((rank_in_column, y, x))
    return np.column_stack([x, y]), _partners(by_row), _partners(by_column)


def _partners(order: NDArray[np.int64]) -> NDArray[np.int64]:
    partner = np.empty_like(order)
    partner[order[0::2]] = order[1::2]
    partner[order[1::2]] = order[0::2]
    return partner


def _simple(ring: list[tuple[int, int]]) -> list[NDArray[np.int64]]:
    """Split a ring that passes a point twice into simple rings."""
    if len(set(ring)) == len(ring):
        return [np.array(ring, dtype=np.int64)]
    rings: list[NDArray[np.int64]] = []
    trail: list[tuple[int, int]] = []
    index_of: dict[tuple[int, int], int] = {}
    for point in ring:
        if point in index_of:
            start = index_of[point]
            rings.append(np.array(trail[start:], dtype=np.int64))
            for passed in trail[start + 1 :]:
                del index_of[passed]
            del trail[start + 1 :]
        else:
            index_of[point] = len(trail)
            trail.append(point)
    rings.append(np.array(trail, dtype=np.int64))
    return rings
