"""Where the network's window belongs in a cropped view: its best centre."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.mammograms.views import angle_of
from lobule.methods.four_view.crop import Compat, Landmarks

WINDOW_SIZES = {"CC": (2677, 1942), "MLO": (2974, 1748)}
"""Height and width that the four-view network reads, by angle."""
GMIC_WINDOW_SIZE = (2944, 1920)


def window_size(view: str) -> tuple[int, int]:
    return WINDOW_SIZES[angle_of(view)]


def best_centre(
    image: NDArray[Any],
    view: str,
    landmarks: Landmarks,
    size: tuple[int, int],
    *,
    compat: Compat = "reference",
) -> tuple[int, int]:
    """Row and column of the window's centre in a cropped, right-pointing view (H, W); may be negative.

    The window's right edge follows the breast's tip. In an MLO view its lower edge follows the breast's lower
    end; in a CC view its rows are those that catch most of the breast.
    """
    x = _centre_column(landmarks.rightmost_x, size[1], compat)
    if angle_of(view) == "MLO":
        return _mlo_row(image, landmarks.bottommost_y, size), x
    return _cc_row(image, x, size), x


def _centre_column(rightmost_x: int, width: int, compat: Compat) -> int:
    if compat == "reference":
        return rightmost_x - width // 2 - 1
    return rightmost_x + 1 - width + width // 2


def _mlo_row(image: NDArray[Any], bottommost_y: int, size: tuple[int, int]) -> int:
    height, width = size
    outer = image[:, -min(width, image.shape[1]) :]
    rows = np.flatnonzero((outer > 0).any(axis=1))
    lowest = min(bottommost_y, int(rows[-1])) if rows.size else bottommost_y
    return lowest - height // 2 - 1


def _cc_row(image: NDArray[Any], x: int, size: tuple[int, int]) -> int:
    """The row with most of the breast in the window; of equals the nearest to the middle, then the upper."""
    (height, width), above = size, size[0] // 2
    middle, last = image.shape[0] // 2, image.shape[0] - (height - above)
    if above >= last:
        return int(middle)
    left = max(0, x - width // 2)
    per_row = np.count_nonzero(image[:, left : left + width] > 0, axis=1)
    sums = np.concatenate([[0], np.cumsum(per_row)])
    candidates = np.arange(above, last + 1)
    scores = sums[candidates - above + height] - sums[candidates - above]
    best = candidates[scores == scores.max()]
    return int(best[np.argmin(np.abs(best - middle))])
