"""Refinement of a coarse map: which cells are computed more densely, in which fields, and in which order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from scipy.special import expit, logit

from lobule.grid import Cells, MapGrid
from lobule.methods.scannet.calibration import CellCalibration
from lobule.methods.scannet.config import Config
from lobule.results.maps import MapReader
from lobule.stitch import State

SMALLER_FIELDS = (1, 2, 4)
"""The fields of a refinement may have these times fewer cells along a side than those of the coarse map."""
FEWEST_CELLS = 8
"""Smaller fields, in cells of the net's stride, would consist mostly of their overlap with others."""


def calibrated(config: Config, calibration: CellCalibration) -> Config:
    """Return the settings with the thresholds of a calibration.

    Cells are refined above a score whose odds are as many times lower than those of a finding as in the
    settings: by default, 9 times. The uncalibrated `refine_above` itself would be far too low, because scores
    of a net are extreme: .1 can become .0002, and a third of the cells of a slide score more than that.
    """
    threshold = above = calibration.threshold
    if config.refine_above < config.threshold:
        margin = logit(config.threshold) - logit(config.refine_above)
        above = float(expit(logit(threshold) - margin))
    return replace(config, threshold=threshold, refine_above=above)


def worth_refining(coarse: MapReader, above: float) -> Cells:
    """Coarse cells with at least this score, and their neighbours, whose windows overlap with theirs."""
    scores, states = coarse.read()
    hot = (scores.max(axis=0) >= above) & (states == State.SCORED)
    return np.asarray(binary_dilation(hot, np.ones((3, 3), np.bool_)), np.bool_)


def refining_grid(fine: MapGrid, coarse: MapGrid, hot: Cells) -> MapGrid:
    """Return the fine grid with fields of the size that needs the fewest pixels.

    Large fields overlap less, but scattered cells then make most of a slide be computed.

    Args:
        fine: The grid of the fine map, with the largest fields.
        coarse: The grid of the coarse map.
        hot: The coarse cells that are refined.
    """
    factor = coarse.stride // fine.stride
    largest = fine.cells // factor

    def pixels(cells: int) -> int:
        grid = replace(coarse, cells=cells)
        return len(grid.fields_over(hot)) * replace(fine, cells=cells * factor).field_side ** 2

    choices = [largest // times for times in SMALLER_FIELDS if times == 1 or largest // times >= FEWEST_CELLS]
    return replace(fine, cells=min(choices, key=pixels) * factor)


def promise_of(coarse: NDArray[np.float32], grid: MapGrid, factor: int) -> NDArray[np.float32]:
    """For every field of the fine grid, the highest coarse score under it."""
    side = grid.cells // factor
    rows, columns = grid.field_rows * side, grid.field_columns * side
    padded = np.zeros((rows, columns), np.float32)
    height, width = min(rows, coarse.shape[0]), min(columns, coarse.shape[1])
    padded[:height, :width] = coarse[:height, :width]
    blocks = padded.reshape(grid.field_rows, side, grid.field_columns, side)
    return np.asarray(blocks.max(axis=(1, 3)))
