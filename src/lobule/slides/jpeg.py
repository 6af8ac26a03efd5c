"""Decode one JPEG tile: check its header, use the colours of the container, reduce it if requested."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import NamedTuple, Protocol

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from lobule.slides.backend import RGB

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
MAX_STORED_BYTES = 1 << 24
"""Largest compressed tile that `stored_jpeg` returns."""
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Start-of-frame markers that libjpeg-turbo decodes: baseline, extended and progressive."""
_OTHER_FRAMES = frozenset({0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_APP0, _APP14, _SOS = 0xE0, 0xEE, 0xDA
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
"""An Adobe segment without its last byte, which is 1 for YCbCr and 0 for RGB or grey."""
YCBCR_START = SOI + ADOBE + b"\x01"
"""The first bytes of a completed stream whose samples are YCbCr."""
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""


class Header(NamedTuple):
    """The values that a JPEG stream declares, and the positions of the segments that define its colours."""

    width: int
    height: int
    samples: int
    length: int
    """Number of bytes before the first scan."""
    cuts: tuple[tuple[int, int], ...]
    """Byte ranges of the JFIF and Adobe segments."""


ROOM = 1 << 12
"""Free bytes in front of a tile's bytes in a `TileBuffer`, for a header longer than the tile's own."""

Bytes = bytes | memoryview


class TileBuffer:
    """Reusable memory of one thread for the compressed bytes and the pixels of one tile.

    Allocating memory for each tile would cost a tenth of the decoding time.
    """

    def __init__(self, pixels: int) -> None:
        self.pixels: NDArray[np.uint8] = np.empty(3 * pixels, np.uint8)
        self._bytes = bytearray()

    def room_for(self, length: int) -> memoryview:
        """Memory for the compressed bytes of the next tile. It overwrites the previous tile."""
        most = ROOM + len(self.pixels) + length  # a damaged file may declare one huge tile
        if not ROOM + length <= len(self._bytes) <= most:
            self._bytes = bytearray(ROOM + length)
        return memoryview(self._bytes)[ROOM : ROOM + length]

    def with_header(self, header: bytes, replaced: int, length: int) -> memoryview | None:
        """The tile's bytes with the first `replaced` bytes replaced by `header`; None if it does not fit."""
        start = ROOM + replaced - len(header)
        if start < 0 or replaced > length:
            return None
        self._bytes[start : ROOM + replaced] = header
        return memoryview(self._bytes)[start : ROOM + length]


def parse_header(data: Bytes) -> Header:
    """Parse the segments up to the first scan. Raises `ValueError` with the problem."""
    if data[:2] != SOI:
        raise ValueError("not a JPEG stream")
    frame: tuple[int, int, int] | None = None
    cuts: list[tuple[int, int]] = []
    at, end = 2, len(data) - 4
    while at <= end:
        if data[at] != 0xFF:
            raise ValueError(f"byte {at} is not a marker, although the previous segment ends there")
        marker = data[at + 1]
        if marker == 0xFF or marker in _BARE:
            at += 1 if marker == 0xFF else 2
            continue
        length = data[at + 2] << 8 | data[at + 3]
        if marker in _FRAMES:
            if length < 8 or at + 10 > len(data):
                raise ValueError("the frame header is cut off")
            frame = (data[at + 7] << 8 | data[at + 8], data[at + 5] << 8 | data[at + 6], data[at + 9])
        elif marker in _OTHER_FRAMES:
            raise ValueError(f"JPEG process 0x{marker:02x} (lossless or arithmetic) is not supported")
        elif marker in (_APP0, _APP14):
            cuts.append((at, at + 2 + length))
        elif marker == _SOS:
            break
        at += 2 + length
    if frame is None:
        raise ValueError("the stream has no frame header")
    if at > end:
        raise ValueError("the stream ends before its first scan")
    return Header(*frame, at, tuple(cuts))


def prologue(tables: bytes, transform: bool) -> bytes:
    """The start of every stream of a page: its shared tables, and an Adobe segment that defines the colours.

    The container's photometric interpretation decides whether YCbCr is converted to RGB, as in OpenSlide. The
    streams of some scanners do not state their colour space, or state the wrong one.
    """
    adobe = ADOBE + (b"\x01" if transform else b"\x00")
    body = tables[2:] if tables[:2] == SOI else tables
    return SOI + adobe + body.removesuffix(EOI)


class StreamCompleter:
    """Turns the tiles of one page into complete JPEG streams.

    Most tiles of a page begin with the same bytes, so the last header is cached.
    """

    def __init__(self, tables: bytes, transform: bool) -> None:
        self._start = prologue(tables, transform)
        self._last: tuple[bytes, bytes, Header] = (b"\0", b"", Header(0, 0, 0, 0, ()))

    def __call__(self, data: Bytes, buffer: TileBuffer | None = None) -> tuple[Bytes, Header]:
        """The complete stream of a tile and its header. Raises `ValueError` if the header is damaged.

        `buffer` is the buffer that contains `data`, if any; the stream is then built inside it.
        """
        head, completed_head, header = self._last
        if data[: len(head)] != head:
            header = parse_header(data)
            head = bytes(data[: header.length])
            completed_head = self._start + _without_segments(head, header.cuts)
            self._last = (head, completed_head, header)
        stream = None if buffer is None else buffer.with_header(completed_head, header.length, len(data))
        return stream or completed_head + memoryview(data)[header.length :], header


def _without_segments(head: bytes, cuts: tuple[tuple[int, int], ...]) -> bytes:
    starts, ends = [2, *(right for _, right in cuts)], [*(left for left, _ in cuts), len(head)]
    return b"".join(head[start:end] for start, end in zip(starts, ends, strict=True))


class OtherDecoder(Protocol):
    """Decodes complete streams in place of libjpeg-turbo; several threads call it at once."""

    def decode(self, stream: Bytes) -> RGB | None:
        """Return the pixels; None leaves the stream to libjpeg-turbo, which also reports damage."""
        ...


_other_decoder: OtherDecoder | None = None


@contextmanager
def decoding_with(decoder: OtherDecoder | None) -> Iterator[None]:
    """Decode unreduced YCbCr tiles with another decoder, in all threads of this process."""
    global _other_decoder
    before, _other_decoder = _other_decoder, decoder or _other_decoder
    try:
        yield
    finally:
        _other_decoder = before


def has_other_decoder() -> bool:
    """Whether another decoder than libjpeg-turbo is in use."""
    return _other_decoder is not None


def decode(
    stream: Bytes, width: int, height: int, reduce: int = 1, destination: NDArray[np.uint8] | None = None
) -> RGB:
    """Decode a stream that declares width × height to RGB.

    Args:
        stream: A complete JPEG stream.
        width: Declared width in pixels.
        height: Declared height in pixels.
        reduce: Each side of the result is 1/`reduce` of the declared side, rounded up.
        destination: Memory that may be used for an unreduced image.

    Raises:
        ValueError: The stream is damaged, including damage that libjpeg would fill with grey.
    """
    expected_shape = (-(-height // reduce), -(-width // reduce), 3)
    if stream[-2:] != EOI:
        stream = bytes(stream) + EOI  # some writers omit the end marker, or pad after it
    if _other_decoder is not None and reduce == 1 and stream[: len(YCBCR_START)] == YCBCR_START:
        other_pixels = _other_decoder.decode(stream)
        if other_pixels is not None and other_pixels.shape == expected_shape:
            return other_pixels
    try:
        pixels = _decode_strictly(stream, expected_shape, reduce, destination)
    except ValueError as error:
        pixels = _decode_leniently(bytes(stream), expected_shape, reduce, str(error))
    if pixels.shape != expected_shape:
        raise ValueError(f"decoded to {pixels.shape}, expected {expected_shape}")
    return pixels


def _decode_strictly(
    stream: Bytes, shape: tuple[int, int, int], reduce: int, destination: NDArray[np.uint8] | None = None
) -> RGB:
    least = {} if reduce == 1 else {"min_height": shape[0], "min_width": shape[1]}
    buffer = None if destination is None or reduce > 1 else destination[: prod(shape)]
    pixels: RGB = simplejpeg.decode_jpeg(stream, buffer=buffer, **least)
    return pixels


def _decode_leniently(
    stream: bytes, expected_shape: tuple[int, int, int], reduce: int, first_error: str
) -> RGB:
    """Decode valid streams that TurboJPEG's strict interface refuses."""
    if "extraneous bytes before marker 0xd9" in first_error:  # zero padding to a whole word
        return _decode_strictly(stream.removesuffix(EOI).rstrip(b"\0") + EOI, expected_shape, reduce)
    if "subsampling" not in first_error or reduce != 1:
        raise ValueError(first_error)
    try:
        pixels: RGB = imagecodecs.jpeg8_decode(stream)
    except Exception as error:  # imagecodecs has one error class per codec
        raise ValueError(str(error)) from error
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
