"""Assembles fields into maps (the inverse of the grid), and reduces and overlays maps."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lobule.grid import MapGrid

Scores = NDArray[np.float32]
"""(classes, rows, columns)."""
States = NDArray[np.uint8]
"""(rows, columns) of `State`."""


class State(IntEnum):
    """The state of a map cell."""

    PENDING = 0
    GLASS = 1
    SCORED = 2
    FAILED = 3


def place_field(
    block: tuple[Scores, States],
    grid: MapGrid,
    field: tuple[int, int],
    values: Scores | None,
    origin: tuple[int, int] = (0, 0),
) -> None:
    """Write a field into a block of a map.

    Args:
        block: Scores and states of the block.
        grid: The grid of the map.
        field: Row and column of the field.
        values: The values (classes, cells, cells) of the field, whose cells are then scored; None marks them
            as failed.
        origin: Row and column of the first cell of the block.
    """
    scores, states = block
    rows, columns = grid.field_cells(*field)
    inside = (
        slice(rows.start - origin[0], rows.stop - origin[0]),
        slice(columns.start - origin[1], columns.stop - origin[1]),
    )
    states[inside] = State.FAILED if values is None else State.SCORED
    if values is not None:
        scores[:, *inside] = values[:, : rows.stop - rows.start, : columns.stop - columns.start]


def reduce_map(
    scores: Scores, states: States, factor: int, reduction: Literal["max", "mean"] = "max"
) -> tuple[Scores, States]:
    """Reduce a map by taking the maximum or mean of the scored cells in blocks of `factor` × `factor` cells.

    A reduced cell is scored if any of its cells is, otherwise failed, pending or glass, in this order.
    """
    classes, rows, columns = scores.shape
    out_rows, out_columns = -(-rows // factor), -(-columns // factor)
    padded_states = np.full((out_rows * factor, out_columns * factor), State.GLASS, np.uint8)
    padded_states[:rows, :columns] = states
    padded = np.zeros((classes, *padded_states.shape), np.float32)
    padded[:, :rows, :columns] = scores
    blocks = padded.reshape(classes, out_rows, factor, out_columns, factor)
    scored = (padded_states == State.SCORED).reshape(out_rows, factor, out_columns, factor)
    if reduction == "max":
        best = np.where(scored, blocks, -np.inf).max(axis=(2, 4))
        out = np.where(np.isfinite(best), best, 0).astype(np.float32)
    else:
        count = scored.sum(axis=(1, 3))
        total = np.where(scored, blocks, 0).sum(axis=(2, 4), dtype=np.float64)
        out = (total / np.maximum(count, 1)).astype(np.float32)
    return out, _reduced_states(padded_states.reshape(out_rows, factor, out_columns, factor))


def _reduced_states(blocks: States) -> States:
    out = np.full((blocks.shape[0], blocks.shape[2]), State.GLASS, np.uint8)
    for state in (State.PENDING, State.FAILED, State.SCORED):
        out[(blocks == state).any(axis=(1, 3))] = state
    return out


def smooth_map(layer: NDArray[np.float32], scored: NDArray[np.bool_], width: float) -> NDArray[np.float32]:
    """Replace each scored cell by the Gaussian mean of the scored cells around it; the others become 0.

    Args:
        layer: The scores of one class.
        scored: The cells that have a score.
        width: Standard deviation of the Gaussian in cells; 0 does not smooth.
    """
    from scipy import ndimage

    layer = np.where(scored, layer, np.float32(0))
    if width <= 0 or not scored.any():
        return layer
    summed = ndimage.gaussian_filter(layer, width, mode="constant")
    share = ndimage.gaussian_filter(scored.astype(np.float32), width, mode="constant")
    return np.where(scored, summed / np.maximum(share, 1e-6), np.float32(0)).astype(np.float32)


def overlay(coarse: tuple[Scores, States], fine: tuple[Scores, States], factor: int) -> tuple[Scores, States]:
    """Return the fine map, with unscored cells filled from a coarse map with `factor` times the stride."""
    scores, states = fine[0].copy(), fine[1].copy()
    rows, columns = states.shape
    spread_scores = coarse[0].repeat(factor, axis=1).repeat(factor, axis=2)[:, :rows, :columns]
    spread_states = coarse[1].repeat(factor, axis=0).repeat(factor, axis=1)[:rows, :columns]
    fill = (states != State.SCORED) & (spread_states == State.SCORED)
    scores[:, fill] = spread_scores[:, fill]
    states[fill] = State.SCORED
    return scores, states
