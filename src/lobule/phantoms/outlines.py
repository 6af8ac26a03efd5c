"""Outlines: wobbly closed curves as polygons."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
