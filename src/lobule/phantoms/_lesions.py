"""Benign and malignant lesions of generated breasts, the same lesion seen in both views."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from skimage.draw import polygon2mask

from lobule.phantoms._breast import Floats, Layout

Doubles = NDArray[np.float64]
Kind = Literal[
    "circumscribed mass", "coarse calcifications", "rim calcification",
    "spiculated mass", "fine calcifications",
]  # fmt: skip
BENIGN: tuple[Kind, ...] = ("circumscribed mass",) * 2 + ("coarse calcifications", "rim calcification")
MALIGNANT: tuple[Kind, ...] = ("spiculated mass", "fine calcifications")


@dataclass(frozen=True)
class Lesion:
    """A lesion in its breast: both views show it at the same distance from the nipple, with the same size."""

    kind: Kind
    malignant: bool
    behind_nipple: float
    """Depth behind the nipple as a share of the way to the chest wall."""
    lateral: float
    """Offset from the nipple in the CC view, as a share of the half width."""
    vertical: float
    """Offset from the nipple in the MLO view, as a share of the half height."""
    radius_mm: float
    contrast: float
    grains: int
    """Number of calcifications, for lesions that have them."""

    @classmethod
    def draw(
        cls, rng: np.random.Generator, *, malignant: bool, kinds: tuple[Kind, ...] | None = None
    ) -> Lesion:
        kinds = kinds or (MALIGNANT if malignant else BENIGN)
        kind = kinds[int(rng.integers(len(kinds)))]
        radius = {
            "circumscribed mass": rng.uniform(5, 10),
            "spiculated mass": rng.uniform(4.5, 8),
            "coarse calcifications": rng.uniform(4, 9),
            "rim calcification": rng.uniform(2.5, 5.5),
            "fine calcifications": rng.uniform(4.5, 8),
        }[kind]
        return cls(
            kind,
            malignant,
            behind_nipple=rng.uniform(0.3, 0.7),
            lateral=rng.uniform(-0.45, 0.45),
            vertical=rng.uniform(-0.45, 0.45),
            radius_mm=radius,
            contrast=rng.uniform(0.15, 0.24),
            grains=int(rng.integers(3, 8) if kind == "coarse calcifications" else rng.integers(14, 38)),
        )


@dataclass(frozen=True)
class Outline:
    """A lesion as one view shows it; the polygon is (N, 2) rows and columns in pixels of the stored image."""

    view: str
    kind: Kind
    malignant: bool
    polygon: Doubles


def centre_mm(lesion: Lesion, layout: Layout) -> tuple[float, float]:
    """Row and column in millimetres, moved towards the middle where skin or muscle is too near."""
    nipple_row, nipple_column = layout.nipple_mm
    half = layout.breast.half_height_mm if layout.is_mlo else layout.breast.half_width_mm
    offset = lesion.vertical if layout.is_mlo else lesion.lateral
    row, column = nipple_row + offset * half, nipple_column * (1 - lesion.behind_nipple)
    for _ in range(40):
        if layout.clearance_mm(row, column) > lesion.radius_mm + 5:
            break
        row += 0.08 * (nipple_row - row)
        column += 0.08 * (0.6 * nipple_column - column)
    return row, column


def add(lesion: Lesion, layout: Layout, picture: Floats, rng: np.random.Generator) -> Doubles:
    """Draw the lesion into `picture`; returns its polygon, (N, 2) rows and columns in pixels."""
    centre = centre_mm(lesion, layout)
    draw = {
        "circumscribed mass": _circumscribed,
        "spiculated mass": _spiculated,
        "coarse calcifications": _coarse,
        "rim calcification": _rim,
        "fine calcifications": _fine,
    }[lesion.kind]
    radii_mm = draw(lesion, _Canvas(layout, picture, centre), rng)
    angles = np.linspace(0, 2 * np.pi, len(radii_mm), endpoint=False)
    rows = (centre[0] + radii_mm * np.sin(angles)) / layout.mm_per_px
    columns = (centre[1] + radii_mm * np.cos(angles)) / layout.mm_per_px
    height, width = layout.shape
    return np.stack([np.clip(rows, 0, height), np.clip(columns, 0, width)], axis=1)


def mask_of(polygon: Doubles, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose centres lie inside a polygon of pixel edges."""
    return np.asarray(polygon2mask(shape, polygon - 0.5))


@dataclass(frozen=True)
class _Canvas:
    """A picture, and the position (row and column in mm) on which a lesion or a grain is drawn."""

    layout: Layout
    picture: Floats
    centre: tuple[float, float]

    def around(self, reach_mm: float) -> tuple[Floats, Doubles, Doubles]:
        """The window of the picture around the position, and radius (mm) and angle of its pixels."""
        mm = self.layout.mm_per_px
        low = [max(0, int((at - reach_mm) / mm)) for at in self.centre]
        high = [
            min(side, int((at + reach_mm) / mm) + 1)
            for at, side in zip(self.centre, self.layout.shape, strict=True)
        ]
        rows = (np.arange(low[0], high[0]) + 0.5)[:, None] * mm - self.centre[0]
        columns = (np.arange(low[1], high[1]) + 0.5)[None, :] * mm - self.centre[1]
        window = self.picture[low[0] : high[0], low[1] : high[1]]
        return window, np.hypot(rows, columns), np.arctan2(rows, columns)

    def moved(self, away_mm: float, turn: float) -> _Canvas:
        row, column = self.centre
        return replace(self, centre=(row + away_mm * np.sin(turn), column + away_mm * np.cos(turn)))


def _wavy(rng: np.random.Generator, spread: float, orders: range) -> Doubles:
    """A closed random radius around 1, at 180 angles."""
    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    waves = [rng.normal(0, spread / k**0.5) * np.cos(k * angles + rng.uniform(0, 2 * np.pi)) for k in orders]
    return np.asarray(np.clip(1 + np.sum(waves, axis=0), 0.55, 1.6))


def _at(radii: Doubles, angle: Doubles) -> Doubles:
    index = (angle / (2 * np.pi) % 1.0) * len(radii)
    lower = index.astype(int) % len(radii)
    share = index - np.floor(index)
    return np.asarray(radii[lower] * (1 - share) + radii[(lower + 1) % len(radii)] * share)


def _steps(outside: Doubles, width: float) -> Doubles:
    """1 well inside a border, and ever larger outside, so that its inverse is a smooth step."""
    return np.asarray(1 + np.exp(np.clip(outside / width, -30, 30)))


def _circumscribed(lesion: Lesion, canvas: _Canvas, rng: np.random.Generator) -> Doubles:
    """An oval with a sharp smooth margin and a thin dark halo."""
    radii = lesion.radius_mm * _wavy(rng, 0.06, range(2, 4))
    window, radius, angle = canvas.around(lesion.radius_mm * 2.2)
    outside = radius - _at(radii, angle)
    dome = np.clip(1 - (radius / _at(radii, angle)) ** 2, 0, 1) ** 0.35
    window += (lesion.contrast * dome / _steps(outside, 0.25)).astype(np.float32)
    window -= (0.035 * np.exp(-(((outside - 0.8) / 0.6) ** 2))).astype(np.float32)
    return radii


def _spiculated(lesion: Lesion, canvas: _Canvas, rng: np.random.Generator) -> Doubles:
    """A dense ragged core with lines that radiate from it and taper."""
    radii = 0.85 * lesion.radius_mm * _wavy(rng, 0.13, range(2, 9))
    window, radius, angle = canvas.around(lesion.radius_mm * 3.2)
    outside = radius - _at(radii, angle)
    core = lesion.contrast * 1.05 / _steps(outside, 0.7)
    spikes = np.zeros_like(radius)
    for base in np.linspace(0, 2 * np.pi, int(rng.integers(14, 26)), endpoint=False):
        length = lesion.radius_mm * rng.uniform(1.4, 3.0)
        bend, direction = rng.normal(0, 0.015), base + rng.normal(0, 0.10)
        turn = (angle - direction - bend * radius + np.pi) % (2 * np.pi) - np.pi
        away = np.where(np.abs(turn) < np.pi / 2, radius * np.sin(turn), 99.0)
        width = np.maximum(0.75 * (1 - radius / length), 0.12) + 0.3 * canvas.layout.mm_per_px
        spike = np.clip(1 - radius / length, 0, 1) ** 0.7 * np.exp(-((away / width) ** 2))
        spikes = np.maximum(spikes, spike)
    window += (core + 0.75 * lesion.contrast * spikes * (outside > -1)).astype(np.float32)
    return radii + 0.25 * lesion.radius_mm


def _rim(lesion: Lesion, canvas: _Canvas, rng: np.random.Generator) -> Doubles:
    """An eggshell: a thin calcified ring around a clear middle."""
    radii = lesion.radius_mm * _wavy(rng, 0.04, range(2, 4))
    window, radius, angle = canvas.around(lesion.radius_mm * 1.8)
    thickness = 0.22 + 0.3 * canvas.layout.mm_per_px
    shell = np.exp(-(((radius - _at(radii, angle)) / thickness) ** 2))
    uneven = _at(_wavy(rng, 0.2, range(1, 7)), angle)
    window += (1.5 * lesion.contrast * shell * uneven).astype(np.float32)
    return radii + 0.8


def _coarse(lesion: Lesion, canvas: _Canvas, rng: np.random.Generator) -> Doubles:
    """A few large popcorn calcifications."""
    for _ in range(lesion.grains):
        away, turn = lesion.radius_mm * 0.8 * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
        radii = rng.uniform(0.5, 1.5) * _wavy(rng, 0.12, range(2, 6))
        window, radius, angle = canvas.moved(away, turn).around(4)
        grain = 1 / _steps(radius - _at(radii, angle), 0.15)
        window += (rng.uniform(1.2, 2.1) * lesion.contrast * grain).astype(np.float32)
    return np.full(72, lesion.radius_mm + 1.0)


def _fine(lesion: Lesion, canvas: _Canvas, rng: np.random.Generator) -> Doubles:
    """A cluster of many small calcifications that differ in size, shape and brightness.

    Each is drawn with its area on the pixel grid, so that grains finer than a pixel fade rather than vanish.
    """
    mm = canvas.layout.mm_per_px
    for _ in range(lesion.grains):
        away, turn = lesion.radius_mm * rng.random() ** 0.6, rng.uniform(0, 2 * np.pi)
        window, radius, angle = canvas.moved(away, turn).around(1.5 + 2 * mm)
        half_width = rng.uniform(0.10, 0.22)
        half_length = half_width * rng.uniform(1.0, 3.0)
        along = radius * np.cos(angle - rng.uniform(0, np.pi))
        across_square = np.maximum(radius**2 - along**2, 0)
        blur = (0.5 * mm) ** 2
        wide, long = half_width**2 + blur, half_length**2 + blur
        share = max(half_width * half_length / np.sqrt(wide * long), 0.35)
        grain = share * np.exp(-(along**2) / long - across_square / wide)
        window += (rng.uniform(0.9, 2.4) * lesion.contrast * grain).astype(np.float32)
    return np.full(72, lesion.radius_mm + 1.0)
