"""From teacher and student maps to anomaly maps and scores."""

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
"""Set by hand in the paper: tune it again on validation slides."""


class Distances(nn.Module):
    """Teacher and student as one net: scaled images to three maps of 1 - cosine over the channels."""

    def __init__(self, teacher: Teacher, student: Student) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student

    def forward(self, images: Tensor) -> Maps:
        """(B, 3, H, W) to (B, h, w) of each stage, the finest first."""
        maps = self.teacher(images)
        first, second, third = (
            1 - functional.cosine_similarity(ours.float(), theirs.float(), dim=1)
            for ours, theirs in zip(maps, self.student(maps), strict=True)
        )
        return first, second, third

    def for_inference(self) -> Distances:
        """A copy for running only: the same to float rounding, in less time, where it can be traced."""
        made = copy.deepcopy(self).eval()
        made.teacher.add_module("stages", _quicker(made.teacher.stages))
        for name, part in list(made.student.named_children()):
            made.student.add_module(name, _quicker(part))
        return made


def _quicker(net: nn.Module) -> nn.Module:
    try:
        return for_inference(net)
    except (ModelError, TypeError, ValueError):  # its steps depend on its input: some of timm's do
        return net


def anomaly_map(teacher: Maps, student: Maps, size: tuple[int, int]) -> Tensor:
    """(B, H, W): the sum over the stages of 1 - cosine over the channels, brought to `size` (rows, columns).

    Corners are aligned with corners, as published. From 0 to 3 for maps that are never negative, else to 6.
    """
    return summed(
        [
            1 - functional.cosine_similarity(ours.float(), theirs.float(), dim=1)
            for ours, theirs in zip(teacher, student, strict=True)
        ],
        size,
    )


def summed(distances: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """(B, H, W): maps of distances brought to `size`, corners on corners, and added."""
    layers = [
        functional.interpolate(distance[:, None], size, mode="bilinear", align_corners=True)[:, 0]
        for distance in distances
    ]
    return torch.stack(layers).sum(dim=0)


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


def window_means(
    distances: Sequence[Tensor],
    side: int,
    filled: int,
    step: int = 1,
    cells: int = 1,
    patches: int = 1,
    first: int = 0,
) -> Tensor:
    """(B, cells, cells): means of the smoothed anomaly map over windows of a mosaic, without making the map.

    `distances` are maps of mosaics of `patches` × `patches` patches; each patch is `side` pixels of the
    `filled` ones that the teacher saw. Windows as large as a patch begin every `step` pixels, from `first`
    on. Upsampling and smoothing are linear, so a mean is a weighted sum. With one patch it is its score.
    """
    layers = []
    for distance in distances:
        window = distance.shape[-1] // patches
        matrix = torch.from_numpy(window_matrix(window, side, filled, step, cells, patches, first)).to(
            distance
        )
        layers.append(matrix @ distance @ matrix.T)
    return torch.stack(layers).sum(dim=0)


@lru_cache(maxsize=32)
def window_matrix(
    window: int, side: int, filled: int, step: int, cells: int, patches: int, first: int = 0
) -> NDArray[np.float64]:
    """(cells, patches · window): row i holds the map cells' weights in the mean over window i.

    A patch has `window` map cells, which are brought to `filled` pixels; its first `side` are smoothed.
    """
    place = np.arange(side) * (window - 1) / max(filled - 1, 1)
    upsampled = np.maximum(1 - np.abs(place[:, None] - np.arange(window)), 0)
    patch = gaussian_matrix(side, SIGMA_PX) @ upsampled
    matrix = np.zeros((cells, patches, window))
    for cell in range(cells):
        for number in range(patches):
            begins = first + cell * step - number * side
            rows = patch[max(begins, 0) : max(begins + side, 0)]
            matrix[cell, number] = rows.sum(axis=0) / side
    return matrix.reshape(cells, patches * window)


def slide_score(cells: NDArray[Any], threshold: float = SLIDE_THRESHOLD) -> float:
    """The mean of the cells at or above the threshold, 0 where there is none."""
    high = cells[cells >= threshold]
    return float(high.mean(dtype=np.float64)) if high.size else 0.0
