"""Image pixels for the viewer: tiles of slides, regions, thumbnails and the full depth of mammograms."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from lobule.geometry import Box, Lattice, Size
from lobule.mammograms.dicom_codes import OVERRIDES
from lobule.mammograms.exams import read_view, view_named
from lobule.mammograms.record import Mammogram
from lobule.server.colours import ColourProfile, read_profile
from lobule.slides.slide import Slide, open_slide

QUALITY = 88
TILE_SUBSAMPLING = "420"
"""Colours of decoded tiles have half the resolution, as scanners store them: encoding takes half the time."""
VIRTUAL_TILE = 512
COARSE_SIDE = 1024
"""Slides get additional coarser levels until one fits in this many pixels a side."""
MAX_OPEN_SLIDES = 16
SLIDE_CACHE_BYTES = 48 << 20
ENCODED_BYTES = 48 << 20
"""Map tiles and thumbnails that stay in memory."""
VIEWS_BYTES = 512 << 20
NATIVE_TILE_SIDES = range(64, 4097)
MAX_REGION_SIDE = 2048


class ByteCache:
    """Values by key, least recently used first out, limited by their total size in bytes."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._values: OrderedDict[Hashable, tuple[int, Any]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][1]

    def put(self, key: Hashable, value: Any, nbytes: int) -> None:
        with self._lock:
            self._bytes += nbytes - self._values.pop(key, (0, None))[0]
            self._values[key] = nbytes, value
            while self._bytes > self.budget_bytes and len(self._values) > 1:
                self._bytes -= self._values.popitem(last=False)[1][0]


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
    version: str
    """Changes when the file changes."""
    profile: ColourProfile | None = None
    """The ICC profile of the file."""

    @cached_property
    def tag(self) -> bytes:
        """A hash of the file's path and version, for ETags."""
        key = f"{self.slide.path}\0{self.version}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(key, digest_size=12).hexdigest().encode()

    def to_srgb(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert pixels by the profile of the file; unchanged without a profile."""
        return pixels if self.profile is None else self.profile.to_srgb(pixels)


class Pixels:
    """Opens images at first use and keeps the most recently used ones."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[str, float | None], OpenedImage] = OrderedDict()
        self._lock = threading.Lock()
        self._encoded = ByteCache(ENCODED_BYTES)
        self._views = ByteCache(VIEWS_BYTES)
        self._view_lock = threading.Lock()

    def open(self, path: str, mpp: float | None) -> OpenedImage:
        """Open a slide, or return it if it is open and its file has not changed."""
        key, version = (path, mpp), file_version(path)
        with self._lock:
            opened = self._open.get(key)
            if opened is not None and opened.version == version:
                self._open.move_to_end(key)
                return opened
        slide = open_slide(path, mpp=mpp)
        slide.use_cache(SLIDE_CACHE_BYTES)
        data = slide.colour_profile
        profile = None if data is None else read_profile(data)
        opened = OpenedImage(slide, tile_levels(slide), version, profile)
        with self._lock:
            self._open[key] = opened
            while len(self._open) > MAX_OPEN_SLIDES:
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
        return encode(image.slide.read_lattice(tile_level.lattice, box), TILE_SUBSAMPLING)

    def region(self, image: OpenedImage, l0_box: Box, side: int) -> NDArray[np.uint8]:
        """Return a level-0 box of a slide, its longest side about `side` pixels."""
        factor = max(1, max(l0_box.size) // max(1, side))
        lattice = Lattice(Fraction(factor), Fraction(factor), image.slide.size, None)
        if factor == 1:
            lattice = image.levels[0].lattice
        return image.slide.read_lattice(lattice, lattice.of_l0(l0_box))

    def view(self, path: str, name: str) -> Mammogram:
        """Read one view of an exam with its full depth. `name` is that of the view, such as `L-CC`."""
        key = path, file_version(path)
        with self._view_lock:  # One at a time: a decoded view has tens of megabytes.
            mammogram: Mammogram | None = self._views.get(key)
            if mammogram is None:
                mammogram = read_view(path, view=view_named(name.partition(" ")[0]), allow=OVERRIDES)
                self._views.put(key, mammogram, mammogram.pixels.nbytes)
        return mammogram

    def cached(self, key: Hashable, compute: Callable[[], bytes]) -> bytes:
        """Return encoded bytes from the cache, or compute and cache them."""
        data: bytes | None = self._encoded.get(key)
        if data is None:
            data = compute()
            self._encoded.put(key, data, len(data))
        return data


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


def file_version(path: str) -> str:
    """Return a text that changes when the file is replaced or changed. Raises `OSError` if it is gone."""
    state = Path(path).stat()
    return f"{state.st_size:x}-{state.st_mtime_ns:x}-{state.st_ino:x}"


def encode(pixels: NDArray[np.uint8], subsampling: str = "444") -> bytes:
    """Encode RGB (H, W, 3) or grey (H, W, 1) pixels as JPEG."""
    space, subsampling = ("RGB", subsampling) if pixels.shape[2] == 3 else ("GRAY", "Gray")
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), QUALITY, space, subsampling)
    return data


def exam_picture(mammogram: Mammogram, side: int) -> NDArray[np.uint8]:
    """Return a reduced 8-bit grey picture (H, W, 1) of a view, its longest side at most `side` pixels."""
    stored = mammogram.pixels
    factor = max(1, -(-max(stored.shape) // side))
    height, width = stored.shape[0] // factor * factor, stored.shape[1] // factor * factor
    blocks = stored[:height, :width].reshape(height // factor, factor, width // factor, factor)
    means = blocks.mean(axis=(1, 3))
    grey: NDArray[np.uint8] = (255 * means / max(1.0, float(means.max()))).astype(np.uint8)
    return grey[..., None]
