"""Findings as binary tiles for the viewer: single findings up close, counts and maxima from afar.

A tile of level 0 lists its findings. A tile of level k > 0 covers 2^k tiles of level 0 per side. It is
divided into `BINS` × `BINS` bins; each bin has the number of its findings and their highest score.

Both kinds of tile are a header (`HEADER`) followed by columns, one after the other.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lobule.errors import DamagedResults
from lobule.results import CaseFolder
from lobule.server.finding_columns import numbers, read_columns, read_table

BINS = 64
"""Bins per side of a tile."""
MAX_FINDINGS_PER_TILE = 2048
"""Tiles of level 0 are made small enough for this number, but not smaller than `SMALLEST_TILE`."""
MOST_COUNTED = 1 << 22
"""Largest number of tiles whose findings are counted in an array with one value per tile."""
SMALLEST_TILE = 256
"""Smallest side of a tile in level-0 pixels, whatever the number of findings."""
HEADER = struct.Struct("<4sI")
"""Which kind of tile follows, and the number of its findings or bins."""
POINTS_MAGIC, BINS_MAGIC = b"LFP1", b"LFB1"
LIST_FIELDS = (
    "l0_x", "l0_y", "score", "label", "image", "kind", "size_um", "area_um2", "lesion_class", "cells", "box",
)  # fmt: skip
"""Columns that the list of findings shows; they are read when it is requested."""
BLOCK = 1 << 16
"""Findings that are looked through at once: their columns remain in the processor's cache."""


@dataclass(frozen=True)
class ImageFindings:
    """The findings of one image of a case, in the order of the findings table."""

    number: NDArray[np.int32]
    """Row of each finding in the findings table."""
    l0_x: NDArray[np.int32]
    l0_y: NDArray[np.int32]
    score: NDArray[np.float32]
    label: NDArray[np.uint8]
    """Index into the labels of the case."""
    tile_side: int
    """Side of a tile of level 0, in level-0 pixels."""
    levels: int
    """Number of levels; the single tile of the highest level covers all findings."""

    def __len__(self) -> int:
        return len(self.number)

    def tile(self, level: int, column: int, row: int, label: int | None = None) -> bytes:
        """Return one tile, of all findings or of those with a label (an index into those of the case)."""
        selected = self._of_tile(level, column, row, label)
        if level == 0:
            return self._points(self._highest_first(np.concatenate([*selected, np.zeros(0, np.intp)])))
        side = self.tile_side << level
        return self._bins(selected, column * side, row * side, side // BINS)

    def _of_tile(self, level: int, column: int, row: int, label: int | None) -> Iterator[NDArray[np.intp]]:
        """Yield the indices of a tile's findings, one block of all findings after the other."""
        shift = _shift(self.tile_side) + level
        for start in range(0, len(self), BLOCK):
            block = slice(start, start + BLOCK)
            inside = (self.l0_x[block] >> shift == column) & (self.l0_y[block] >> shift == row)
            if label is not None:
                inside &= self.label[block] == label
            yield start + np.flatnonzero(inside)

    def highest_in(self, l0_left: float, l0_top: float, width: float, height: float) -> NDArray[np.int32]:
        """Return the numbers of the findings in a box of level-0 pixels, highest score first."""
        inside = (self.l0_x >= l0_left) & (self.l0_x < l0_left + width)
        inside &= (self.l0_y >= l0_top) & (self.l0_y < l0_top + height)
        return self.number[self._highest_first(np.flatnonzero(inside))]

    def _highest_first(self, selected: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return indices of findings, highest score first."""
        return selected[np.argsort(-self.score[selected], kind="stable")]

    def _points(self, inside: NDArray[np.intp]) -> bytes:
        """Return the tile that lists the selected findings."""
        columns: list[NDArray[Any]] = [
            self.number[inside].astype("<u4"),
            self.l0_x[inside].astype("<i4"),
            self.l0_y[inside].astype("<i4"),
            self.score[inside].astype("<f4"),
            self.label[inside],
        ]
        return HEADER.pack(POINTS_MAGIC, len(inside)) + b"".join(column.tobytes() for column in columns)

    def _bins(self, blocks: Iterable[NDArray[np.intp]], l0_left: int, l0_top: int, bin_side: int) -> bytes:
        """Return the tile that counts the selected findings in bins; empty bins are left out."""
        shift = _shift(bin_side)
        counts = np.zeros(BINS * BINS, np.int64)
        highest = np.full(BINS * BINS, np.nan, np.float32)
        for selected in blocks:
            bin_x, bin_y = (self.l0_x[selected] - l0_left) >> shift, (self.l0_y[selected] - l0_top) >> shift
            bins = bin_y * BINS + bin_x
            counts += np.bincount(bins, minlength=BINS * BINS)
            np.fmax.at(highest, bins, self.score[selected])
        codes = np.flatnonzero(counts)
        columns: list[NDArray[Any]] = [
            counts[codes].astype("<u4"),
            highest[codes].astype("<f4"),
            (codes % BINS).astype(np.uint8),
            (codes // BINS).astype(np.uint8),
        ]
        return HEADER.pack(BINS_MAGIC, len(codes)) + b"".join(column.tobytes() for column in columns)


@dataclass(frozen=True)
class CaseFindings:
    """All findings of a case. What only the list and outlines need is read when it is first needed."""

    path: Path | None
    """The findings table; None without findings."""
    count: int
    """Number of findings."""
    labels: tuple[str, ...]
    codes: NDArray[np.uint8]
    """For each row of the table, the index of its label."""
    images: dict[str, ImageFindings]
    """The findings of each image; a slide is the only image of its case."""

    @classmethod
    def read(cls, folder: CaseFolder) -> CaseFindings:
        path = folder.path / "findings.parquet"
        columns = read_columns(path) if path.exists() else None
        if columns is None or not len(columns.score):
            return cls.empty()
        images = {}
        for code, image in enumerate(columns.images):
            number = np.arange(len(columns.score), dtype=np.int32)
            values = columns.l0_x, columns.l0_y, columns.score, columns.label
            if len(columns.images) > 1:
                number = number[columns.image == code]
                values = tuple(column[number] for column in values)
            images[image] = ImageFindings(number, *values, *_choose_tiling(*values[:2]))
        return cls(path, len(columns.score), columns.labels, columns.label, images)

    @classmethod
    def empty(cls) -> CaseFindings:
        return cls(None, 0, (), np.zeros(0, np.uint8), {})

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Rows of the table, highest score first."""
        table = self._columns(("score",))
        return np.zeros(0, np.int64) if table is None else _descending(numbers(table.column("score")))

    def page(self, offset: int, limit: int, label: str | None = None) -> tuple[int, list[dict[str, Any]]]:
        """Return the number of findings, and one page of them, highest score first.

        With a `label`, only the findings with this label are counted and returned. An empty page is returned
        without sorting the findings.
        """
        code = None if label is None else self.labels.index(label) if label in self.labels else -1
        count = self.count if code is None else int(np.count_nonzero(self.codes == code))
        if not limit:
            return count, []
        order = self.order if code is None else self.order[self.codes[self.order] == code]
        return count, self.rows(order[offset : offset + limit])

    def rows(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return findings as plain values; unknown values are left out."""
        if not len(rows):
            return []
        return [
            {"number": int(number)} | {name: value for name, value in row.items() if _is_known(value)}
            for number, row in zip(rows, _rows(self._list_columns, rows), strict=True)
        ]

    def finding(self, number: int) -> dict[str, Any]:
        """Return one finding with its outlines."""
        (finding,) = self.rows(np.array([number]))
        return finding | {"polygon": self.outline(number)}

    def outline(self, number: int) -> list[Any]:
        """Return the polygons of a finding, each a list of rings; empty if it has none."""
        column = self._outlines
        text = None if column is None else column[number].as_py()
        polygons = json.loads(text) if isinstance(text, str) else []
        return polygons if isinstance(polygons, list) else []

    @cached_property
    def _list_columns(self) -> Any:
        return self._columns(LIST_FIELDS)

    @cached_property
    def _outlines(self) -> Any:
        table = self._columns(("polygon",))
        return table.column("polygon") if table is not None and table.num_columns else None

    def _columns(self, names: Sequence[str]) -> Any:
        """Read further columns; None without findings."""
        if self.path is None:
            return None
        table = read_table(self.path, names)
        if table.num_columns and table.num_rows != self.count:
            raise DamagedResults("the findings have changed while they were read", subject=self.path)
        return table


def _rows(table: Any, numbers: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return a few rows of a table. `table.take` would import pandas first, which is slow."""
    rows: list[dict[str, Any]] = pa.concat_tables([table.slice(int(row), 1) for row in numbers]).to_pylist()
    return rows


def _descending(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the rows, highest score first and equal scores in their order: a stable sort, but faster."""
    order = np.argsort(-scores)
    rank = np.cumsum(np.diff(scores[order], prepend=np.nan) != 0)  # Equal scores have the same rank.
    if len(rank) and rank[-1] < len(rank):
        order = order[np.argsort(rank * len(order) + order)]
    return order


def _is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not isfinite(value))


def _choose_tiling(l0_x: NDArray[np.integer], l0_y: NDArray[np.integer]) -> tuple[int, int]:
    """Choose the side of the tiles of level 0; return it and the number of levels."""
    extent = int(max(l0_x.max(initial=0), l0_y.max(initial=0))) + 1
    covered_side = SMALLEST_TILE
    while covered_side < extent:
        covered_side *= 2
    tiles_per_side = covered_side // SMALLEST_TILE
    if tiles_per_side**2 > MOST_COUNTED or min(l0_x.min(initial=0), l0_y.min(initial=0)) < 0:
        return _choose_sparse_tiling(l0_x, l0_y, covered_side)
    shift = _shift(SMALLEST_TILE)
    counts_of_codes = np.zeros(tiles_per_side**2, np.int64)
    for start in range(0, len(l0_x), BLOCK):
        block = slice(start, start + BLOCK)
        codes = (l0_y[block] >> shift) * tiles_per_side + (l0_x[block] >> shift)
        np.add.at(counts_of_codes, codes, 1)
    counts = counts_of_codes.reshape(tiles_per_side, tiles_per_side)
    side = SMALLEST_TILE
    while side < covered_side:
        halves = counts.reshape(len(counts) // 2, 2, len(counts) // 2, 2)
        counts = halves.sum(axis=(1, 3))
        if counts.max() > MAX_FINDINGS_PER_TILE:
            break
        side *= 2
    return side, (covered_side // side).bit_length()


def _choose_sparse_tiling(
    l0_x: NDArray[np.integer], l0_y: NDArray[np.integer], covered_side: int
) -> tuple[int, int]:
    """Choose the tiling where the number of tiles is large, most of them empty, or positions are damaged."""
    side = covered_side
    while side > SMALLEST_TILE and _most_per_tile(l0_x, l0_y, side) > MAX_FINDINGS_PER_TILE:
        side //= 2
    return side, (covered_side // side).bit_length()


def _shift(side: int) -> int:
    """Return the number of bits by which a position is shifted to divide it by a power of two."""
    return side.bit_length() - 1


def _most_per_tile(l0_x: NDArray[np.integer], l0_y: NDArray[np.integer], side: int) -> int:
    column, row = (positions.astype(np.int64) >> _shift(side) for positions in (l0_x, l0_y))
    codes = row * (int(column.max()) + 1) + column
    return int(np.unique(codes, return_counts=True)[1].max())
