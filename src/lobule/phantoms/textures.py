"""Periodic background textures of tissue in hematoxylin and eosin density, at the resolution of the slide."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from lobule.phantoms.noise import Reals, band_noise, generator, streaks

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Texture:
    """Densities in hundredths; both atlases have the same period."""

    hematoxylin: U8
    eosin: U8


@dataclass(frozen=True)
class Textures:
    """All backgrounds at one resolution."""

    kinds: dict[str, Texture]
    fibre_turn: Reals
    """Direction of the stroma's fibres in [0, 1) of half a turn, every 8th pixel of the stroma atlas."""
    edge: NDArray[np.int8]
    """Unevenness of borders between tissues, 1 unit = 1/16 µm."""
    sensor: NDArray[np.int8]
    """White noise of spread 16."""


ATLAS = 1024


@lru_cache(maxsize=4)
def textures(mpp: float) -> Textures:
    """Backgrounds for a resolution. They are cached because they are the same for every slide."""
    double = mpp < 0.4
    px = mpp * 2 if double else mpp

    def as_bytes(values: Reals) -> U8:
        if double:
            values = _doubled(values)
        return np.clip(np.rint(values), 0, 120).astype(np.uint8)

    fine = band_noise(ATLAS, px, 5.0, 1)
    grain = band_noise(ATLAS, px, max(2.5, 2.2 * px), 2)
    cells = band_noise(ATLAS, px, 14.0, 3)
    broad = band_noise(ATLAS, px, 70.0, 4)
    fibres, turn = _fibres(px)
    kinds = {
        name: Texture(as_bytes(h), as_bytes(e))
        for name, (h, e) in {
            "stroma": _stroma(fibres, fine, broad),
            "desmoplasia": _desmoplasia(fibres, cells, broad),
            "lymph": (9 + 4 * fine + 3 * broad, np.clip(17 + 7 * fine + 4 * cells + 2 * broad, 3, 60)),
            "centre": (15 + 4 * fine + 2 * cells, np.clip(25 + 4 * fine + 4 * cells, 6, 60)),
            "sinus": _sinus(fine, cells, grain),
            "histiocytes": (11 + 3 * fine + 2 * grain, np.clip(26 + 5 * cells + 3 * fine + 2 * grain, 6, 70)),
            "epithelium": (15 + 3 * fine + 2 * grain, 34 + 3 * fine + 4 * cells),
            "tumour": _cytoplasm(px, fine, grain, cells),
            "muscle": (6 + 2 * fine, 50 + 7 * fibres + 2 * fine),
            "necrosis": (13 + 7 * grain + 5 * fine, 48 + 8 * grain + 6 * cells),
            "plasma": (1 + 0 * fine, 7 + 1.5 * cells),
            "fat": _fat(px, fine),
        }.items()
    }
    edge = np.clip(np.rint((2.2 * cells + 1.6 * fine) * 16), -127, 127)
    sensor = np.clip(
        np.rint(np.random.Generator(np.random.PCG64(11)).standard_normal((1024, 1024)) * 16), -60, 60
    )
    edge_atlas = _doubled(edge.astype(np.float32)) if double else edge
    return Textures(kinds, turn, edge_atlas.astype(np.int8), sensor.astype(np.int8))


def _doubled(values: Reals) -> Reals:
    """Twice the samples, linear, still periodic."""
    right = (values + np.roll(values, -1, 1)) / 2
    wide = np.stack([values, right], axis=2).reshape(values.shape[0], -1)
    below = (wide + np.roll(wide, -1, 0)) / 2
    return np.stack([wide, below], axis=1).reshape(-1, wide.shape[1])


def _fibres(px: float) -> tuple[Reals, Reals]:
    """Streaks whose direction varies, and that direction."""
    count = 8
    a, b = band_noise(ATLAS, px, 260.0, 21), band_noise(ATLAS, px, 260.0, 22)
    turn = ((np.arctan2(b, a * 1.6 + 1.1) / (2 * np.pi)) % 1.0).astype(np.float32)
    direction = turn * count
    nearer = direction.astype(np.int8) % count
    farther = (nearer + 1) % count
    share = direction % 1.0
    result = np.zeros((ATLAS, ATLAS), np.float32)
    for index, along in enumerate(streaks(ATLAS, px, count, 30)):
        result += along * np.where(nearer == index, 1 - share, share * (farther == index))
    return result, turn


def _stroma(fibres: Reals, fine: Reals, broad: Reals) -> tuple[Reals, Reals]:
    cleft = np.clip((-0.95 - fibres + 0.35 * broad) * 1.3, 0, 0.9)
    eosin = (42 + 9 * fibres + 2 * fine + 5 * broad) * (1 - 0.8 * cleft)
    return (5 + 2 * fibres + 1.5 * fine) * (1 - cleft), np.clip(eosin, 2, 95)


def _desmoplasia(fibres: Reals, cells: Reals, broad: Reals) -> tuple[Reals, Reals]:
    """Younger, looser and bluer than resting stroma."""
    cleft = np.clip((-1.0 - fibres) * 1.5, 0, 1)
    eosin = (30 + 7 * fibres + 3 * cells + 4 * broad) * (1 - 0.6 * cleft)
    return 10 + 3 * fibres + 3 * cells, np.clip(eosin, 4, 80)


def _sinus(fine: Reals, cells: Reals, grain: Reals) -> tuple[Reals, Reals]:
    strands = np.clip(1 - np.abs(cells) * 3.2, 0, 1)
    return 2 + 6 * strands + grain, np.clip(6 + 20 * strands + 3 * fine, 1, 60)


def _cytoplasm(px: float, fine: Reals, grain: Reals, cells: Reals) -> tuple[Reals, Reals]:
    near, far = _voronoi(px, 13.5, 61)
    border = np.clip(1 - (far - near) / max(1.3, px), 0, 1)
    gap = np.clip((cells - 1.1) * 1.5, 0, 1)
    body = (25 + 2.5 * cells + 2.5 * fine + 1.5 * grain) * (1 - 0.7 * gap)
    bluish = (15 + 2 * fine + 1.5 * grain + 2 * cells) * (1 - 0.7 * gap)
    return bluish + 5 * border, np.clip(body + 7 * border, 3, 90)


def _fat(px: float, fine: Reals) -> tuple[Reals, Reals]:
    near, far = _voronoi(px, 62.0, 71)
    gap = far - near + 0.5 * fine
    wall = np.clip(1.6 - gap / max(1.5, px), 0, 1)
    return 1 + 5 * wall, 1 + 34 * wall


def _voronoi(px: float, pitch_um: float, seed: int) -> tuple[Reals, Reals]:
    """Distances (µm) to the nearest and second nearest of randomly scattered points."""
    period = ATLAS * px
    count = max(2, round(period / pitch_um))
    rng = generator(seed, 5)
    lattice = np.stack(np.meshgrid(np.arange(count), np.arange(count)), -1).reshape(-1, 2).astype(np.float64)
    lattice[:, 0] += 0.5 * (lattice[:, 1] % 2)
    points = ((lattice + 0.5 + 0.62 * (rng.random(lattice.shape) - 0.5)) % count) * (period / count)
    coarse = ATLAS // 2
    axis = (np.arange(coarse)) * (period / coarse)
    x, y = np.meshgrid(axis, axis)
    tree = cKDTree(np.mod(points, period), boxsize=period)
    distance, _ = tree.query(np.stack([x.ravel(), y.ravel()], 1), k=2)
    near, far = (distance[:, k].reshape(coarse, coarse).astype(np.float32) for k in (0, 1))
    return _doubled(near), _doubled(far)
