"""Tiled and stripped TIFF, Aperio SVS and OME-TIFF, read tile by tile with the tile positions from tifffile.

The bytes of a tile are read directly (`preadv`, or a range of a URL) and decoded by libjpeg-turbo or another
codec in the calling thread. Decoded tiles stay in a bounded cache, so neighbouring reads do not decode again.
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
from lobule.slides.jpeg import EOI, Bytes, TileBuffer
from lobule.slides.tiff_facts import Layer, TiffMetadata, read_metadata
from lobule.slides.tile_codecs import JPEG, decode_tile

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_ASSOCIATED_PIXELS = 1 << 28
REDUCTIONS = (1, 2, 4, 8)
REFUSALS = 8
"""After libturbojpeg refused this many tiles of a level, it is no longer used for that level."""
LARGE_TILE_PIXELS = 1 << 22
"""Larger tiles are decoded one at a time, so that several threads do not multiply the memory."""

MAX_STORED_BYTES = 1 << 24
"""Largest compressed tile that `stored_jpeg` returns."""

SPOILED = (ValueError, RuntimeError, TypeError, IndexError, OverflowError, MemoryError, BufferError)
"""The exceptions that codecs raise for damaged bytes."""


def open_backend(path: str) -> TiffBackend | None:
    """The slide, or None if the file is not a TIFF or is of a kind that OpenSlide reads."""
    if not is_url(path) and os.path.isdir(path):  # noqa: PTH112 - may be any string that a user typed
        return None
    with open_url(path) as stream:
        if stream.read(4) not in MAGIC:
            return None
        metadata = read_metadata(stream, path)
    return None if metadata is None else TiffBackend(path, metadata)


class TiffBackend:
    """One TIFF. Threads share its file descriptor and its cache."""

    bounds: Box | None = None

    def __init__(self, path: str, metadata: TiffMetadata, cache_bytes: int = DEFAULT_BYTES) -> None:
        self.path = path
        self.format = metadata.format
        self.properties: Mapping[str, str] = metadata.properties
        self.found_mpp: FoundMpp | None = metadata.found_mpp
        self.levels = tuple(Level(layer.size, layer.tile) for layer in metadata.levels)
        self.associated: Mapping[str, Size | None] = {
            name: layer.size for name, layer in metadata.associated.items()
        }
        self.cache = TileCache(cache_bytes)
        self.blank = 255
        """The value of tiles that the file does not store."""
        self._tile_buffers = threading.local()
        self._refused = [0] * len(metadata.levels)
        """Number of tiles of each level that libturbojpeg refused although they seemed valid."""
        self._layers = metadata.levels
        self._associated_layers = metadata.associated
        self._large_tile = threading.Lock()
        self._file = Ranges(path)

    @property
    def decoding_bytes(self) -> int:
        """Peak memory of decoding the largest tile; 0 if all tiles are small."""
        large = [layer for layer in self._layers if layer.tile.area > LARGE_TILE_PIXELS]
        return max(
            (layer.tile.area * layer.coding.decoding_bytes(len(layer.offsets)) for layer in large), default=0
        )

    @property
    def decoded_tiles(self) -> int:
        """Number of compressed tiles decoded so far, including reduced and missing ones."""
        return self.cache.decodes

    def reductions(self, level: int) -> tuple[int, ...]:
        layer = self._layers[level]
        if layer.coding.compression != JPEG or len(layer.offsets) > 1:
            return (1,)
        return tuple(factor for factor in REDUCTIONS if not any(side % factor for side in layer.tile))

    def is_blank(self, level: int, box: Box, reduce: int = 1) -> bool:
        """Whether the file stores no tile under a box and missing tiles are white."""
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
            target = out[top + y : top + tile_height, left + x : left + tile_width]
            height, width = target.shape[:2]
            tile = self.cache.get(
                (level, reduce, column, row),
                partial(self._decode, level, column, row, reduce),
                whole_tile=height == tile_height and width == tile_width,
                decode_uncached=partial(self._decode, level, column, row, reduce, target),
            )
            if tile is not target:
                target[...] = tile[y : y + height, x : x + width]
            del tile  # release it now: the next tile can reuse its memory while it is in the CPU cache
        return out

    def stored_jpeg(self, level: int, column: int, row: int) -> bytes | None:
        """One tile as the file stores it, as a complete JPEG stream; None if it has to be decoded.

        The tile has the full size of the level's tiles, also where it extends beyond the level.
        """
        layer = self._layers[level]
        coding, index = layer.coding, row * layer.columns + column
        if coding.compression != JPEG or len(layer.offsets) > 1 or coding.samples not in (1, 3):
            return None
        data = self._fetch_whole(int(layer.offsets[0, index]), int(layer.lengths[0, index]))
        try:
            stream, header = coding.completed(data)
        except SPOILED:
            return None
        if (header.width, header.height, header.samples) != (*layer.tile, coding.samples):
            return None
        return bytes(stream) if stream[-2:] == EOI else bytes(stream) + EOI

    def _fetch_whole(self, offset: int, length: int) -> bytes:
        """The bytes of a tile; empty if the file does not store it, ends before it, or states too many."""
        if offset + length > self._file.size or length > MAX_STORED_BYTES:
            return b""
        return self._file.read(offset, length)

    def read_associated(self, name: str) -> RGB:
        layer = self._associated_layers[name]
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
            target = out[row * layer.tile.height :, column * layer.tile.width :][
                : layer.tile.height, : layer.tile.width
            ]
            target[:] = tile[: target.shape[0], : target.shape[1]]
        return out

    def close(self) -> None:
        self._file.close()
        self.cache.clear()

    # -- one tile -----------------------------------------------------------------------------------------

    def _decode(self, level: int, column: int, row: int, reduce: int, out: RGB | None = None) -> RGB:
        """Decode one tile of a level.

        If `out` is given, it has the size of the complete tile, and the tile will not be cached. The result
        is then `out` itself, or memory of this thread that is overwritten by the next tile.
        """
        layer = self._layers[level]
        if out is not None and self._decode_into(level, column, row, out):
            return out
        try:
            return self._pixels(layer, column, row, reduce, None if out is None else self._tile_buffer(layer))
        except ValueError as error:
            raise self._damaged(level, column, row, str(error)) from error

    def _decode_into(self, level: int, column: int, row: int, out: RGB) -> bool:
        """Decode a JPEG tile directly into its rows of a larger picture, reduced to the size of `out`.

        Returns False if that fails. `out` may then contain anything; the caller decodes the tile in the usual
        way, which also reports damage.
        """
        layer, turbo = self._layers[level], libturbojpeg.library()
        coding, tile, index = layer.coding, layer.tile, row * layer.columns + column
        buffer = self._tile_buffer(layer)
        if (
            turbo is None
            or buffer is None
            or coding.samples not in (1, 3)
            or self._refused[level] >= REFUSALS
        ):
            return False
        if layer.valid(column, row) != tile:  # pixels beyond the level must not be averaged in
            return False
        try:
            data = self._fetch(int(layer.offsets[0, index]), int(layer.lengths[0, index]), buffer)
            if not data:
                return False
            stream, header = coding.completed(data, buffer)
        except SPOILED:
            return False
        declared = header.width, header.height, header.samples
        done = (
            declared == (tile.width, tile.height, coding.samples)
            and isinstance(stream, memoryview)
            and turbo.decode_into(stream, tile.width, tile.height, out)
        )
        self._refused[level] += not done
        return done

    def _tile_buffer(self, layer: Layer) -> TileBuffer | None:
        """Reusable memory of this thread for JPEG tiles of one plane; None for other codecs."""
        if layer.coding.compression != JPEG or len(layer.offsets) > 1 or layer.tile.area > LARGE_TILE_PIXELS:
            return None
        buffer: TileBuffer | None = getattr(self._tile_buffers, "buffer", None)
        if buffer is None or len(buffer.pixels) < 3 * layer.tile.area:
            buffer = self._tile_buffers.buffer = TileBuffer(layer.tile.area)
        return buffer

    def _pixels(
        self, layer: Layer, column: int, row: int, reduce: int = 1, buffer: TileBuffer | None = None
    ) -> RGB:
        """One tile as RGB, at least as large as its area inside the layer. Raises `ValueError` if damaged.

        If `buffer` is given, the result may use its memory until the next tile overwrites it.
        """
        if layer.tile.area > LARGE_TILE_PIXELS:
            with self._large_tile:
                return self._decode_planes(layer, column, row, reduce, buffer)
        return self._decode_planes(layer, column, row, reduce, buffer)

    def _decode_planes(
        self, layer: Layer, column: int, row: int, reduce: int, buffer: TileBuffer | None
    ) -> RGB:
        tile, index = layer.tile, row * layer.columns + column
        planes: list[Bytes] = []
        for offsets, lengths in zip(layer.offsets, layer.lengths, strict=True):
            offset, length = int(offsets[index]), int(lengths[index])
            if offset == 0 or length == 0:
                return np.full((tile.height // reduce, tile.width // reduce, 3), self.blank, np.uint8)
            planes.append(self._fetch(offset, length, buffer))
        valid = layer.valid(column, row)
        try:
            return decode_tile(layer.coding, planes, tile, valid, reduce, buffer)
        except ValueError:
            raise
        except SPOILED as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def _fetch(self, offset: int, length: int, buffer: TileBuffer | None) -> Bytes:
        if offset + length > self._file.size:
            raise ValueError(
                f"bytes {offset} to {offset + length} lie beyond the end of the file at {self._file.size}"
            )
        if buffer is None:
            data: Bytes = self._file.read(offset, length)
            bytes_read = len(data)
        else:
            data = buffer.room_for(length)
            bytes_read = self._file.read_into(offset, data)
        if bytes_read != length:
            raise ValueError(f"only {bytes_read} of {length} bytes could be read")
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
    """Reads byte ranges of a file or URL from several threads.

    Closing releases the handle: running reads of other threads finish normally, the last of them closes the
    file, and a later read opens it again.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._handle: _Handle | None = None
        self.size = self._open_handle().size()

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        return bytes(memoryview(data)[: self.read_into(offset, memoryview(data))])

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read bytes from `offset` into `buffer`. Returns the number of bytes read."""
        handle = self._handle or self._open_handle()
        try:
            return handle.read_into(offset, buffer)
        except OSError as error:
            raise not_readable(error, self.path) from error

    def close(self) -> None:
        with self._lock:
            self._handle = None

    def _open_handle(self) -> _Handle:
        with self._lock:
            if self._handle is None:
                self._handle = _Handle(open_url(self.path))
            return self._handle


class _Handle:
    """An open stream that closes with its last reference. Local files are read without a file position."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._preadv = hasattr(os, "preadv") and isinstance(stream, io.BufferedReader)
        weakref.finalize(self, stream.close)

    def size(self) -> int:
        return self._stream.seek(0, os.SEEK_END)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        if self._preadv:
            return os.preadv(self._stream.fileno(), [buffer], offset)
        with self._lock:
            self._stream.seek(offset)
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
