"""Artefacts of preparation and scanning: folds, pen, bubbles, blur, dust and the cover glass's edge."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lobule.phantoms.layout import Layout
from lobule.phantoms.noise import Reals, generator
from lobule.phantoms.phantom import ARTEFACTS, SlidePhantom
from lobule.phantoms.stains import Words, rgb_of_words
from lobule.phantoms.structures import ZONE_UM

PEN_INKS = ((40, 60, 160), (30, 110, 60), (20, 20, 25))


OUTSIDE = -1e6
"""Depth of pixels that are far from a stroke."""


@dataclass(frozen=True)
class Stroke:
    """A curved band: points along it in level-0 pixels and half its width."""

    points: NDArray[np.float64]
    half_px: float

    def distance(self, left: int, top: int, size: int) -> Reals | None:
        """Depth of each pixel of a box inside the band; None where the band does not touch the box."""
        low, high = self.points.min(0) - self.half_px - 4, self.points.max(0) + self.half_px + 4
        if low[0] > left + size or high[0] < left or low[1] > top + size or high[1] < top:
            return None
        x0, y0 = (int(max(0, v)) for v in low - [left, top])
        x1, y1 = (int(min(size, v + 1)) for v in high - [left, top])
        if x1 <= x0 or y1 <= y0:
            return None
        y, x = (a.astype(np.float32) for a in np.mgrid[y0:y1, x0:x1])
        nearest = np.full(x.shape, np.inf, np.float32)
        local = (self.points - [left, top]).astype(np.float32)
        reach = self.half_px + 4
        for start, end in itertools.pairwise(local):
            if (np.maximum(start, end) < -reach).any() or (np.minimum(start, end) > size + reach).any():
                continue
            along = end - start
            t = np.clip(((x - start[0]) * along[0] + (y - start[1]) * along[1]) / float(along @ along), 0, 1)
            distance = np.hypot(x - start[0] - t * along[0], y - start[1] - t * along[1])
            np.minimum(nearest, distance, out=nearest)
        if float(nearest.min()) >= self.half_px:
            return None
        inside = np.full((size, size), OUTSIDE, np.float32)
        inside[y0:y1, x0:x1] = np.float32(self.half_px) - np.minimum(nearest, np.float32(-OUTSIDE))
        return inside


class Artefacts:
    """The requested artefacts, placed by the seed. They change the blocks that they touch."""

    def __init__(self, phantom: SlidePhantom, layout: Layout, glass: int) -> None:
        self.phantom, self.glass = phantom, glass
        self.strokes: dict[str, list[Stroke]] = {}
        rng = generator(phantom.seed, 0xA47)
        tissue_points = np.argwhere(layout.depth > 60.0).astype(np.float64) * (ZONE_UM / phantom.mpp)
        for kind in ARTEFACTS:
            stroke_seed = rng.integers(1 << 31)
            if kind in phantom.artefacts:
                self.strokes[kind] = self._strokes_of(kind, tissue_points, generator(int(stroke_seed), 3))

    def _strokes_of(
        self, kind: str, tissue_points: NDArray[np.float64], rng: np.random.Generator
    ) -> list[Stroke]:
        um = 1 / self.phantom.mpp
        w, h = float(self.phantom.width), float(self.phantom.height)
        at = np.array([w, h]) / 2
        if len(tissue_points):
            at = tissue_points[rng.integers(len(tissue_points))][::-1]
        turn = rng.uniform(0, 2 * np.pi)
        if kind == "fold":
            return [_curve(at, rng.uniform(500, 1500) * um, turn, rng.uniform(14, 34) * um, 0.25, rng)]
        if kind == "pen":
            edge = np.array([rng.uniform(0.1, 0.9) * w, rng.uniform(0.03, 0.12) * h])
            return [_curve(edge, min(w, h) * 0.3, rng.uniform(-0.4, 0.4), 90 * um, 0.15, rng)]
        if kind == "bubble":
            size = rng.uniform(90, 260) * um
            return [Stroke(np.stack([at, at + np.array([1.0, 0.5])]), size)]
        if kind == "blur":
            return [_curve(at, rng.uniform(200, 700) * um, turn, rng.uniform(220, 500) * um, 0.1, rng)]
        if kind == "dust":
            return [
                _curve(grain, rng.uniform(3, 60) * um, rng.uniform(0, 6), rng.uniform(1.5, 6) * um, 0.12, rng)
                for grain in rng.uniform([0, 0], [w, h], (24, 2))
            ]
        x = rng.uniform(0.015, 0.04) * w
        return [Stroke(np.array([[x, -10.0], [x + 0.01 * w, h + 10]]), 7 * um)]

    def meets(self, kinds: tuple[str, ...], left: int, top: int, size: int) -> bool:
        """Whether an artefact of one of these kinds touches a box."""
        strokes = (stroke for kind in kinds for stroke in self.strokes.get(kind, ()))
        return any(stroke.distance(left, top, size) is not None for stroke in strokes)

    @property
    def blur_radius(self) -> int:
        """Radius in pixels of one averaging; three of them make the blur."""
        return max(1, round(2.4 / self.phantom.mpp))

    def out_of_focus(self, pixels: Words, surround: Words, left: int, top: int) -> Words:
        """A block with its blurred areas; `surround` has a rim of 3 · `blur_radius` around the block."""
        for stroke in self.strokes.get("blur", ()):
            inside = stroke.distance(left, top, pixels.shape[0])
            if inside is not None:
                share = np.clip(inside * self.phantom.mpp / 60, 0, 1)[..., None]
                pixels = _words(pixels, blurred(surround, self.blur_radius), share)
        return pixels

    def on_top(self, pixels: Words, left: int, top: int) -> Words:
        """All the other artefacts laid over a block."""
        for kind, strokes in self.strokes.items():
            for stroke in strokes if kind != "blur" else ():
                inside = stroke.distance(left, top, pixels.shape[0])
                if inside is not None:
                    pixels = self._changed(kind, pixels, inside)
        return pixels

    def _changed(self, kind: str, pixels: Words, inside: Reals) -> Words:
        um = 1 / self.phantom.mpp
        new: Reals
        rgb = rgb_of_words(pixels).astype(np.float32)
        share = np.clip(inside / (2 * um) + 0.5, 0, 1)[..., None]
        white = rgb_of_words(np.array([[self.glass]], np.uint32))[0, 0].astype(np.float32)
        if kind == "fold":  # tissue twice over: densities add
            new = rgb * (np.maximum(rgb, 8) / white) ** 0.9
        elif kind == "pen":
            ink = np.array(PEN_INKS[self.phantom.seed % len(PEN_INKS)], np.float32)
            new = rgb * (0.25 + 0.75 * ink / 255)
        elif kind == "bubble":  # a dark rim around a pale, flat inside
            rim = np.clip(1 - np.abs(inside - 5 * um) / (5 * um), 0, 1)[..., None]
            new = (rgb * 0.55 + white * 0.45) * (1 - 0.75 * rim)
        elif kind == "dust":
            new = rgb * 0.35 + np.array([16, 14, 12], np.float32)
        else:  # a bright line between two dark ones
            new = rgb * (0.62 + 0.36 * np.clip(inside / (5 * um), 0, 1)[..., None])
        return _words(pixels, new, share)


def _words(pixels: Words, new: Reals, share: Reals) -> Words:
    """Mix pixels with new RGB values by a share."""
    rgb = rgb_of_words(pixels).astype(np.float32)
    mixed: Words = np.rint(rgb + (new - rgb) * share).clip(0, 255).astype(np.uint32)
    red, green, blue = (mixed[..., channel] for channel in range(3))
    return np.asarray(red | green << np.uint32(8) | blue << np.uint32(16) | np.uint32(0xFF000000))


def _curve(
    middle: NDArray[np.float64],
    length: float,
    turn: float,
    half: float,
    bend: float,
    rng: np.random.Generator,
) -> Stroke:
    t = np.linspace(-0.5, 0.5, 13)
    sway = bend * length * np.sin(2 * np.pi * (t * rng.uniform(0.5, 1.3) + rng.uniform()))
    c, s = np.cos(turn), np.sin(turn)
    points = np.stack([middle[0] + t * length * c - sway * s, middle[1] + t * length * s + sway * c], 1)
    return Stroke(points, half)


def blurred(words: Words, radius: int) -> Reals:
    """RGB after three running means, without the incomplete rim of 3 · radius."""
    rgb = rgb_of_words(words).astype(np.float32)
    for _ in range(3):
        rgb = ndimage.uniform_filter(rgb, (2 * radius + 1, 2 * radius + 1, 1), mode="nearest")
    rim = 3 * radius
    return rgb[rim:-rim, rim:-rim]
