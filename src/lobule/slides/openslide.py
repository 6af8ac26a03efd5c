"""Slides by OpenSlide: MRXS, NDPI, SCN, BIF, VMS, Trestle, Sakura, Philips, CZI and whatever else it knows.

OpenSlide addresses a level by level-0 positions and its own downsample, the average of the two ratios of
lengths. Where that is no whole number, most level-0 positions fall between pixels of the level, and OpenSlide
then interpolates. Reads here start where a level-0 position meets a level pixel (`aligned_start`), in blocks
that lie the same for every read: what comes back are the pixels of the file, and the same ones for any box.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import openslide

from lobule.errors import DamagedFile, DamagedTile, TooLarge, UnknownFormat
from lobule.files import is_url
from lobule.geometry import Box, Size, tiles_over
from lobule.slides.backend import RGB, FoundMpp, Level
from lobule.slides.flat import on_white
from lobule.units import Mpp

BLOCK = Size(1024, 1024)
"""Level pixels that are read in one go: bounds memory, and fixes where aligned reads start."""

UNTILED = 512
"""Tile size to name for a level whose tiles OpenSlide does not describe."""

MAX_TILE_SIDE = 16_384
MAX_ASSOCIATED_PIXELS = 400_000_000
"""Declared sizes beyond these are refused: OpenSlide ends the process when memory runs out."""

COARSEST_PLAUSIBLE_UM = 20.0
"""Plain TIFFs often carry a printing resolution (72 dpi is 353 µm/px); it says nothing of a slide."""

MPP_KEYS = (
    ("openslide.mpp-x", "openslide.mpp-y"),
    ("aperio.MPP", "aperio.MPP"),
    (
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_X",
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_Y",
    ),
)
"""Properties that state µm/px. Objective power is not among them: it is a name, not a measurement."""


def open_backend(path: str) -> OpenSlideBackend | None:
    """The slide, or None where OpenSlide does not know the format."""
    if is_url(path) or Path(path).is_dir():
        return None
    try:
        if openslide.OpenSlide.detect_format(path) is None:
            return None
        return OpenSlideBackend(path)
    except openslide.OpenSlideUnsupportedFormatError:
        return None
    except openslide.OpenSlideError as error:
        if "unsupported" in str(error).lower():
            raise UnknownFormat(
                f"OpenSlide does not support it: {error}",
                subject=path,
                remedy="Convert it to a tiled, pyramidal TIFF: vips tiffsave --tile --pyramid",
            ) from error
        raise DamagedFile(
            f"OpenSlide cannot open it: {error}",
            subject=path,
            remedy="Copy the file again from its source, with the folder beside it if the format has one",
        ) from error


class OpenSlideBackend:
    """One slide by OpenSlide. One handle serves all threads; a handle that failed is replaced."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        handle = openslide.OpenSlide(path)
        self._handle: openslide.OpenSlide | None = handle
        self.properties: Mapping[str, str] = dict(handle.properties)
        self._downsamples = tuple(float(value) for value in handle.level_downsamples)
        self.levels = tuple(
            Level(Size(*size), self._tile_size(index, Size(*size)))
            for index, size in enumerate(handle.level_dimensions)
        )
        self._check_levels()
        self.format = self.properties.get("openslide.vendor", "openslide")
        self.associated: Mapping[str, Size | None] = {
            name: self._associated_size(name) for name in handle.associated_images
        }

    @property
    def found_mpp(self) -> FoundMpp | None:
        for key_x, key_y in MPP_KEYS:
            x, y = _number(self.properties.get(key_x)), _number(self.properties.get(key_y))
            if x and y and max(x, y) <= COARSEST_PLAUSIBLE_UM:
                return FoundMpp(Mpp(x, y), f"{key_x} ({self.format}, by OpenSlide)")
        return None

    @property
    def bounds(self) -> Box | None:
        parts = [
            _number(self.properties.get(f"openslide.bounds-{part}")) for part in ("x", "y", "width", "height")
        ]
        if any(part is None for part in parts):
            return None
        declared = Box(*(int(part) for part in parts if part is not None))
        box = declared.intersect(Box(0, 0, *self.levels[0].size))
        return None if box.empty else box

    def reductions(self, level: int) -> tuple[int, ...]:
        return (1,)

    def read(self, level: int, box: Box, reduce: int = 1) -> RGB:
        out = np.empty((box.height, box.width, 3), np.uint8)
        for column, row in tiles_over(box, BLOCK):
            block = Box(column * BLOCK.width, row * BLOCK.height, *BLOCK)
            part = block.intersect(box)
            x, y = part.x - box.x, part.y - box.y
            out[y : y + part.height, x : x + part.width] = self._read_block(level, block, part)
        return out

    def read_associated(self, name: str) -> RGB:
        size = self.associated[name]
        if size is not None and size.area > MAX_ASSOCIATED_PIXELS:
            raise TooLarge(f"associated image '{name}' declares {size}", subject=self.path)
        handle = self._shared()
        try:
            return on_white(np.asarray(handle.associated_images[name].convert("RGBA")))
        except openslide.OpenSlideError as error:
            self._renew(handle)
            raise DamagedFile(
                f"associated image '{name}' cannot be decoded: {error}", subject=self.path
            ) from error

    def close(self) -> None:
        # the library closes the file when the last thread that still reads lets go of the handle
        with self._lock:
            self._handle = None

    # -- one block ----------------------------------------------------------------------------------------

    def _read_block(self, level: int, block: Box, part: Box) -> RGB:
        handle = self._shared()
        try:
            return self._pixels(handle, level, block, part)
        except openslide.OpenSlideError:
            self._renew(handle)
        # another thread's failure spoils a shared handle, so only a failure on a fresh one is our own
        try:
            return self._pixels(self._reopen(), level, block, part)
        except openslide.OpenSlideError as error:
            raise self._locate(level, part, str(error)) from error

    def _pixels(self, handle: openslide.OpenSlide, level: int, block: Box, part: Box) -> RGB:
        downsample = self._downsamples[level]
        start = part if downsample.is_integer() else block
        left, l0_x = aligned_start(start.x, downsample)
        top, l0_y = aligned_start(start.y, downsample)
        image = handle.read_region((l0_x, l0_y), level, (part.right - left, part.bottom - top))
        return on_white(np.asarray(image))[part.y - top :, part.x - left :]

    def _locate(self, level: int, part: Box, cause: str) -> DamagedTile:
        """Which tile of a part fails: they are tried one by one until the first failure."""
        tile, scale = self.levels[level].tile, self._downsamples[level]
        bad = (part.x // tile.width, part.y // tile.height)
        handle = self._reopen()
        for column, row in tiles_over(part, tile):
            spot = Box(column * tile.width, row * tile.height, *tile).intersect(part)
            try:
                l0_place = int(spot.x * scale), int(spot.y * scale)
                handle.read_region(l0_place, level, (spot.width, spot.height))
            except openslide.OpenSlideError as error:
                bad, cause = (column, row), str(error)
                break
        corner = Box(bad[0] * tile.width, bad[1] * tile.height, *tile)
        l0_box = Box.of_edges(
            *(int(edge * scale) for edge in (corner.x, corner.y, corner.right, corner.bottom))
        )
        return DamagedTile(self.path, level, bad, cause, l0_box=l0_box)

    def _check_levels(self) -> None:
        whole = self.levels[0].size
        for index, level in enumerate(self.levels):
            if max(level.tile) > MAX_TILE_SIDE:
                raise TooLarge(
                    f"level {index} declares tiles of {level.tile}",
                    subject=self.path,
                    expected=f"at most {MAX_TILE_SIDE} px a side",
                    remedy="The file is damaged, or must be converted to a tiled TIFF",
                )
            across, down = whole.width / level.size.width, whole.height / level.size.height
            if min(level.size) >= 64 and max(across, down) > 2 * min(across, down):
                raise DamagedFile(
                    f"level {index} is no smaller copy of level 0",
                    subject=self.path,
                    expected=f"the shape of {whole}",
                    actual=str(level.size),
                )

    # -- handles and properties ---------------------------------------------------------------------------

    def _shared(self) -> openslide.OpenSlide:
        with self._lock:
            if self._handle is None:
                self._handle = self._reopen()
            return self._handle

    def _renew(self, failed: openslide.OpenSlide) -> None:
        """Let go of a handle that an error has spoilt, unless another thread already did."""
        with self._lock:
            if self._handle is failed:
                self._handle = None

    def _reopen(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self.path)
        except (openslide.OpenSlideError, OSError) as error:
            raise DamagedFile(f"cannot be opened again: {error}", subject=self.path) from error

    def _tile_size(self, level: int, size: Size) -> Size:
        width = _number(self.properties.get(f"openslide.level[{level}].tile-width"))
        height = _number(self.properties.get(f"openslide.level[{level}].tile-height"))
        if width and height:
            return Size(int(width), int(height))
        return Size(min(UNTILED, size.width), min(UNTILED, size.height))

    def _associated_size(self, name: str) -> Size | None:
        width = _number(self.properties.get(f"openslide.associated.{name}.width"))
        height = _number(self.properties.get(f"openslide.associated.{name}.height"))
        return Size(int(width), int(height)) if width and height else None


@lru_cache(maxsize=4096)
def aligned_start(wanted: int, downsample: float) -> tuple[int, int]:
    """The nearest level pixel at or before `wanted` that a whole level-0 position hits, and that position.

    Cairo treats a start within 1/512 px of a whole pixel as whole; half of that is asked for here. Where no
    pixel of the last 512 is hit so well, the best of the last 16 is taken, at most 0.5 / downsample px off.
    """
    starts = []
    for level_x in range(wanted, max(wanted - 512, 0) - 1, -1):
        l0_x = round(level_x * downsample)
        miss = abs(l0_x / downsample - level_x)
        if miss < 1 / 1024:
            return level_x, l0_x
        starts.append((miss, level_x, l0_x))
    return min(starts[:16])[1:]


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < 1e9 else None
