"""Nuclei: banks of sprites in hematoxylin density, and their stamping onto a canvas."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lobule.phantoms.noise import U32, Reals, cell_hash, generator, rehash, unit

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

ORIENTATIONS = 16
"""Directions over half a turn in which each sprite of a bank exists."""


IN_ONE_GO = 96
"""Number of sprites stamped together; few enough for their pixels to stay in the processor's cache."""


@dataclass(frozen=True)
class NucleusKind:
    """How one kind of nucleus varies. Lengths in µm, densities in hundredths of optical density."""

    length: tuple[float, float]
    width: tuple[float, float]
    density: tuple[float, float]
    rim: float = 0.25
    """How much darker the membrane is than the inside."""
    chromatin: float = 0.2
    """Contrast of the clumps inside."""
    clump_um: float = 1.6
    wobble: float = 0.06
    bend: float = 0.0
    nucleoli: float = 0.0
    """Share of nuclei with a nucleolus."""
    shapes: int = 16


KINDS: dict[str, NucleusKind] = {
    "lymphocyte": NucleusKind((5.6, 7.4), (5.2, 6.8), (68, 100), rim=0.16, chromatin=0.26, clump_um=1.7),
    "centroblast": NucleusKind(
        (7.5, 10.5), (6.8, 9.2), (36, 66), rim=0.35, chromatin=0.3, clump_um=2.0, nucleoli=0.5
    ),
    "fibroblast": NucleusKind((11, 20), (2.2, 3.8), (50, 85), rim=0.1, chromatin=0.15, bend=0.25),
    "epithelial": NucleusKind((7.6, 10.5), (5.4, 7.4), (50, 82), rim=0.2, chromatin=0.2),
    "histiocyte": NucleusKind(
        (9.0, 13.0), (6.5, 9.0), (30, 56), rim=0.35, chromatin=0.22, wobble=0.1, bend=0.3
    ),
    "tumour": NucleusKind(
        (9.0, 14.5), (7.5, 11.0), (42, 80), rim=0.32, chromatin=0.34, clump_um=2.3, wobble=0.12, nucleoli=0.7,
        shapes=32,
    ),
    "tumour-dark": NucleusKind(
        (8.0, 14.0), (6.5, 10.0), (62, 104), rim=0.15, chromatin=0.3, clump_um=2.2, wobble=0.16, shapes=32
    ),
    "mitosis": NucleusKind((7.0, 11.0), (2.6, 4.5), (100, 125), rim=0.0, chromatin=0.2, wobble=0.25),
    "red-cell": NucleusKind((6.2, 7.4), (5.4, 7.0), (40, 64), rim=0.25, chromatin=0.08),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Bank:
    """Sprites of one kind, each a run of pixels, at index `shape · ORIENTATIONS + direction`."""

    half: int
    """Pixels from a sprite's centre to its farthest side."""
    shapes: int
    first: I64
    """Start of the run of each sprite."""
    count: I64
    dx: I64
    dy: I64
    density: U8


@lru_cache(maxsize=64)
def bank(kind: str, mpp: float, softness_um: float) -> Bank:
    """The bank of a kind at a resolution. It is cached because it is the same for every slide."""
    look = KINDS[kind]
    rng = generator(*kind.encode(), 7)
    half = int(np.ceil((look.length[1] * 0.56 + softness_um) / mpp))
    side = 2 * half + 1
    fine = max(1, round(mpp / 0.5))
    axis = ((np.arange(side * fine) + 0.5) / fine - side / 2) * mpp
    x, y = np.meshgrid(axis.astype(np.float32), axis.astype(np.float32))
    edge_um = max(0.35, mpp / fine, softness_um)
    angles = (np.pi / ORIENTATIONS * np.arange(ORIENTATIONS, dtype=np.float32))[:, None, None]
    chromatin = _chromatin(look, rng)
    runs = []
    for _ in range(look.shapes):
        form = _Form.sampled(look, rng, chromatin)
        turned = form.density(x, y, angles, edge_um)
        small = turned.reshape(ORIENTATIONS, side, fine, side, fine).mean((2, 4))
        for pixels in np.clip(small, 0, 215).astype(np.uint8):
            dy, dx = np.nonzero(pixels > 1)
            runs.append((dx - half, dy - half, pixels[dy, dx]))
    count = np.array([len(run[0]) for run in runs])
    columns = [np.concatenate([run[k] for run in runs]) for k in range(3)]
    return Bank(half, look.shapes, np.cumsum(count) - count, count, *columns)


def _chromatin(look: NucleusKind, rng: np.random.Generator) -> Reals:
    """Clumps of unit spread, periodic, a value every 0.25 µm."""
    clumps = ndimage.gaussian_filter(rng.standard_normal((256, 256)), look.clump_um / 0.5, mode="wrap")
    return np.asarray((clumps / clumps.std()).astype(np.float32))


@dataclass(frozen=True)
class _Form:
    """One nucleus, before it is turned and sampled."""

    look: NucleusKind
    half_length: float
    half_width: float
    level: float
    bend: float
    amplitude: NDArray[np.float64]
    phase: NDArray[np.float64]
    chromatin: Reals
    corner: tuple[int, int]
    """The position in `chromatin` of the middle of this nucleus."""
    nucleoli: NDArray[np.float64]

    @classmethod
    def sampled(cls, look: NucleusKind, rng: np.random.Generator, chromatin: Reals) -> _Form:
        order = np.arange(2, 6)
        count = int(rng.random() < look.nucleoli) + int(rng.random() < look.nucleoli * 0.4)
        return cls(
            look,
            float(rng.uniform(*look.length) / 2),
            float(rng.uniform(*look.width) / 2),
            float(rng.uniform(*look.density)),
            float(look.bend * rng.uniform(-1, 1)),
            look.wobble * rng.standard_normal(order.size) / (order - 1),
            rng.uniform(0, 2 * np.pi, order.size),
            chromatin,
            (int(rng.integers(256)), int(rng.integers(256))),
            rng.uniform(-0.45, 0.45, (count, 2)),
        )

    def density(self, x: Reals, y: Reals, angle: Reals, edge_um: float) -> Reals:
        """Density at positions (µm from the middle), rotated by each of the angles."""
        c, s = np.cos(angle), np.sin(angle)
        u, v = (x * c + y * s) / self.half_length, (y * c - x * s) / self.half_width
        v += self.bend * (u * u - 0.4) * self.half_length / self.half_width * 0.6
        around = u + np.complex64(1j) * v
        rho = np.maximum(np.abs(around), np.float32(1e-6))
        around /= rho
        waves = (self.amplitude * np.exp(1j * self.phase)).astype(np.complex64)
        # 2 to 5 waves around are powers of the direction, summed from the last
        sway = np.full_like(around, waves[-1])
        for wave in waves[-2::-1]:
            sway *= around
            sway += wave
        sway *= around * around
        depth = (1 + sway.real - rho) * min(self.half_length, self.half_width)
        inside = np.clip(depth / edge_um + 0.5, 0, 1)
        iu = np.rint(u * (self.half_length / 0.25)).astype(np.int32) + self.corner[0] & 255
        iv = np.rint(v * (self.half_width / 0.25)).astype(np.int32) + self.corner[1] & 255
        level = 1 + self.look.chromatin * 0.6 * np.clip(self.chromatin[iv, iu], -1.4, 1.8)
        level += self.look.rim * (1.6 * np.exp(-(((depth - 0.45) / 0.55) ** 2)) - 0.4)
        for nu, nv in self.nucleoli.tolist():
            nucleolus_distance = np.hypot((u - nu) * self.half_length, (v - nv) * self.half_width)
            level += 0.75 * np.clip((1.1 - nucleolus_distance) / 0.5, 0, 1)
        return np.asarray(self.level * level * inside)


def stamp(canvas: U8, kind: Bank, x: I64, y: I64, pick: U32, turn: Reals | None) -> None:
    """Lay sprites centred at (x, y) onto a canvas, keeping the denser of the two at each pixel.

    The denser wins whatever the order, so that neighbouring blocks agree on a nucleus that both show. Every
    sprite must lie inside the canvas. `turn` is the direction in [0, 1) of half a turn; None is any.
    """
    if x.size == 0:
        return
    if turn is None:
        direction = rehash(pick) % np.uint32(ORIENTATIONS)
    else:
        direction = (np.round(turn * ORIENTATIONS).astype(np.int64) % ORIENTATIONS).astype(np.uint32)
    sprite = (pick % np.uint32(kind.shapes)) * np.uint32(ORIENTATIONS) + direction
    flat, width = canvas.reshape(-1), canvas.shape[1]
    centre = y * width + x
    offsets = _offsets(kind, width)
    for start in range(0, x.size, IN_ONE_GO):
        these = sprite[start : start + IN_ONE_GO]
        count = kind.count[these]
        ends = np.cumsum(count)
        run = np.arange(int(ends[-1]))
        run += np.repeat(kind.first[these] - (ends - count), count)
        pixels = offsets[run]
        pixels += np.repeat(centre[start : start + IN_ONE_GO], count)
        np.maximum.at(flat, pixels, kind.density[run])


@lru_cache(maxsize=64)
def _offsets(kind: Bank, width: int) -> I64:
    """Offsets from the centre of a sprite to its pixels on a flattened canvas of this width."""
    return kind.dy * width + kind.dx


def jittered(
    left_um: float,
    top_um: float,
    right_um: float,
    bottom_um: float,
    pitch_um: float,
    jitter: float,
    salt: int,
    most: float = 1.0,
) -> tuple[Reals, Reals, U32]:
    """Positions (µm) and hashes of one candidate in each lattice cell that touches a box.

    Only candidates whose hash is below `most` of all hashes are listed.
    """
    columns = np.arange(int(np.floor(left_um / pitch_um)), int(np.floor(right_um / pitch_um)) + 1)
    rows = np.arange(int(np.floor(top_um / pitch_um)), int(np.floor(bottom_um / pitch_um)) + 1)
    first = cell_hash(columns[None, :], rows[:, None], salt)
    second = rehash(first)
    chance = rehash(second)
    chosen = np.flatnonzero(unit(chance) < most)
    j, i = np.divmod(chosen, columns.size)
    column, row = columns[i], rows[j]
    # odd rows are shifted by half a cell, which packs round shapes more densely
    x = (column + 0.5 * (row & 1) + 0.5 + jitter * (unit(first.take(chosen)) - 0.5)) * pitch_um
    y = (row + 0.5 + jitter * (unit(second.take(chosen)) - 0.5)) * pitch_um
    return x, y, chance.take(chosen)
