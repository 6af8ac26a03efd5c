"""Backgrounds of tissue on one patch of a block: layers of textures, each inside its border."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lobule.phantoms.noise import I16, Reals, upsampled
from lobule.phantoms.textures import U8

PATCH = 256
"""Side in pixels of the area that is painted at once. It fits the processor's cache and divides a block."""

EDGE_UM = 8.0
"""Largest random shift of a border between tissues."""

FULL = 64
"""Weight of a layer that hides everything below it."""

Cells = tuple[slice, slice]

Layer = tuple[str, Reals, float]
"""Texture, distance inside on the lattice, width of the border in µm."""

ENTIRE_PATCH: Cells = (slice(0, PATCH), slice(0, PATCH))


def visible(base: str, layers: list[Layer], cells: Cells) -> tuple[str, list[Layer]]:
    """The base and the visible layers inside a window of the lattice, cut to that window."""
    shown: list[Layer] = []
    for name, full_distance, width in layers:
        distance = full_distance[cells]
        if float(distance.max()) > -width / 2 - EDGE_UM:
            if float(distance.min()) > width / 2 + EDGE_UM:  # this layer hides all earlier ones
                base, shown = name, []
            else:
                shown.append((name, distance, width))
    return base, shown


class Ground:
    """Densities of one patch while layers are laid on it."""

    def __init__(self, texture: tuple[U8, U8], edge: NDArray[np.int8], step: int) -> None:
        self.hematoxylin: I16 = texture[0].astype(np.int16)
        self.eosin: I16 = texture[1].astype(np.int16)
        self.edge, self.step = edge, step

    def weight(self, distance: Reals, width: float) -> tuple[Cells, I16] | None:
        """The box in which a layer is visible and its weight there, 0 to FULL; None where it is invisible."""
        bound = width / 2 + EDGE_UM
        cells = bounds(distance > -bound)
        if cells is None:
            return None
        rows, columns = cells
        scale = FULL / width
        near = distance[rows.start : rows.stop + 1, columns.start : columns.stop + 1]
        scaled = np.clip(near, -bound, bound) * np.float32(scale) + np.float32(FULL / 2)
        weight = upsampled(np.rint(scaled).astype(np.int16), self.step)
        box = _pixels(rows, self.step), _pixels(columns, self.step)
        weight += self.strayed(box, scale)
        return box, limited(weight, FULL)

    def strayed(self, box: Cells, scale: float) -> I16:
        """Random shift of the borders, in units of 1 / `scale` µm."""
        edge = self.edge[box] * np.int16(round(4 * scale))
        edge >>= 6
        return edge

    def lay(self, texture: tuple[U8, U8], box: Cells, weight: I16, eosin: float = 1.0) -> None:
        for under, over in ((self.hematoxylin, texture[0]), (self.eosin, texture[1])):
            lower = under[box]
            upper = over[box]
            if eosin != 1.0 and under is self.eosin:
                move = dyed(upper, eosin)
                move -= lower
            else:
                move = upper - lower
            move *= weight
            move >>= 6
            lower += move


def limited(values: I16, most: int) -> I16:
    """Values from 0 to `most`, in place."""
    # bounds of the same type, because checking plain integers costs time on every call
    return np.clip(values, np.int16(0), np.int16(most), out=values)


def dyed(eosin: U8, share: float) -> I16:
    """The eosin of an atlas multiplied by `share`."""
    scaled = eosin * np.int16(round(64 * share))
    scaled >>= 6
    return scaled


def softened(mask: NDArray[np.bool_], rim: int) -> I16:
    """Share of marked pixels around each pixel of a patch, 0 to FULL. `mask` has a rim of `rim` pixels.

    `rim` is a power of two; the mean is over twice as many pixels a side.
    """
    total = mask.astype(np.int16)
    span = 1
    while span < 2 * rim:  # sums of two, of four, …
        total = total[:-span] + total[span:]
        total = total[:, :-span] + total[:, span:]
        span *= 2
    total = total[:PATCH, :PATCH]
    shift = 2 * (span.bit_length() - 1) - 6
    return total >> shift if shift >= 0 else total << -shift


def bounds(marked: NDArray[np.bool_]) -> Cells | None:
    """Cells of the lattice that touch a marked corner."""
    runs = []
    for axis in (1, 0):
        line = np.atleast_1d(marked.any(axis=axis))
        first = int(line.argmax())
        if not line[first]:
            return None
        last = line.size - 1 - int(line[::-1].argmax())
        runs.append(slice(max(0, first - 1), min(line.size - 1, last + 1)))
    return runs[0], runs[1]


def _pixels(cells: slice, step: int) -> slice:
    return slice(cells.start * step, cells.stop * step)
