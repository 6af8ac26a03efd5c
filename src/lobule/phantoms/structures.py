"""Ducts, acini, follicles, vessels and mimics: the ovals of a slide, scattered by hash over its tissue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lobule.phantoms.noise import Reals, bilinear, generator
from lobule.phantoms.ovals import Ovals
from lobule.phantoms.phantom import SlidePhantom

ZONE_UM = 32.0
"""Step of the maps that cover the whole slide."""

A64 = NDArray[np.float64]


def structures(phantom: SlidePhantom, depth: Reals, zones: dict[str, Reals]) -> dict[str, Ovals]:
    """Every oval of the slide by kind, in µm."""
    scatter = Scatter(phantom, depth, zones)
    groups: dict[str, list[Ovals]] = {}
    makers = _node if phantom.organ == "node" else _breast
    for name, ovals in [*makers(scatter), *_vessels(scatter), *_mimics(scatter)]:
        if ovals.x.size:
            groups.setdefault(name, []).append(ovals)
    return {name: Ovals.joined(ovals_of_kind) for name, ovals_of_kind in groups.items()}


class Scatter:
    """Jittered positions at a given distance from each other, where the tissue is deep enough."""

    def __init__(self, phantom: SlidePhantom, depth: Reals, zones: dict[str, Reals]) -> None:
        self.phantom, self.depth, self.zones = phantom, depth, zones

    def rng(self, salt: int) -> np.random.Generator:
        return generator(self.phantom.seed, 0x57C, salt)

    def positions(
        self, salt: int, pitch_um: float, deep: tuple[float, float], share: float, jitter: float = 0.8
    ) -> tuple[A64, A64]:
        width, height = self.phantom.size_um
        rng = self.rng(salt)
        columns, rows = int(width / pitch_um) + 2, int(height / pitch_um) + 2
        j, i = (a.ravel() for a in np.mgrid[0:rows, 0:columns])
        x = (i + 0.5 * (j % 2) + jitter * (rng.random(i.size) - 0.5)) * pitch_um
        y = (j + jitter * (rng.random(i.size) - 0.5)) * pitch_um
        here = self.at(self.depth, x, y)
        keep = (rng.random(i.size) < share) & (here >= deep[0]) & (here <= deep[1])
        keep &= (x > -pitch_um) & (y > -pitch_um) & (x < width + pitch_um) & (y < height + pitch_um)
        return x[keep], y[keep]

    @staticmethod
    def at(zone: Reals, x: A64, y: A64) -> A64:
        return bilinear(zone, x / ZONE_UM, y / ZONE_UM).astype(np.float64)


NamedOvals = list[tuple[str, Ovals]]


def _node(scatter: Scatter) -> NamedOvals:
    rng = scatter.rng(1)
    x, y = scatter.positions(2, 560, (170, 1000), 0.75)
    size = rng.uniform(110, 240, x.size)
    follicles = Ovals.sampled(rng, x, y, size * rng.uniform(0.9, 1.3, x.size), size, 0.035)
    centred = rng.random(x.size) < 0.6
    inner = size * rng.uniform(0.45, 0.75, x.size)
    centres = Ovals.sampled(rng, x[centred], y[centred], (inner * 1.1)[centred], inner[centred], 0.05)
    return [("follicle", follicles), ("centre", centres)]


SHARES: dict[str | None, tuple[float, float]] = {
    "normal": (0.4, 0.3), "benign": (0.95, 0.35), "in-situ": (0.25, 0.1), "invasive": (0.12, 0.08),
}  # fmt: skip
"""Shares of the possible positions that hold a lobule and a duct, in each scene."""


def _breast(scatter: Scatter) -> NamedOvals:
    rng = scatter.rng(1)
    scene = scatter.phantom.scene
    ovals: NamedOvals = []
    lobules, ducts = SHARES.get(scene, SHARES["normal"])
    crowd = 420.0 if scene == "benign" else 620.0
    x, y = scatter.positions(3, crowd, (80, 1e9), lobules)
    ovals += [("acinus", one) for one in _acini(rng, x, y, 1.5 if scene == "benign" else 1.0)]
    x, y = scatter.positions(4, 700, (120, 1e9), ducts)
    b = rng.uniform(28, 65, x.size)
    ovals.append(("duct", Ovals.sampled(rng, x, y, b * rng.uniform(1.1, 3.2, x.size), b, 0.07)))
    if scene == "benign":
        x, y = scatter.positions(5, 640, (80, 1e9), 0.45)
        b = rng.uniform(55, 120, x.size)
        ovals.append(("filled", Ovals.sampled(rng, x, y, b * rng.uniform(1, 1.8, x.size), b, 0.08)))
    if scene == "in-situ":
        x, y = scatter.positions(6, 390, (80, 1e9), 0.75, 0.35)
        b = rng.uniform(75, 165, x.size)
        ovals.append(("in-situ", Ovals.sampled(rng, x, y, b * rng.uniform(1, 1.35, x.size), b, 0.035)))
    return ovals


def _acini(rng: np.random.Generator, x: A64, y: A64, crowd: float) -> list[Ovals]:
    """A lobule at each position: a cluster of small rings."""
    rings = []
    for cx, cy in zip(x, y, strict=True):
        radius = rng.uniform(80, 170) * crowd**0.5
        pitch = 48.0
        count = int(np.ceil(radius / pitch)) + 1
        j, i = (a.ravel() for a in np.mgrid[-count : count + 1, -count : count + 1])
        px = (i + 0.5 * (j % 2) + 0.45 * (rng.random(i.size) - 0.5)) * pitch
        py = (j + 0.45 * (rng.random(i.size) - 0.5)) * pitch * 0.9
        keep = np.hypot(px, py) < radius * (0.85 + 0.3 * rng.random(i.size))
        size = rng.uniform(15, 23, i.size)[keep]
        x_um, y_um = cx + px[keep], cy + py[keep]
        rings.append(Ovals.sampled(rng, x_um, y_um, size * rng.uniform(1, 1.5, size.size), size, 0.06))
    return rings


def _vessels(scatter: Scatter) -> NamedOvals:
    rng = scatter.rng(20)
    x, y = scatter.positions(21, 420, (60, 1e9), 0.5)
    size = np.exp(rng.normal(np.log(13), 0.45, x.size))
    return [("vessel", Ovals.sampled(rng, x, y, size * rng.uniform(1, 2.4, x.size), size, 0.08))]


def _mimics(scatter: Scatter) -> NamedOvals:
    phantom = scatter.phantom
    ovals: NamedOvals = []
    rng = scatter.rng(30)
    deep_cells = np.argwhere(scatter.depth > min(350.0, float(scatter.depth.max(initial=0)) * 0.6))
    for index in range(phantom.mimics if len(deep_cells) else 0):
        row, column = deep_cells[rng.integers(len(deep_cells))]
        x, y = column * ZONE_UM, row * ZONE_UM
        size = rng.uniform(180, 420)
        oval = Ovals.sampled(rng, x, y, size * rng.uniform(1, 1.6), size, 0.06)
        kind = ("centre", "histiocytes", "dense")[index % 3]
        if kind == "centre":
            ring = Ovals(oval.x, oval.y, oval.a + 70, oval.b + 70, oval.turn, oval.wobble, oval.phase)
            ovals.append(("follicle", ring))
        ovals.append((kind, oval))
    return ovals
