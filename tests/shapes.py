"""Outlines that tests share, and one of them filled."""

from __future__ import annotations

import numpy as np

from lobule.geometry import Box

SQUARE = [[0, 0], [100, 0], [100, 100], [0, 100]]
STAR = [[50, 0], [80, 95], [2, 36], [98, 36], [20, 95]]
"""A pentagram: its centre is outside by the even-odd rule."""


def mask_of(points: list[list[float]], step: float, box: Box) -> np.ndarray:
    """The rule point by point: the number of edges to the right is odd."""
    columns, rows = np.meshgrid(np.arange(box.x, box.right), np.arange(box.y, box.bottom))
    x, y = (columns + 0.5) * step, (rows + 0.5) * step
    odd = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        if y0 != y1:
            (xa, ya), (xb, yb) = sorted([(x0, y0), (x1, y1)], key=lambda end: end[1])
            odd ^= (ya <= y) & (y < yb) & (x < xa + (y - ya) * ((xb - xa) / (yb - ya)))
    return odd
