"""Convert one compressed tile of a TIFF to RGB: codecs, predictors, photometric interpretations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from lobule.geometry import Size
from lobule.slides import jpeg
from lobule.slides.backend import RGB

MAX_TILE_PIXELS = 1 << 26
"""Largest number of pixels of a compressed tile or strip (8,192 px a side), checked before decoding."""

STRIP_PIXELS = 1 << 18
"""Number of pixels converted to RGB at once."""

MAX_JPEG2000_COMPONENTS = 4
"""Components that a JPEG 2000 stream may have if its page has fewer; the decoder decodes all of them."""

JPEG = 7
JPEG2000 = frozenset({33003, 33004, 33005, 34712})
APERIO_YCBCR = 33003
WEBP = frozenset({34927, 50001})

BYTES: dict[int, Callable[..., Any]] = {
    1: lambda data, out: data[:out],
    5: imagecodecs.lzw_decode,
    8: imagecodecs.deflate_decode,
    32946: imagecodecs.deflate_decode,
    32773: imagecodecs.packbits_decode,
    34925: imagecodecs.lzma_decode,
    34926: imagecodecs.zstd_decode,
    50000: imagecodecs.zstd_decode,
}
"""Codecs of plain bytes; `out` limits the size of their output."""

MIN_IS_WHITE, MIN_IS_BLACK, PHOTOMETRIC_RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6


@dataclass(frozen=True)
class Coding:
    """The compression of the tiles of one page and the meaning of their samples."""

    compression: int
    photometric: int
    samples: int
    """Samples in one compressed tile: those of the page, or 1 if planes are stored separately."""
    bits: int = 8
    byteorder: str = "<"
    predictor: int = 1
    alpha: int = 0
    """0 none (or an extra sample of unknown meaning, ignored), 1 associated, 2 unassociated."""
    tables: bytes = b""
    palette: NDArray[np.uint8] | None = None

    @property
    def supported(self) -> bool:
        if self.bits not in (8, 16) or self.predictor not in (1, 2):
            return False
        if self.compression == JPEG:
            return self.bits == 8 and self.photometric in (MIN_IS_BLACK, PHOTOMETRIC_RGB, YCBCR)
        if self.compression in JPEG2000 or self.compression in WEBP:
            return True
        if self.photometric == PALETTE and self.palette is None:
            return False
        photometrics = (MIN_IS_WHITE, MIN_IS_BLACK, PHOTOMETRIC_RGB, PALETTE)
        return self.compression in BYTES and self.photometric in photometrics

    def decoding_bytes(self, planes: int) -> int:
        """Peak memory of decoding a tile in bytes per pixel, including the RGB result."""
        samples = self.samples * planes
        if self.compression == JPEG:
            return 3 + 2 * samples  # all coefficients of a progressive stream are in memory, as 16 bits
        if self.compression in JPEG2000:
            return 3 + samples * (4 + self.bits // 8)  # OpenJPEG decodes to 32 bits per sample
        copies = 2 if planes > 1 or self.predictor == 2 or self.compression in WEBP else 1
        return 3 + samples * self.bits // 8 * copies

    @cached_property
    def completed(self) -> jpeg.StreamCompleter:
        return jpeg.StreamCompleter(self.tables, transform=self.photometric == YCBCR)


def decode_tile(
    coding: Coding,
    planes: list[jpeg.Bytes],
    tile: Size,
    valid: Size,
    reduce: int = 1,
    buffer: jpeg.TileBuffer | None = None,
) -> RGB:
    """Decode one tile to RGB.

    Args:
        coding: The coding of the page.
        planes: The compressed bytes: one item, or one per sample if planes are stored separately.
        tile: Size of a tile of the page.
        valid: Size of the area inside the level; the result has at least this size.
        reduce: Each side of the result is 1/`reduce` of that of the tile.
        buffer: The buffer that contains the bytes of a JPEG tile and may be used for its pixels.

    Raises:
        ValueError: The bytes are damaged or declare another size.
    """
    if reduce > 1:
        return _reduced_jpeg(coding, planes[0], tile, valid, reduce)
    if coding.compression == JPEG and len(planes) == 1 and coding.samples in (1, 3):
        return _jpeg(coding, planes[0], tile, valid, buffer=buffer)
    plane_samples = [_samples(coding, data, tile, valid) for data in planes]
    pixels = plane_samples[0] if len(plane_samples) == 1 else np.concatenate(plane_samples, axis=2)
    return to_rgb(coding, pixels)


def _jpeg(
    coding: Coding,
    data: jpeg.Bytes,
    tile: Size,
    valid: Size,
    reduce: int = 1,
    buffer: jpeg.TileBuffer | None = None,
) -> RGB:
    stream, header = coding.completed(data, buffer)
    _check_declared(header.width, header.height, tile, valid)
    if header.samples != coding.samples:
        raise ValueError(f"the JPEG stream declares {header.samples} samples, the page {coding.samples}")
    destination = None if buffer is None else buffer.pixels
    return jpeg.decode(stream, header.width, header.height, reduce, destination)


def _reduced_jpeg(coding: Coding, data: jpeg.Bytes, tile: Size, valid: Size, reduce: int) -> RGB:
    """Decode at libjpeg's reduced size. A tile that extends beyond the level is averaged with white instead.

    The content of a tile outside the level is undefined, so libjpeg must not average it in.
    """
    if valid == tile:
        return _jpeg(coding, data, tile, valid, reduce)
    padded = np.full((tile.height, tile.width, 3), 255, np.uint16)
    padded[: valid.height, : valid.width] = _jpeg(coding, data, tile, valid)[: valid.height, : valid.width]
    blocks = padded.reshape(tile.height // reduce, reduce, tile.width // reduce, reduce, 3)
    count = reduce * reduce
    return np.asarray(((blocks.sum(axis=(1, 3), dtype=np.uint32) + count // 2) // count).astype(np.uint8))


def _samples(coding: Coding, data: jpeg.Bytes, tile: Size, valid: Size) -> NDArray[Any]:
    """The samples of one compressed tile or plane as stored: (rows, tile width, samples), 8 or 16 bits."""
    if coding.compression == JPEG:
        return _jpeg(coding, data, tile, valid)[..., : coding.samples]
    if coding.compression in JPEG2000 or coding.compression in WEBP:
        return _image_codec(coding, data, tile, valid)
    row_bytes = tile.width * coding.samples * coding.bits // 8
    raw = BYTES[coding.compression](data, out=tile.height * row_bytes)
    rows = len(raw) // row_bytes
    if rows < valid.height:
        raise ValueError(f"{len(raw)} bytes instead of {valid.height * row_bytes}")
    dtype = np.dtype(f"{coding.byteorder}u{coding.bits // 8}")
    pixels: NDArray[Any] = np.frombuffer(raw, dtype, rows * row_bytes // dtype.itemsize)
    pixels = pixels.reshape(rows, tile.width, coding.samples)
    if coding.predictor == 2:
        pixels = np.cumsum(pixels, axis=1, dtype=f"u{coding.bits // 8}")
    return pixels


def _image_codec(coding: Coding, data: jpeg.Bytes, tile: Size, valid: Size) -> NDArray[Any]:
    webp = coding.compression in WEBP
    (width, height), components = (webp_size(data), 4) if webp else jpeg2000_header(data)
    if components > max(coding.samples, MAX_JPEG2000_COMPONENTS):
        raise ValueError(f"the compressed tile declares {components} components, the page {coding.samples}")
    _check_declared(width, height, tile, valid)
    decode = imagecodecs.webp_decode if webp else imagecodecs.jpeg2k_decode
    pixels: NDArray[Any] = decode(bytes(data))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[:2] != (height, width) or pixels.shape[2] < coding.samples:
        raise ValueError(f"decoded to {pixels.shape}, expected {(height, width, coding.samples)}")
    if pixels.dtype.itemsize * 8 != coding.bits:
        raise ValueError(f"decoded to {pixels.dtype}, expected {coding.bits} bits")
    pixels = pixels[..., : coding.samples]
    return ycbcr_to_rgb(pixels) if coding.compression == APERIO_YCBCR else pixels


def _check_declared(width: int, height: int, tile: Size, valid: Size) -> None:
    # Some writers crop the last tiles to the area inside the level, so sizes down to that are allowed.
    if not (valid.width <= width <= tile.width and valid.height <= height <= tile.height):
        raise ValueError(f"the compressed tile declares {width} × {height} px, the page has tiles of {tile}")


def to_rgb(coding: Coding, pixels: NDArray[Any]) -> RGB:
    """Convert stored samples to RGB: 16 bits are scaled to 8 and rounded, alpha is blended with white.

    Large tiles are converted in strips, so that the wide types of the arithmetic never cover a complete tile.
    """
    height, width = pixels.shape[:2]
    rows = max(1, STRIP_PIXELS // max(1, width))
    if rows >= height:
        return _strip_to_rgb(coding, pixels)
    out = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        out[top : top + rows] = _strip_to_rgb(coding, pixels[top : top + rows])
    return out


def _strip_to_rgb(coding: Coding, pixels: NDArray[Any]) -> RGB:
    if coding.photometric == PALETTE and coding.palette is not None:
        colours_of: RGB = coding.palette[pixels[..., 0]]
        return colours_of
    if pixels.dtype.itemsize == 2:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if coding.photometric == MIN_IS_WHITE:
        pixels = 255 - pixels
    colours = 3 if pixels.shape[2] >= 3 else 1
    rgb = pixels[..., :colours]
    if coding.alpha and pixels.shape[2] > colours:
        alpha = pixels[..., colours : colours + 1].astype(np.uint32)
        inked = rgb.astype(np.uint32) * (255 if coding.alpha == 1 else alpha)
        rgb = np.minimum((inked + 255 * (255 - alpha) + 127) // 255, 255).astype(np.uint8)
    if colours == 1:
        rgb = np.repeat(rgb, 3, axis=2)
    return np.ascontiguousarray(rgb)


def ycbcr_to_rgb(pixels: NDArray[Any]) -> RGB:
    """Full-range BT.601 as in JFIF. Aperio's JPEG 2000 with compression 33003 needs this conversion."""
    y, cb, cr = (pixels[..., index].astype(np.float32) for index in range(3))
    cb, cr = cb - 128, cr - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    return np.asarray(np.clip(np.rint(rgb), 0, 255).astype(np.uint8))


JPEG2000_START = b"\xff\x4f\xff\x51"


def jpeg2000_header(data: jpeg.Bytes) -> tuple[Size, int]:
    """The size and the number of components that a JPEG 2000 codestream (bare or in a JP2 box) declares."""
    at = bytes(data[:4096]).find(JPEG2000_START)
    if at < 0 or len(data) < at + 42:
        raise ValueError("the bytes contain no JPEG 2000 codestream")
    right, bottom, left, top = (int.from_bytes(data[at + k : at + k + 4], "big") for k in (8, 12, 16, 20))
    return Size(right - left, bottom - top), int.from_bytes(data[at + 40 : at + 42], "big")


def webp_size(data: jpeg.Bytes) -> Size:
    """The size that a WebP image declares."""
    kind = data[12:16] if data[:4] == b"RIFF" and len(data) >= 30 else b""
    if kind == b"VP8X":
        return Size(*(1 + int.from_bytes(data[k : k + 3], "little") for k in (24, 27)))
    if kind == b"VP8L":
        packed = int.from_bytes(data[21:25], "little")
        return Size(1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF))
    if kind == b"VP8 ":
        return Size(*(int.from_bytes(data[k : k + 2], "little") & 0x3FFF for k in (26, 28)))
    raise ValueError("the bytes are not a WebP image")
