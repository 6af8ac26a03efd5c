"""Reading a JPEG-tiled slide, against raw libjpeg-turbo on the same tiles from memory, and against OpenSlide.

Everything is read once in boxes of 1,024 px, on one thread and on two; of the two the worse ratio counts. The
slide is a generated one whose compressed tiles are laid out again and again up to the size wanted. OpenSlide
is used as people use it: one handle with its own cache, `read_region` and then `convert("RGB")`.

`copied_of_raw` is the rate of raw decoding when each tile, also from memory, is copied into the
requested box. The Python front ends of libjpeg-turbo write only to contiguous memory, so no reader of
boxes that uses them can be faster.

`--quick` reads a part of the boxes, in fewer rounds.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import simplejpeg
import tifffile

from lobule.geometry import Box, Lattice
from lobule.phantoms.slides import SlidePhantom, write_slide
from lobule.slides import Slide, open_slide
from lobule.slides.tiff import TiffBackend
from measure import arguments, peak_bytes, report, side_by_side

SEED_SIDE = 4096
TILE = 512
BOX = 1024
DOWNSAMPLE = 4
PER_BOX = (BOX // TILE) ** 2


def lay_out(seed: Path, path: Path, times: int) -> Path:
    """A slide `times` as wide and high as `seed`, of the same compressed tiles."""
    with tifffile.TiffFile(seed) as tif, tifffile.TiffWriter(path, bigtiff=True) as out:
        for index, page in enumerate(tif.pages):
            height, width = page.shape[0], page.shape[1]
            tiles = compressed_tiles(seed, index)
            columns = width // TILE
            assert width % TILE == height % TILE == 0

            def repeated(tiles: list[bytes] = tiles, columns: int = columns) -> Iterator[bytes]:
                rows = [tiles[at : at + columns] for at in range(0, len(tiles), columns)]
                for _ in range(times):
                    for row in rows:
                        yield from row * times

            out.write(
                repeated(), shape=(height * times, width * times, 3), dtype="uint8", tile=(TILE, TILE),
                compression="jpeg", photometric="ycbcr", subsampling=(2, 2), subfiletype=1 if index else 0,
                resolution=page.resolution, resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip
    return path


def compressed_tiles(path: Path, page: int) -> list[bytes]:
    with tifffile.TiffFile(path) as tif, path.open("rb") as stream:
        tables = tif.pages[page].jpegtables
        assert tables is None
        tiles = []
        for offset, length in zip(tif.pages[page].dataoffsets, tif.pages[page].databytecounts, strict=True):
            stream.seek(offset)
            tiles.append(stream.read(length))
        return tiles


def decode_all(tiles: list[bytes]) -> None:
    for tile in tiles:
        simplejpeg.decode_jpeg(tile)


def copy_all(tiles: list[bytes], columns: int, workplace: threading.local) -> np.ndarray[Any, Any]:
    """The tiles of a box decoded into memory of the thread, and copied to their places in the box."""
    if not hasattr(workplace, "tile"):
        workplace.tile = np.empty(3 * TILE**2, np.uint8)
    out = np.empty((len(tiles) // columns * TILE, columns * TILE, 3), np.uint8)
    for index, tile in enumerate(tiles):
        y, x = index // columns * TILE, index % columns * TILE
        out[y : y + TILE, x : x + TILE] = simplejpeg.decode_jpeg(tile, buffer=workplace.tile)
    return out


def rows_of_boxes(width: int, height: int) -> list[list[Box]]:
    return [
        [Box(x, y, min(BOX, width - x), min(BOX, height - y)) for x in range(0, width, BOX)]
        for y in range(0, height, BOX)
    ]


def whole_speed(path: Path, threads: int, quick: bool) -> dict[str, float]:
    """Mpixel/s of each way to have all the pixels of level 0."""
    with open_slide(path) as slide, openslide.OpenSlide(path) as theirs, ThreadPoolExecutor(threads) as pool:
        tiles = compressed_tiles(path, 0)
        columns = slide.size.width // TILE
        rows = rows_of_boxes(*slide.size)[:: 3 if quick else 1]
        # in lists of as many as a box has, so that raw decoding is not charged with handing out each tile
        in_row = [
            [
                tiles[at : at + PER_BOX]
                for at in range(row[0].y // TILE * columns, row[0].bottom // TILE * columns, PER_BOX)
            ]
            for row in rows
        ]

        def over(work: Callable[[Any], object], items: list[Any]) -> None:
            def used(item: Any) -> None:
                work(item)  # what was read is let go at once, as a reader of a stream does

            for _ in pool.map(used, items):
                pass

        def region(box: Box) -> Any:
            return theirs.read_region((box.x, box.y), 0, (box.width, box.height))

        def ours(row: int) -> None:
            if row == 0:
                slide.close()  # each round opens the file and begins with an empty cache
            over(lambda box: slide.read_level(0, box), rows[row])

        workplace = threading.local()
        across = BOX // TILE
        rounds = 3 if quick else 5
        seconds = side_by_side(
            {
                "raw": lambda row: over(decode_all, in_row[row]),
                "copied": lambda row: over(lambda tiles: copy_all(tiles, across, workplace), in_row[row]),
                "lobule": ours,
            },
            len(rows),
            rounds,
        )
        assert isinstance(slide.backend, TiffBackend)
        if slide.backend.decoded_tiles != sum(len(some) for row in in_row for some in row):
            raise RuntimeError("the last round did not decode each tile once: the figures mean nothing")
        some = rows[:: 2 if quick else 1]
        theirs_seconds = side_by_side(
            {
                "openslide": lambda row: over(lambda box: np.asarray(region(box).convert("RGB")), some[row]),
                "read_region alone": lambda row: over(region, some[row]),
            },
            len(some),
            max(1, rounds - 2),
        )
        mpixels = sum(box.size.area for row in rows for box in row) / 1e6
        share = sum(len(row) for row in some) / sum(len(row) for row in rows)
        return {name: mpixels / value for name, value in seconds.items()} | {
            name: mpixels * share / value for name, value in theirs_seconds.items()
        }


def reduced_ratio(slide: Slide, theirs: openslide.OpenSlide, level: int, factor: int, quick: bool) -> float:
    """How many times faster than OpenSlide a level is read at 1/`factor` of its resolution."""
    lattice = slide.lattice(level=level).coarser(factor)
    step = lattice.step_x
    side = min(BOX, lattice.size.width, lattice.size.height)
    boxes = [
        Box(x, y, side, side)
        for y in range(0, lattice.size.height - side + 1, side)
        for x in range(0, lattice.size.width - side + 1, side)
    ][: 4 if quick else 16]

    def ours(_: int) -> None:
        assert isinstance(slide.backend, TiffBackend)
        slide.backend.cache.clear()
        for box in boxes:
            slide.read_lattice(Lattice(lattice.step_x, lattice.step_y, lattice.l0_size, None), box)

    def openslides(_: int) -> None:
        best = theirs.get_best_level_for_downsample(float(step) + 1e-3)
        resize_factor = step / Fraction(round(theirs.level_downsamples[best]))
        theirs.set_cache(openslide.OpenSlideCache(32 << 20))
        for box in boxes:
            l0_corner = (int(box.x * step), int(box.y * step))
            image = theirs.read_region(
                l0_corner, best, (int(side * resize_factor), int(side * resize_factor))
            ).convert("RGB")
            np.asarray(image.reduce(int(resize_factor)) if resize_factor > 1 else image)

    seconds = side_by_side({"ours": ours, "theirs": openslides}, 1, 3)
    return seconds["theirs"] / seconds["ours"]


def read_everything(path: str) -> None:
    """What the memory child does."""
    with open_slide(path) as slide:
        for row in rows_of_boxes(*slide.size):
            for box in row:
                slide.read_level(0, box)


def main() -> None:
    if sys.argv[1:2] == ["--read"]:
        read_everything(sys.argv[2])
        return
    quick = arguments(__doc__ or "").quick
    with tempfile.TemporaryDirectory() as folder:
        seed = Path(folder) / "seed.tif"
        phantom = SlidePhantom(seed=7, width=SEED_SIDE, height=SEED_SIDE, tissue=0.8)
        write_slide(phantom, seed, tile=TILE, downsample=DOWNSAMPLE)
        path = lay_out(seed, Path(folder) / "slide.tif", 3)
        large = lay_out(seed, Path(folder) / "large.tif", 6)
        ratios = dict.fromkeys(("of_raw", "copied_of_raw", "over_openslide"), float("inf"))
        for threads in (1, 2):
            speed = whole_speed(path, threads, quick)
            print(f"{threads} thread(s), Mpixel/s:", ", ".join(f"{k} {v:.0f}" for k, v in speed.items()))
            ratios["of_raw"] = min(ratios["of_raw"], speed["lobule"] / speed["raw"])
            ratios["copied_of_raw"] = min(ratios["copied_of_raw"], speed["copied"] / speed["raw"])
            ratios["over_openslide"] = min(ratios["over_openslide"], speed["lobule"] / speed["openslide"])
        with open_slide(path) as slide, openslide.OpenSlide(path) as theirs:
            tissue = np.mean([tile.mean() < 232 for tile in tile_means(slide)])
            print(f"{slide.size}, {len(slide.levels)} levels, {tissue:.0%} of the tiles are tissue")
            for name, factor in (("half", 2), ("quarter", 4)):
                rounds_of_ratios = [
                    reduced_ratio(slide, theirs, level, factor, quick) for level in range(len(slide.levels))
                ]
                print(
                    f"{name} resolution over OpenSlide, by level:",
                    ", ".join(f"{r:.1f}" for r in rounds_of_ratios),
                )
                ratios[f"{name}_over_openslide"] = min(rounds_of_ratios)
        small_peak, large_peak = (peak_bytes([__file__, "--read", str(p)]) for p in (path, large))
        print(f"peak memory {small_peak >> 20} MiB, of 4 times as large a slide {large_peak >> 20} MiB")
        ratios["memory_growth"] = large_peak / small_peak
    report("reading", ratios)


def tile_means(slide: Slide) -> Iterator[np.ndarray[Any, Any]]:
    """Pixels of each level-0 tile, from the first corner that repeats, at an eighth of the resolution."""
    side = TILE // 8
    for y in range(0, SEED_SIDE // 8, side):
        for x in range(0, SEED_SIDE // 8, side):
            yield slide.read_level(0, Box(x, y, side, side), reduce=8)


if __name__ == "__main__":
    main()
