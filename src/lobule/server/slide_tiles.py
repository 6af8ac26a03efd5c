"""Slides and their image tiles: the levels that the viewer can show, and tiles as stored or decoded.

The server and the processes that decode tiles for it (`lobule.server.tile_process`) share this module.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from lobule.geometry import Box, Lattice, Size
from lobule.server.colours import ColourProfile, read_profile
from lobule.server.file_versions import content_version, file_state
from lobule.slides.slide import Slide, open_slide

QUALITY = 88
TILE_SUBSAMPLING = "420"
"""Colours of decoded tiles have half the resolution, as scanners store them: encoding takes half the time."""
VIRTUAL_TILE = 512
COARSE_SIDE = 1024
"""Slides get additional coarser levels until one fits in this many pixels a side."""
MAX_OPEN_SLIDES = 16
SLIDE_CACHE_BYTES = 48 << 20
NATIVE_TILE_SIDES = range(64, 4097)


@dataclass(frozen=True)
class TileLevel:
    """One level that the viewer can show: a level of the file, or one computed from the coarsest level."""

    size: Size
    tile: Size
    step: tuple[float, float]
    """Level-0 pixels per pixel in x and y."""
    file_level: int | None
    lattice: Lattice


@dataclass(frozen=True)
class OpenedImage:
    """A slide with the levels that the viewer can show, finest first."""

    slide: Slide
    levels: tuple[TileLevel, ...]
    state: str
    """The state of the file when it was opened, by which a change is noticed."""
    version: str
    """The version of the file's content; empty if it was not requested."""
    mpp: float | None = None
    """The µm/px with which the slide was opened, if it was stated."""
    profile: ColourProfile | None = None
    """The ICC profile of the file."""

    @cached_property
    def tag(self) -> bytes:
        """A hash of the version of the file's content, for ETags."""
        return hashlib.blake2b(self.version.encode(), digest_size=12).hexdigest().encode()

    def to_srgb(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert pixels by the profile of the file; unchanged without a profile."""
        return pixels if self.profile is None else self.profile.to_srgb(pixels)


class Slides:
    """Opens slides at first use and keeps the most recently used ones.

    Args:
        most_open: Largest number of open slides.
        cache_bytes: Memory for decoded tiles of each slide.
        has_versions: Whether the opened slides have the version of their content, for which files are read.
    """

    def __init__(
        self,
        most_open: int = MAX_OPEN_SLIDES,
        cache_bytes: int = SLIDE_CACHE_BYTES,
        has_versions: bool = True,
    ) -> None:
        self._most_open, self._cache_bytes, self._has_versions = most_open, cache_bytes, has_versions
        self._open: OrderedDict[tuple[str, float | None], OpenedImage] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, path: str, mpp: float | None) -> OpenedImage:
        """Open a slide, or return it if it is open and its file has not changed."""
        key, state = (path, mpp), file_state(path)
        with self._lock:
            opened = self._open.get(key)
            if opened is not None and opened.state == state:
                self._open.move_to_end(key)
                return opened
        version = content_version(path) if self._has_versions else ""
        slide = open_slide(path, mpp=mpp)
        slide.use_cache(self._cache_bytes)
        data = slide.colour_profile
        profile = None if data is None else read_profile(data)
        opened = OpenedImage(slide, tile_levels(slide), state, version, mpp, profile)
        with self._lock:
            self._open[key] = opened
            while len(self._open) > self._most_open:
                self._open.popitem(last=False)  # Other threads may be reading it: it closes when unused.
        return opened

    def stored_tile(self, image: OpenedImage, level: int, column: int, row: int) -> bytes | None:
        """Return a tile as the file stores it, as a complete JPEG; None if it has to be decoded."""
        tile_level = image.levels[level]
        if tile_level.file_level is None or tile_level.tile.width not in NATIVE_TILE_SIDES:
            return None
        read = getattr(image.slide.backend, "stored_jpeg", None)
        stream: bytes | None = None if read is None else read(tile_level.file_level, column, row)
        return stream

    def decoded_tile(self, image: OpenedImage, level: int, column: int, row: int) -> bytes:
        """Decode a tile and encode it as JPEG."""
        tile_level = image.levels[level]
        left, top = column * tile_level.tile.width, row * tile_level.tile.height
        box = Box(left, top, *tile_level.tile).intersect(Box(0, 0, *tile_level.size))
        if (
            tile_level.file_level is not None
            and tile_level.tile == image.slide.levels[tile_level.file_level].tile
        ):
            decode = getattr(image.slide.backend, "decoded_tile", None)
            pixels = None if decode is None else decode(tile_level.file_level, column, row)
            if pixels is not None:
                return encode(pixels[: box.height, : box.width], TILE_SUBSAMPLING)
        return encode(image.slide.read_lattice(tile_level.lattice, box), TILE_SUBSAMPLING)


def tile_levels(slide: Slide) -> tuple[TileLevel, ...]:
    """Return the levels of the file, and coarser ones down to `COARSE_SIDE`, which are resampled."""
    levels = []
    for index, level in enumerate(slide.levels):
        step_x, step_y = slide.steps(index)
        tile = level.tile
        if tile.width not in NATIVE_TILE_SIDES or tile.height not in NATIVE_TILE_SIDES:
            tile = Size(VIRTUAL_TILE, VIRTUAL_TILE)
        step = float(step_x), float(step_y)
        levels.append(TileLevel(level.size, tile, step, index, slide.lattice(level=index)))
    factor = 2
    while max(levels[-1].size) > COARSE_SIDE:
        lattice = Lattice(Fraction(factor), Fraction(factor), slide.size, None)
        if max(lattice.size) < max(levels[-1].size) * 0.75:
            tile = Size(VIRTUAL_TILE, VIRTUAL_TILE)
            levels.append(TileLevel(lattice.size, tile, (float(factor), float(factor)), None, lattice))
        factor *= 2
    return tuple(levels)


def encode(pixels: NDArray[np.uint8], subsampling: str = "444") -> bytes:
    """Encode RGB (H, W, 3) or grey (H, W, 1) pixels as JPEG."""
    space, subsampling = ("RGB", subsampling) if pixels.shape[2] == 3 else ("GRAY", "Gray")
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), QUALITY, space, subsampling)
    return data
