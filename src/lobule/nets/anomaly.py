"""Anomaly maps and scores from the maps of teacher and student."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lobule.errors import ModelError
from lobule.nets.inference import for_inference
from lobule.nets.reverse_distillation import Maps, Student
from lobule.nets.teachers import Teacher

SIGMA_PX = 4.0
TRUNCATE = 4.0
SLIDE_THRESHOLD = 2.01
"""Chosen by hand in the paper; tune it on validation slides instead."""


class Distances(nn.Module):
    """Teacher and student as one net that computes three maps of cosine distances over the channels."""

    def __init__(self, teacher: Teacher, student: Student) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student

    def forward(self, images: Tensor) -> Maps:
        """Distances (B, h, w) of each stage, the finest first, for scaled images (B, 3, H, W)."""
        maps = self.teacher(images)
        first, second, third = (
            1 - functional.cosine_similarity(ours.float(), theirs.float(), dim=1)
            for ours, theirs in zip(maps, self.student(maps), strict=True)
        )
        return first, second, third

    def for_inference(self) -> Distances:
        """A faster copy for inference, with the same results up to float rounding."""
        optimised = copy.deepcopy(self).eval()
        optimised.teacher.add_module("stages", _traced_if_possible(optimised.teacher.stages))
        for name, module in list(optimised.student.named_children()):
            optimised.student.add_module(name, _traced_if_possible(module))
        return optimised


def _traced_if_possible(net: nn.Module) -> nn.Module:
    try:
        return for_inference(net)
    except (ModelError, TypeError, ValueError):  # the net cannot be traced, such as some nets of timm
        return net


def summed(distances: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Sum (B, H, W) of maps of distances that are resized to `size` with aligned corners."""
    layers = [
        functional.interpolate(distance[:, None], size, mode="bilinear", align_corners=True)[:, 0]
        for distance in distances
    ]
    return torch.stack(layers).sum(dim=0)


def smooth(maps: Tensor) -> Tensor:
    """Smooth the last two axes with a Gaussian of `SIGMA_PX` that is truncated at 4 sigma.

    Edges are mirrored with the edge pixel repeated, as in SciPy's `gaussian_filter` of each map.
    """
    rows, columns = (
        torch.from_numpy(gaussian_matrix(int(side), SIGMA_PX)).to(maps.device, maps.dtype)
        for side in maps.shape[-2:]
    )
    return rows @ maps @ columns.T


@lru_cache(maxsize=16)
def gaussian_matrix(side: int, sigma: float) -> NDArray[np.float64]:
    """Matrix (side, side) of the smoothing along one axis; row i has the input weights of output pixel i."""
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    # Mirroring has period 2·side: 0 … side-1, side-1 … 0.
    sources = (np.arange(side)[:, None] + offsets) % (2 * side)
    sources = np.where(sources < side, sources, 2 * side - 1 - sources)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], sources), weights)
    return matrix


def window_means(
    distances: Sequence[Tensor],
    side: int,
    padded_size: int,
    step: int = 1,
    cells: int = 1,
    patches: int = 1,
    first: int = 0,
) -> Tensor:
    """Means (B, cells, cells) of the smoothed anomaly map over windows of a mosaic, without computing the
    map.

    Upsampling and smoothing are linear, so each mean is a weighted sum of `distances`. With a single patch,
    the mean is the score of the patch.

    Args:
        distances: Maps of mosaics of `patches` × `patches` patches.
        side: Side of a patch and of a window in pixels.
        padded_size: Side of the teacher's padded input.
        step: Distance between windows in pixels.
        cells: Number of windows along a side.
        patches: Number of patches along a side of the mosaic.
        first: Start of the first window in pixels.

    """
    layers = []
    for distance in distances:
        window = int(distance.shape[-1]) // patches
        matrix = torch.from_numpy(window_matrix(window, side, padded_size, step, cells, patches, first)).to(
            distance
        )
        layers.append(matrix @ distance @ matrix.T)
    return torch.stack(layers).sum(dim=0)


@lru_cache(maxsize=32)
def window_matrix(
    window: int, side: int, padded_size: int, step: int, cells: int, patches: int, first: int = 0
) -> NDArray[np.float64]:
    """Matrix (cells, patches · window): row i holds the weights of the map cells in the mean of window i.

    A patch has `window` map cells, which are upsampled to `padded_size` pixels; the first `side` of them are
    smoothed.
    """
    positions = np.arange(side) * (window - 1) / max(padded_size - 1, 1)
    upsampled = np.maximum(1 - np.abs(positions[:, None] - np.arange(window)), 0)
    patch = gaussian_matrix(side, SIGMA_PX) @ upsampled
    matrix = np.zeros((cells, patches, window))
    for cell in range(cells):
        for number in range(patches):
            begins = first + cell * step - number * side
            rows = patch[max(begins, 0) : max(begins + side, 0)]
            matrix[cell, number] = rows.sum(axis=0) / side
    return matrix.reshape(cells, patches * window)


def slide_score(cells: NDArray[Any], threshold: float = SLIDE_THRESHOLD) -> float:
    """The mean of the cells at or above the threshold; 0 if all cells are below it."""
    high = cells[cells >= threshold]
    return float(high.mean(dtype=np.float64)) if high.size else 0.0
