"""The grid of patches over a view, and the heatmaps computed from the patch scores."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.errors import NotAMammogram

PATCH = 256
STRIDE = 70


def draw_strides(length: int, rng: random.Random, *, patch: int = PATCH, stride: int = STRIDE) -> list[int]:
    """Return the steps from patch to patch that cover an axis exactly, as near to `stride` as possible.

    `rng` chooses which steps are one pixel shorter than the others.
    """
    if length < patch:
        raise NotAMammogram(
            "the cropped view is smaller than a patch",
            expected=f"at least {patch} px on each side",
            actual=f"{length} px",
        )
    count, remainder = (length - patch) // stride + 1, (length - patch) % stride
    if remainder == 0:
        return [stride] * (count - 1)
    excess = stride - remainder
    base = stride - excess // count
    strides = [base] * count
    for position in rng.sample(range(count), excess % count):
        strides[position] = base - 1
    return strides


@dataclass(frozen=True)
class PatchGrid:
    """Upper-left corners of the patches of one view."""

    row_starts: tuple[int, ...]
    column_starts: tuple[int, ...]
    patch: int = PATCH

    def __len__(self) -> int:
        return len(self.row_starts) * len(self.column_starts)

    def corners(self) -> Iterator[tuple[int, int]]:
        """Yield (row, column) of each patch in the order of scoring: down each column of the grid in turn."""
        for column in self.column_starts:
            for row in self.row_starts:
                yield row, column

    @classmethod
    def of_strides(cls, rows: list[int], columns: list[int], patch: int = PATCH) -> PatchGrid:
        return cls(tuple(accumulate(rows, initial=0)), tuple(accumulate(columns, initial=0)), patch)


def draw_grid(
    shape: tuple[int, int], rng: random.Random, *, patch: int = PATCH, stride: int = STRIDE
) -> PatchGrid:
    """Draw the grid of a cropped view, rows first. The published code uses one stream for a list of exams."""
    rows, columns = (draw_strides(length, rng, patch=patch, stride=stride) for length in shape)
    return PatchGrid.of_strides(rows, columns, patch)


def heatmap_of(
    shape: tuple[int, int], grid: PatchGrid, scores: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    """Average the scores of the patches over each pixel.

    Sums and counts are float32 and are added in the order of the grid. The map is reproducible bit for bit.

    Args:
        shape: Height and width of the map.
        grid: The patches.
        scores: (patches,) or (patches, classes), in the order of the grid.

    Returns:
        A map (H, W) or (classes, H, W).
    """
    values = scores.astype(np.float32)
    sums, counts = np.zeros((*values.shape[1:], *shape), np.float32), np.zeros(shape, np.float32)
    for (row, column), score in zip(grid.corners(), values, strict=True):
        footprint = np.s_[..., row : row + grid.patch, column : column + grid.patch]
        sums[footprint] += score[..., None, None]
        counts[footprint] += np.float32(1)
    return np.divide(sums, counts, dtype=np.float32)


def distinct_patches(grid: PatchGrid, pixels: NDArray[Any]) -> tuple[list[int], NDArray[np.int64]]:
    """Return the patches to compute, and for every patch of the grid the index of the one that it equals.

    Blank patches are all equal, so only one of them is computed.
    """
    rows: list[int] = []
    row_of = np.empty(len(grid), np.int64)
    blank = -1
    for index, (top, left) in enumerate(grid.corners()):
        if pixels[top : top + grid.patch, left : left + grid.patch].any():
            row_of[index] = len(rows)
            rows.append(index)
            continue
        if blank < 0:
            blank = len(rows)
            rows.append(index)
        row_of[index] = blank
    return rows, row_of
