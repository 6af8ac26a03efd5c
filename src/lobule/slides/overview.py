"""A slide at a small scale, read from the best level: what tissue finding and pictures start from."""

from __future__ import annotations

from math import log2

from lobule.geometry import Box, Lattice
from lobule.slides.backend import RGB
from lobule.slides.slide import Slide

MAX_PIXELS = 100_000_000
"""An overview has at most so many pixels; a larger slide is read coarser."""


def overview_lattice(slide: Slide, mpp: float) -> Lattice:
    """The lattice of an overview near a µm/px: a level's own where one lies within a factor of two."""
    base = slide.mpp.mean
    while slide.size.area * (base / max(mpp, base)) ** 2 > MAX_PIXELS:
        mpp = max(mpp, base) * 2
    off = {level: abs(log2(base * float(slide.steps(level)[0]) / mpp)) for level in range(len(slide.levels))}
    nearest = min(off, key=lambda level: off[level])
    if off[nearest] <= 1 or mpp <= base:
        return slide.lattice(level=nearest)
    return slide.lattice(mpp=mpp)


def overview(slide: Slide, mpp: float) -> tuple[RGB, Lattice]:
    """The whole slide near a µm/px, and the lattice it lies on."""
    lattice = overview_lattice(slide, mpp)
    return slide.read_lattice(lattice, Box(0, 0, *lattice.size)), lattice
