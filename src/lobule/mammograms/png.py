"""Mammograms as grey PNG files of 8 to 16 bits; exports for the published models have 16 bits."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lobule.errors import DamagedFile, NotAMammogram, UnknownFormat
from lobule.files import open_url
from lobule.mammograms.mask import with_black_background
from lobule.mammograms.record import Decision, Heading, Mammogram, require_size
from lobule.mammograms.views import View, pointing_of_pixels, stored_pointing

GREY_MODES = {"L": 8, "I;16": 16, "I": 16}


def read_png(path: str | Path, *, view: View | None = None, horizontal_flip: str | None = None) -> Mammogram:
    """Read a grey PNG. It does not state its view, which a manifest or the caller supplies.

    The direction of the breast follows from `horizontal_flip` (NO or YES) if that and the view are stated, as
    in the published tools, and otherwise from the pixels. A disagreement is noted.
    """
    pixels, decision = _grey(path)
    cleaned = with_black_background(pixels, path)
    heading = Heading(str(path), (decision,), view=view, height=pixels.shape[0], width=pixels.shape[1])
    pointing = pointing_of_pixels(cleaned.pixels)
    decisions = [decision, cleaned.decision]
    if view is not None and horizontal_flip in ("NO", "YES"):
        stated = stored_pointing(view, horizontal_flip)
        if stated != pointing:
            sentence = (
                f"The exam list states horizontal_flip={horizontal_flip}, so the breast points {stated}; the "
                f"pixels suggest that it points {pointing}."
            )
            decisions.append(Decision("direction", "noted", sentence))
        pointing = stated
    return Mammogram(heading, cleaned.pixels, view, pointing, tuple(decisions))


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
        require_size(path, image.width, image.height)
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
