"""Mammograms as grey PNG files of 8 to 16 bits; exports for the published models have 16 bits."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from lobule.errors import DamagedFile, NotAMammogram, TooLarge, UnknownFormat
from lobule.files import open_url, write_atomic
from lobule.mammograms.mask import with_black_background
from lobule.mammograms.record import Decision, Heading, Mammogram
from lobule.mammograms.views import View, pointing_of_pixels

MOST_PIXELS = 200_000_000
GREY_MODES = {"L": 8, "I;16": 16, "I": 16}


def read_png(path: str | Path, *, view: View | None = None) -> Mammogram:
    """Read a grey PNG. It does not state its view, which a manifest or the caller supplies."""
    pixels, decision = _grey(path)
    cleaned = with_black_background(pixels)
    heading = Heading(str(path), (decision,), view=view, height=pixels.shape[0], width=pixels.shape[1])
    pointing = pointing_of_pixels(cleaned.pixels)
    return Mammogram(heading, cleaned.pixels, view, pointing, (decision, cleaned.decision))


def _grey(path: str | Path) -> tuple[NDArray[np.uint16], Decision]:
    with open_url(path) as file:
        content = file.read()
    try:
        image = Image.open(io.BytesIO(content))
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UnknownFormat(
            "the file is not a readable image", subject=path, expected="a grey PNG"
        ) from error
    with image:
        if image.width * image.height > MOST_PIXELS:
            raise TooLarge(
                "the image declares too many pixels",
                subject=path,
                expected=f"at most {MOST_PIXELS:,}",
                actual=f"{image.width} × {image.height}",
            )
        if image.mode not in GREY_MODES:
            raise NotAMammogram(
                "the image is not grey",
                subject=path,
                expected="one channel of 8 to 16 bits",
                actual=image.mode,
            )
        try:
            values = np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise DamagedFile(f"the image cannot be decoded: {error}", subject=path) from error
    return values.astype(np.uint16), _depth_decision(values, GREY_MODES[image.mode])


def _depth_decision(values: NDArray[np.generic], bits: int) -> Decision:
    if bits == 8:
        return Decision(
            "depth", "noted", "The image has 8 bits only: fine contrast that models rely on may be lost."
        )
    top = int(values.max(initial=0))
    used = 12 if top <= 4095 else 16
    return Decision("depth", "accepted", f"16-bit image whose values fit {used} bits (largest {top}).")


def write_png(path: str | Path, pixels: NDArray[np.uint16], *, bits: int = 12) -> None:
    """Write a PNG like the published exams: values of `bits` bits scaled to 16; sBIT states `bits`."""
    white = 2**bits - 1
    if pixels.max(initial=0) > white:
        raise NotAMammogram(
            "a pixel value does not fit the bit depth",
            subject=path,
            expected=f"at most {white}",
            actual=str(int(pixels.max())),
        )
    stretched = np.rint(pixels.astype(np.float64) * (65535 / white)).astype(np.uint16)
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"sBIT", bytes([bits]))
    with write_atomic(path) as temporary:
        Image.fromarray(stretched).save(temporary, format="PNG", pnginfo=chunks)
