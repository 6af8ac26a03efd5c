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

FIELD_DIVISORS = (1, 2, 4)
"""Factors by which the side of the fields of a refinement may be divided."""
FEWEST_CELLS = 8
"""Smaller fields, in cells of the net's stride, would consist mostly of their overlap with others."""


def calibrated(config: Config, calibration: CellCalibration) -> Config:
    """Return the settings with the thresholds of a calibration.

    Cells are refined above a score whose odds are as many times lower than those of a finding as in the
    settings: by default, 9 times. The uncalibrated `refine_above` itself would be far too low, because scores
    of a net are extreme: .1 can become .0002, and a third of the cells of a slide score more than that.
    """
    threshold = refine_above = calibration.threshold
    if config.refine_above <= 0:  # All cells are refined.
        refine_above = 0.0
    elif config.refine_above < config.threshold:
        margin = _log_odds(config.threshold) - _log_odds(config.refine_above)
        refine_above = float(expit(_log_odds(threshold) - margin))
    return replace(config, threshold=threshold, refine_above=refine_above)


def _log_odds(score: float) -> float:
    """The logarithm of the odds, which is finite also for scores of 0 and 1."""
    return float(logit(np.clip(score, 1e-7, 1 - 1e-7)))


def worth_refining(coarse: MapReader, above: float) -> Cells:
    """Coarse cells with at least this score, and their neighbours, whose windows overlap with theirs."""
    scores, states = coarse.read()
    hot = (scores.max(axis=0) >= above) & (states == State.SCORED)
    return np.asarray(binary_dilation(hot, np.ones((3, 3), np.bool_)), np.bool_)


def refining_grid(fine: MapGrid, required: Cells, factor: int) -> MapGrid:
    """Return the fine grid with fields of the size that needs the fewest pixels.

    Large fields overlap less, but scattered cells would then need fields over most of the slide.

    Args:
        fine: The grid of the fine map, with the largest fields.
        required: The fine cells that are computed.
        factor: Fine cells along the side of a coarse cell, whose number in a field stays whole.
    """
    largest = fine.cells // factor
    sides = [largest // divisor for divisor in FIELD_DIVISORS]
    grids = [replace(fine, cells=side * factor) for side in sides if side == largest or side >= FEWEST_CELLS]
    return min(grids, key=lambda grid: len(grid.fields_over(required)) * grid.field_side**2)


def promise_of(coarse: NDArray[np.float32], grid: MapGrid, factor: int) -> NDArray[np.float32]:
    """For every field of the fine grid, the highest coarse score under it."""
    side = grid.cells // factor
    rows, columns = grid.field_rows * side, grid.field_columns * side
    padded = np.zeros((rows, columns), np.float32)
    height, width = min(rows, coarse.shape[0]), min(columns, coarse.shape[1])
    padded[:height, :width] = coarse[:height, :width]
    blocks = padded.reshape(grid.field_rows, side, grid.field_columns, side)
    return np.asarray(blocks.max(axis=(1, 3)))
