"""Wobbly ovals: the shape of ducts, follicles and vessels, and the depth of a position inside one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lobule.phantoms.noise import Reals


@dataclass(frozen=True, eq=False)
class Ovals:
    """Wobbly ovals of one kind, in µm; each row is one."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    a: NDArray[np.float64]
    b: NDArray[np.float64]
    turn: NDArray[np.float64]
    wobble: NDArray[np.float64]
    """(n, 4): amplitude of 2 to 5 waves around."""
    phase: NDArray[np.float64]

    @classmethod
    def sampled(
        cls, rng: np.random.Generator, x: object, y: object, a: object, b: object, rough: float
    ) -> Ovals:
        xs = np.atleast_1d(np.asarray(x, np.float64))
        n = xs.size
        return cls(
            xs,
            np.atleast_1d(np.asarray(y, np.float64)),
            np.broadcast_to(np.asarray(a, np.float64), (n,)).copy(),
            np.broadcast_to(np.asarray(b, np.float64), (n,)).copy(),
            rng.uniform(0, np.pi, n),
            rough * rng.standard_normal((n, 4)) / np.array([1.0, 1.3, 1.8, 2.4]),
            rng.uniform(0, 2 * np.pi, (n, 4)),
        )

    @classmethod
    def joined(cls, groups: list[Ovals]) -> Ovals:
        names = ("x", "y", "a", "b", "turn", "wobble", "phase")
        return cls(*(np.concatenate([getattr(group, name) for group in groups]) for name in names))

    @cached_property
    def reach(self) -> NDArray[np.float64]:
        return np.asarray(np.maximum(self.a, self.b) * (1.1 + np.abs(self.wobble).sum(1)))

    def depth(self, index: int, x: Reals, y: Reals) -> Reals:
        """Approximate distance inside the border of one oval in µm; negative outside."""
        c, s = (np.float32(f(self.turn[index])) for f in (np.cos, np.sin))
        a, b = np.float32(self.a[index]), np.float32(self.b[index])
        dx, dy = x - np.float32(self.x[index]), y - np.float32(self.y[index])
        around = np.empty(np.broadcast_shapes(dx.shape, dy.shape), np.complex64)
        around.real = (dx * c + dy * s) / a
        around.imag = (dy * c - dx * s) / b
        distance = np.abs(around)
        around /= np.maximum(distance, np.float32(1e-6))
        waves = (self.wobble[index] * np.exp(1j * self.phase[index])).astype(np.complex64)
        # 2 to 5 waves around are powers of the direction, summed from the last
        sway = waves[3] * around
        for wave in (waves[2], waves[1], waves[0]):
            sway += wave
            sway *= around
        sway *= around
        return np.asarray((1 + sway.real - distance) * np.sqrt(a * b))
