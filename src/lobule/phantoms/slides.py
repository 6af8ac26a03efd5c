"""Generated H&E slides of any size with exact truth: `write_slide` for files, `render` for regions."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lobule.files import make_folder
from lobule.geometry import Box
from lobule.phantoms.painting import BLOCK, Painter
from lobule.phantoms.phantom import Lesion, SlidePhantom
from lobule.phantoms.pyramid import Progress, PyramidOptions, reduced, write_pyramid
from lobule.phantoms.truth import SlideTruth

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
    progress: Progress | None = None,
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
        BLOCK,
        tile=tile,
        quality=int(np.clip(quality + painter.look.quality_step, 30, 98)),
        subsampling=subsampling,
        style=style,
        downsample=downsample,
        threads=threads or os.cpu_count() or 1,
    )
    write_pyramid(painter, path, options, progress)
    return _truth(painter)


def render(phantom: SlidePhantom, box: Box, factor: int = 1) -> NDArray[np.uint8]:
    """RGB of a box, given in pixels of level 0 reduced `factor` times (1, 2, 4, 8 or 16) and without JPEG."""
    painter = _painter(phantom)
    l0 = Box(box.x * factor, box.y * factor, box.width * factor, box.height * factor)
    words = np.full((l0.height, l0.width), painter.glass, np.uint32)
    for row in range(l0.y // BLOCK, -(-l0.bottom // BLOCK)):
        for column in range(l0.x // BLOCK, -(-l0.right // BLOCK)):
            block = painter.block(column, row)
            overlap = Box(column * BLOCK, row * BLOCK, BLOCK, BLOCK).intersect(l0)
            if block is not None:
                inside = overlap.moved(-column * BLOCK, -row * BLOCK)
                words[overlap.y - l0.y : overlap.bottom - l0.y, overlap.x - l0.x : overlap.right - l0.x] = (
                    block[inside.y : inside.bottom, inside.x : inside.right]
                )
    small = reduced(words, factor)
    return np.ascontiguousarray(small.view(np.uint8).reshape(*small.shape, 4)[..., :3])


def truth_of(phantom: SlidePhantom) -> SlideTruth:
    """The truth of a generated slide, without painting it."""
    return _truth(_painter(phantom))


def _truth(painter: Painter) -> SlideTruth:
    phantom, layout = painter.phantom, painter.model.layout
    return SlideTruth.of(phantom.width, phantom.height, phantom.mpp, layout.lesions, layout.sections)


@lru_cache(maxsize=2)
def _painter(phantom: SlidePhantom) -> Painter:
    return Painter(phantom)
