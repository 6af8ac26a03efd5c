"""Parquet files of columns, and the conversion between NumPy arrays and Arrow.

Importing pyarrow takes time and 30 MiB of memory. A scan imports this module when it writes or reads its
first table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lobule.errors import DamagedResults
from lobule.files import require_regular, write_atomic
from lobule.results.arrow_arrays import arrow_array, arrow_numbers
from lobule.results.checks import MOST_ROWS


def write_parquet(path: Path, columns: Mapping[str, NDArray[Any] | Sequence[Any]]) -> None:
    """Write columns to a Parquet file atomically. Vectors become fixed-size lists."""
    table = pa.table({name: _to_arrow(values) for name, values in columns.items()})
    with write_atomic(path) as temporary_path, temporary_path.open("wb") as file:
        pq.write_table(table, file, compression="zstd")


def read_parquet(path: Path, problem: str, columns: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read a Parquet file, or some of its columns. Raises `DamagedResults` with the problem."""
    require_regular(path)
    try:
        with path.open("rb") as file:  # pyarrow takes a path such as `a:b/c` for a URL
            rows = pq.read_metadata(file).num_rows
            if rows > MOST_ROWS:
                raise DamagedResults(problem, subject=path, actual=f"{rows:,} rows")
            file.seek(0)
            return _of_arrow(pq.read_table(file, columns=None if columns is None else list(columns)))
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


def _of_arrow(table: Any) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            flat = column.flatten().to_numpy(zero_copy_only=False)
            columns[name] = flat.reshape(len(column), column.type.list_size)
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns
