"""Tables on disk: one Parquet file per chunk of rows. A chunk is done if its file exists."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.errors import DamagedResults, NotReadable, ResultsError
from lobule.files import read_json, write_json
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
        from lobule.results.parquet import read_parquet

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
        from lobule.results.parquet import write_parquet

        write_parquet(self.chunk_path(chunk), columns)

    def forget(self, chunk: int) -> None:
        """Delete a chunk, so that it is computed again."""
        self.chunk_path(chunk).unlink(missing_ok=True)


def _blank(like: NDArray[Any], rows: int) -> NDArray[Any]:
    return np.full((rows, *like.shape[1:]), np.nan, like.dtype)
