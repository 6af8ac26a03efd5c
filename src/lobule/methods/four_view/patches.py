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
from lobule.mammograms.views import angle_of
from lobule.methods.four_view.crop import Compat
from lobule.methods.four_view.windows import standardise

PATCH = 256
STRIDE = 70
MALIGNANT, BENIGN = 0, 1
"""Indices of these classes among the patch network's four; the other two are not used."""


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


def patch_grid(shape: tuple[int, int], rng: random.Random) -> PatchGrid:
    """Draw the grid of a cropped view, rows first. The published code uses one stream for a list of exams."""
    rows = draw_strides(shape[0], rng)
    return PatchGrid.of_strides(rows, draw_strides(shape[1], rng))


def patch_pixels(image: NDArray[Any]) -> NDArray[np.float64]:
    """Standardise the whole view in float64. Patches are cut from it and cast to float32."""
    return standardise(image, np.float64)


def cut_patch(
    standardised: NDArray[np.float64], corner: tuple[int, int], patch: int = PATCH
) -> NDArray[np.float32]:
    """Cut a patch (3, patch, patch) with three equal channels."""
    row, column = corner
    grey = standardised[row : row + patch, column : column + patch].astype(np.float32)
    return np.broadcast_to(grey, (3, patch, patch))


def heatmap_of(
    shape: tuple[int, int], grid: PatchGrid, scores: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    """Average the scores of the patches over each pixel to a map (H, W).

    `scores` has one class, in the order of the grid. Sums and counts are float32 and are added in that order,
    so the map is reproducible bit for bit.
    """
    sums, counts = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for (row, column), score in zip(grid.corners(), scores, strict=True):
        footprint = np.s_[row : row + grid.patch, column : column + grid.patch]
        sums[footprint] += np.float32(score)
        counts[footprint] += np.float32(1)
    return sums / counts


def view_for_patches(view: str, *, single_image: bool, compat: Compat = "reference") -> str:
    """Return the view that decides mirroring. The published tool for single images ignores the side."""
    return angle_of(view) if single_image and compat == "reference" else view
