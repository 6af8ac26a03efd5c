"""The memory that a slide needs for decoded tiles while it is read row by row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lobule.geometry import Lattice
from lobule.slides.resample import source_of
from lobule.slides.slide import Slide


def cache_bytes(slide: Slide, lattice: Lattice, boxes: NDArray[np.int64], read_at_once: int = 1) -> int:
    """Return the bytes of decoded tiles to keep, so that boxes of the next row find the tiles they share.

    Boxes belong to the same row if they begin in the same row of tiles. If the boxes are not in the order of
    their rows, the result is for rows as wide as the slide.

    Args:
        slide: The slide.
        lattice: The lattice of the boxes.
        boxes: x, y, width and height of each box (n, 4), in the order in which they are read.
        read_at_once: How many boxes the threads may have in work together; they may lie in several rows.
    """
    source = source_of(slide, lattice)
    level = slide.levels[source.level]
    width, height = max(1, level.tile.width // source.reduce), max(1, level.tile.height // source.reduce)
    columns = -(-level.size.width // level.tile.width)
    box_rows = int(boxes[:, 3].max()) * float(source.ratio_y) / height
    row_of_box = np.floor(boxes[:, 1] * float(source.ratio_y) / height).astype(np.int64)
    if (np.diff(row_of_box) < 0).any():
        return int(3 * columns * width * height * (box_rows + 3))
    rows, row_number, counts = np.unique(row_of_box, return_inverse=True, return_counts=True)
    # A gap between two rows counts no more than a row of boxes: no tile is shared across it.
    steps = np.minimum(np.diff(rows), np.ceil(box_rows) + 1)
    is_near = steps < box_rows + 1  # Boxes may begin at the end of a tile.
    touched = _columns_of_neighbours(boxes, row_number, is_near, width / float(source.ratio_x), columns)
    # The rows of tiles by which the threads may be ahead of each other, and the last row that they touch.
    ends = np.cumsum(counts)
    ahead = np.minimum(ends + read_at_once - 1, len(boxes))
    row_ends = np.cumsum(np.append(steps, 1))
    further_rows = np.interp(ahead, ends, row_ends) - row_ends
    last_rows = np.searchsorted(ends, ahead)
    most_tiles = 0.0
    for first, last in enumerate(last_rows.tolist()):
        # One row of tiles by which threads are ahead is part of the three.
        tile_rows = box_rows + 3 + max(0.0, float(further_rows[first]) - 1)
        most_tiles = max(most_tiles, int(touched[first : last + 1].max()) * tile_rows)
    return int(3 * width * height * most_tiles)


def _columns_of_neighbours(
    boxes: NDArray[np.int64],
    row_number: NDArray[np.intp],
    is_near: NDArray[np.bool_],
    width: float,
    columns: int,
) -> NDArray[np.int64]:
    """Return how many columns of tiles the boxes of each row and of the next one touch together.

    Args:
        boxes: The boxes (n, 4), sorted by their rows.
        row_number: The row of each box, counted from 0 without gaps.
        is_near: For each row but the last, whether the next one counts as well.
        width: The width of a tile in pixels of the boxes.
        columns: The number of columns of the slide. Tiles outside do not count.
    """
    counts_twice = np.append(False, is_near)[row_number]  # As a box of its row, and of the row before.
    boxes = np.concatenate([boxes, boxes[counts_twice]])
    row_number = np.concatenate([row_number, row_number[counts_twice] - 1])
    order = np.lexsort((boxes[:, 0], row_number))
    boxes, row_number = boxes[order], row_number[order]
    left = np.clip(np.floor(boxes[:, 0] / width), 0, columns).astype(np.int64)
    right = np.clip(np.ceil((boxes[:, 0] + boxes[:, 2]) / width), 0, columns).astype(np.int64)
    # The rows are side by side on one line, so what earlier rows cover ends before a row begins.
    begin_of_row = row_number.astype(np.int64) * (columns + 1)
    covered = np.maximum.accumulate(begin_of_row + right)
    covered_before = np.concatenate([begin_of_row[:1], covered[:-1]])
    new_columns = begin_of_row + right - np.maximum(begin_of_row + left, covered_before)
    first_boxes = np.flatnonzero(np.diff(row_number, prepend=-1))
    return np.add.reduceat(np.maximum(new_columns, 0), first_boxes)
