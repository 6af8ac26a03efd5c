"""Slides read with OpenSlide: MRXS, NDPI, SCN, BIF, VMS, Trestle, Sakura, Philips, CZI and its other formats.

OpenSlide addresses a level by level-0 positions and a downsample factor, the average of the width ratio and
the height ratio. If the factor is not an integer, most level-0 positions fall between pixels of the level,
and OpenSlide interpolates. Therefore reads start where a level-0 position coincides with a level pixel
(`aligned_start`), in a fixed grid of blocks: the result is the stored pixels, and the same for every box.
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
from lobule.slides.backend import RGB, Level, StatedMpp, damaged_tile, plausible_mpp
from lobule.slides.flat import on_white

BLOCK = Size(1024, 1024)
"""Level pixels read at once. The block size bounds memory and determines where aligned reads start."""

UNTILED = 512
"""Tile size to report for a level whose tiles OpenSlide does not describe."""

MAX_TILE_SIDE = 16_384
MAX_ASSOCIATED_PIXELS = 400_000_000
"""Larger declared sizes are refused, because OpenSlide aborts the process when memory runs out."""

_MIRAX = "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL"
MPP_KEYS = (
    ("openslide.mpp-x", "openslide.mpp-y"), ("aperio.MPP", "aperio.MPP"), (f"{_MIRAX}_X", f"{_MIRAX}_Y"),
)  # fmt: skip
"""Properties that state µm/px. Objective power is not used: it is a nominal value, not a measurement."""


def open_backend(path: str) -> OpenSlideBackend | None:
    """The slide, or None if OpenSlide does not know the format."""
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
                f"OpenSlide does not support this slide: {error}",
                subject=path,
                remedy="Convert it to a tiled, pyramidal TIFF: vips tiffsave --tile --pyramid",
            ) from error
        raise DamagedFile(
            f"OpenSlide cannot open this slide: {error}",
            subject=path,
            remedy="Copy the file again from its source, together with its data folder if the format has one",
        ) from error


class OpenSlideBackend:
    """One slide read with OpenSlide. All threads share one handle, which is replaced after an error."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        handle = openslide.OpenSlide(path)
        self._handle: openslide.OpenSlide | None = handle
        self.properties: Mapping[str, str] = dict(handle.properties)
        self._downsamples = tuple(float(value) for value in handle.level_downsamples)
        sizes = [Size(*size) for size in handle.level_dimensions]
        untiled = [Size(min(UNTILED, size.width), min(UNTILED, size.height)) for size in sizes]
        tiles = [self._size(f"openslide.level[{index}].tile-") for index in range(len(sizes))]
        self.levels = tuple(
            Level(size, tile or untiled_size)
            for size, tile, untiled_size in zip(sizes, tiles, untiled, strict=True)
        )
        self._check_levels()
        self.format = self.properties.get("openslide.vendor", "openslide")
        self.associated: Mapping[str, Size | None] = {
            name: self._size(f"openslide.associated.{name}.") for name in handle.associated_images
        }

    @property
    def stated_mpp(self) -> StatedMpp | None:
        for key_x, key_y in MPP_KEYS:
            x, y = self._number(key_x), self._number(key_y)
            if stated := plausible_mpp(x, y, f"{key_x} ({self.format}, by OpenSlide)"):
                return stated
        return None

    @property
    def bounds(self) -> Box | None:
        edges = [self._number(f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")]
        if any(edge is None for edge in edges):
            return None
        declared = Box(*(int(edge) for edge in edges if edge is not None))
        box = declared.intersect(Box(0, 0, *self.levels[0].size))
        return None if box.empty else box

    @property
    def colour_profile(self) -> bytes | None:
        profile = self._shared().color_profile
        return None if profile is None else profile.tobytes()

    def reductions(self, level: int) -> tuple[int, ...]:
        return (1,)

    def read(self, level: int, box: Box, reduce: int = 1) -> RGB:
        out = np.empty((box.height, box.width, 3), np.uint8)
        for column, row in tiles_over(box, BLOCK):
            block = Box(column * BLOCK.width, row * BLOCK.height, *BLOCK)
            region = block.intersect(box)
            x, y = region.x - box.x, region.y - box.y
            out[y : y + region.height, x : x + region.width] = self._read_block(level, block, region)
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
            problem = f"associated image '{name}' cannot be decoded: {error}"
            raise DamagedFile(problem, subject=self.path) from error

    def close(self) -> None:
        # OpenSlide closes the file when the last reading thread releases the handle.
        with self._lock:
            self._handle = None

    # -- one block ----------------------------------------------------------------------------------------

    def _read_block(self, level: int, block: Box, region: Box) -> RGB:
        handle = self._shared()
        try:
            return self._pixels(handle, level, block, region)
        except openslide.OpenSlideError:
            self._renew(handle)
        # A shared handle also fails after another thread's error. Only an error of a new handle counts.
        try:
            return self._pixels(self._reopen(), level, block, region)
        except openslide.OpenSlideError as error:
            raise self._locate(level, region, str(error)) from error

    def _pixels(self, handle: openslide.OpenSlide, level: int, block: Box, region: Box) -> RGB:
        downsample = self._downsamples[level]
        start = region if downsample.is_integer() else block
        left, l0_x = aligned_start(start.x, downsample)
        top, l0_y = aligned_start(start.y, downsample)
        image = handle.read_region((l0_x, l0_y), level, (region.right - left, region.bottom - top))
        return on_white(np.asarray(image))[region.y - top :, region.x - left :]

    def _locate(self, level: int, region: Box, cause: str) -> DamagedTile:
        """Find the tile of a region that fails, by reading its tiles one by one."""
        tile, scale = self.levels[level].tile, self._downsamples[level]
        bad_tile = (region.x // tile.width, region.y // tile.height)
        handle = self._reopen()
        for column, row in tiles_over(region, tile):
            tile_box = Box(column * tile.width, row * tile.height, *tile).intersect(region)
            try:
                l0_position = int(tile_box.x * scale), int(tile_box.y * scale)
                handle.read_region(l0_position, level, (tile_box.width, tile_box.height))
            except openslide.OpenSlideError as error:
                bad_tile, cause = (column, row), str(error)
                break
        return damaged_tile(self.path, self.levels, level, bad_tile, cause)

    def _check_levels(self) -> None:
        l0_size = self.levels[0].size
        for index, level in enumerate(self.levels):
            if max(level.tile) > MAX_TILE_SIDE:
                raise TooLarge(
                    f"level {index} declares tiles of {level.tile}",
                    subject=self.path,
                    expected=f"at most {MAX_TILE_SIDE} px a side",
                    remedy="The file is damaged, or needs to be converted to a tiled TIFF",
                )
            across, down = l0_size.width / level.size.width, l0_size.height / level.size.height
            if min(level.size) >= 64 and max(across, down) > 2 * min(across, down):
                raise DamagedFile(
                    f"level {index} does not have the shape of level 0",
                    subject=self.path,
                    expected=f"the shape of {l0_size}",
                    actual=str(level.size),
                )

    # -- handles and properties ---------------------------------------------------------------------------

    def _shared(self) -> openslide.OpenSlide:
        with self._lock:
            if self._handle is None:
                self._handle = self._reopen()
            return self._handle

    def _renew(self, failed: openslide.OpenSlide) -> None:
        """Discard a handle that became unusable through an error, unless another thread already did."""
        with self._lock:
            if self._handle is failed:
                self._handle = None

    def _reopen(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self.path)
        except (openslide.OpenSlideError, OSError) as error:
            raise DamagedFile(f"the slide cannot be opened again: {error}", subject=self.path) from error

    def _size(self, prefix: str) -> Size | None:
        """The size in the two properties with this prefix; None without a positive width and height."""
        width, height = self._number(f"{prefix}width"), self._number(f"{prefix}height")
        return Size(int(width), int(height)) if width and height else None

    def _number(self, key: str) -> float | None:
        try:
            value = float(self.properties.get(key, ""))
        except ValueError:
            return None
        return value if 0 <= value < 1e9 else None


@lru_cache(maxsize=4096)
def aligned_start(requested: int, downsample: float) -> tuple[int, int]:
    """The last level pixel up to `requested` that lies at an integer level-0 position, and that position.

    Cairo treats a start within 1/512 px of an integer as an integer; this function requires half of that.
    If none of the last 512 pixels is that close, the best of the last 16 is used, which is at most
    0.5 / downsample px off.
    """
    starts = []
    for level_x in range(requested, max(requested - 512, 0) - 1, -1):
        l0_x = round(level_x * downsample)
        error = abs(l0_x / downsample - level_x)
        if error < 1 / 1024:
            return level_x, l0_x
        starts.append((error, level_x, l0_x))
    return min(starts[:16])[1:]
