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
        read_at_once: How many boxes threads may read at the same time; in narrow tissue, several rows.
    """
    source = source_of(slide, lattice)
    level = slide.levels[source.level]
    width, height = max(1, level.tile.width // source.reduce), max(1, level.tile.height // source.reduce)
    columns = -(-level.size.width // level.tile.width)
    margin = int(int(boxes[:, 3].max()) * source.ratio_y) + 3 * height
    row_of_box = np.floor(boxes[:, 1] * float(source.ratio_y) / height).astype(np.int64)
    if (np.diff(row_of_box) < 0).any():
        return 3 * columns * width * margin
    first_boxes = np.flatnonzero(np.diff(row_of_box, prepend=row_of_box[0] - 1))
    touched = _columns_of_rows(boxes, row_of_box, first_boxes, width / float(source.ratio_x), columns)
    # From each row on, the first row that begins after all boxes that may be read at the same time.
    ends = np.searchsorted(first_boxes, np.append(first_boxes[1:], len(boxes)) + read_at_once - 1)
    rows = row_of_box[first_boxes]
    largest = 0
    for begin, end in enumerate(ends.tolist()):
        rows_between = int(rows[end - 1] - rows[begin]) if end - 1 > begin else 0
        largest = max(largest, int(touched[begin:end].max()) * (margin + rows_between * height))
    return 3 * width * largest


def _columns_of_rows(
    boxes: NDArray[np.int64],
    row_of_box: NDArray[np.int64],
    first_boxes: NDArray[np.int64],
    width: float,
    columns: int,
) -> NDArray[np.int64]:
    """Return how many columns of tiles the boxes of each row touch together.

    Args:
        boxes: The boxes (n, 4), sorted by their rows.
        row_of_box: The row of tiles in which each box begins.
        first_boxes: The number of the first box of each row.
        width: The width of a tile in pixels of the boxes.
        columns: The number of columns of the slide. Tiles outside do not count.
    """
    order = np.lexsort((boxes[:, 0], row_of_box))
    left = np.clip(np.floor(boxes[order, 0] / width), 0, columns).astype(np.int64)
    right = np.clip(np.ceil((boxes[order, 0] + boxes[order, 2]) / width), 0, columns).astype(np.int64)
    # The boxes of all rows side by side on one line: what earlier rows cover ends before the row begins.
    begin_of_row = (row_of_box - row_of_box[0]) * (columns + 1)
    covered = np.maximum.accumulate(begin_of_row + right)
    covered_before = np.concatenate([begin_of_row[:1], covered[:-1]])
    new_columns = begin_of_row + right - np.maximum(begin_of_row + left, covered_before)
    return np.add.reduceat(np.maximum(new_columns, 0), first_boxes)
