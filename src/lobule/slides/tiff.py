"""Tiled and stripped TIFF, Aperio SVS and OME-TIFF, read tile by tile with the tile positions from tifffile.

The bytes of a tile are read directly (`preadv`, or a range of a URL) and decoded by libjpeg-turbo or another
codec in the calling thread. Decoded tiles stay in a bounded cache, so neighbouring reads do not decode again.
"""

from __future__ import annotations

import io
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import groupby
from typing import IO, NamedTuple

import numpy as np

from lobule.errors import TooLarge, damaged
from lobule.files import is_url, not_readable, open_url
from lobule.geometry import Box, Size, tiles_over
from lobule.object_stores import ObjectFile, ObjectRanges
from lobule.slides import libturbojpeg
from lobule.slides.backend import LARGE_TILE_PIXELS, RGB, Level, StatedMpp, assemble, damaged_tile
from lobule.slides.cache import DEFAULT_BYTES, TileCache
from lobule.slides.jpeg import EOI, MAX_STORED_BYTES, Bytes, TileBuffer, has_other_decoder
from lobule.slides.read_ahead import Range, ReadAhead
from lobule.slides.tiff_metadata import Layer, TiffMetadata, read_metadata
from lobule.slides.tile_codecs import JPEG, decode_tile

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_ASSOCIATED_PIXELS = 1 << 28
REDUCTIONS = (1, 2, 4, 8)
REFUSALS = 8
"""After libturbojpeg refused this many tiles of a level, it is no longer used for that level."""

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


class Tile(NamedTuple):
    """One tile of a level, at a reduction."""

    level: int
    reduce: int
    column: int
    row: int


class TiffBackend:
    """One TIFF. Threads share its file descriptor and its cache."""

    bounds: Box | None = None

    def __init__(self, path: str, metadata: TiffMetadata, cache_bytes: int = DEFAULT_BYTES) -> None:
        self.path = path
        self.format = metadata.format
        self.properties: Mapping[str, str] = metadata.properties
        self.stated_mpp: StatedMpp | None = metadata.stated_mpp
        self.colour_profile = metadata.colour_profile
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
        self._planned: ReadAhead[bytes] | None = None
        """Tiles of a remote file that the running pass will read."""
        self._reading = threading.local()
        """Tiles of a remote file that the running read of a thread needs."""

    @property
    def decoding_bytes(self) -> int:
        """Peak memory of decoding the largest tile; 0 if all tiles are small."""
        large = [layer for layer in self._layers if layer.tile.area > LARGE_TILE_PIXELS]
        sizes = (layer.tile.area * layer.coding.decoding_bytes(len(layer.offsets)) for layer in large)
        return max(sizes, default=0)

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

    def plan(self, level: int, boxes: Sequence[Box], reduce: int = 1) -> None:
        """Announce the boxes of a level that will be read, in this order.

        Tiles of a remote file are then fetched ahead, neighbouring ones with one request.
        """
        if not self._file.is_remote:
            return
        if self._planned is not None:
            self._planned.close()
        self._planned = ReadAhead(self._file.read_range, self._ranges_under(level, boxes, reduce))

    def _ranges_under(self, level: int, boxes: Sequence[Box], reduce: int) -> list[Range]:
        """Byte ranges of the tiles under boxes, each once. Those of a row of boxes are sorted by offset."""
        layer = self._layers[level]
        tile = Size(layer.tile.width // reduce, layer.tile.height // reduce)
        offsets, lengths = layer.offsets.reshape(-1), layer.lengths.reshape(-1)
        planes, tiles_per_plane = len(layer.offsets), layer.rows * layer.columns
        ranges: dict[Range, None] = {}
        for _, row_of_boxes in groupby(boxes, key=lambda box: box.y):
            indices = {
                row * layer.columns + column for box in row_of_boxes for column, row in tiles_over(box, tile)
            }
            numbers = [index + plane * tiles_per_plane for plane in range(planes) for index in indices]
            stored = [(int(offsets[n]), int(lengths[n])) for n in numbers if offsets[n] and lengths[n]]
            ranges |= dict.fromkeys(sorted(stored))
        return [(offset, length) for offset, length in ranges if offset + length <= self._file.size]

    def read(self, level: int, box: Box, reduce: int = 1) -> RGB:
        if self._file.is_remote:
            ranges = self._ranges_under(level, [box], reduce)
            is_planned = self._planned is not None and self._planned.covers(ranges)
            self._reading.ahead = None if is_planned else ReadAhead(self._file.read_range, ranges)
        return self._read(level, box, reduce)

    def _read(self, level: int, box: Box, reduce: int) -> RGB:
        layer = self._layers[level]
        width, height = layer.tile.width // reduce, layer.tile.height // reduce
        out = np.empty((box.height, box.width, 3), np.uint8)
        for column, row in tiles_over(box, Size(width, height)):
            tile = Tile(level, reduce, column, row)
            left, top = column * width - box.x, row * height - box.y
            y, x = max(-top, 0), max(-left, 0)
            destination = out[top + y : top + height, left + x : left + width]
            pixels = self.cache.get(
                tile,
                partial(self._decode, tile),
                whole_tile=destination.shape[:2] == (height, width),
                decode_uncached=partial(self._decode_uncached, tile, destination),
            )
            if pixels is not destination:
                destination[...] = pixels[y : y + destination.shape[0], x : x + destination.shape[1]]
            del pixels  # release them now: the next tile can reuse their memory while it is in the CPU cache
        return out

    def stored_jpeg(self, level: int, column: int, row: int) -> bytes | None:
        """One tile as the file stores it, as a complete JPEG stream; None if it has to be decoded.

        The tile has the full size of the level's tiles, also where it extends beyond the level.
        """
        layer = self._layers[level]
        coding, index = layer.coding, row * layer.columns + column
        if coding.compression != JPEG or len(layer.offsets) > 1 or coding.samples not in (1, 3):
            return None
        offset, length = int(layer.offsets[0, index]), int(layer.lengths[0, index])
        if offset + length > self._file.size or length > MAX_STORED_BYTES:
            return None
        try:
            stream, header = coding.completed(self._file.read(offset, length))
        except SPOILED:
            return None
        if (header.width, header.height, header.samples) != (*layer.tile, coding.samples):
            return None
        return bytes(stream) if stream[-2:] == EOI else bytes(stream) + EOI

    def decoded_tile(self, level: int, column: int, row: int) -> RGB | None:
        """One tile, which is not copied or cached; None if its file is remote and has to be read ahead.

        The tile is at least as large as its area inside the level.
        """
        return None if self._file.is_remote else self._decode(Tile(level, 1, column, row))

    def read_associated(self, name: str) -> RGB:
        layer = self._associated_layers[name]
        if layer.size.area > MAX_ASSOCIATED_PIXELS:
            raise TooLarge(f"associated image '{name}' declares {layer.size}", subject=self.path)
        try:
            return assemble(Box(0, 0, *layer.size), layer.tile, partial(self._pixels, layer))
        except ValueError as error:
            raise damaged(self.path, f"associated image '{name}' cannot be decoded", str(error)) from error

    def close(self) -> None:
        if self._planned is not None:
            self._planned.close()
            self._planned = None
        self._file.close()
        self.cache.clear()

    # -- one tile -----------------------------------------------------------------------------------------

    def _decode_uncached(self, tile: Tile, destination: RGB) -> RGB:
        """Decode a tile that will not be cached: into `destination`, which has the size of the complete tile,
        or else into memory of this thread that is overwritten by the next tile."""
        if self.decode_into(tile, destination):
            return destination
        return self._decode(tile, self._tile_buffer(self._layers[tile.level]))

    def _decode(self, tile: Tile, buffer: TileBuffer | None = None) -> RGB:
        try:
            return self._pixels(self._layers[tile.level], tile.column, tile.row, tile.reduce, buffer)
        except ValueError as error:
            index = (tile.column, tile.row)
            raise damaged_tile(self.path, self.levels, tile.level, index, str(error)) from error

    def decode_into(self, tile: Tile, destination: RGB) -> bool:
        """Decode a JPEG tile directly into its rows of a larger picture, reduced to their size.

        Returns False if that is not possible. `destination` may then contain anything; the caller decodes the
        tile in the usual way, which also reports damage.
        """
        layer, turbo = self._layers[tile.level], libturbojpeg.library()
        buffer, coding, side = self._tile_buffer(layer), layer.coding, layer.tile
        if turbo is None or buffer is None or coding.samples not in (1, 3) or has_other_decoder():
            return False
        # Pixels beyond the level must not be averaged in.
        if self._refused[tile.level] >= REFUSALS or layer.valid(tile.column, tile.row) != side:
            return False
        index = tile.row * layer.columns + tile.column
        try:
            data = self._fetch(int(layer.offsets[0, index]), int(layer.lengths[0, index]), buffer)
            if not data:
                return False
            stream, header = coding.completed(data, buffer)
        except SPOILED:
            return False
        done = (
            (header.width, header.height, header.samples) == (*side, coding.samples)
            and isinstance(stream, memoryview)
            and turbo.decode_into(stream, side, destination)
        )
        self._refused[tile.level] += not done
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
        tile, index = layer.tile, row * layer.columns + column
        with self._large_tile if tile.area > LARGE_TILE_PIXELS else nullcontext():
            planes: list[Bytes] = []
            for offsets, lengths in zip(layer.offsets, layer.lengths, strict=True):
                offset, length = int(offsets[index]), int(lengths[index])
                if offset == 0 or length == 0:
                    return np.full((tile.height // reduce, tile.width // reduce, 3), self.blank, np.uint8)
                planes.append(self._fetch(offset, length, buffer))
            try:
                return decode_tile(layer.coding, planes, tile, layer.valid(column, row), reduce, buffer)
            except ValueError:
                raise
            except SPOILED as error:
                raise ValueError(f"{type(error).__name__}: {error}") from error

    def _fetch(self, offset: int, length: int, buffer: TileBuffer | None) -> Bytes:
        end, size = offset + length, self._file.size
        if end > size:
            raise ValueError(f"bytes {offset} to {end} lie beyond the end of the file at {size}")
        fetched = self._fetch_ahead(offset, length)
        if fetched is not None:
            data: Bytes = fetched
            if buffer is not None:
                data = buffer.room_for(length)
                memoryview(data)[: len(fetched)] = fetched
            bytes_read = len(fetched)
        elif buffer is None:
            data = self._file.read(offset, length)
            bytes_read = len(data)
        else:
            data = buffer.room_for(length)
            bytes_read = self._file.read_into(offset, data)
        if bytes_read != length:
            raise ValueError(f"only {bytes_read} of {length} bytes could be read")
        return data

    def _fetch_ahead(self, offset: int, length: int) -> bytes | None:
        """Bytes of a tile of a remote file that were or are being fetched ahead, or None."""
        for ahead in (self._planned, getattr(self._reading, "ahead", None)):
            if ahead is not None:
                data = ahead.take(offset, length)
                if data is not None:
                    return data
        return None


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
        handle = self._open_handle()
        self.size = handle.size()
        self.is_remote = handle.remote is not None
        """Whether reads are requests to a server, which are worth planning."""

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

    def read_range(self, start: int, end: int) -> bytes:
        """Read bytes of a remote file. Threads may read at the same time."""
        handle = self._handle or self._open_handle()
        assert handle.remote is not None
        return handle.remote.read(start, end)

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
        raw = getattr(stream, "raw", None)
        self.remote: ObjectRanges | None = raw.ranges if isinstance(raw, ObjectFile) else None
        self._preadv = hasattr(os, "preadv") and isinstance(raw, io.FileIO)
        weakref.finalize(self, stream.close)

    def size(self) -> int:
        return self._stream.seek(0, os.SEEK_END)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        if self._preadv:
            return os.preadv(self._stream.fileno(), [buffer], offset)
        if self.remote is not None:
            data = self.remote.read(offset, min(offset + len(buffer), self.remote.size))
            buffer[: len(data)] = data
            return len(data)
        with self._lock:
            self._stream.seek(offset)
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
