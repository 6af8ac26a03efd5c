"""The difference of two results, or of a result and the truth, on the cells of a map."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lobule.annotations import Annotation, rasterise
from lobule.geometry import Box
from lobule.results import MapReader
from lobule.server.map_tiles import MapCells, ScoreRange
from lobule.stitch import State, States, reduce_map

Layer = tuple[NDArray[np.float32], States]
"""Scores of one class and the states of the same cells."""


def difference_cells(reader: MapReader, index: int, other: MapCells) -> MapCells:
    """Return the cells of a map minus those of another one; a cell needs a score in both."""

    def read(rows: slice, columns: slice) -> Layer:
        scores, states = reader.read(rows, columns)
        other_scores, other_states = other(rows, columns)
        both = (states == State.SCORED) & (other_states == State.SCORED)
        difference = np.where(both, scores[index] - other_scores, np.float32(0))
        return difference, np.where(states == State.SCORED, other_states, states).astype(np.uint8)

    return read


def cells_of_map(
    reader: MapReader, index: int, l0_stride: tuple[float, float]
) -> Callable[[slice, slice], Layer]:
    """Return a map at the cells of another one: each takes the cell at the level-0 position of its centre."""
    ratio_x, ratio_y = (mine / theirs for mine, theirs in zip(l0_stride, reader.info.l0_stride, strict=True))

    def read(rows: slice, columns: slice) -> Layer:
        at_row = ((np.arange(rows.start, rows.stop) + 0.5) * ratio_y).astype(np.int64)
        at_column = ((np.arange(columns.start, columns.stop) + 0.5) * ratio_x).astype(np.int64)
        row_exists, column_exists = at_row < reader.info.rows, at_column < reader.info.columns
        scores = np.zeros((len(at_row), len(at_column)), np.float32)
        states = np.full(scores.shape, State.GLASS, np.uint8)
        if row_exists.any() and column_exists.any():
            at_row, at_column = at_row[row_exists], at_column[column_exists]
            block = slice(at_row[0], at_row[-1] + 1), slice(at_column[0], at_column[-1] + 1)
            their_scores, their_states = reader.read(*block)
            cells = np.ix_(at_row - at_row[0], at_column - at_column[0])
            target = np.ix_(row_exists, column_exists)
            scores[target], states[target] = their_scores[index][cells], their_states[cells]
        return scores, states

    return read


def cells_of_truth(annotation: Annotation, l0_stride: tuple[float, float]) -> Callable[[slice, slice], Layer]:
    """Return the truth at the cells of a map: 1 where the centre is in a tumour outline, 0 elsewhere."""
    step = Fraction(l0_stride[0]), Fraction(l0_stride[1])

    def read(rows: slice, columns: slice) -> Layer:
        box = Box.of_edges(columns.start, rows.start, columns.stop, rows.stop)
        mask = rasterise(annotation, step, box)
        return mask.astype(np.float32), np.full(mask.shape, State.SCORED, np.uint8)

    return read


def reduce_difference(scores: NDArray[np.float32], states: States, factor: int) -> Layer:
    """Reduce differences to the one of the largest magnitude in each block."""
    (highest, lowest), reduced_states = reduce_map(np.stack([scores, -scores]), states, factor)
    return np.where(highest >= lowest, highest, -lowest), reduced_states


def difference_range(score_range: ScoreRange) -> ScoreRange:
    """Return the range of the differences. The stored value 128 stands for exactly 0."""
    span = score_range.high - score_range.low
    return ScoreRange(-span * 128 / 127, span)
