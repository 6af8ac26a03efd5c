"""Units as types, so that microns and pixels of different frames are not mixed by accident."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Mpp:
    """Resolution in µm per pixel; x and y may differ."""

    x: float
    y: float

    @classmethod
    def square(cls, value: float) -> Mpp:
        return cls(value, value)

    @property
    def mean(self) -> float:
        return math.sqrt(self.x * self.y)

    def scaled(self, factor_x: float, factor_y: float | None = None) -> Mpp:
        return Mpp(self.x * factor_x, self.y * (factor_x if factor_y is None else factor_y))

    def __str__(self) -> str:
        if abs(self.x - self.y) < 1e-4 * self.x:
            return f"{self.x:.4g} µm/px"
        return f"{self.x:.4g} × {self.y:.4g} µm/px"
