"""Writes a slide of any size quickly, by repeating a few encoded tiles of a generated one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import simplejpeg
import tifffile

from lobule.phantoms.slides import SlidePhantom, write_slide


def write_large_slide(path: Path, side: int, tissue: float, mpp: float) -> None:
    """A JPEG slide of repeated tiles: tissue in the middle, glass around it, and a small level."""
    tile, shrink = 512, 32
    phantom = path.with_suffix(".phantom.tif")
    write_slide(SlidePhantom(seed=3, width=2048, height=2048, mpp=mpp, tissue=0.9, sections=1), phantom)
    with tifffile.TiffFile(phantom) as file:
        pixels = file.pages[0].asarray()
    cuts = [
        pixels[y : y + tile, x : x + tile] for y in range(512, 1536, tile) for x in range(512, 1536, tile)
    ]
    blank = np.full((tile, tile, 3), 243, np.uint8)
    count = -(-side // tile)
    margin = round(count * (1 - tissue**0.5) / 2)

    def kind(row: int, column: int) -> int:
        inside = margin <= min(row, column) and max(row, column) < count - margin
        return 1 + (row * 7 + column) % len(cuts) if inside else 0

    tiles = [blank, *cuts]
    encoded = [simplejpeg.encode_jpeg(np.ascontiguousarray(one), 85, "RGB", "420") for one in tiles]
    small = [one.reshape(tile // shrink, shrink, tile // shrink, shrink, 3).mean((1, 3)) for one in tiles]
    rows = range(count)
    overview = np.concatenate(
        [np.concatenate([small[kind(row, column)] for column in rows], axis=1) for row in rows]
    ).astype(np.uint8)
    shared = {
        "photometric": "ycbcr", "resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER",
        "compression": "jpeg", "tile": (tile, tile),
    }  # fmt: skip
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            (encoded[kind(row, column)] for row in rows for column in rows),
            shape=(count * tile, count * tile, 3), dtype=np.uint8, subsampling=(2, 2), **shared,
        )  # fmt: skip
        shared["resolution"] = (1e4 / mpp / shrink, 1e4 / mpp / shrink)
        writer.write(overview, subfiletype=1, **shared)
