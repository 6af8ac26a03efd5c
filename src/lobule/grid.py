"""The grid of a map: its cells, and the fields that compute them.

A map cell (row, column) stands for lattice pixels [s·column, s·(column+1)) × [s·row, s·(row+1)) and is
scored by the window of `window` pixels centred on it. A field computes `cells` × `cells` neighbouring cells
at once. Neighbouring fields overlap by window − stride, so that their cells adjoin without gaps or overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numpy as np
from numpy.typing import NDArray

from lobule.errors import ConfigError
from lobule.geometry import Box, Lattice

Cells = NDArray[np.bool_]
"""(rows, columns) of a map."""


@dataclass(frozen=True)
class MapGrid:
    """The geometry of a map on an image, and of the fields that fill it."""

    lattice: Lattice
    stride: int
    """Lattice pixels per cell."""
    window: int
    """Lattice pixels per side that determine the score of a cell (the receptive field, or the tile)."""
    cells: int = 1
    """Cells per side that one field computes."""
    centre: float | None = None
    """Offset of the centre of the first cell within a field, in lattice pixels; None is half the window."""

    def __post_init__(self) -> None:
        if self.stride < 1 or self.window < 1 or self.cells < 1:
            raise ConfigError(f"a grid needs positive sizes, not {self.stride}, {self.window}, {self.cells}")

    @property
    def rows(self) -> int:
        return -(-self.lattice.size.height // self.stride)

    @property
    def columns(self) -> int:
        return -(-self.lattice.size.width // self.stride)

    @property
    def field_rows(self) -> int:
        return -(-self.rows // self.cells)

    @property
    def field_columns(self) -> int:
        return -(-self.columns // self.cells)

    @property
    def field_side(self) -> int:
        """Lattice pixels per side that a field reads."""
        return self.window + self.stride * (self.cells - 1)

    @property
    def first_start(self) -> int:
        """The lattice pixel where the first field starts; negative if it starts outside the image."""
        centre = self.window / 2 if self.centre is None else self.centre
        return floor(self.stride / 2 - centre)

    @property
    def l0_cell(self) -> tuple[float, float]:
        """Level-0 pixels per cell in x and y."""
        return float(self.stride * self.lattice.step_x), float(self.stride * self.lattice.step_y)

    def field_boxes(self, field_indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the lattice boxes (n, 4) that fields read: x, y, width and height.

        Outside the image, pixels are white.

        Args:
            field_indices: Rows and columns (n, 2) of the fields.
        """
        corners = self.first_start + self.stride * self.cells * field_indices[:, ::-1].astype(np.int64)
        return np.column_stack([corners, np.full_like(corners, self.field_side)])

    def field_cells(self, field_row: int, field_column: int) -> tuple[slice, slice]:
        """Return the rows and columns of the map that a field fills, clipped at the edge of the map."""
        top, left = field_row * self.cells, field_column * self.cells
        return slice(top, min(top + self.cells, self.rows)), slice(left, min(left + self.cells, self.columns))

    def l0_box(self, rows: slice, columns: slice) -> Box:
        """Return the level-0 box that a block of cells covers."""
        box = Box.of_edges(
            columns.start * self.stride,
            rows.start * self.stride,
            columns.stop * self.stride,
            rows.stop * self.stride,
        )
        return self.lattice.to_l0(box)

    def fields_over(self, required: Cells) -> NDArray[np.int32]:
        """Return the rows and columns (n, 2) of the fields with at least one required cell, row by row."""
        if required.shape != (self.rows, self.columns):
            raise ConfigError(
                f"cells of shape {required.shape} do not fit a map of {self.rows} × {self.columns}"
            )
        padded = np.zeros((self.field_rows * self.cells, self.field_columns * self.cells), np.bool_)
        padded[: self.rows, : self.columns] = required
        blocks = padded.reshape(self.field_rows, self.cells, self.field_columns, self.cells)
        return np.argwhere(blocks.any(axis=(1, 3))).astype(np.int32)


def cells_by_centre(grid: MapGrid, mask: Cells, mask_step: tuple[float, float]) -> Cells:
    """Return the cells whose centre lies on the mask.

    A cell whose centre lies outside the image is judged by the last pixel before the edge.

    Args:
        grid: The grid of the cells.
        mask: The mask, starting at level-0 (0, 0).
        mask_step: Level-0 pixels per mask pixel in x and y.
    """
    l0_x = np.minimum((np.arange(grid.columns) + 0.5) * grid.l0_cell[0], grid.lattice.l0_size.width - 0.5)
    l0_y = np.minimum((np.arange(grid.rows) + 0.5) * grid.l0_cell[1], grid.lattice.l0_size.height - 0.5)
    mask_x = np.floor(l0_x / mask_step[0]).astype(np.int64)
    mask_y = np.floor(l0_y / mask_step[1]).astype(np.int64)
    inside = (mask_y < mask.shape[0])[:, None] & (mask_x < mask.shape[1])[None, :]
    picked = mask[np.minimum(mask_y, mask.shape[0] - 1)][:, np.minimum(mask_x, mask.shape[1] - 1)]
    return np.asarray(picked & inside, np.bool_)


def share_in_cells(grid: MapGrid, mask: Cells, mask_step: tuple[float, float]) -> NDArray[np.float64]:
    """Return the exact share of each cell's area within the image that the mask covers."""
    rows = _edges_in_mask(grid.rows, grid.l0_cell[1] / mask_step[1], mask.shape[0])
    columns = _edges_in_mask(grid.columns, grid.l0_cell[0] / mask_step[0], mask.shape[1])
    summed = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    np.cumsum(np.cumsum(mask, axis=0, dtype=np.float64), axis=1, out=summed[1:, 1:])
    corner = _at_fractions(_at_fractions(summed, rows).T, columns).T
    area = np.diff(np.diff(corner, axis=0), axis=1)
    size = grid.lattice.l0_size
    height = np.diff(np.minimum(np.arange(grid.rows + 1) * grid.l0_cell[1], size.height)) / mask_step[1]
    width = np.diff(np.minimum(np.arange(grid.columns + 1) * grid.l0_cell[0], size.width)) / mask_step[0]
    cell_area = height[:, None] * width[None, :]
    return np.asarray(np.clip(area / cell_area, 0.0, 1.0))


def _edges_in_mask(count: int, step: float, limit: int) -> NDArray[np.float64]:
    return np.asarray(np.minimum(np.arange(count + 1) * step, limit))


def _at_fractions(summed: NDArray[np.float64], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows of a cumulative sum at fractional positions, by linear interpolation."""
    low = np.minimum(np.floor(positions).astype(np.int64), summed.shape[0] - 1)
    high = np.minimum(low + 1, summed.shape[0] - 1)
    fraction = (positions - low)[:, None]
    return np.asarray(summed[low] * (1 - fraction) + summed[high] * fraction)


def cells_in_box(shape: tuple[int, ...], l0_cell: tuple[float, float], l0_box: Box) -> Cells:
    """Return the cells whose centre lies in a level-0 box.

    Args:
        shape: Rows and columns of the cells, which start at level-0 (0, 0).
        l0_cell: Level-0 pixels per cell in x and y.
        l0_box: The box.
    """
    l0_x, l0_y = (np.arange(shape[1]) + 0.5) * l0_cell[0], (np.arange(shape[0]) + 0.5) * l0_cell[1]
    columns, rows = (l0_x >= l0_box.x) & (l0_x < l0_box.right), (l0_y >= l0_box.y) & (l0_y < l0_box.bottom)
    return np.asarray(rows[:, None] & columns[None, :], np.bool_)
