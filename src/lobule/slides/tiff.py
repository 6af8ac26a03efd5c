"""Tiled and stripped TIFF, Aperio SVS and OME-TIFF, by tile: addresses from tifffile, each tile decoded once.

The bytes of a tile are read in place (`preadv`, or a range of a URL) and decoded by libjpeg-turbo or its like
in the thread that asks. Decoded tiles stay in a bounded cache, so neighbouring reads do not decode again.
"""

from __future__ import annotations

import io
import os
import threading
import weakref
from collections.abc import Mapping
from functools import partial
from math import floor
from typing import IO

import numpy as np

from lobule.errors import DamagedFile, DamagedTile, TooLarge
from lobule.files import is_url, not_readable, open_url
from lobule.geometry import Box, Size, level_step, tiles_over
from lobule.slides import libturbojpeg
from lobule.slides.backend import RGB, FoundMpp, Level
from lobule.slides.cache import DEFAULT_BYTES, TileCache
from lobule.slides.jpeg import Bytes, Workplace
from lobule.slides.tiff_facts import Layer, TiffFacts, read_facts
from lobule.slides.tile_codecs import JPEG, decode_tile

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_ASSOCIATED_PIXELS = 1 << 28
REDUCTIONS = (1, 2, 4, 8)
REFUSALS = 8
"""Tiles of a level that may be decoded twice since libturbojpeg would not have them; then it is not asked."""
LARGE_TILE_PIXELS = 1 << 22
"""Tiles with more pixels are decoded one at a time, so that reading threads do not multiply their memory."""

SPOILED = (ValueError, RuntimeError, TypeError, IndexError, OverflowError, MemoryError, BufferError)
"""Whatever a codec says of bad bytes."""


def open_backend(path: str) -> TiffBackend | None:
    """The slide, or None where the file is no TIFF or one that OpenSlide knows better."""
    if not is_url(path) and os.path.isdir(path):  # noqa: PTH112 - may be any string that a person typed
        return None
    with open_url(path) as stream:
        if stream.read(4) not in MAGIC:
            return None
        facts = read_facts(stream, path)
    return None if facts is None else TiffBackend(path, facts)


class TiffBackend:
    """One TIFF. Threads share its file descriptor and its cache."""

    bounds: Box | None = None

    def __init__(self, path: str, facts: TiffFacts, cache_bytes: int = DEFAULT_BYTES) -> None:
        self.path = path
        self.format = facts.format
        self.properties: Mapping[str, str] = facts.properties
        self.found_mpp: FoundMpp | None = facts.found_mpp
        self.levels = tuple(Level(layer.size, layer.tile) for layer in facts.levels)
        self.associated: Mapping[str, Size | None] = {
            name: layer.size for name, layer in facts.associated.items()
        }
        self.cache = TileCache(cache_bytes)
        self.blank = 255
        """The value of tiles that the file leaves out."""
        self._workplaces = threading.local()
        self._refused = [0] * len(facts.levels)
        """Tiles of each level that seemed sound and could not be decoded straight into their place."""
        self._layers = facts.levels
        self._beside = facts.associated
        self._large_tile = threading.Lock()
        self._file = Ranges(path)

    @property
    def decoding_bytes(self) -> int:
        """Memory that decoding the largest tile takes at its peak; 0 where all are small."""
        large = [layer for layer in self._layers if layer.tile.area > LARGE_TILE_PIXELS]
        return max(
            (layer.tile.area * layer.coding.decoding_bytes(len(layer.offsets)) for layer in large), default=0
        )

    @property
    def decoded_tiles(self) -> int:
        """Compressed tiles decoded so far; reduced and missing ones count too."""
        return self.cache.decodes

    def reductions(self, level: int) -> tuple[int, ...]:
        layer = self._layers[level]
        if layer.coding.compression != JPEG or len(layer.offsets) > 1:
            return (1,)
        return tuple(factor for factor in REDUCTIONS if not any(side % factor for side in layer.tile))

    def is_blank(self, level: int, box: Box, reduce: int = 1) -> bool:
        """Whether the file leaves out every tile under a box, and such tiles are white."""
        layer = self._layers[level]
        if self.blank != 255:
            return False
        width, height = layer.tile.width // reduce, layer.tile.height // reduce
        tiles = np.s_[box.y // height : -(-box.bottom // height), box.x // width : -(-box.right // width)]
        shape = len(layer.offsets), layer.rows, layer.columns
        offsets, lengths = (table.reshape(shape)[:, *tiles] for table in (layer.offsets, layer.lengths))
        return not bool(np.any((offsets != 0) & (lengths != 0)))

    def read(self, level: int, box: Box, reduce: int = 1) -> RGB:
        layer = self._layers[level]
        tile_width, tile_height = layer.tile.width // reduce, layer.tile.height // reduce
        out = np.empty((box.height, box.width, 3), np.uint8)
        for column, row in tiles_over(box, Size(tile_width, tile_height)):
            left, top = column * tile_width - box.x, row * tile_height - box.y
            y, x = max(-top, 0), max(-left, 0)
            into = out[top + y : top + tile_height, left + x : left + tile_width]
            height, width = into.shape[:2]
            tile = self.cache.get(
                (level, reduce, column, row),
                partial(self._decode, level, column, row, reduce),
                whole=height == tile_height and width == tile_width,
                in_passing=partial(self._decode, level, column, row, reduce, into),
            )
            if tile is not into:
                into[...] = tile[y : y + height, x : x + width]
            del tile  # let go at once: its memory is still warm for the next
        return out

    def read_associated(self, name: str) -> RGB:
        layer = self._beside[name]
        if layer.size.area > MAX_ASSOCIATED_PIXELS:
            raise TooLarge(f"associated image '{name}' declares {layer.size}", subject=self.path)
        out = np.empty((layer.size.height, layer.size.width, 3), np.uint8)
        for column, row in tiles_over(Box(0, 0, *layer.size), layer.tile):
            try:
                tile = self._pixels(layer, column, row)
            except ValueError as error:
                raise DamagedFile(
                    f"associated image '{name}' cannot be decoded", subject=self.path, actual=str(error)
                ) from error
            spot = out[row * layer.tile.height :, column * layer.tile.width :][
                : layer.tile.height, : layer.tile.width
            ]
            spot[:] = tile[: spot.shape[0], : spot.shape[1]]
        return out

    def close(self) -> None:
        self._file.close()
        self.cache.clear()

    # -- one tile -----------------------------------------------------------------------------------------

    def _decode(self, level: int, column: int, row: int, reduce: int, spot: RGB | None = None) -> RGB:
        """One tile of a level.

        `spot`, if given, is where all of it is wanted, and by nobody else: what comes back is that, with the
        tile in it, or memory of this thread that holds the tile until the next.
        """
        layer = self._layers[level]
        if spot is not None and self._straight(level, column, row, spot):
            return spot
        try:
            return self._pixels(layer, column, row, reduce, None if spot is None else self._workplace(layer))
        except ValueError as error:
            raise self._damaged(level, column, row, str(error)) from error

    def _straight(self, level: int, column: int, row: int, spot: RGB) -> bool:
        """Whether a JPEG tile was decoded into its rows of a larger picture, reduced to the size of `spot`.

        If not, `spot` may hold anything; the long way decodes the tile, or says what is wrong with it.
        """
        layer, turbo = self._layers[level], libturbojpeg.library()
        coding, tile, index = layer.coding, layer.tile, row * layer.columns + column
        place = self._workplace(layer)
        if turbo is None or place is None or coding.samples not in (1, 3) or self._refused[level] >= REFUSALS:
            return False
        if layer.valid(column, row) != tile:  # what lies beyond the level must not be averaged in
            return False
        try:
            data = self._fetch(int(layer.offsets[0, index]), int(layer.lengths[0, index]), place)
            if not data:
                return False
            stream, header = coding.completed(data, place)
        except SPOILED:
            return False
        declared = header.width, header.height, header.samples
        done = (
            declared == (tile.width, tile.height, coding.samples)
            and isinstance(stream, memoryview)
            and turbo.decode_into(stream, tile.width, tile.height, spot)
        )
        self._refused[level] += not done
        return done

    def _workplace(self, layer: Layer) -> Workplace | None:
        """Memory of this thread for JPEG tiles of one plane; other codecs make their own."""
        if layer.coding.compression != JPEG or len(layer.offsets) > 1 or layer.tile.area > LARGE_TILE_PIXELS:
            return None
        place: Workplace | None = getattr(self._workplaces, "place", None)
        if place is None or len(place.pixels) < 3 * layer.tile.area:
            place = self._workplaces.move_to_device = Workplace(layer.tile.area)
        return place

    def _pixels(
        self, layer: Layer, column: int, row: int, reduce: int = 1, place: Workplace | None = None
    ) -> RGB:
        """One tile as RGB, at least as large as its part inside the layer. Raises `ValueError` if damaged.

        With `place` its pixels may lie there, until the next tile's do.
        """
        if layer.tile.area > LARGE_TILE_PIXELS:
            with self._large_tile:
                return self._decoded(layer, column, row, reduce, place)
        return self._decoded(layer, column, row, reduce, place)

    def _decoded(self, layer: Layer, column: int, row: int, reduce: int, place: Workplace | None) -> RGB:
        tile, index = layer.tile, row * layer.columns + column
        planes: list[Bytes] = []
        for offsets, lengths in zip(layer.offsets, layer.lengths, strict=True):
            offset, length = int(offsets[index]), int(lengths[index])
            if offset == 0 or length == 0:
                return np.full((tile.height // reduce, tile.width // reduce, 3), self.blank, np.uint8)
            planes.append(self._fetch(offset, length, place))
        valid = layer.valid(column, row)
        try:
            return decode_tile(layer.coding, planes, tile, valid, reduce, place)
        except ValueError:
            raise
        except SPOILED as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def _fetch(self, offset: int, length: int, place: Workplace | None) -> Bytes:
        if offset + length > self._file.size:
            raise ValueError(f"bytes {offset} to {offset + length} lie beyond the file's {self._file.size}")
        if place is None:
            data: Bytes = self._file.read(offset, length)
            found = len(data)
        else:
            data = place.room_for(length)
            found = self._file.read_into(offset, data)
        if found != length:
            raise ValueError(f"{found} bytes could be read where {length} are promised")
        return data

    def _damaged(self, level: int, column: int, row: int, cause: str) -> DamagedTile:
        size, tile = self.levels[level].size, self.levels[level].tile
        step_x = level_step(self.levels[0].size.width, size.width)
        step_y = level_step(self.levels[0].size.height, size.height)
        left, top = column * tile.width, row * tile.height
        right, bottom = min(left + tile.width, size.width), min(top + tile.height, size.height)
        l0_box = Box.of_edges(
            floor(left * step_x), floor(top * step_y), -floor(-right * step_x), -floor(-bottom * step_y)
        )
        return DamagedTile(self.path, level, (column, row), cause, l0_box=l0_box)


# -- bytes --------------------------------------------------------------------------------------------------


class Ranges:
    """Ranges of a file or URL, for any number of threads.

    Closing lets go of the handle: reads under way in other threads end well, the last of them closes the
    file, and a later read opens it again.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._handle: _Handle | None = None
        self.size = self._held().size()

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        return bytes(memoryview(data)[: self.read_into(offset, memoryview(data))])

    def read_into(self, offset: int, place: memoryview) -> int:
        """How many bytes there were to fill `place` with."""
        handle = self._handle or self._held()
        try:
            return handle.read_into(offset, place)
        except OSError as error:
            raise not_readable(error, self.path) from error

    def close(self) -> None:
        with self._lock:
            self._handle = None

    def _held(self) -> _Handle:
        with self._lock:
            if self._handle is None:
                self._handle = _Handle(open_url(self.path))
            return self._handle


class _Handle:
    """An open stream that closes when nobody holds it; a local file is read without moving its position."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._preadv = hasattr(os, "preadv") and isinstance(stream, io.BufferedReader)
        weakref.finalize(self, stream.close)

    def size(self) -> int:
        return self._stream.seek(0, os.SEEK_END)

    def read_into(self, offset: int, place: memoryview) -> int:
        if self._preadv:
            return os.preadv(self._stream.fileno(), [place], offset)
        with self._lock:
            self._stream.seek(offset)
            data = self._stream.read(len(place))
        place[: len(data)] = data
        return len(data)
