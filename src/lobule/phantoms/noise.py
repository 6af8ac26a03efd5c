"""Randomness that depends only on the position: hashes of lattice cells, and periodic noise."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Reals = NDArray[np.floating]
"""Floating-point numbers; 32 bits wide in large arrays."""
U32 = NDArray[np.uint32]
I16 = NDArray[np.int16]


def mixed(*words: int) -> int:
    """Mix several integers into one 32-bit number, the same on every machine."""
    state = 0x9E3779B9
    for word in words:
        state ^= (word & 0xFFFFFFFF) * 0x85EBCA6B & 0xFFFFFFFF
        state = (state ^ (state >> 16)) * 0x7FEB352D & 0xFFFFFFFF
        state = (state ^ (state >> 15)) * 0x846CA68B & 0xFFFFFFFF
        state ^= state >> 16
    return state


def generator(*words: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(mixed(*words)))


def cell_hash(columns: NDArray[np.int64], rows: NDArray[np.int64], salt: int) -> U32:
    """A 32-bit hash of each lattice cell; columns and rows may be broadcast."""
    state = columns.astype(np.uint32) * np.uint32(0x8DA6B343)
    return rehash(state ^ (rows.astype(np.uint32) * np.uint32(0xD8163841) ^ np.uint32(salt)))


def rehash(state: U32) -> U32:
    """The next hash in a chain, independent enough of the one before for pixels."""
    state = (state ^ (state >> np.uint32(16))) * np.uint32(0x7FEB352D)
    state = (state ^ (state >> np.uint32(15))) * np.uint32(0x846CA68B)
    return state ^ (state >> np.uint32(16))


def unit(state: U32) -> Reals:
    """A hash as a number in [0, 1)."""
    return (state >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def band_noise(size: int, px_um: float, wavelength_um: float, seed: int, *, spread: float = 0.5) -> Reals:
    """Periodic noise of zero mean and unit spread about one wavelength."""
    fy = fft.fftfreq(size, px_um).astype(np.float32)[:, None]
    fx = fft.rfftfreq(size, px_um).astype(np.float32)[None, :]
    frequency = np.maximum(np.hypot(fx, fy), np.float32(1e-9))
    octaves = np.log2(frequency * np.float32(wavelength_um))
    gain = np.exp(-0.5 * (octaves / np.float32(spread)) ** 2) / frequency
    gain[0, 0] = 0.0
    spectrum = fft.rfft2(_white(size, seed), workers=1)
    return _normal(fft.irfft2(spectrum * gain, s=(size, size), workers=1))


def streaks(size: int, px_um: float, count: int, seed: int) -> list[Reals]:
    """Periodic noise of fine and broad streaks along each of `count` directions over half a turn.

    All come from the same white noise, so that streaks continue where one direction blends into the next.
    """
    spectrum = fft.rfft2(_white(size, seed), workers=1)
    fy = fft.fftfreq(size, px_um).astype(np.float32)[:, None]
    fx = fft.rfftfreq(size, px_um).astype(np.float32)[None, :]
    fields = []
    for index in range(count):
        c, s = np.float32(np.cos(np.pi * index / count)), np.float32(np.sin(np.pi * index / count))
        along, across = (fx * c + fy * s) ** 2, (fy * c - fx * s) ** 2
        gain = np.zeros_like(along)
        for width, length, share in ((1.7, 26.0, 0.65), (6.0, 60.0, 0.75)):
            width = max(width, 1.3 * px_um)
            band = np.exp(-0.5 * (along * length**2 + across * (2.2 * width) ** 2)) * np.sqrt(across + 1e-9)
            gain += share * band / np.sqrt((band**2).mean())
        fields.append(_normal(fft.irfft2(spectrum * gain, s=(size, size), workers=1)))
    return fields


def _white(size: int, seed: int) -> Reals:
    return np.random.Generator(np.random.PCG64(seed)).standard_normal((size, size), np.float32)


def _normal(noise: NDArray[np.floating]) -> Reals:
    noise = noise - noise.mean()
    return (noise / max(float(noise.std()), 1e-12)).astype(np.float32)


Number = TypeVar("Number", bound=np.generic)


def window(atlas: NDArray[Number], left: int, top: int, width: int, height: int) -> NDArray[Number]:
    """A box of a periodic atlas."""
    rows = atlas.take(np.arange(top, top + height), axis=0, mode="wrap")
    return rows.take(np.arange(left, left + width), axis=1, mode="wrap")


def bilinear(field: Reals, x: Reals, y: Reals) -> Reals:
    """Values of a lattice field at positions in lattice units; beyond the edge the border value.

    `x` and `y` may be broadcast.
    """
    rows, columns = field.shape
    x = np.clip(x, 0, columns - 1.001).astype(np.float32)
    y = np.clip(y, 0, rows - 1.001).astype(np.float32)
    i, j = x.astype(np.int32), y.astype(np.int32)
    fx, fy = x - i, y - j
    flat = field.ravel()
    at = j * columns + i
    top = flat[at] * (1 - fx) + flat[at + 1] * fx
    low = flat[at + columns] * (1 - fx) + flat[at + columns + 1] * fx
    return np.asarray(top * (1 - fy) + low * fy)


def upsampled(field: I16, step: int) -> I16:
    """Lattice corners (n+1, m+1) to pixels (n·step, m·step), linear between corners.

    Neighbours may differ by at most 960, for no product to overflow; `step` is a power of two up to 16.
    """
    if step == 1:
        # the centre of a pixel is midway between its corners
        tall = field[:-1] + field[1:]
        return (tall[:, :-1] + tall[:, 1:]) >> 2
    weight = ((2 * np.arange(step) + 1) * (16 // step)).astype(np.int16)
    wide = field[:, :-1, None] + (((field[:, 1:] - field[:, :-1])[:, :, None] * weight) >> 5)
    wide = wide.reshape(field.shape[0], -1)
    # rows last, so that the long loops run along memory
    down = wide[1:] - wide[:-1]
    full = down[:, None, :] * weight[None, :, None]
    full >>= 5
    full += wide[:-1, None, :]
    return full.reshape(-1, wide.shape[1])
