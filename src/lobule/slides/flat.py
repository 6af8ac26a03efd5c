"""Plain images as slides with one level: PNG, JPEG, BMP, WebP, JPEG 2000, PNM and TIFF, read with Pillow.

- Plain images do not state their µm/px: the pHYs chunk of a PNG and the density of a JPEG are printing
  resolutions. The user gives the µm/px (`--slide-mpp`).
- EXIF orientation is ignored: coordinates refer to the stored pixels, as in annotations.
- Grey becomes RGB; 16-bit samples are reduced to their high byte; transparent pixels are blended with white.
- The size is read from the header and checked before anything is decoded. The pixels are decoded at the first
  read and stay in memory until the slide is closed; `decoding_bytes` estimates that memory from the header.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lobule.errors import ConfigError, DamagedFile, LobuleError, TooLarge, UnknownFormat, damaged
from lobule.files import is_url, open_url
from lobule.geometry import Box, Size
from lobule.slides import jpeg
from lobule.slides.backend import RGB, Level, StatedMpp

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "JPEG2000", "PPM", "TIFF")
"""Formats that Pillow decodes by itself, without calling other programs."""

MAX_PIXELS = 1 << 28
"""Largest number of pixels of a plain image, which stays in memory (0.8 GB as JPEG, 1.1 GB as PNG)."""

STRIP_PIXELS = 1 << 20
"""Number of pixels converted to RGB at once, so that no second copy of the image is needed."""

STRIP_BYTES = 12 * STRIP_PIXELS
"""Memory needed to convert one strip from Pillow's storage to RGB."""

LARGE_REMEDY = (
    "Convert it to a tiled, pyramidal TIFF, which is read tile by tile: vips tiffsave --tile --pyramid"
)


def open_backend(path: str) -> FlatBackend | None:
    """The image, or None if its format is not supported."""
    if not is_url(path) and Path(path).is_dir():
        return None
    with open_url(path) as stream:
        name = _format_of(stream.read(32))
    return None if name is None else FlatBackend(path, name)


class FlatBackend:
    """One image, which is decoded completely at the first read."""

    bounds: Box | None = None
    stated_mpp: StatedMpp | None = None

    def __init__(self, path: str, format_name: str) -> None:
        self.path = path
        self.format = f"flat-{format_name.lower()}"
        self._name = format_name
        self._lock = threading.Lock()
        self._pixels: RGB | Image.Image | None = None
        """A decoded JPEG as RGB; any other format as Pillow's image, because RGB would be a second copy."""
        self._failure: LobuleError | None = None
        with _open_image(path, format_name) as image:
            size = Size(*image.size)
            self._mode = image.mode
            progressive = bool(image.info.get("progressive"))
        if size.area > MAX_PIXELS or size.area <= 0:
            raise TooLarge(
                f"the plain image declares {size}",
                subject=path,
                expected=f"at most {MAX_PIXELS >> 20} Mpixel, because the image must fit in memory",
                remedy=LARGE_REMEDY,
            )
        if self._mode in ("I", "F", "LAB", "HSV"):
            raise UnknownFormat(
                f"the image has the pixel type '{self._mode}', whose value range is unknown",
                subject=path,
                expected="8 or 16 bits a sample, grey or colour",
                remedy="Convert it to an 8-bit RGB image",
            )
        with open_url(path) as stream:
            file_bytes = stream.seek(0, os.SEEK_END)
        pixel_bytes = bytes_per_pixel(format_name, self._mode, progressive)
        read_whole = 2 * file_bytes if format_name in ("JPEG", "JPEG2000", "WEBP") else 0
        self.decoding_bytes = size.area * pixel_bytes + read_whole + min(STRIP_BYTES, 12 * size.area)
        """Peak memory of decoding, estimated before anything is decoded."""
        self.levels = (Level(size, size),)
        self.properties: Mapping[str, str] = {"flat.format": format_name, "flat.mode": self._mode}
        self.associated: Mapping[str, Size | None] = {}

    def reductions(self, level: int) -> tuple[int, ...]:
        return (1,)

    def read(self, level: int, box: Box, reduce: int = 1) -> RGB:
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if self._pixels is None:
                try:
                    self._pixels = self._decode()
                except LobuleError as error:
                    self._failure = error  # decoding again would take as long and fail again
                    raise
            pixels = self._pixels
        if not isinstance(pixels, Image.Image):
            return pixels[box.y : box.bottom, box.x : box.right].copy()
        out = np.empty((box.height, box.width, 3), np.uint8)
        rows = max(1, STRIP_PIXELS // max(1, box.width))
        for top in range(box.y, box.bottom, rows):
            strip = pixels.crop((box.x, top, box.right, min(top + rows, box.bottom)))
            out[top - box.y : top - box.y + rows] = to_rgb(strip)
        return out

    def read_associated(self, name: str) -> RGB:
        raise ConfigError("a plain image does not have associated images", subject=self.path)

    def close(self) -> None:
        with self._lock:
            self._pixels = None

    def _decode(self) -> RGB | Image.Image:
        pixels = self._decode_jpeg() if self._name == "JPEG" else None
        return self._decode_by_pillow() if pixels is None else pixels

    def _decode_jpeg(self) -> RGB | None:
        """Decode a JPEG strictly, as Pillow fills damaged areas with grey. None for four samples (CMYK)."""
        with open_url(self.path) as stream:
            data = stream.read()
        try:
            header = jpeg.parse_header(data)
            return None if header.samples > 3 else jpeg.decode(data, *self.levels[0].size)
        except (ValueError, MemoryError) as error:
            raise damaged(self.path, "the JPEG image cannot be decoded", str(error)) from error

    def _decode_by_pillow(self) -> Image.Image:
        with _open_image(self.path, self._name) as image:
            image.load()
            if image.size != tuple(self.levels[0].size):
                raise DamagedFile("the image decodes to another size than it declares", subject=self.path)
            return image


def bytes_per_pixel(format_name: str, mode: str, progressive: bool) -> int:
    """Peak memory of decoding an image completely, in bytes per pixel.

    Args:
        format_name: Pillow's name of the format.
        mode: Pillow's name of the pixel type.
        progressive: Whether a JPEG is progressive; then all its coefficients are in memory.
    """
    samples = Image.getmodebands(mode)
    stored = 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4
    if format_name == "JPEG":
        return (4 if samples > 3 else 3) + (2 * samples if progressive else 0)
    extra = {
        "WEBP": 12,  # two canvases of the decoder and a copy
        "JPEG2000": 4 * samples,  # OpenJPEG decodes to 32 bits a sample
        "TIFF": 8,  # one strip, which may be the whole image, of at most four samples of 16 bits
    }
    return stored + extra.get(format_name, 0)


def to_rgb(image: Image.Image) -> RGB:
    """Pixels of any accepted mode as 8-bit RGB, blended with white."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        return on_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def on_white(rgba: np.ndarray[Any, np.dtype[np.uint8]]) -> RGB:
    """Blend RGBA with white."""
    if rgba[..., 3].min(initial=255) == 255:
        return np.ascontiguousarray(rgba[..., :3])
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return mixed.astype(np.uint8)


def _format_of(head: bytes) -> str | None:
    """The first format whose signature matches."""
    Image.init()
    for name in FORMATS:
        accept = Image.OPEN[name][1] if name in Image.OPEN else None
        if accept is not None and accept(head) is True:
            return name
    return None


@contextmanager
def _open_image(path: str, name: str) -> Iterator[Image.Image]:
    """The image with its header read. Any error that Pillow raises inside becomes a typed error.

    This calls the class of the format instead of `Image.open`, whose pixel limit is global to the process.
    """
    try:
        with open_url(path) as stream:
            yield Image.OPEN[name][0](stream, path)
    except LobuleError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise TooLarge(f"{name} image: {error}", subject=path, remedy=LARGE_REMEDY) from error
    except Exception as error:  # decoders raise any exception on damaged bytes
        raise damaged(path, f"the {name} image cannot be decoded", error) from error
