"""Bicubic resizing as OpenCV's INTER_CUBIC does it: a = -0.75, half-pixel centres, replicated edges.

There is no antialiasing. Everything is computed in float32. 8-bit images use OpenCV's 11-bit fixed-point
weights: when an image is halved, every sum is exact and the bytes equal those of OpenCV; at other factors, a
value close to a rounding boundary may differ by 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

A = np.float32(-0.75)
WEIGHT_ONE = np.float32(2048)
"""OpenCV's INTER_RESIZE_COEF_SCALE: the weight 1 of an 8-bit image."""


def cubic_taps(
    length: int, out_length: int, step: float, dtype: type[np.floating[Any]] = np.float32
) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Return source indices (out_length, 4), clamped to the edges, and their weights, which sum to 1."""
    position = ((np.arange(out_length) + 0.5) * step - 0.5).astype(dtype)
    first = np.floor(position)
    indices = first.astype(np.intp)[:, None] + np.arange(-1, 3)
    return np.clip(indices, 0, length - 1), cubic_weights(position - first).astype(dtype)


def cubic_weights(x: NDArray[np.floating[Any]]) -> NDArray[Any]:
    """Return the weights (n, 4) of the four pixels around positions at `x` between the two inner pixels."""
    far = ((A * (x + 1) - 5 * A) * (x + 1) + 8 * A) * (x + 1) - 4 * A
    near = ((A + 2) * x - (A + 3)) * x * x + 1
    opposite = ((A + 2) * (1 - x) - (A + 3)) * (1 - x) * (1 - x) + 1
    return np.stack([far, near, opposite, 1 - far - near - opposite], axis=1)


def resize_cubic(
    image: NDArray[Any], height: int, width: int, *, step: tuple[float, float] | None = None
) -> NDArray[Any]:
    """Resize an image (H, W) or (H, W, C); uint8 stays uint8, other types become float32.

    Args:
        image: The image.
        height: New height.
        width: New width.
        step: (source rows per output row, source columns per output column). The default is the ratio of the
            sizes. Pass a step where it differs: halving a side of 101 gives 51 rows, but a step of exactly 2.
    """
    rows, columns = image.shape[:2]
    step_y, step_x = step or (rows / height, columns / width)
    eight_bit = image.dtype == np.uint8
    ys, wy = cubic_taps(rows, height, step_y)
    xs, wx = cubic_taps(columns, width, step_x)
    if eight_bit:
        wy, wx = np.rint(wy * WEIGHT_ONE) / WEIGHT_ONE, np.rint(wx * WEIGHT_ONE) / WEIGHT_ONE
    resized = _weighted(_weighted(image.astype(np.float32), xs, wx, axis=1), ys, wy, axis=0)
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8) if eight_bit else resized


def halve(image: NDArray[Any]) -> NDArray[Any]:
    """Halve an image like `cv2.resize` with fx = fy = 0.5: sides rounded half to even, step exactly 2."""
    rows, columns = image.shape[:2]
    return resize_cubic(image, round(rows / 2), round(columns / 2), step=(2.0, 2.0))


def _weighted(
    values: NDArray[Any], indices: NDArray[np.intp], weights: NDArray[Any], *, axis: int
) -> NDArray[Any]:
    shape = [1] * values.ndim
    shape[axis] = len(indices)
    total: NDArray[Any] = values.take(indices[:, 0], axis=axis) * weights[:, 0].reshape(shape)
    for tap in range(1, 4):
        total += values.take(indices[:, tap], axis=axis) * weights[:, tap].reshape(shape)
    return total
