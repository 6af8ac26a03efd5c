"""Reads the columns of a findings table that tiles need.

The file is read in small batches, into arrays that are no larger than necessary: memory that is used for the
first time costs more than reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lobule.errors import DamagedResults

BATCH_ROWS = 1 << 16
MAX_LABELS = 255
"""Number of labels that a tile can tell apart; findings with other labels are shown with the first label."""
MAX_TEXTS = (1 << 16) - 1
TEXTS = ("kind", "label", "lesion_class", "image")
"""Columns with few different texts."""
POSITIONS = np.iinfo(np.int32)
MISSING = {"label": "", "image": "slide"}


@dataclass(frozen=True)
class FindingColumns:
    """The columns of all findings of a case, in the order of the table."""

    l0_x: NDArray[np.int32]
    l0_y: NDArray[np.int32]
    score: NDArray[np.float32]
    labels: tuple[str, ...]
    label: NDArray[np.uint8]
    """Index into `labels`."""
    images: tuple[str, ...]
    image: NDArray[np.uint8]


class _TextCodes:
    """The texts of a column as numbers."""

    def __init__(self, rows: int, missing: str) -> None:
        self._missing = missing
        self._codes = np.zeros(rows, np.uint16)
        self._words: list[str] = [missing]
        self._code_of: dict[str, int] = {missing: 0}
        self._used: set[int] = set()

    def put(self, rows: slice, column: Any) -> None:
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        words = [str(word or self._missing) for word in column.dictionary.to_pylist()]
        code_of_index = np.array([self._code(word) for word in words] + [0], np.uint16)
        indices = column.indices.fill_null(len(words)) if column.null_count else column.indices
        codes = self._codes[rows] = code_of_index[np.from_dlpack(indices)]
        self._used.update(np.flatnonzero(np.bincount(codes)).tolist())

    def finish(self, *, present: bool) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
        """Return the sorted different texts, and for each row the index of its text."""
        used = {self._words[code] for code in self._used} if present else {self._missing}
        names = tuple(sorted(used))[:MAX_LABELS]
        numbers = {name: number for number, name in enumerate(names)}
        return names, np.array([numbers.get(word, 0) for word in self._words], np.uint8)[self._codes]

    def _code(self, word: str) -> int:
        code = self._code_of.setdefault(word, len(self._words))
        if code == len(self._words):
            if code > MAX_TEXTS:
                self._code_of[word] = 0  # So many texts are damage; they cannot be told apart anyway.
                return 0
            self._words.append(word)
        return code


def read_columns(path: Path) -> FindingColumns:
    """Read the columns that tiles need. Raises `DamagedResults`."""
    with _opened(path) as file:
        rows = file.metadata.num_rows
        x, y, score = (np.empty(rows, dtype) for dtype in (np.int32, np.int32, np.float32))
        texts = {name: _TextCodes(rows, missing) for name, missing in MISSING.items()}
        present = [name for name in texts if name in file.schema_arrow.names]
        start = 0
        columns = ["l0_x", "l0_y", "score", *present]
        for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
            rows_of_batch = slice(start, start + batch.num_rows)
            x[rows_of_batch], y[rows_of_batch] = (_positions(batch.column(name)) for name in ("l0_x", "l0_y"))
            score[rows_of_batch] = numbers(batch.column("score"))
            for name in present:
                texts[name].put(rows_of_batch, batch.column(name))
            start = rows_of_batch.stop
        if start != rows:
            raise ValueError(f"{start} rows instead of {rows}")
    labels, images = (texts[name].finish(present=name in present and rows > 0) for name in MISSING)
    return FindingColumns(x, y, score, *labels, *images)


def read_table(path: Path, columns: Sequence[str]) -> Any:
    """Read the columns of a findings table that it has, with texts as dictionaries."""
    with _opened(path) as file:
        present = [name for name in columns if name in file.schema_arrow.names]
        # Threads that share the processor with the tiles would delay them.
        return file.read(columns=present, use_threads=False)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        # `pq.read_table` would import pyarrow's data sets first, which takes longer than reading.
        metadata = pq.read_metadata(path)
        present = {*metadata.schema.to_arrow_schema().names}
        texts = [name for name in TEXTS if name in present]
        with pq.ParquetFile(path, metadata=metadata, read_dictionary=texts) as file:
            yield file
    except (OSError, ValueError, TypeError, KeyError, MemoryError, pa.ArrowException) as error:
        raise DamagedResults("the findings are damaged", subject=path, actual=str(error)) from error


def numbers(column: Any) -> NDArray[Any]:
    """Return a column of numbers as an array. `column.to_numpy` would import pandas first, which is slow."""
    if not pa.types.is_integer(column.type) and not pa.types.is_floating(column.type):
        raise ValueError(f"a column has {column.type} instead of numbers")
    arrays = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    if column.null_count:
        values: NDArray[Any] = np.array(column.to_pylist(), np.float64)
        return values
    chunks = [np.from_dlpack(array) for array in arrays]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def _positions(column: Any) -> NDArray[np.int32]:
    values = numbers(column.fill_null(-1) if column.null_count else column)
    positions: NDArray[np.int32] = np.clip(values, POSITIONS.min, POSITIONS.max).astype(np.int32)
    return positions
