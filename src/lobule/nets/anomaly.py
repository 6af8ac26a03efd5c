"""From teacher and student maps to anomaly maps and scores."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lobule.nets.reverse_distillation import Maps

SIGMA_PX = 4.0
TRUNCATE = 4.0
SLIDE_THRESHOLD = 2.01
"""Set by hand in the paper: tune it again on validation slides."""


def anomaly_map(teacher: Maps, student: Maps, size: tuple[int, int]) -> Tensor:
    """(B, H, W): the sum over the stages of 1 - cosine over the channels, brought to `size` (rows, columns).

    Corners are aligned with corners, as published. From 0 to 3 for maps that are never negative, else to 6.
    """
    total: Tensor | None = None
    for ours, theirs in zip(teacher, student, strict=True):
        distance = 1 - functional.cosine_similarity(ours.float(), theirs.float(), dim=1)
        layer = functional.interpolate(distance[:, None], size, mode="bilinear", align_corners=True)[:, 0]
        total = layer if total is None else total + layer
    assert total is not None
    return total


def smooth(maps: Tensor, sigma: float = SIGMA_PX) -> Tensor:
    """A Gaussian over the last two axes, mirrored at the edges with the edge pixel repeated, cut at 4 sigma.

    The same as SciPy's `gaussian_filter` of each map by itself; never across the batch.
    """
    rows, columns = (
        torch.from_numpy(gaussian_matrix(side, sigma)).to(maps.device, maps.dtype) for side in maps.shape[-2:]
    )
    return rows @ maps @ columns.T


@lru_cache(maxsize=16)
def gaussian_matrix(side: int, sigma: float) -> NDArray[np.float64]:
    """(side, side): row i holds the weights of the pixels that pixel i becomes the mean of."""
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    # mirroring has period 2·side: 0 … side-1, side-1 … 0
    places = (np.arange(side)[:, None] + offsets) % (2 * side)
    places = np.where(places < side, places, 2 * side - 1 - places)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], places), weights)
    return matrix


def patch_scores(
    teacher: Maps, student: Maps, size: tuple[int, int], filled: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """The smoothed map of each patch with its mean (FW-RD's score) and maximum (RD4AD's).

    `filled` is the size the teacher saw, where it had to fill up edges; they are cut off before smoothing.
    """
    rows, columns = size
    maps = smooth(anomaly_map(teacher, student, filled or size)[:, :rows, :columns])
    return {"anomaly": maps, "mean": maps.mean(dim=(1, 2)), "max": maps.amax(dim=(1, 2))}


def slide_score(cells: NDArray[Any], threshold: float = SLIDE_THRESHOLD) -> float:
    """The mean of the cells at or above the threshold, 0 where there is none."""
    high = cells[cells >= threshold]
    return float(high.mean(dtype=np.float64)) if high.size else 0.0
