"""The anatomy of a generated breast, laid out in one mammographic view: outline, tissue, ligaments, muscle.

Everything here is drawn in the right-pointing frame (chest wall at column 0) and in millimetres.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import PchipInterpolator

Floats = NDArray[np.float32]
Doubles = NDArray[np.floating]
Density = Literal["a", "b", "c", "d"]

FIELD_MM = 240.0
"""The height of every image in millimetres, whatever its pixels: geometry scales with the image."""

SIGMA_AS_WAVELENGTH = 2 * 2**0.5 * np.pi
"""Makes `shortest_mm` of `power_law` the width of a Gaussian blur."""

GLANDULAR_SHARE: dict[Density, float] = {"a": 0.10, "b": 0.30, "c": 0.55, "d": 0.80}


def stream(seed: int, *names: str) -> np.random.Generator:
    """A separate random stream for each name, so that adding one structure leaves the others unchanged."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


@dataclass(frozen=True)
class Breast:
    """What both views of a breast share."""

    depth_mm: float
    half_width_mm: float
    half_height_mm: float
    density: Density
    sag: float
    """How far the nipple lies below the middle of the MLO view, as a share of its half height."""

    @classmethod
    def draw(cls, rng: np.random.Generator, density: Density) -> Breast:
        depth = rng.uniform(80, 125)
        return cls(
            depth_mm=depth,
            half_width_mm=depth * rng.uniform(0.82, 0.95),
            half_height_mm=depth * rng.uniform(0.80, 0.92),
            density=density,
            sag=rng.uniform(0.0, 0.2),
        )


@dataclass(frozen=True)
class Layout:
    """One view of a breast on a pixel grid: where its skin, nipple and muscle are."""

    is_mlo: bool
    mm_per_px: float
    breast: Breast
    nipple_mm: tuple[float, float]
    """Row and column of the nipple."""
    inside_mm: Floats
    """(H, W) distance to the skin, negative outside the breast."""
    muscle_mm: Floats | None
    """(H, W) distance into the pectoral muscle, negative outside it; None in CC views."""

    def at(self, shape: tuple[int, int]) -> Layout:
        """The same view on a finer grid."""
        muscle = None if self.muscle_mm is None else enlarge(self.muscle_mm, shape)
        inside = enlarge(self.inside_mm, shape)
        return replace(self, mm_per_px=FIELD_MM / shape[0], inside_mm=inside, muscle_mm=muscle)

    @property
    def shape(self) -> tuple[int, int]:
        return self.inside_mm.shape[0], self.inside_mm.shape[1]

    def mesh_mm(self) -> tuple[Floats, Floats]:
        """Rows and columns of the pixel centres, broadcastable."""
        height, width = self.shape
        rows = (np.arange(height, dtype=np.float32)[:, None] + 0.5) * np.float32(self.mm_per_px)
        columns = (np.arange(width, dtype=np.float32)[None, :] + 0.5) * np.float32(self.mm_per_px)
        return rows, columns

    def clearance_mm(self, row_mm: float, column_mm: float) -> float:
        """Distance of a position to the nearest of skin and muscle."""
        row = int(np.clip(row_mm / self.mm_per_px, 0, self.shape[0] - 1))
        column = int(np.clip(column_mm / self.mm_per_px, 0, self.shape[1] - 1))
        skin = float(self.inside_mm[row, column])
        return skin if self.muscle_mm is None else min(skin, -float(self.muscle_mm[row, column]))


def lay_out(breast: Breast, *, is_mlo: bool, shape: tuple[int, int], rng: np.random.Generator) -> Layout:
    mm_per_px = FIELD_MM / shape[0]
    depth = min(breast.depth_mm, 0.92 * shape[1] * mm_per_px)
    rows_mm = (np.arange(shape[0], dtype=np.float64) + 0.5) * mm_per_px
    if is_mlo:
        nipple_row = FIELD_MM * rng.uniform(0.56, 0.60) + breast.sag * 20
        reach = _mlo_reach(rows_mm, nipple_row, depth, breast.half_height_mm, rng)
    else:
        nipple_row = FIELD_MM / 2 + rng.uniform(-8, 8)
        reach = _cc_reach(rows_mm, nipple_row, depth, min(breast.half_width_mm, 0.42 * FIELD_MM), rng)
    columns_mm = (np.arange(shape[1], dtype=np.float64) + 0.5) * mm_per_px
    mask = columns_mm[None, :] < reach[:, None]
    nipple = (nipple_row, depth - 1.5)
    bump = ((rows_mm[:, None] - nipple[0]) / 5.0) ** 2 + ((columns_mm[None, :] - nipple[1]) / 4.4) ** 2 < 1
    muscle = _muscle(rows_mm, columns_mm, nipple_row, depth, rng) if is_mlo else None
    return Layout(is_mlo, mm_per_px, breast, nipple, _signed_distance(mask | bump, mm_per_px), muscle)


def _cc_reach(
    rows: Doubles, nipple_row: float, depth: float, half: float, rng: np.random.Generator
) -> Doubles:
    """A half oval, a little fuller on one side."""
    lean = rng.uniform(0.9, 1.1)
    scaled = np.where(
        rows < nipple_row, (nipple_row - rows) / (half * lean), (rows - nipple_row) / (half / lean)
    )
    oval = np.clip(1 - np.abs(scaled) ** rng.uniform(2.0, 2.4), 0, None) ** rng.uniform(0.55, 0.65)
    return np.asarray(depth * oval)


def _mlo_reach(
    rows: Doubles, nipple_row: float, depth: float, half: float, rng: np.random.Generator
) -> Doubles:
    """The axillary tail above, an oval below, and the fold under the breast."""
    axilla = depth * rng.uniform(0.42, 0.58)
    above = PchipInterpolator(
        [-20, 0.25 * nipple_row, 0.62 * nipple_row, 0.86 * nipple_row, nipple_row, nipple_row + 5],
        [axilla, axilla * 1.12, depth * 0.80, depth * 0.965, depth, depth],
    )(np.minimum(rows, nipple_row))
    below = np.clip((rows - nipple_row) / min(half, FIELD_MM - nipple_row - 14), 0, None)
    oval = np.clip(1 - below**2.2, 0, None) ** 0.6
    fold = depth * rng.uniform(0.03, 0.09) * (1 + np.clip(rows - 0.93 * FIELD_MM, 0, None) / 12)
    lower = depth * oval
    blend = np.where(lower > fold, lower, fold) + 4 * np.exp(-(((lower - fold) / 9) ** 2))
    return np.asarray(np.where(rows < nipple_row, above, np.minimum(blend, depth)))


def _muscle(
    rows: Doubles, columns: Doubles, nipple_row: float, depth: float, rng: np.random.Generator
) -> Floats:
    """The muscle narrows from the axilla to a point near the nipple's level; its edge is slightly convex."""
    top, end = depth * rng.uniform(0.34, 0.48), nipple_row * rng.uniform(0.82, 1.0)
    bow = rng.uniform(0.75, 1.0)
    left = 1 - rows / end
    edge = top * np.where(left > 0, np.abs(left) ** bow, left)
    slope = np.hypot(1.0, top / end)
    return np.asarray(((edge[:, None] - columns[None, :]) / slope).astype(np.float32))


def _signed_distance(mask: NDArray[np.bool_], mm_per_px: float) -> Floats:
    """Distance to the skin; the image's own edges, the chest wall above all, are not skin."""
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    return np.asarray((np.where(mask, inside - 0.5, 0.5 - outside) * mm_per_px).astype(np.float32))


def enlarge(field: Floats, shape: tuple[int, int]) -> Floats:
    """A smooth field on a finer grid, linearly."""
    if field.shape == shape:
        return field
    factors = (shape[0] / field.shape[0], shape[1] / field.shape[1])
    return np.asarray(ndimage.zoom(field, factors, order=1, mode="nearest", grid_mode=True))


def power_law(
    rng: np.random.Generator,
    shape: tuple[int, int],
    mm_per_px: float,
    *,
    beta: float,
    longest_mm: float,
    stretch: tuple[float, float] = (1.0, 1.0),
    shortest_mm: float = 0.0,
) -> Floats:
    """Gaussian noise with a 1/f^beta power spectrum (mammograms have beta near 3), zero mean, unit spread."""
    gain = _power_law_gain(shape, mm_per_px, beta, longest_mm, stretch, shortest_mm)
    white = scipy.fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    noise = scipy.fft.irfft2(white * gain, s=shape).astype(np.float32)
    unit: Floats = noise / max(float(noise.std()), 1e-12)
    return unit


@lru_cache(maxsize=16)  # every view of a cohort uses the same few gains
def _power_law_gain(
    shape: tuple[int, int],
    mm_per_px: float,
    beta: float,
    longest_mm: float,
    stretch: tuple[float, float],
    shortest_mm: float,
) -> Floats:
    fy = scipy.fft.fftfreq(shape[0], mm_per_px)[:, None] * stretch[0]
    fx = scipy.fft.rfftfreq(shape[1], mm_per_px)[None, :] * stretch[1]
    square = fy**2 + fx**2
    gain = (square + (1 / longest_mm) ** 2) ** (-beta / 4) * np.exp(-square * (shortest_mm / 2) ** 2)
    gain[0, 0] = 0
    result: Floats = gain.astype(np.float32)
    return result


def tissue(layout: Layout, rng: np.random.Generator) -> Floats:
    """(H, W) brightness of fat, glands, ligaments, vessels and muscle, before the skin's roll-off."""
    glands = _glands(layout, rng)
    threads = _threads(layout, rng)
    shape, mm = layout.shape, layout.mm_per_px
    clouds = power_law(rng, shape, mm, beta=3.2, longest_mm=25)
    picture = 0.27 + 0.022 * clouds + 0.36 * glands + threads * (0.05 + 0.10 * glands)
    picture += _vessels(layout, rng)
    if layout.muscle_mm is not None:
        fibres = power_law(rng, shape, mm, beta=3.4, longest_mm=40, stretch=(1.3, 0.8), shortest_mm=0.6)
        share = 1 / (1 + np.exp(-np.clip(layout.muscle_mm / 0.9, -30, 30)))
        deep = 1 - np.exp(-np.clip(layout.muscle_mm, 0, None) / 14)
        muscle = 0.50 + 0.17 * deep + 0.022 * fibres + 0.3 * (picture - 0.27)
        picture = picture * (1 - share) + share * muscle
    return np.asarray(picture.astype(np.float32))


def _glands(layout: Layout, rng: np.random.Generator) -> Floats:
    """Fibroglandular tissue: a ragged fan behind the nipple whose extent is the density class."""
    rows, columns = layout.mesh_mm()
    nipple_row, nipple_column = layout.nipple_mm
    share = GLANDULAR_SHARE[layout.breast.density]
    middle = nipple_column * rng.uniform(0.52, 0.60)
    tilt = rng.uniform(0.0, 0.25) if layout.is_mlo else rng.uniform(-0.15, 0.15)
    up = rows - nipple_row + tilt * (nipple_column - columns)
    across = nipple_column * (0.24 + 0.30 * share)
    along = nipple_column * (0.26 + 0.22 * share)
    fan = np.hypot(up / across, (columns - middle) / along)
    shape, mm = layout.shape, layout.mm_per_px
    ragged = power_law(rng, shape, mm, beta=3.7, longest_mm=45, shortest_mm=0.8)
    lobules = power_law(rng, shape, mm, beta=3.3, longest_mm=9, shortest_mm=0.9)
    level = 1.55 * (1 - fan) + 0.62 * ragged + 0.9 * (share - 0.45)
    extent = 1 / (1 + np.exp(-np.clip(level / 0.38, -30, 30)))
    body = np.clip(0.55 + 0.35 * share + 0.16 * lobules + 0.12 * ragged, 0, 1.4)
    faded = 1 - np.exp(-np.clip(layout.inside_mm - 3, 0, None) / 7)
    return np.asarray((extent * body * faded).astype(np.float32))


def _threads(layout: Layout, rng: np.random.Generator) -> Floats:
    """Cooper's ligaments and ducts: thin curved lines that run towards the nipple, fading in and out.

    The zero crossings of smooth noise are a web of curves; drawn around the nipple they become its fan.
    """
    rows, columns = layout.mesh_mm()
    away_rows, away_columns = rows - layout.nipple_mm[0], layout.nipple_mm[1] + 12 - columns
    angle = np.arctan2(away_rows, away_columns)
    radius = np.hypot(away_rows, away_columns)
    webs = np.zeros(layout.shape, np.float32)
    for spread, across, along in ((0.14, 700, 70), (0.20, 420, 40), (0.28, 240, 30)):
        blur = (SIGMA_AS_WAVELENGTH * 1200 / across, SIGMA_AS_WAVELENGTH * 160 / along)
        web = power_law(rng, (1200, 160), 1.0, beta=0, longest_mm=1, stretch=blur, shortest_mm=1)
        at = np.broadcast_arrays((angle / np.pi + 1) * 600, radius / (1.25 * FIELD_MM) * 160)
        value = ndimage.map_coordinates(web, np.stack(at), order=1, mode="grid-wrap")
        webs += np.exp(-((value / spread) ** 2))
    fade = power_law(rng, layout.shape, layout.mm_per_px, beta=3.0, longest_mm=14)
    return np.asarray(webs * np.clip(0.30 + 0.45 * fade, 0, 1))


def _vessels(layout: Layout, rng: np.random.Generator) -> Floats:
    """A few vessels that wander from the chest wall towards the nipple."""
    brightness = np.zeros(layout.shape, np.float32)
    mm = layout.mm_per_px
    nipple_row, nipple_column = layout.nipple_mm
    for _ in range(int(rng.integers(2, 6))):
        start = nipple_row + rng.uniform(-0.8, 0.8) * layout.breast.half_height_mm
        end_column = nipple_column * rng.uniform(0.55, 0.95)
        t = np.linspace(0, 1, int(2 * nipple_column / mm) + 2)
        pull = (nipple_row + rng.uniform(-15, 15) - start) * t ** rng.uniform(1, 2)
        wander = sum(
            rng.uniform(-4, 4) / k * np.sin(2 * np.pi * (k * t + rng.random())) for k in (1, 2, 3, 5)
        )
        row_px, column_px = ((start + pull + wander) / mm).astype(int), (end_column * t / mm).astype(int)
        inside = (row_px >= 0) & (row_px < layout.shape[0]) & (column_px < layout.shape[1])
        line = np.zeros_like(brightness)
        line[row_px[inside], column_px[inside]] = 1
        sigma = max(0.6, rng.uniform(0.35, 0.75) / mm)
        blurred = ndimage.gaussian_filter(line, sigma, truncate=3)
        brightness += blurred * np.float32(sigma * 2.5 * rng.uniform(0.05, 0.11))
    return brightness


def finish(layout: Layout, picture: Floats, rng: np.random.Generator) -> Floats:
    """The skin's roll-off, the skin line, the nipple and the detector's noise; outside the breast it is 0."""
    inside = layout.inside_mm
    rows, columns = layout.mesh_mm()
    rolled = picture * (0.10 + 0.90 * (1 - np.exp(-np.clip(inside, 0, None) / 5.5)))
    rolled += 0.07 * np.exp(-(((inside - 0.9) / 0.55) ** 2))
    from_nipple = np.hypot((rows - layout.nipple_mm[0]) / 4.2, (columns - layout.nipple_mm[1] + 0.3) / 4.0)
    rolled += 0.13 * np.exp(-(from_nipple**4))
    grain = ndimage.gaussian_filter(rng.standard_normal(layout.shape, dtype=np.float32), 0.6)
    rolled += 0.012 * np.sqrt(np.clip(rolled, 0, None)) * grain / max(float(grain.std()), 1e-12)
    return np.asarray(np.where(inside > 0, np.clip(rolled, 0.004, 1.0), 0).astype(np.float32))
