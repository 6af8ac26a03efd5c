"""Tables on disk: one Parquet file per chunk of rows. A chunk is done if its file exists."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lobule.errors import DamagedResults, NotReadable, ResultsError
from lobule.files import read_json, require_regular, write_atomic, write_json
from lobule.results.arrow_arrays import arrow_array, arrow_numbers
from lobule.results.checks import LARGEST_JSON, MOST_ROWS

Columns = dict[str, NDArray[Any]]
"""Columns by name, all of the same length. A two-dimensional column has one vector per row."""


@dataclass(frozen=True)
class TableInfo:
    """The name of a table, its number of rows, and the number of rows per chunk."""

    name: str
    rows: int
    part_rows: int

    @property
    def chunks(self) -> range:
        return range(-(-self.rows // self.part_rows))

    def chunk_slice(self, chunk: int) -> slice:
        return slice(chunk * self.part_rows, min((chunk + 1) * self.part_rows, self.rows))


class TableReader:
    """A table being written or finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            metadata = read_json(path / "table.json", LARGEST_JSON)
            self.info = TableInfo(str(metadata["name"]), int(metadata["rows"]), int(metadata["part_rows"]))
            if not 0 <= self.info.rows <= MOST_ROWS or self.info.part_rows < 1:
                raise ValueError(f"{self.info.rows} rows in chunks of {self.info.part_rows}")
        except (ValueError, KeyError, TypeError, OverflowError, NotReadable, ResultsError) as error:
            raise DamagedResults("the table cannot be read", subject=path, actual=str(error)) from error

    def written(self) -> set[int]:
        numbers = [path.stem.removeprefix("part-") for path in self.path.glob("part-*.parquet")]
        if wrong := [number for number in numbers if not re.fullmatch(r"[0-9]{6,12}", number)]:
            problem = "the folder contains a file that does not belong to the table"
            raise DamagedResults(problem, subject=self.path, actual=wrong[0][:80])
        return set(map(int, numbers))

    def iterate(self, columns: Sequence[str] | None = None) -> Iterator[Columns]:
        """Yield the written chunks in order."""
        for chunk in sorted(self.written()):
            yield self.read_chunk(chunk, columns)

    def read_chunk(self, chunk: int, columns: Sequence[str] | None = None) -> Columns:
        return read_parquet(self.chunk_path(chunk), "a chunk of the table is damaged", columns)

    def read(self, columns: Sequence[str] | None = None) -> Columns:
        """Return all rows that were written so far."""
        chunks = list(self.iterate(columns))
        if not chunks:
            return {}
        # A chunk in which every field failed lacks the columns that the model returns.
        examples = {name: values for chunk in reversed(chunks) for name, values in chunk.items()}
        blocks = {
            name: [chunk[name] if name in chunk else _blank(like, len(chunk["field"])) for chunk in chunks]
            for name, like in examples.items()
        }
        return {name: np.concatenate(arrays) for name, arrays in blocks.items()}

    def chunk_path(self, chunk: int) -> Path:
        return self.path / f"part-{chunk:06d}.parquet"


class TableWriter(TableReader):
    """Writes a table in complete chunks."""

    def __init__(self, path: Path, info: TableInfo) -> None:
        if not (path / "table.json").exists():
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "table.json", asdict(info))
        for partial in path.glob(".part-*"):
            partial.unlink(missing_ok=True)
        super().__init__(path)
        if self.info != info:
            raise ResultsError(
                "the table on disk has a different number of rows than the one to be written",
                subject=path,
                remedy="Start over with --fresh, or use another results folder",
            )

    def write_chunk(self, chunk: int, columns: Columns) -> None:
        write_parquet(self.chunk_path(chunk), columns)

    def forget(self, chunk: int) -> None:
        """Delete a chunk, so that it is computed again."""
        self.chunk_path(chunk).unlink(missing_ok=True)


def _blank(like: NDArray[Any], rows: int) -> NDArray[Any]:
    return np.full((rows, *like.shape[1:]), np.nan, like.dtype)


def write_parquet(path: Path, columns: Mapping[str, NDArray[Any] | Sequence[Any]]) -> None:
    """Write columns to a Parquet file atomically. Vectors become fixed-size lists."""
    table = pa.table({name: _to_arrow(values) for name, values in columns.items()})
    with write_atomic(path) as temporary_path, temporary_path.open("wb") as file:
        pq.write_table(table, file, compression="zstd")


def read_parquet(path: Path, problem: str, columns: Sequence[str] | None = None) -> Columns:
    """Read a Parquet file, or some of its columns. Raises `DamagedResults` with the problem."""
    require_regular(path)
    try:
        with path.open("rb") as file:  # pyarrow takes a path such as `a:b/c` for a URL
            rows = pq.read_metadata(file).num_rows
            if rows > MOST_ROWS:
                raise DamagedResults(problem, subject=path, actual=f"{rows:,} rows")
            file.seek(0)
            return of_arrow(pq.read_table(file, columns=None if columns is None else list(columns)))
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        raise DamagedResults(problem, subject=path, actual=str(error)) from error


def iterate_parquet(path: Path, problem: str, rows_at_once: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of a Parquet file in blocks, each row as a dictionary of Python values.

    Raises:
        DamagedResults: The file cannot be read.
    """
    require_regular(path)
    try:
        with path.open("rb") as file, pq.ParquetFile(file) as table:
            for batch in table.iter_batches(rows_at_once):
                yield batch.to_pylist()
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        raise DamagedResults(problem, subject=path, actual=str(error)) from error


def _to_arrow(values: NDArray[Any] | Sequence[Any]) -> Any:
    if isinstance(values, np.ndarray) and values.dtype.kind == "U":
        return arrow_array(values.tolist(), pa.string())
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        return pa.array(values)
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(arrow_numbers(values.ravel()), values.shape[1])
    return arrow_numbers(values)


def of_arrow(table: Any) -> Columns:
    columns: Columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            flat = column.flatten().to_numpy(zero_copy_only=False)
            columns[name] = flat.reshape(len(column), column.type.list_size)
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns
