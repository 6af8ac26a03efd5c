"""The best centre of the network's window in a cropped view."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.mammograms.published.crop import Landmarks, Quirks
from lobule.mammograms.views import angle_of

WINDOW_SIZES = {"CC": (2677, 1942), "MLO": (2974, 1748)}
"""Height and width of the four-view network's window, by angle."""
GMIC_WINDOW_SIZE = (2944, 1920)


def window_size(view: str) -> tuple[int, int]:
    return WINDOW_SIZES[angle_of(view)]


def best_centre(
    image: NDArray[Any],
    view: str,
    landmarks: Landmarks,
    size: tuple[int, int],
    *,
    quirks: Quirks = "reference",
) -> tuple[int, int]:
    """Return row and column of the window's centre in a cropped, right-pointing view (H, W).

    The right edge of the window is at the tip of the breast. In an MLO view the lower edge is at the lower
    end of the breast; in a CC view the window has the rows that contain most of the breast. Row and column
    can be negative.
    """
    x = _centre_column(landmarks.rightmost_x, size[1], quirks)
    if angle_of(view) == "MLO":
        return _mlo_row(image, landmarks.bottommost_y, size), x
    return _cc_row(image, x, size), x


def _centre_column(rightmost_x: int, width: int, quirks: Quirks) -> int:
    if quirks == "reference":
        return rightmost_x - width // 2 - 1
    return rightmost_x + 1 - width + width // 2


def _mlo_row(image: NDArray[Any], bottommost_y: int, size: tuple[int, int]) -> int:
    height, width = size
    outer = image[:, -min(width, image.shape[1]) :]
    rows = np.flatnonzero((outer > 0).any(axis=1))
    lowest = min(bottommost_y, int(rows[-1])) if rows.size else bottommost_y
    return lowest - height // 2 - 1


def _cc_row(image: NDArray[Any], x: int, size: tuple[int, int]) -> int:
    """Return the row that puts most of the breast into the window.

    Of equally good rows it is the one nearest to the middle, then the upper one.
    """
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
