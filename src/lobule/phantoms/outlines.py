"""Outlines: wobbly closed curves as polygons, their exact filling, and their size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

Points = NDArray[np.float64]
"""(n, 2): x and y of each vertex; the last is joined to the first."""


def blob(
    rng: np.random.Generator, *, vertices: int, roughness: float, elongation: float = 1.0, waves: int = 24
) -> Points:
    """A star-shaped outline about the origin with unit area; `roughness` 0 is an ellipse."""
    theta = np.arange(vertices) * (2 * np.pi / vertices)
    order = np.arange(2, waves)
    amplitude = roughness * rng.standard_normal(order.size) / order**1.1
    phase = rng.uniform(0, 2 * np.pi, order.size)
    radius = 1 + (amplitude[:, None] * np.cos(order[:, None] * theta + phase[:, None])).sum(0)
    radius = np.maximum(radius, 0.25)
    x = radius * np.cos(theta) * elongation**0.5
    y = radius * np.sin(theta) / elongation**0.5
    turn = rng.uniform(0, 2 * np.pi)
    points = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1)
    points /= area(points) ** 0.5
    return points


def area(points: Points) -> float:
    x, y = points[:, 0], points[:, 1]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def extent(points: Points) -> float:
    """The longest distance between two points of the outline."""
    hull = points[ConvexHull(points).vertices]
    return float(pdist(hull).max())


def filled(
    points: Points, left: float, top: float, width: int, height: int, step: float = 1.0
) -> NDArray[np.bool_]:
    """True where the centre of a cell lies inside, by the even-odd rule.

    Cells are `step` wide, the first with its corner at (left, top).
    """
    x = (points[:, 0] - left) / step - 0.5
    y = (points[:, 1] - top) / step - 0.5
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    near = (np.minimum(x, x2) < width) & (np.maximum(x, x2) > -1)
    near &= (np.minimum(y, y2) < height) & (np.maximum(y, y2) > -1)
    if not near.any():  # no edge is near, so all cells are like the first one
        crossed = ((y > 0) != (y2 > 0)) & (y != y2)
        at = x[crossed] - y[crossed] * (x2[crossed] - x[crossed]) / (y2[crossed] - y[crossed])
        return np.full((height, width), bool(np.count_nonzero(at <= 0) & 1))
    crossings = np.zeros((height, width + 1), np.uint8)
    # a row centre j is crossed by an edge when it lies in the half-open interval between its ends
    first = np.clip(np.ceil(np.minimum(y, y2)), 0, height).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(y, y2)), 0, height).astype(np.int64)
    count = last - first
    edge = np.repeat(np.arange(x.size), count)
    if edge.size == 0:
        return np.zeros((height, width), bool)
    start = np.cumsum(count) - count
    row = np.arange(edge.size) - start[edge] + first[edge]
    slope = (x2[edge] - x[edge]) / (y2[edge] - y[edge])
    column = np.clip(np.ceil(x[edge] + (row - y[edge]) * slope), 0, width).astype(np.int64)
    np.bitwise_xor.at(crossings.reshape(-1), row * (width + 1) + column, 1)
    # rows are even or odd only between the first crossing and the last
    low, high = int(column.min()), min(int(column.max()), width - 1)
    inside = np.zeros((height, width), np.bool_)
    inside[:, low : high + 1] = np.bitwise_xor.accumulate(crossings[:, low : high + 1], axis=1)
    inside[:, high + 1 :] = inside[:, high : high + 1]
    return inside


def touches(points: Points, left: float, top: float, right: float, bottom: float) -> bool:
    """Whether the box of the outline meets a box; False is certain, True is not."""
    low, high = points.min(0), points.max(0)
    return bool(low[0] < right and high[0] >= left and low[1] < bottom and high[1] >= top)
