"""TIFFs with JPEG tiles for tests, and their pixels as read by other programs."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import tifffile

from lobule.geometry import Box
from lobule.slides import RGB, open_slide
from lobule.slides.tiff import TiffBackend, open_backend
from tests.slides.sample_files import tile_frames

SUBSAMPLINGS = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}

APERIO = (
    "Aperio Image Library v12\r\n400x300 [0,0 400x300] (64x64) JPEG/RGB Q=85"
    "|AppMag = 40|MPP = 0.2520|Time = 1:2"
)


def write_jpeg(
    path: Path, levels: Sequence[RGB], *, tile: int = 64, subsampling: str = "420", **options: Any
) -> Path:
    """A pyramid of JPEG tiles: YCbCr, or RGB that the streams do not declare, as Aperio writes it."""
    rgb = subsampling == "rgb"
    with tifffile.TiffWriter(path, bigtiff=options.pop("bigtiff", False)) as out:
        for index, pixels in enumerate(levels):
            streams = [
                rgb_stream(t) if rgb else ycbcr_stream(t, subsampling) for t in tile_frames(pixels, tile)
            ]
            out.write(
                iter(streams), shape=pixels.shape, dtype="uint8", tile=(tile, tile), compression="jpeg",
                photometric="rgb" if rgb else "ycbcr", subfiletype=1 if index else 0, metadata=None,
                subsampling=None if rgb else SUBSAMPLINGS[subsampling], **options,
            )  # fmt: skip
    return path


def ycbcr_stream(pixels: RGB, subsampling: str) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), level=85, subsampling=subsampling))


def rgb_stream(pixels: RGB) -> bytes:
    """Plain RGB with components named 1, 2, 3 and no Adobe segment: only the TIFF declares RGB."""
    colours = {"colorspace": "RGB", "outcolorspace": "RGB"}
    data = bytearray(imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), level=90, **colours))
    at = data.index(b"\xff\xee")
    del data[at : at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]]
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    for k in range(3):
        data[frame + 10 + 3 * k] = data[scan + 5 + 2 * k] = k + 1
    return bytes(data)


def decoded(path: Path) -> list[RGB]:
    """The pages as decoded by tifffile, an independent program."""
    with tifffile.TiffFile(path) as tif:
        return [page.asarray() for page in tif.pages]


def by_openslide(path: Path, level: int, box: Box) -> RGB:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((box.x, box.y), level, (box.width, box.height)).convert("RGB"))


def backend_of(path: Path) -> TiffBackend:
    backend = open_backend(str(path))
    assert backend is not None
    return backend


def read_level(path: Path, level: int = 0, reduce: int = 1) -> RGB:
    with open_slide(path, backend="tiff") as slide:
        return slide.read_level(level, Box(0, 0, *slide.reduced_size(level, reduce)), reduce)


def overwrite(path: Path, tag: str, index: int, value: int) -> None:
    """Change one element of an array tag of a page."""
    with tifffile.TiffFile(path) as tif:
        entry = tif.pages[0].tags[tag]
        at, code = entry.valueoffset, "H" if entry.dtype == 3 else "I"
    data = bytearray(path.read_bytes())
    struct.pack_into("<" + code, data, at + index * struct.calcsize(code), value)
    path.write_bytes(data)
