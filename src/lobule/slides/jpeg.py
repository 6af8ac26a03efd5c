"""Decoding one JPEG tile: header checked first, colours as the container says, reduced on wish."""

from __future__ import annotations

from typing import NamedTuple

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from lobule.slides.backend import RGB

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Start-of-frame markers that libjpeg-turbo decodes: baseline, extended and progressive."""
_OTHER_FRAMES = frozenset({0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_APP0, _APP14, _SOS = 0xE0, 0xEE, 0xDA
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""


class Header(NamedTuple):
    """What a JPEG stream declares, and where the segments lie that decide on its colours."""

    width: int
    height: int
    samples: int
    length: int
    """Bytes up to the first scan."""
    cuts: tuple[tuple[int, int], ...]
    """Byte ranges of the JFIF and Adobe segments."""


ROOM = 1 << 12
"""Bytes left free before those of a tile in a thread's workplace, for a header longer than its own."""

Bytes = bytes | memoryview


class Workplace:
    """Memory of one thread for one tile on its way: its compressed bytes, and its pixels.

    Fresh memory for each would cost a tenth of a tile's decoding.
    """

    def __init__(self, pixels: int) -> None:
        self.pixels: NDArray[np.uint8] = np.empty(3 * pixels, np.uint8)
        self._bytes = bytearray()

    def room_for(self, length: int) -> memoryview:
        """Where the bytes of the next tile go; those of the last one are gone."""
        most = ROOM + len(self.pixels) + length  # a damaged file may promise one huge tile
        if not ROOM + length <= len(self._bytes) <= most:
            self._bytes = bytearray(ROOM + length)
        return memoryview(self._bytes)[ROOM : ROOM + length]

    def with_header(self, header: bytes, replaced: int, length: int) -> memoryview | None:
        """The bytes of the tile, `header` in place of the first `replaced`; None if there is no room."""
        start = ROOM + replaced - len(header)
        if start < 0 or replaced > length:
            return None
        self._bytes[start : ROOM + replaced] = header
        return memoryview(self._bytes)[start : ROOM + length]


def parse_header(data: Bytes) -> Header:
    """Walk the segments up to the first scan. Raises `ValueError` with what is wrong."""
    if data[:2] != SOI:
        raise ValueError("not a JPEG stream")
    frame: tuple[int, int, int] | None = None
    cuts: list[tuple[int, int]] = []
    at, end = 2, len(data) - 4
    while at <= end:
        if data[at] != 0xFF:
            raise ValueError(f"byte {at} is not the marker that its segments promise")
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
    """The start of every stream of a page: its shared tables, and an Adobe segment that fixes the colours.

    The container's photometric interpretation decides whether YCbCr is turned into RGB, as it does for
    OpenSlide; the streams of some scanners carry no word of it, or the wrong one.
    """
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x01" if transform else b"\x00")
    body = tables[2:] if tables[:2] == SOI else tables
    return SOI + adobe + body.removesuffix(EOI)


class Completer:
    """Makes the tiles of one page into streams that stand alone.

    All tiles of a page mostly begin with the same bytes, so the last header is remembered.
    """

    def __init__(self, tables: bytes, transform: bool) -> None:
        self._start = prologue(tables, transform)
        self._last: tuple[bytes, bytes, Header] = (b"\0", b"", Header(0, 0, 0, 0, ()))

    def __call__(self, data: Bytes, place: Workplace | None = None) -> tuple[Bytes, Header]:
        """The whole stream of a tile, and what it declares. Raises `ValueError` if that is damaged.

        `place` is the workplace that `data` lies in; the stream then is made there.
        """
        said, whole, header = self._last
        if data[: len(said)] != said:
            header = parse_header(data)
            said = bytes(data[: header.length])
            whole = self._start + _without(said, header.cuts)
            self._last = (said, whole, header)
        stream = None if place is None else place.with_header(whole, header.length, len(data))
        return stream or whole + memoryview(data)[header.length :], header


def _without(head: bytes, cuts: tuple[tuple[int, int], ...]) -> bytes:
    pieces, at = [], 2
    for left, right in cuts:
        pieces.append(head[at:left])
        at = right
    return b"".join([*pieces, head[at:]])


def decode(
    stream: Bytes, width: int, height: int, reduce: int = 1, into: NDArray[np.uint8] | None = None
) -> RGB:
    """RGB of a stream that declares width × height, 1/`reduce` of it on each side (rounded up).

    `into` is memory that an unreduced image may lie in.

    Damage that libjpeg would paper over with grey raises `ValueError`.
    """
    wanted = (-(-height // reduce), -(-width // reduce), 3)
    if stream[-2:] != EOI:
        stream = bytes(stream) + EOI  # some writers leave it out, or pad after it
    try:
        pixels = _strictly(stream, wanted, reduce, into)
    except ValueError as error:
        pixels = _second_try(bytes(stream), wanted, reduce, str(error))
    if pixels.shape != wanted:
        raise ValueError(f"decoded to {pixels.shape}, expected {wanted}")
    return pixels


def _strictly(
    stream: Bytes, wanted: tuple[int, int, int], reduce: int, into: NDArray[np.uint8] | None = None
) -> RGB:
    if reduce == 1:
        height, width, samples = wanted
        place = None if into is None else into[: height * width * samples]
        pixels: RGB = simplejpeg.decode_jpeg(stream, buffer=place)
    else:
        pixels = simplejpeg.decode_jpeg(stream, min_height=wanted[0], min_width=wanted[1])
    return pixels


def _second_try(stream: bytes, wanted: tuple[int, int, int], reduce: int, complaint: str) -> RGB:
    """For streams that are sound though TurboJPEG's strict front end refuses them."""
    if "extraneous bytes before marker 0xd9" in complaint:  # zeros that fill the tile up to a word
        return _strictly(stream.removesuffix(EOI).rstrip(b"\0") + EOI, wanted, reduce)
    if "subsampling" not in complaint or reduce != 1:
        raise ValueError(complaint)
    try:
        pixels: RGB = imagecodecs.jpeg8_decode(stream)
    except Exception as error:  # imagecodecs has one error class a codec
        raise ValueError(str(error)) from error
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
