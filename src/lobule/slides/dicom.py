"""Whole-slide images in DICOM (VL Whole Slide Microscopy), read with wsidicom.

A slide is a series: one or several files per level, and files for the label and the overview. If the path is
one of the files, the rest of its series is searched in the same folder; if it is a folder, the folder must
contain exactly one slide. If the file of a level exists but cannot be used, the slide is refused: without
that level, the coordinates of the others would silently change their meaning. The overview is called
`macro`, as in other formats.

wsidicom is imported when the first DICOM file is opened. This module also examines files of other formats,
which should not pay for the import.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.errors import CaseError, NotReadable, TooLarge, UnknownFormat, damaged
from lobule.geometry import Box, Size
from lobule.slides import jpeg
from lobule.slides.backend import LARGE_TILE_PIXELS, RGB, Level, StatedMpp, assemble, damaged_tile
from lobule.slides.cache import TileCache
from lobule.slides.dicom_access import FrameReader, SeriesAccess
from lobule.slides.dicom_series import Header, files_of_slide, no_warnings
from lobule.slides.tile_codecs import JPEG2000_START, jpeg2000_header
from lobule.units import Mpp

# wsidicom logs a traceback for each file it skips. The error raised here already names the problem.
logging.getLogger("wsidicom").addHandler(logging.NullHandler())

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
MAX_TILE_SIDE = 16_384
MAX_TILES = 20_000_000
LARGE_TILE_BYTES = 20
"""Bytes per pixel that decoding a large tile needs: JPEG 2000 decodes to 32-bit samples."""

MAX_COMPONENTS = 4
SMALL_CACHE = 1 << 20
"""Size of wsidicom's caches in bytes. They stay small because decoded tiles are in a `TileCache`."""


def open_backend(path: str) -> DicomBackend | None:
    """The slide that a DICOM file or folder belongs to, or None if the path is not DICOM."""
    headers = files_of_slide(path)
    return None if headers is None else DicomBackend(path, headers)


# -- the backend ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plane:
    """One image of the series: one focal plane and one optical path of one level, label or overview."""

    pixels: Any
    """wsidicom's image data."""
    size: Size
    tile: Size
    z: float
    optical_path: str
    frames: FrameReader | None = field(default=None, compare=False)
    lookup_lock: threading.Lock = field(default_factory=threading.Lock, compare=False)
    """Held during the lookup of a tile: wsidicom's index of the file is not thread-safe."""
    decode_lock: threading.Lock = field(default_factory=threading.Lock, compare=False)
    """Held while pydicom decodes for wsidicom: every frame passes through the same data set."""

    @property
    def reductions(self) -> tuple[int, ...]:
        halves = self.is_jpeg and self.tile.width % 8 == 0 and self.tile.height % 8 == 0
        return (1, 2, 4, 8) if halves else (1,)

    @property
    def is_large(self) -> bool:
        return self.tile.area > LARGE_TILE_PIXELS

    @property
    def is_jpeg(self) -> bool:
        return bool(self.pixels.transfer_syntax == JPEG_BASELINE)

    def read(self, box: Box, reduce: int, cache: TileCache, key: object) -> RGB:
        """Pixels of a box of (reduced) pixels. Raises `_BadTile`."""

        def tile_at(column: int, row: int) -> RGB:
            try:
                return cache.get((key, reduce, column, row), partial(self.decode, column, row, reduce))
            except NotReadable:  # the server failed; the tile is not damaged
                raise
            except Exception as error:  # decoders raise any exception on damaged bytes
                raise _BadTile((column, row), str(error) or type(error).__name__) from error

        return assemble(box, Size(self.tile.width // reduce, self.tile.height // reduce), tile_at)

    def decode(self, column: int, row: int, reduce: int) -> RGB:
        """One tile; white if the file does not store it."""
        expected_shape = (self.tile.height // reduce, self.tile.width // reduce, 3)
        frame = self._encoded(column, row)
        if frame is None:
            return np.full(expected_shape, 255, np.uint8)
        if self.is_jpeg:
            return self._decode_jpeg(frame, reduce)
        self._check_declared(_declared_size(frame) or self.tile)
        tile = self._decode_other(frame)
        if tile.dtype != np.uint8:
            tile = (tile >> max(0, self.pixels.bits - 8)).astype(np.uint8)
        tile = tile if tile.ndim == 3 else np.repeat(tile[..., None], 3, axis=2)
        if tile.shape != expected_shape:
            raise ValueError(f"decodes to {tile.shape[1]} × {tile.shape[0]} px, not {self.tile}")
        return tile

    def frame_index(self, column: int, row: int) -> int:
        """Number of the frame of a tile, counted from 0; -1 if it is not stored."""
        from wsidicom.geometry import Point

        with self.lookup_lock:
            return int(self.pixels.tiles.get_frame_index(Point(column, row), self.z, self.optical_path))

    def _encoded(self, column: int, row: int) -> bytes | None:
        from wsidicom.geometry import Point

        if self.frames is not None:
            index = self.frame_index(column, row)
            return None if index == -1 else self.frames.read(index)
        point = Point(column, row)
        with self.lookup_lock:
            if self.pixels.is_sparse(point, self.z, self.optical_path):
                return None
            return bytes(self.pixels.get_encoded_tile(point, self.z, self.optical_path))

    def _decode_other(self, frame: bytes) -> NDArray[Any]:
        from wsidicom.codec.decoder import PydicomDecoder

        decoder = self.pixels.decoder
        one_at_a_time = self.is_large or isinstance(decoder, PydicomDecoder)
        with self.decode_lock if one_at_a_time else nullcontext():
            return np.asarray(decoder.decode(frame))

    def _check_declared(self, size: Size) -> None:
        if size != self.tile:
            raise ValueError(f"the compressed tile declares {size}, not {self.tile}")

    @cached_property
    def _completed(self) -> jpeg.StreamCompleter:
        return jpeg.StreamCompleter(b"", transform=self.pixels.photometric_interpretation != "RGB")

    def _decode_jpeg(self, frame: bytes, reduce: int) -> RGB:
        stream, header = self._completed(frame)
        self._check_declared(Size(header.width, header.height))
        with self.decode_lock if self.is_large else nullcontext():
            return jpeg.decode(stream, header.width, header.height, reduce)

    def stored_jpeg(self, column: int, row: int) -> bytes | None:
        """One tile as the file stores it, as a complete JPEG stream; None if it has to be decoded."""
        if not self.is_jpeg or self.frames is not None:  # A server must not be waited for.
            return None
        try:
            frame = self._encoded(column, row)
            if frame is None or len(frame) > jpeg.MAX_STORED_BYTES:
                return None
            stream, header = self._completed(frame)
        except Exception:  # Decoding the tile reports the damage.
            return None
        if Size(header.width, header.height) != self.tile or header.samples not in (1, 3):
            return None
        trimmed = bytes(stream).rstrip(b"\0")  # Frames are padded to an even number of bytes.
        return trimmed if trimmed.endswith(jpeg.EOI) else bytes(stream) + jpeg.EOI


class _BadTile(Exception):
    def __init__(self, tile_index: tuple[int, int], cause: str) -> None:
        self.tile_index = tile_index
        self.cause = cause
        super().__init__(cause)


class _Opened:
    """Open files of a series, which close when the last reader releases this object."""

    def __init__(
        self,
        source: Any,
        levels: tuple[_Plane, ...],
        associated: Mapping[str, _Plane],
        spacing: StatedMpp | None,
        colour_profile: bytes | None,
    ) -> None:
        self.levels, self.associated, self.spacing = levels, associated, spacing
        self.colour_profile = colour_profile
        weakref.finalize(self, source.close)


class DicomBackend:
    """One slide of a DICOM series."""

    format = "dicom"
    bounds: Box | None = None

    def __init__(self, path: str, headers: list[Header], access: SeriesAccess | None = None) -> None:
        self.path = path
        self._headers = headers
        self._access = access or _files(headers)
        self._lock = threading.Lock()
        self.cache = TileCache()
        opened = _open(path, headers, self._access)
        self._opened: _Opened | None = opened
        self.levels = tuple(Level(plane.size, plane.tile) for plane in opened.levels)
        self.associated: Mapping[str, Size | None] = {
            name: plane.size for name, plane in opened.associated.items()
        }
        self.stated_mpp = opened.spacing
        base = opened.levels[0].pixels
        self.colour_profile = opened.colour_profile
        self.properties: Mapping[str, str] = {
            **headers[0].header_properties,
            "dicom.TransferSyntax": base.transfer_syntax.name,
            "dicom.PhotometricInterpretation": str(base.photometric_interpretation),
            "dicom.files": str(len(headers)),
        }

    @property
    def decoding_bytes(self) -> int:
        """Peak memory of decoding the largest tile; 0 if all tiles are small."""
        largest = max(level.tile.area for level in self.levels)
        return largest * LARGE_TILE_BYTES if largest > LARGE_TILE_PIXELS else 0

    @property
    def decoded_tiles(self) -> int:
        """Number of compressed tiles decoded so far, including reduced and missing ones."""
        return self.cache.decodes

    def reductions(self, level: int) -> tuple[int, ...]:
        return self._files().levels[level].reductions

    def read(self, level: int, box: Box, reduce: int = 1) -> RGB:
        opened = self._files()
        try:
            return opened.levels[level].read(box, reduce, self.cache, level)
        except _BadTile as bad:
            raise damaged_tile(self.path, self.levels, level, bad.tile_index, bad.cause) from bad

    def stored_jpeg(self, level: int, column: int, row: int) -> bytes | None:
        return self._files().levels[level].stored_jpeg(column, row)

    def read_associated(self, name: str) -> RGB:
        opened = self._files()
        plane = opened.associated[name]
        try:
            return plane.read(Box(0, 0, *plane.size), 1, self.cache, name)
        except _BadTile as bad:
            raise damaged(self.path, f"associated image '{name}' cannot be decoded", bad.cause) from bad

    def close(self) -> None:
        with self._lock:
            self._opened = None
            self.cache.clear()

    def plane(self, level: int) -> _Plane:
        return self._files().levels[level]

    def _files(self) -> _Opened:
        """The open files. A reader holds them in a variable, so that no other thread can close them."""
        with self._lock:
            if self._opened is None:
                self._opened = _open(self.path, self._headers, self._access)
            return self._opened


# -- opening ----------------------------------------------------------------------------------------------


def _files(headers: list[Header]) -> SeriesAccess:
    def open_files() -> Any:
        from wsidicom.file import WsiDicomFileSource

        return WsiDicomFileSource.open([header.file for header in headers])

    return SeriesAccess(open_files, lambda instance: {file.name for file in instance.image_data.files})


def _open(path: str, headers: list[Header], access: SeriesAccess) -> _Opened:
    from wsidicom.config import Settings, use_settings
    from wsidicom.errors import WsiDicomNotFoundError

    sizes = {"decoded_frame_cache_size": SMALL_CACHE, "encoded_frame_cache_size": SMALL_CACHE}
    settings = Settings(strict_tile_size_check=False, **sizes)
    source = None
    try:
        with use_settings(settings), no_warnings():
            source = access.open()
            return _planes(path, headers, source, access)
    except Exception as error:  # the parser raises any exception on damaged bytes
        if source is not None:
            source.close()
        if isinstance(error, CaseError):
            raise
        if isinstance(error, WsiDicomNotFoundError):  # wsidicom skips files that it cannot use
            raise _unusable_levels(path, [header for header in headers if header.is_level]) from error
        raise damaged(path, "the DICOM slide cannot be read", error) from error


def _planes(path: str, headers: list[Header], source: Any, access: SeriesAccess) -> _Opened:
    instances = list(source.level_instances)
    used = {name for instance in instances for name in access.names_of(instance)}
    unread = [header for header in headers if header.is_level and header.file.name not in used]
    if unread:
        raise _unusable_levels(path, unread)
    by_size: dict[Size, _Plane] = {}
    for instance in instances:
        plane = _plane(path, instance, access)
        previous = by_size.get(plane.size)
        if previous is None or abs(plane.z) < abs(previous.z):
            by_size[plane.size] = plane
    levels = tuple(sorted(by_size.values(), key=lambda plane: plane.size, reverse=True))
    candidates_of = {"label": source.label_instances, "macro": source.overview_instances}
    candidates_of |= {"thumbnail": source.thumbnail_instances}
    first = {name: next(iter(candidates), None) for name, candidates in candidates_of.items()}
    associated = {name: _plane(path, one, access) for name, one in first.items() if one is not None}
    return _Opened(source, levels, associated, _spacing(instances), _colour_profile(instances))


def _unusable_levels(path: str, headers: list[Header]) -> CaseError:
    """The error for levels that wsidicom does not read: unknown compression, or a damaged header."""
    from wsidicom.codec import Decoder

    for header in headers:
        syntax = header.transfer_syntax_uid
        if all(Decoder.select_decoder(syntax, samples, 8) is None for samples in (1, 3)):
            return UnknownFormat(
                "a level of the DICOM slide is compressed in a way that is not supported",
                subject=path,
                expected="a transfer syntax of JPEG, JPEG 2000, JPEG-LS or no compression",
                actual=f"{syntax.name} in {header.file.name}",
                remedy="Write it in another transfer syntax: gdcmconv --raw",
            )
    names = ", ".join(header.file.name for header in headers)
    return damaged(path, "a level of the DICOM slide cannot be used", f"{names}: its header is damaged")


def _plane(path: str, instance: Any, access: SeriesAccess) -> _Plane:
    size = Size(instance.size.width, instance.size.height)
    tile = Size(instance.tile_size.width, instance.tile_size.height)
    sane = min(*tile, *size) > 0 and max(tile) <= MAX_TILE_SIDE
    if not sane or (-(-size.width // tile.width)) * (-(-size.height // tile.height)) > MAX_TILES:
        raise TooLarge(
            f"the DICOM slide declares {size} in tiles of {tile}",
            subject=path,
            expected=f"tiles of 1 to {MAX_TILE_SIDE} px a side, at most {MAX_TILES // 10**6} million of them",
        )
    frames = access.frames_of(instance)
    return _Plane(instance.image_data, size, tile, instance.default_z, instance.default_path, frames)


def _colour_profile(instances: Iterable[Any]) -> bytes | None:
    """The ICC profile of the first optical path that has one."""
    for instance in instances:
        # wsidicom has no public property for the sequence.
        for optical_path in getattr(instance.dataset, "_optical_path_sequence", None) or ():
            profile = getattr(optical_path, "ICCProfile", None)
            if profile:
                return bytes(profile)
    return None


def _spacing(instances: Iterable[Any]) -> StatedMpp | None:
    """µm/px of the largest level: PixelSpacing, or the size of the imaged volume divided by the pixels."""
    base = max(instances, key=lambda instance: (instance.size.width, instance.size.height))
    if base.pixel_spacing is not None:
        x, y = float(base.pixel_spacing.width) * 1000, float(base.pixel_spacing.height) * 1000
        source = "PixelSpacing (DICOM)"
    elif base.mm_size is not None:
        x = float(base.mm_size.width) * 1000 / base.size.width
        y = float(base.mm_size.height) * 1000 / base.size.height
        source = "ImagedVolumeWidth and ImagedVolumeHeight (DICOM)"
    else:
        return None
    sane = all(0.001 < value < 1000 for value in (x, y))
    return StatedMpp(Mpp(x, y), source) if sane else None


def _declared_size(frame: bytes) -> Size | None:
    """Size in the header of a JPEG 2000, JPEG-LS or lossless JPEG stream; None for other streams."""
    if frame[:4] == JPEG2000_START and len(frame) >= 42:
        if not frame.rstrip(b"\0").endswith(jpeg.EOI):  # decoders accept a stream without its end marker
            raise ValueError("the compressed tile is cut short")
        size, components = jpeg2000_header(frame)
        if components > MAX_COMPONENTS:
            raise ValueError(f"the compressed tile declares {components} components")
        return size
    at = 2
    while frame[:2] == jpeg.SOI and at + 9 <= len(frame) and frame[at] == 0xFF:
        if frame[at + 1] in (0xC1, 0xC3, 0xF7):
            height, width = (int.from_bytes(frame[i : i + 2], "big") for i in (at + 5, at + 7))
            return Size(width, height)
        at += 2 + max(2, int.from_bytes(frame[at + 2 : at + 4], "big"))
    return None
