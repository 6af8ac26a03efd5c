"""Map tiles for the viewer: raw scores and cell states, which the browser colours."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lobule.results import MapReader
from lobule.results.maps import MapInfo
from lobule.stitch import Scores, State, States, reduce_map

SIDE = 256
BORDER = 1
SQUARE = 8
"""Cells per side of the squares of which `highest_cells` returns one cell each."""
OUTSIDE = 255
"""State of the border cells that lie outside the map."""
BLOCK_CELLS = 2048
"""Cells per side of the blocks that are read at once to compute reduced tiles."""
HEADER = struct.Struct("<4sHHff")
MAGIC = b"LMT1"

MapCells = Callable[[slice, slice], tuple[NDArray[np.float32], States]]
"""Reads the scores of one class and the states of the cells in some rows and columns."""
Reduction = Callable[[NDArray[np.float32], States, int], tuple[NDArray[np.float32], States]]


def level_count(reader: MapReader) -> int:
    """Return the number of levels: each halves the map, until one tile covers it."""
    longest, levels = max(reader.info.rows, reader.info.columns), 1
    while longest > SIDE:
        longest, levels = -(-longest // 2), levels + 1
    return levels


@dataclass(frozen=True)
class ScoreRange:
    """The scores that the stored values 0 and 255 stand for."""

    low: float
    high: float

    @classmethod
    def of_limits(cls, low: float, high: float) -> ScoreRange:
        """Return the range 0 to 1, or the given limits if scores lie outside that range."""
        if high < low or (low >= 0 and high <= 1):
            return cls(0.0, 1.0)
        return cls(low, high if high > low else low + 1)


class LoadedMap:
    """A small map in memory: its tiles, which a page requests together, need the same chunks."""

    def __init__(self, reader: MapReader) -> None:
        self.info = reader.info
        self._scores, self._states = reader.read(slice(0, reader.info.rows), slice(0, reader.info.columns))
        self.nbytes = self._scores.nbytes + self._states.nbytes

    def read(self, rows: slice, columns: slice) -> tuple[Scores, States]:
        return self._scores[:, rows, columns], self._states[rows, columns]

    @staticmethod
    def bytes_of(info: MapInfo) -> int:
        """Return the memory that a map would need."""
        return info.rows * info.columns * (4 * len(info.classes) + 1)


def map_tile(
    reader: MapReader | LoadedMap, index: int, level: int, column: int, row: int, score_range: ScoreRange
) -> bytes:
    """Return one tile of one class of a map, compressed with zlib."""

    def read(rows: slice, columns: slice) -> tuple[NDArray[np.float32], States]:
        scores, states = reader.read(rows, columns)
        return scores[index], states

    return tile_of_cells(read, reader.info, (level, column, row), score_range, _highest)


def tile_of_cells(
    read: MapCells, info: MapInfo, position: tuple[int, int, int], score_range: ScoreRange, reduce: Reduction
) -> bytes:
    """Return one tile, compressed with zlib.

    The content is a header (magic, width, height, low, high), the plane of scores and the plane of states,
    one byte per cell, row by row. A tile has `SIDE` cells per side within the map, and a border of one cell.

    Args:
        read: Reads cells.
        info: The grid of the cells.
        position: Level, column and row of the tile.
        score_range: The scores that the stored values 0 and 255 stand for.
        reduce: Reduces scores and states by a factor.
    """
    level, column, row = position
    factor = 1 << level
    rows, columns = -(-info.rows // factor), -(-info.columns // factor)
    top, left = row * SIDE - BORDER, column * SIDE - BORDER
    bottom, right = (
        min(top + SIDE + 2 * BORDER, rows + BORDER),
        min(left + SIDE + 2 * BORDER, columns + BORDER),
    )
    scores = np.zeros((bottom - top, right - left), np.uint8)
    states = np.full(scores.shape, OUTSIDE, np.uint8)
    inside_rows, inside_columns = (
        slice(max(top, 0), min(bottom, rows)),
        slice(max(left, 0), min(right, columns)),
    )
    tile_scores, tile_states = _reduced(read, info, factor, inside_rows, inside_columns, reduce)
    target = np.s_[
        inside_rows.start - top : inside_rows.stop - top,
        inside_columns.start - left : inside_columns.stop - left,
    ]
    scores[target] = _quantised(tile_scores, score_range)
    states[target] = tile_states
    header = HEADER.pack(MAGIC, right - left, bottom - top, score_range.low, score_range.high)
    return zlib.compress(header + scores.tobytes() + states.tobytes(), 1)


def _highest(scores: NDArray[np.float32], states: States, factor: int) -> tuple[NDArray[np.float32], States]:
    reduced, reduced_states = reduce_map(scores[None], states, factor)
    return reduced[0], reduced_states


def _quantised(scores: NDArray[np.float32], score_range: ScoreRange) -> NDArray[np.uint8]:
    scaled = (scores - score_range.low) * (255 / (score_range.high - score_range.low))
    quantised: NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return quantised


def _reduced(
    read: MapCells, info: MapInfo, factor: int, rows: slice, columns: slice, reduce: Reduction
) -> tuple[NDArray[np.float32], States]:
    """Return scores and states of a block of reduced cells."""
    scores = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32)
    states = np.full(scores.shape, State.PENDING, np.uint8)
    cell_rows = slice(rows.start * factor, min(rows.stop * factor, info.rows))
    cell_columns = slice(columns.start * factor, min(columns.stop * factor, info.columns))
    for block_rows, block_columns in _blocks(cell_rows, cell_columns):
        layer, layer_states = read(block_rows, block_columns)
        if factor > 1:
            layer, layer_states = reduce(layer, layer_states, factor)
        top, left = block_rows.start // factor - rows.start, block_columns.start // factor - columns.start
        target = np.s_[top : top + layer.shape[0], left : left + layer.shape[1]]
        scores[target], states[target] = layer, layer_states
    return scores, states


def _blocks(rows: slice, columns: slice) -> Iterator[tuple[slice, slice]]:
    """Divide a block of cells. The blocks start at multiples of `BLOCK_CELLS` from its corner."""
    for top in range(rows.start, rows.stop, BLOCK_CELLS):
        for left in range(columns.start, columns.stop, BLOCK_CELLS):
            yield (
                slice(top, min(top + BLOCK_CELLS, rows.stop)),
                slice(left, min(left + BLOCK_CELLS, columns.stop)),
            )


def highest_cells(reader: MapReader, index: int, count: int) -> list[tuple[int, int, float]]:
    """Return row, column and score of the highest scored cells, at most one in each square of 8 × 8 cells."""
    best: list[tuple[int, int, float]] = []
    for rows, columns in _blocks(slice(0, reader.info.rows), slice(0, reader.info.columns)):
        scores, states = reader.read(rows, columns)
        layer = np.where(states == State.SCORED, scores[index], -np.inf)
        squares, _ = reduce_map(np.where(np.isfinite(layer), layer, np.float32(0))[None], states, SQUARE)
        order = np.argsort(squares[0], axis=None)[::-1][: 2 * count]
        for square_row, square_column in zip(*np.unravel_index(order, squares[0].shape), strict=True):
            top, left = int(square_row) * SQUARE, int(square_column) * SQUARE
            square = layer[top : top + SQUARE, left : left + SQUARE]
            row, column = np.unravel_index(int(square.argmax()), square.shape)
            score = float(square[row, column])
            if np.isfinite(score):
                best.append((rows.start + top + int(row), columns.start + left + int(column), score))
    return sorted(best, key=lambda cell: -cell[2])[:count]
