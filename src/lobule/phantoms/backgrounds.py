"""Backgrounds of tissue on one patch of a block: textures laid over one another, each within its border."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lobule.phantoms.noise import I16, Reals, upsampled
from lobule.phantoms.textures import U8

PATCH = 256
"""Pixels a side of what is laid in one go, so that it stays in the processor's cache; divides a block."""

EDGE_UM = 8.0
"""The most that a border between tissues strays."""

FULL = 64
"""Weight of a layer that hides what lies under it."""

Box = tuple[slice, slice]

Layer = tuple[str, Reals, float]
"""Texture, distance inside on the lattice, width of the border in µm."""

WHOLE: Box = (slice(0, PATCH), slice(0, PATCH))


def visible(base: str, layers: list[Layer], cells: Box) -> tuple[str, list[Layer]]:
    """The base and the layers that show on a part of the lattice, cut to it."""
    shown: list[Layer] = []
    for name, whole, width in layers:
        distance = whole[cells]
        if float(distance.max()) > -width / 2 - EDGE_UM:
            if float(distance.min()) > width / 2 + EDGE_UM:  # hides all that was laid before
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

    def weight(self, distance: Reals, width: float) -> tuple[Box, I16] | None:
        """Weight 0 to FULL from the distance inside a layer on the lattice, where it is not nothing."""
        bound = width / 2 + EDGE_UM
        found = bounds(distance > -bound)
        if found is None:
            return None
        rows, columns = found
        scale = FULL / width
        near = distance[rows.start : rows.stop + 1, columns.start : columns.stop + 1]
        scaled = np.clip(near, -bound, bound) * np.float32(scale) + np.float32(FULL / 2)
        weight = upsampled(np.rint(scaled).astype(np.int16), self.step)
        box = _pixels(rows, self.step), _pixels(columns, self.step)
        weight += self.strayed(box, scale)
        return box, limited(weight, FULL)

    def strayed(self, box: Box, scale: float) -> I16:
        """How far borders stray, in units of which `scale` are a µm."""
        edge = self.edge[box] * np.int16(round(4 * scale))
        edge >>= 6
        return edge

    def lay(self, texture: tuple[U8, U8], box: Box, weight: I16, eosin: float = 1.0) -> None:
        for under, over in ((self.hematoxylin, texture[0]), (self.eosin, texture[1])):
            part = under[box]
            upper = over[box]
            if eosin != 1.0 and under is self.eosin:
                move = dyed(upper, eosin)
                move -= part
            else:
                move = upper - part
            move *= weight
            move >>= 6
            part += move


def limited(values: I16, most: int) -> I16:
    """Values from 0 to `most`, in place."""
    # bounds of the same type: plain integers are checked at length on every call
    return np.clip(values, np.int16(0), np.int16(most), out=values)


def dyed(eosin: U8, share: float) -> I16:
    """An atlas's eosin made so much stronger or weaker."""
    found = eosin * np.int16(round(64 * share))
    found >>= 6
    return found


def softened(mask: NDArray[np.bool_], rim: int) -> I16:
    """Share 0 to FULL of the inside about each pixel of a patch, given with `rim` more on each side.

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


def bounds(found: NDArray[np.bool_]) -> Box | None:
    """Cells of the lattice that touch a marked corner."""
    runs = []
    for axis in (1, 0):
        line = np.atleast_1d(found.any(axis=axis))
        first = int(line.argmax())
        if not line[first]:
            return None
        last = line.size - 1 - int(line[::-1].argmax())
        runs.append(slice(max(0, first - 1), min(line.size - 1, last + 1)))
    return runs[0], runs[1]


def _pixels(cells: slice, step: int) -> slice:
    return slice(cells.start * step, cells.stop * step)
