"""Generated H&E slides of any size with exact truth: `write_slide` for files, `render` for regions."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lobule.files import make_folder
from lobule.geometry import Box
from lobule.phantoms.painting import Painter, paint
from lobule.phantoms.phantom import Lesion, SlidePhantom
from lobule.phantoms.pyramid import PyramidOptions, reduced, write_pyramid
from lobule.phantoms.stains import rgb_of_words
from lobule.phantoms.truth import Outline, SlideTruth

__all__ = ["Lesion", "SlidePhantom", "SlideTruth", "render", "truth_of", "write_slide"]


def write_slide(
    phantom: SlidePhantom,
    path: str | Path,
    *,
    tile: int = 256,
    quality: int = 85,
    style: str = "generic",
    subsampling: str = "420",
    downsample: int = 2,
    threads: int | None = None,
) -> SlideTruth:
    """Write a generated slide as a JPEG-tiled pyramidal TIFF and return what is on it.

    `style` says how the µm/px is written: "svs" in an Aperio description, "generic" as resolution in
    centimetres, "ome" in OME-XML. The bytes depend on the arguments, never on `threads`.
    """
    path = Path(path)
    make_folder(path.parent)
    painter = _painter(phantom)
    options = PyramidOptions(
        phantom.width,
        phantom.height,
        phantom.mpp,
        tile=tile,
        quality=int(np.clip(quality + painter.look.quality_step, 30, 98)),
        subsampling=subsampling,
        style=style,
        downsample=downsample,
        threads=threads or os.cpu_count() or 1,
    )
    write_pyramid(painter, path, options)
    return _truth(painter)


def render(phantom: SlidePhantom, box: Box, factor: int = 1) -> NDArray[np.uint8]:
    """RGB of a box, given in pixels of level 0 reduced `factor` times (1, 2, 4, 8 or 16) and without JPEG."""
    painter = _painter(phantom)
    l0_box = Box(box.x * factor, box.y * factor, box.width * factor, box.height * factor)
    words = reduced(paint(painter.block, l0_box, painter.glass), factor)
    return np.ascontiguousarray(rgb_of_words(words))


def truth_of(phantom: SlidePhantom) -> SlideTruth:
    """The truth of a generated slide, without painting it."""
    return _truth(_painter(phantom))


def _truth(painter: Painter) -> SlideTruth:
    phantom, layout = painter.phantom, painter.model.layout
    outlines = tuple(Outline(one.outline, one.lesion_class, one.size_um) for one in layout.lesions)
    return SlideTruth(phantom.width, phantom.height, phantom.mpp, outlines, tuple(layout.sections))


@lru_cache(maxsize=2)
def _painter(phantom: SlidePhantom) -> Painter:
    return Painter(phantom)
