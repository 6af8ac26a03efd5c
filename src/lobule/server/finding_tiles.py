"""Findings as binary tiles for the viewer: single findings up close, counts and maxima from afar.

A tile of level 0 lists its findings. A tile of level k > 0 covers 2^k tiles of level 0 per side. It is
divided into `BINS` × `BINS` bins; each bin has the number of its findings and their highest score.

Both kinds of tile are a header (`HEADER`) followed by columns, one after the other.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lobule.errors import DamagedResults
from lobule.results import CaseFolder

BINS = 64
"""Bins per side of a tile."""
MAX_FINDINGS_PER_TILE = 2048
"""Tiles of level 0 are made small enough for this number, but not smaller than `SMALLEST_TILE`."""
MOST_COUNTED = 1 << 22
"""Largest number of tiles whose findings are counted in an array with one value per tile."""
SMALLEST_TILE = 256
"""Smallest side of a tile in level-0 pixels, whatever the number of findings."""
MAX_LABELS = 255
"""Number of labels that a tile can tell apart; findings with other labels are shown with the first label."""
HEADER = struct.Struct("<4sI")
"""Which kind of tile follows, and the number of its findings or bins."""
POINTS_MAGIC, BINS_MAGIC = b"LFP1", b"LFB1"
TILE_FIELDS = ("l0_x", "l0_y", "score", "label", "image")
"""Columns that tiles need; they are read when the findings are opened."""
LIST_FIELDS = ("kind", "size_um", "area_um2", "lesion_class", "cells", "box")
"""Columns that only the list of findings shows; they are read when it is requested."""
TEXTS = ("kind", "label", "lesion_class", "image")
"""Columns with few different texts."""


@dataclass(frozen=True)
class ImageFindings:
    """The findings of one image of a case, in the order of the findings table."""

    number: NDArray[np.int64]
    """Row of each finding in the findings table."""
    l0_x: NDArray[np.int64]
    l0_y: NDArray[np.int64]
    score: NDArray[np.float32]
    label: NDArray[np.uint8]
    """Index into the labels of the case."""
    tile_side: int
    """Side of a tile of level 0, in level-0 pixels."""
    levels: int
    """Number of levels; the single tile of the highest level covers all findings."""
    tile_column: NDArray[np.int32]
    tile_row: NDArray[np.int32]
    """The level-0 tile of each finding."""

    def __len__(self) -> int:
        return len(self.number)

    def tile(self, level: int, column: int, row: int, label: int | None = None) -> bytes:
        """Return one tile, of all findings or of those with a label (an index into those of the case)."""
        side = self.tile_side << level
        inside = (self.tile_column >> level == column) & (self.tile_row >> level == row)
        if label is not None:
            inside &= self.label == label
        if level == 0:
            return self._points(self._highest_first(inside))
        return self._bins(inside, column * side, row * side, side // BINS)

    def highest_in(self, l0_left: float, l0_top: float, width: float, height: float) -> NDArray[np.int64]:
        """Return the numbers of the findings in a box of level-0 pixels, highest score first."""
        inside = (self.l0_x >= l0_left) & (self.l0_x < l0_left + width)
        inside &= (self.l0_y >= l0_top) & (self.l0_y < l0_top + height)
        return self.number[self._highest_first(inside)]

    def _highest_first(self, inside: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Return the indices of the selected findings, highest score first."""
        selected = np.flatnonzero(inside)
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

    def _bins(self, inside: NDArray[np.bool_], l0_left: int, l0_top: int, bin_side: int) -> bytes:
        """Return the tile that counts the selected findings in bins; empty bins are left out."""
        shift = _shift(bin_side)
        bin_x, bin_y = (self.l0_x[inside] - l0_left) >> shift, (self.l0_y[inside] - l0_top) >> shift
        bins = bin_y * BINS + bin_x
        counts = np.bincount(bins, minlength=BINS * BINS)
        highest = np.full(BINS * BINS, np.nan, np.float32)
        np.fmax.at(highest, bins, self.score[inside])
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
    table: Any
    """The columns `TILE_FIELDS` as a pyarrow table; None without findings."""
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
        table = read_table(path, TILE_FIELDS) if path.exists() else None
        if table is None or not table.num_rows:
            return cls.empty()
        scores = _numbers(table.column("score")).astype(np.float32)
        labels, codes = _coded(table, "label")
        image_names, image_codes = _coded(table, "image", missing="slide")
        l0_x, l0_y = (_numbers(table.column(name)).astype(np.int64, copy=False) for name in ("l0_x", "l0_y"))
        images = {}
        for code, image in enumerate(image_names):
            rows = np.flatnonzero(image_codes == code) if len(image_names) > 1 else np.arange(len(scores))
            x, y = l0_x[rows], l0_y[rows]
            side, levels = _choose_tiling(x, y)
            images[image] = ImageFindings(
                rows, x, y, scores[rows], codes[rows], side, levels,
                (x >> _shift(side)).astype(np.int32), (y >> _shift(side)).astype(np.int32),
            )  # fmt: skip
        return cls(path, table, len(scores), labels, codes, images)

    @classmethod
    def empty(cls) -> CaseFindings:
        return cls(None, None, 0, (), np.zeros(0, np.uint8), {})

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Rows of the table, highest score first."""
        if self.table is None:
            return np.zeros(0, np.int64)
        return _descending(_numbers(self.table.column("score")).astype(np.float64, copy=False))

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

    def rows(self, numbers: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return findings as plain values; unknown values are left out."""
        if not len(numbers):
            return []
        columns = [_rows(table, numbers) for table in (self.table, self._list_columns) if table.num_columns]
        return [
            {"number": int(number)}
            | {name: value for row in rows for name, value in row.items() if _is_known(value)}
            for number, *rows in zip(numbers, *columns, strict=True)
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
        if table.num_columns and table.num_rows != self.table.num_rows:
            raise DamagedResults("the findings have changed while they were read", subject=self.path)
        return table


def read_table(path: Path, columns: Sequence[str]) -> Any:
    """Read the columns of a findings table that it has, with texts as dictionaries."""
    try:
        # `pq.read_table` would import pyarrow's data sets first, which takes longer than reading.
        with pq.ParquetFile(path, read_dictionary=[*TEXTS]) as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            # Threads that share the processor with the tiles would delay them.
            return file.read(columns=present, use_threads=False)
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        raise DamagedResults("the findings are damaged", subject=path, actual=str(error)) from error


def _rows(table: Any, numbers: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return a few rows of a table. `table.take` would import pandas first, which is slow."""
    rows: list[dict[str, Any]] = pa.concat_tables([table.slice(int(row), 1) for row in numbers]).to_pylist()
    return rows


def _numbers(column: Any) -> NDArray[Any]:
    """Return a column of numbers as an array. `column.to_numpy` would import pandas first, which is slow."""
    if column.null_count:
        values: NDArray[Any] = column.to_numpy()
        return values
    return np.concatenate([np.from_dlpack(chunk) for chunk in column.chunks])


def _coded(table: Any, name: str, missing: str = "") -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Return the sorted different texts of a column, and the index of each row's text."""
    if name not in table.column_names:
        return (missing,), np.zeros(table.num_rows, np.uint8)
    column = table.column(name)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    chunks = column.unify_dictionaries().chunks
    words = [str(word or missing) for word in chunks[0].dictionary.to_pylist()] + [missing]
    arrays = [chunk.indices for chunk in chunks]
    if column.null_count:
        arrays = [array.fill_null(len(words) - 1) for array in arrays]
    indices = _numbers(pa.chunked_array(arrays))
    used = {words[index] for index in np.flatnonzero(np.bincount(indices))}
    names = tuple(sorted(used))[:MAX_LABELS]
    code_of_index = np.array([names.index(word) if word in names else 0 for word in words], np.uint8)
    return names, code_of_index[indices]


def _descending(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the rows, highest score first and equal scores in their order: a stable sort, but faster."""
    order = np.argsort(-scores)
    rank = np.cumsum(np.diff(scores[order], prepend=np.nan) != 0)  # Equal scores have the same rank.
    if len(rank) and rank[-1] < len(rank):
        order = order[np.argsort(rank * len(order) + order)]
    return order


def _is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not isfinite(value))


def _choose_tiling(l0_x: NDArray[np.int64], l0_y: NDArray[np.int64]) -> tuple[int, int]:
    """Choose the side of the tiles of level 0; return it and the number of levels."""
    extent = int(max(l0_x.max(initial=0), l0_y.max(initial=0))) + 1
    covered_side = SMALLEST_TILE
    while covered_side < extent:
        covered_side *= 2
    tiles_per_side = covered_side // SMALLEST_TILE
    if tiles_per_side**2 > MOST_COUNTED or min(l0_x.min(initial=0), l0_y.min(initial=0)) < 0:
        return _choose_sparse_tiling(l0_x, l0_y, covered_side)
    shift = _shift(SMALLEST_TILE)
    codes = (l0_y >> shift) * tiles_per_side + (l0_x >> shift)
    counts = np.bincount(codes, minlength=tiles_per_side**2).reshape(tiles_per_side, tiles_per_side)
    side = SMALLEST_TILE
    while side < covered_side:
        halves = counts.reshape(len(counts) // 2, 2, len(counts) // 2, 2)
        counts = halves.sum(axis=(1, 3))
        if counts.max() > MAX_FINDINGS_PER_TILE:
            break
        side *= 2
    return side, (covered_side // side).bit_length()


def _choose_sparse_tiling(
    l0_x: NDArray[np.int64], l0_y: NDArray[np.int64], covered_side: int
) -> tuple[int, int]:
    """Choose the tiling where the number of tiles is large, most of them empty, or positions are damaged."""
    side = covered_side
    while side > SMALLEST_TILE and _most_per_tile(l0_x, l0_y, side) > MAX_FINDINGS_PER_TILE:
        side //= 2
    return side, (covered_side // side).bit_length()


def _shift(side: int) -> int:
    """Return the number of bits by which a position is shifted to divide it by a power of two."""
    return side.bit_length() - 1


def _most_per_tile(l0_x: NDArray[np.int64], l0_y: NDArray[np.int64], side: int) -> int:
    column, row = l0_x >> _shift(side), l0_y >> _shift(side)
    codes = row * (int(column.max()) + 1) + column
    return int(np.unique(codes, return_counts=True)[1].max())
