"""The cache of decoded tiles is as large as the boxes need: a larger one saves no decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lobule.geometry import Box
from lobule.slides.cache_size import cache_bytes
from lobule.slides.slide import Slide, open_slide
from tests.scanning.support import pixels_of, write_slide

TILE, SIDE = 64, 1280
"""Sides of a tile of the file and of the slide, in pixels."""
ROW_OF_TILES = 3 * TILE * SIDE
"""Bytes of the decoded tiles of a row across the slide."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slide") / "s.tif", pixels_of(SIDE, SIDE), TILE)


def boxes_of(side: int, step: int, columns: Sequence[int], margin: int = 0) -> NDArray[np.int64]:
    """Boxes row by row, in these columns only; each may extend beyond its step by a margin."""
    return np.array(
        [
            (column * step - margin, row * step - margin, side + 2 * margin, side + 2 * margin)
            for row in range(SIDE // step)
            for column in columns
        ],
        np.int64,
    )


def read_all(slide: Slide, boxes: NDArray[np.int64]) -> int:
    """Read the boxes in their order, and return how many tiles were decoded."""
    lattice = slide.lattice(level=0)
    for box in boxes.tolist():
        slide.read_lattice(lattice, Box(*box))
    return slide.tiles_decoded


@pytest.mark.parametrize(("side", "step", "columns", "margin"), [
    (56, 56, range(20), 0), (56, 56, range(7, 11), 0), (150, 150, range(8), 20), (150, 150, range(2, 4), 20),
    (64, 64, range(3, 9), 0), (40, 56, range(5, 8), 0), (56, 56, [1, 2, 3, 17, 18], 0),
])  # fmt: skip
def test_tiles_are_decoded_as_often_as_with_a_cache_of_the_whole_slide(
    path: Path, side: int, step: int, columns: Sequence[int], margin: int
) -> None:
    boxes = boxes_of(side, step, columns, margin)
    with open_slide(path) as slide:
        slide.use_cache(cache_bytes(slide, slide.lattice(level=0), boxes))
        decoded = read_all(slide, boxes)
    with open_slide(path) as slide:
        slide.use_cache(3 * SIDE * SIDE)
        assert decoded == read_all(slide, boxes)


@pytest.mark.parametrize(("readers", "batch", "columns"), [
    (16, 8, range(3)), (8, 32, range(10)), (4, 8, range(1)), (2, 32, range(20)),
])  # fmt: skip
def test_threads_may_read_several_rows_at_once(path: Path, readers: int, batch: int, columns: range) -> None:
    """The order is the one of equally fast threads: each in turn reads the next field of its batch."""
    boxes = boxes_of(56, 56, columns)
    jobs = [boxes[start : start + batch] for start in range(0, len(boxes), batch)]
    order = []
    for first in range(0, len(jobs), readers):
        together = jobs[first : first + readers]
        order += [job[turn] for turn in range(batch) for job in together if turn < len(job)]
    decoded = []
    for nbytes in (None, 3 * SIDE * SIDE):
        with open_slide(path) as slide:
            needed = cache_bytes(slide, slide.lattice(level=0), boxes, readers * batch)
            slide.use_cache(needed if nbytes is None else nbytes)
            decoded.append(read_all(slide, np.array(order)))
    assert decoded[0] == decoded[1]


def test_boxes_in_a_few_columns_need_a_smaller_cache(path: Path) -> None:
    with open_slide(path) as slide:
        lattice = slide.lattice(level=0)
        assert cache_bytes(slide, lattice, boxes_of(64, 64, range(20))) == 4 * ROW_OF_TILES
        assert cache_bytes(slide, lattice, boxes_of(64, 64, range(6, 11))) == ROW_OF_TILES
        apart = boxes_of(64, 64, [0, 1, 17, 18, 19])
        assert cache_bytes(slide, lattice, apart) == ROW_OF_TILES
        assert cache_bytes(slide, lattice, apart, read_at_once=16) == ROW_OF_TILES * 6 // 4


def test_a_gap_between_pieces_of_tissue_is_not_cached(path: Path) -> None:
    with open_slide(path) as slide:
        lattice, row = slide.lattice(level=0), np.arange(5, 10)
        boxes = np.stack([64 * row, 0 * row, 0 * row + 64, 0 * row + 64], axis=1)
        apart = np.concatenate([boxes, boxes + np.array([0, 15 * 64, 0, 0])])
        near = np.concatenate([boxes, boxes + np.array([0, 2 * 64, 0, 0])])
        assert cache_bytes(slide, lattice, apart, 2) == cache_bytes(slide, lattice, near, 2)
        assert cache_bytes(slide, lattice, apart, 2) <= 2 * cache_bytes(slide, lattice, boxes, 2)


def test_a_few_tall_boxes_in_work_need_no_further_row(path: Path) -> None:
    x, y = np.meshgrid(np.arange(20) * 64, np.arange(4) * 320)
    boxes = np.stack([x.ravel(), y.ravel(), np.full(80, 64), np.full(80, 320)], axis=1)
    with open_slide(path) as slide:
        lattice = slide.lattice(level=0)
        assert cache_bytes(slide, lattice, boxes, read_at_once=2) == 8 * ROW_OF_TILES
        assert cache_bytes(slide, lattice, boxes, read_at_once=21) == 12 * ROW_OF_TILES


def test_rows_that_are_shifted_count_the_columns_of_both(path: Path) -> None:
    with open_slide(path) as slide:
        lattice = slide.lattice(level=0)
        for side in (56, 150):
            rows = [boxes_of(side, side, range(3)), boxes_of(side, side, range(3, 6))]
            shifted = np.concatenate([rows[number % 2][3 * number : 3 * number + 3] for number in range(8)])
            straight = boxes_of(side, side, range(6))[: 6 * 8]
            assert cache_bytes(slide, lattice, shifted) == cache_bytes(slide, lattice, straight)


def test_boxes_that_are_not_in_rows_need_rows_across_the_slide(path: Path) -> None:
    with open_slide(path) as slide:
        boxes = boxes_of(64, 64, range(6, 11))[::-1]
        assert cache_bytes(slide, slide.lattice(level=0), boxes) == 4 * ROW_OF_TILES


def test_boxes_outside_the_slide_need_nothing_and_a_coarser_lattice_has_larger_boxes(path: Path) -> None:
    with open_slide(path, mpp=0.5) as slide:
        outside = np.array([[-100, -100, 50, 50], [9000, 20, 50, 50]], np.int64)
        assert cache_bytes(slide, slide.lattice(level=0), outside) == 0
        coarse = slide.lattice(mpp=1.0)
        assert cache_bytes(slide, coarse, boxes_of(32, 32, range(20))) == 4 * ROW_OF_TILES


def test_many_boxes_are_counted_in_little_memory_and_time(path: Path) -> None:
    """A hostile file may declare a slide of millions of pixels with tiles of 16."""
    numbers = np.arange(200_000, dtype=np.int64)
    boxes = np.stack([numbers % 7 * 10**6, numbers * 20, 0 * numbers + 16, 0 * numbers + 16], axis=1)
    with open_slide(path) as slide:
        assert cache_bytes(slide, slide.lattice(level=0), boxes, 64) > 0
