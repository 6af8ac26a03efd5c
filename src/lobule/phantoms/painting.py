"""Pixels of a generated slide. Each block depends only on the phantom and on its position."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lobule.annotations import Polygon, fill
from lobule.geometry import Box, Size, tiles_over
from lobule.phantoms.artefacts import Artefacts
from lobule.phantoms.backgrounds import (
    ENTIRE_PATCH,
    FULL,
    PATCH,
    Cells,
    Ground,
    bounds,
    limited,
    softened,
    visible,
)
from lobule.phantoms.noise import I16, Reals, bilinear, mixed, unit
from lobule.phantoms.nuclei import Bank, bank, jittered, stamp
from lobule.phantoms.phantom import Lesion, SlidePhantom
from lobule.phantoms.stains import Words, colour_table, glass_word, look_of
from lobule.phantoms.textures import U8, Texture, textures
from lobule.phantoms.tissue_model import Fields, TissueModel

BLOCK = 512
"""Side in pixels of the area that is painted at once."""

PITCH_UM = {
    "lymphocyte": 6.3,
    "centroblast": 8.6,
    "histiocyte": 12.5,
    "fibroblast": 13.0,
    "epithelial": 6.8,
    "tumour": 11.0,
    "tumour-dark": 11.0,
    "mitosis": 11.0,
    "red-cell": 6.4,
}
"""Distance between candidate positions for each kind of nucleus."""

ON_GLASS = ("pen", "bubble", "dust", "edge")
"""Artefacts that are visible on glass."""

UNEVEN = {"hematoxylin": 0.22, "eosin": 0.36}
"""Variation of the staining within a slide."""

SENSORS = ("sensor-h", "sensor-e")
"""Noise of the two densities, from one atlas."""

Small = TypeVar("Small", bound=np.generic)


def paint(
    block_at: Callable[[int, int], Words | None],
    box: Box,
    glass: int,
    apply: Callable[..., Iterable[Words | None]] = map,
) -> Words:
    """The pixels of a box, painted block by block.

    Args:
        block_at: Gives the block at a column and row; None where it is clear glass.
        box: The box in pixels.
        glass: The pixel of clear glass.
        apply: Runs `block_at` on columns and rows, such as `map` or the `map` of a pool.
    """
    words = np.full((box.height, box.width), glass, np.uint32)
    positions = list(tiles_over(box, Size(BLOCK, BLOCK)))
    blocks = apply(block_at, *zip(*positions, strict=True))
    for (column, row), block in zip(positions, blocks, strict=True):
        if block is not None:
            left, top = column * BLOCK - box.x, row * BLOCK - box.y
            target = words[max(top, 0) : max(top + BLOCK, 0), max(left, 0) : max(left + BLOCK, 0)]
            y, x = max(-top, 0), max(-left, 0)
            target[:] = block[y : y + target.shape[0], x : x + target.shape[1]]
    return words


class Painter:
    """Paints blocks; may be shared between threads."""

    def __init__(self, phantom: SlidePhantom) -> None:
        self.phantom = phantom
        self.model = TissueModel(phantom)
        self.look = look_of(phantom.site)
        self.table = colour_table(self.look)
        self.glass = glass_word(self.look)
        self.textures = textures(phantom.mpp)
        self.banks: dict[str, Bank] = {
            kind: bank(kind, phantom.mpp, self.look.softness_um) for kind in PITCH_UM
        }
        self.half = max(one.half for one in self.banks.values())
        step = self.model.step
        self.pad = -(-2 * self.half // step) * step
        # a blurred block needs its neighbours, which need theirs
        cached_blocks = 64 if "blur" in phantom.artefacts else 0
        self._focused = lru_cache(maxsize=cached_blocks)(self._in_focus)
        self.artefacts = Artefacts(phantom, self.model.layout, self.glass)
        noise = self.textures.sensor * np.int16(self.look.noise) >> 4
        self._noise = noise.astype(np.int8)
        # whole patches, so that a patch never crosses an atlas's edge
        self._shift = {
            name: (mixed(phantom.seed, i, 77) % 64 * PATCH, mixed(phantom.seed, i, 78) % 64 * PATCH)
            for i, name in enumerate([*self.textures.kinds, "edge", *SENSORS])
        }
        for name in ("desmoplasia", "muscle"):  # one set of fibres, which spindle nuclei follow
            self._shift[name] = self._shift["stroma"]

    @property
    def columns(self) -> int:
        return -(-self.phantom.width // BLOCK)

    @property
    def rows(self) -> int:
        return -(-self.phantom.height // BLOCK)

    def tissue(self, left: int, top: int) -> NDArray[np.bool_] | None:
        """Mask of the tissue in a block; None without tissue."""
        mask = fill(
            [Polygon(outline) for outline in self.model.layout.sections], 1, Box(left, top, BLOCK, BLOCK)
        )
        return mask if mask.any() else None

    def block(self, column: int, row: int) -> Words | None:
        """The block at a position of the lattice of blocks; None where it is clear glass."""
        left, top = column * BLOCK, row * BLOCK
        pixels = self._focused(column, row)
        if pixels is not None and self.artefacts.meets(("blur",), left, top, BLOCK):
            pixels = self.artefacts.out_of_focus(pixels, self._surround(column, row), left, top)
        if pixels is None:
            if not self.artefacts.meets(ON_GLASS, left, top, BLOCK):
                return None
            pixels = np.full((BLOCK, BLOCK), self.glass, np.uint32)
        return self.artefacts.on_top(pixels, left, top)

    def _in_focus(self, column: int, row: int) -> Words | None:
        """A block without artefacts. The array is shared and must not be changed."""
        left, top = column * BLOCK, row * BLOCK
        tissue = self.tissue(left, top)
        return None if tissue is None else self._tissue_pixels(left, top, tissue)

    def _surround(self, column: int, row: int) -> Words:
        """A block with the rim around it that its blur needs."""
        box = Box(column * BLOCK, row * BLOCK, BLOCK, BLOCK).grown(3 * self.artefacts.blur_radius)
        return paint(self._focused, box, self.glass)

    # -- densities ----------------------------------------------------------------------------------------

    def _tissue_pixels(self, left: int, top: int, tissue: NDArray[np.bool_]) -> Words:
        step, pad = self.model.step, self.pad
        cells = (BLOCK + 2 * pad) // step
        column, row = (left - pad) // step, (top - pad) // step
        fields = self.model.fields(column, row, cells, cells)
        scene = _Scene(self, fields, left, top, column, row)
        nuclei, red = scene.nuclei()
        gains = [self._gain(name, left, top) for name in ("hematoxylin", "eosin")]
        words = np.full((BLOCK, BLOCK), self.glass, np.uint32)
        for y, x in itertools.product(range(0, BLOCK, PATCH), repeat=2):
            patch = (slice(y, y + PATCH), slice(x, x + PATCH))
            inside = tissue[patch]
            if not inside.any():
                continue
            padded = (slice(pad + y, pad + y + PATCH), slice(pad + x, pad + x + PATCH))
            ground = scene.background(x, y)
            hematoxylin, eosin = ground.hematoxylin, ground.eosin
            hematoxylin += nuclei[padded]
            if red is not None:
                eosin += red[padded]
            for density, gain, noise in zip((hematoxylin, eosin), gains, SENSORS, strict=True):
                _scaled(density, gain[y // step : (y + PATCH) // step, x : x + PATCH])
                density += self._atlas_patch(noise, self._noise, left + x, top + y)
                if not inside.all():
                    density *= inside
                limited(density, 255)
            index = hematoxylin.view(np.uint16)
            index <<= 8
            index |= eosin.view(np.uint16)
            words[patch] = self.table.take(index, mode="wrap")  # no index is out of bounds; "wrap" is fast
        return words

    def _gain(self, name: str, left: int, top: int) -> I16:
        """Uneven thickness and staining over millimetres, in 64ths: a row for each lattice cell.

        It changes so slowly that one value per cell is enough.
        """
        centre = (np.arange(BLOCK // self.model.step) + np.float32(0.5)) * np.float32(self.model.step_um)
        mpp = np.float32(self.phantom.mpp)
        zone = self.model.zone(name, left * mpp + centre, top * mpp + centre)
        spread = np.float32(UNEVEN[name])
        gain = np.exp(np.clip(spread * zone, -2 * spread, 2 * spread)) * 64
        return np.repeat(np.rint(gain).astype(np.int16), self.model.step, axis=1)

    def texture(self, name: str, left: int, top: int) -> tuple[U8, U8]:
        """A patch of a background."""
        kind: Texture = self.textures.kinds[name]
        return self._atlas_patch(name, kind.hematoxylin, left, top), self._atlas_patch(
            name, kind.eosin, left, top
        )

    def edge(self, left: int, top: int) -> NDArray[np.int8]:
        return self._atlas_patch("edge", self.textures.edge, left, top)

    def _atlas_patch(self, name: str, atlas: NDArray[Small], left: int, top: int) -> NDArray[Small]:
        """A patch of an atlas, as a view; a patch never crosses the edge of the atlas."""
        dx, dy = self._shift[name]
        i, j = (left + dx) % atlas.shape[1], (top + dy) % atlas.shape[0]
        return atlas[j : j + PATCH, i : i + PATCH]


def _scaled(density: I16, gain: I16) -> None:
    """Multiply densities by their gain; each row of gains covers several rows of pixels."""
    bands = density.reshape(gain.shape[0], -1, density.shape[1])
    bands *= gain[:, None, :]
    bands >>= 6


class _Scene:
    """The state of one block while it is painted."""

    def __init__(self, painter: Painter, fields: Fields, left: int, top: int, column: int, row: int) -> None:
        self.painter, self.fields = painter, fields
        self.left, self.top, self.column, self.row = left, top, column, row
        self.step, self.pad = painter.model.step, painter.pad
        self.salt = painter.phantom.seed
        self.tumours = self._tumours()
        # corners of the lattice inside the block; most layers do not reach it
        inner = slice(self.pad // self.step, -(self.pad // self.step))
        self.inner: Cells = (inner, inner)
        self.layers = visible(fields.base, fields.layers, self.inner)

    def _tumours(self) -> list[tuple[Lesion, NDArray[np.bool_], Reals, Reals]]:
        """Lesions that meet the padded block: exact mask, nests and lumens."""
        tumours = []
        left, top, size = self.left - self.pad, self.top - self.pad, BLOCK + 2 * self.pad
        for lesion in self.painter.model.layout.lesions:
            mask = fill([Polygon(lesion.outline)], 1, Box(left, top, size, size))
            if mask.any():
                shape = (self.fields.y_um.size, self.fields.x_um.size)
                tumours.append(
                    (lesion, mask, *self.painter.model.nests(lesion, self.column, self.row, shape))
                )
        return tumours

    def background(self, x: int, y: int) -> Ground:
        """The background of the patch at (x, y) of the block."""
        left, top = self.left + x, self.top + y
        rows, columns = (slice(at // self.step, (at + PATCH) // self.step + 1) for at in (y, x))
        cells = rows, columns
        base, layers = visible(*self.layers, cells)
        tumours = list(self._borders(x, y, cells))
        if any(inside is None for _, inside, _, _ in tumours):
            base, layers = "desmoplasia", []
        ground = Ground(self.painter.texture(base, left, top), self.painter.edge(left, top), self.step)

        def lay(
            name: str, distance: Reals, width: float, inside: I16 | None = None, dye: float = 1.0
        ) -> None:
            weighted = ground.weight(distance, width)
            if weighted is not None:
                box, weight = weighted
                if inside is not None:
                    weight *= inside[box]
                    weight >>= 6
                ground.lay(self.painter.texture(name, left, top), box, weight, dye)

        for layer in layers:
            lay(*layer)
        for lesion, inside, nest, lumen in tumours:
            if inside is not None:
                inside += ground.strayed(ENTIRE_PATCH, 2.0) * ((inside > 0) & (inside < FULL))
                limited(inside, FULL)
                ground.lay(self.painter.texture("desmoplasia", left, top), ENTIRE_PATCH, inside)
            lay("tumour", nest, 4.0, inside, lesion.eosin)
            lay("plasma", lumen, 2.0, inside)
        return ground

    def _borders(self, x: int, y: int, cells: Cells) -> Iterator[tuple[Lesion, I16 | None, Reals, Reals]]:
        """Lesions on a patch: share of the patch inside each (None if all of it), nests and lumens."""
        about = min(self.pad, 2 ** max(0, round(math.log2(3.5 / self.painter.phantom.mpp))))
        rows, columns = (slice(self.pad + at - about, self.pad + at + PATCH + about) for at in (y, x))
        for lesion, mask, nest, lumen in self.tumours:
            near = mask[rows, columns]
            if near.any():
                yield (
                    lesion,
                    None if near.all() else softened(near, about),
                    nest[self.inner][cells],
                    lumen[self.inner][cells],
                )

    # -- nuclei -------------------------------------------------------------------------------------------

    def nuclei(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        size = BLOCK + 2 * self.pad
        canvas = np.zeros((size, size), np.uint8)
        red = None
        inside = None
        for _, mask, _, _ in self.tumours:
            inside = mask if inside is None else inside | mask
        for kind, share in self.fields.nuclei.items():
            if kind != "red-cell":
                self._scatter(canvas, kind, share, inside, False)
            elif share.any():
                red = np.zeros_like(canvas)
                self._scatter(red, kind, share, inside, False)
        for lesion, mask, nest, lumen in self.tumours:
            cells = np.clip(nest / 5 + 0.3, 0, 1) * np.clip(0.5 - (lumen + 3) / 3, 0, 1) * lesion.crowding
            self._scatter(canvas, "tumour", cells * (1 - 0.7 * lesion.dark), mask, True)
            self._scatter(canvas, "tumour-dark", cells * (0.7 * lesion.dark), mask, True)
            self._scatter(canvas, "mitosis", cells * 0.015, mask, True)
            between = np.clip(0.5 - nest / 5, 0, 1)
            self._scatter(canvas, "fibroblast", between * 0.75, mask, True)
            self._scatter(canvas, "lymphocyte", between * 0.2 + 0.02, mask, True)
        return canvas, red

    def _scatter(
        self,
        canvas: NDArray[np.uint8],
        kind: str,
        share: Reals,
        mask: NDArray[np.bool_] | None,
        inside_mask: bool,
    ) -> None:
        painter, mpp = self.painter, self.painter.phantom.mpp
        bank_, half = painter.banks[kind], painter.banks[kind].half
        salt = mixed(self.salt, *kind.encode())
        marked_cells = bounds(share > 0)
        if marked_cells is None:
            return
        step_um = painter.model.step_um
        (low_y, high_y), (low_x, high_x) = (
            # a sprite reaches `half` px from its centre, so a candidate farther out cannot show
            (
                max((corner - half) * mpp, (first + cells.start) * step_um),
                min((corner + BLOCK + half) * mpp, (first + cells.stop) * step_um),
            )
            for corner, first, cells in zip(
                (self.top, self.left), (self.row, self.column), marked_cells, strict=True
            )
        )
        x, y, chance = jittered(low_x, low_y, high_x, high_y, PITCH_UM[kind], 0.62, salt, float(share.max()))
        at = bilinear(share, x / step_um - self.column, y / step_um - self.row)
        px = np.floor(x / mpp).astype(np.int64) - self.left + self.pad
        py = np.floor(y / mpp).astype(np.int64) - self.top + self.pad
        low, high = self.pad - half, self.pad + BLOCK + half
        keep = (unit(chance) < at) & (px > low) & (px < high) & (py > low) & (py < high)
        if mask is not None:
            keep &= mask[np.clip(py, 0, len(mask) - 1), np.clip(px, 0, len(mask) - 1)] == inside_mask
        px, py, chance, x, y = px[keep], py[keep], chance[keep], x[keep], y[keep]
        stamp(canvas, bank_, px, py, chance * np.uint32(0x9E3779B1), self._turn(kind, px, py, x, y))

    def _turn(
        self, kind: str, px: NDArray[np.int64], py: NDArray[np.int64], x: Reals, y: Reals
    ) -> Reals | None:
        painter, turn = self.painter, self.fields.turn
        if kind == "fibroblast":  # along the fibres of the stroma
            atlas = painter.textures.fibre_turn
            per = painter.textures.kinds["stroma"].eosin.shape[0] // atlas.shape[0]
            dx, dy = painter._shift["stroma"]
            column = ((px - self.pad + self.left + dx) // per) % atlas.shape[1]
            row = ((py - self.pad + self.top + dy) // per) % atlas.shape[0]
            return np.asarray(atlas[row, column])
        if kind == "epithelial" and turn is not None:  # upright on the wall of the duct
            column = np.round(x / painter.model.step_um).astype(np.int64) - self.column
            row = np.round(y / painter.model.step_um).astype(np.int64) - self.row
            height, width = turn.shape
            return np.asarray(turn[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)])
        return None
