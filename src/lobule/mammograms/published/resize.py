"""Cubic resizing as in the published pipeline: a = -0.75, pixel centres at halves, edge pixels repeated."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lobule.resize import cubic_taps


def resize_cubic(
    image: NDArray[np.float32], size: tuple[int, int], filled: tuple[int, int, int, int] | None = None
) -> NDArray[np.float32]:
    """Resize (H, W) to (h, w), computed in float64.

    There is no smoothing before downsampling. Cubic interpolation can overshoot the range of the input.

    Args:
        image: Image (H, W).
        size: The new height and width.
        filled: Top, bottom, left and right of the region that contains all non-zero pixels. Pixels outside
            it are not computed and stay 0.
    """
    top, bottom, left, right = filled or (0, image.shape[0], 0, image.shape[1])
    resized = np.zeros(size, np.float32)
    if top >= bottom or left >= right:
        return resized
    down, rows = _submatrix(_matrix(image.shape[0], size[0]), top, bottom)
    across, columns = _submatrix(_matrix(image.shape[1], size[1]), left, right)
    resized_down = down @ image[top:bottom, left:right].astype(np.float64)
    resized[rows, columns] = (across @ np.ascontiguousarray(resized_down.T)).T
    return resized


def _submatrix(matrix: Any, start: int, end: int) -> tuple[Any, slice]:
    """Return the matrix restricted to a range of old pixels, and the range of new pixels that they affect."""
    columns = matrix[:, start:end]
    reached = np.flatnonzero(np.diff(columns.indptr))
    new_range = slice(int(reached[0]), int(reached[-1]) + 1) if len(reached) else slice(0, 0)
    return columns[new_range], new_range


@lru_cache(maxsize=64)
def _matrix(length: int, new_length: int) -> Any:
    """Return the resizing of one axis as a sparse matrix (new_length, length)."""
    if length == new_length:
        return sparse.eye_array(length, format="csr")
    taps, weights = cubic_taps(length, new_length, length / new_length, np.float64)
    ends = np.arange(0, taps.size + 1, 4)
    return sparse.csr_array((weights.ravel(), taps.ravel(), ends), shape=(new_length, length))
