"""Sinks collect the outputs of a pass into chunks of a map or table, and write each chunk once, complete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Case
from lobule.errors import DamagedResults, ModelError, ResultsError
from lobule.files import read_json, results_error, write_json
from lobule.grid import cells_in_box
from lobule.results.folder import CaseFolder
from lobule.results.maps import MapInfo, MapWriter, map_exists
from lobule.results.result import FailedField
from lobule.results.tables import Columns, TableInfo, TableReader, TableWriter
from lobule.scanning.contract import MapSpec, Pass, Store, TableSpec
from lobule.stitch import Scores, State, States, place_field

CHUNK_CELLS = 1024
"""Cells per side of a chunk. Larger chunks make fewer files; smaller ones lose less work if a scan is
killed."""

COMPACT = (np.int8, np.float16)
"""Formats of columns that are stored as the model returns them; other columns are stored as float32."""

Outputs = Mapping[str, NDArray[Any]]
"""The outputs of one field by name."""


class Sink(Protocol):
    """Receives the outputs of the fields of one pass."""

    needed: NDArray[np.bool_]
    """For each row of the pass, whether it still has to be computed."""
    chunk_of_row: NDArray[np.int64]
    """For each row of the pass, the number of its chunk."""

    def limit_to(self, rows: NDArray[np.bool_]) -> None:
        """Compute no other rows. Chunks in which a row fails are then left out."""
        ...

    def deliver(self, row: int, outputs: Outputs) -> None: ...

    def fail(self, row: int, cause: str) -> None: ...

    def finish(self) -> Store: ...

    def failures(self) -> list[FailedField]: ...


def open_sink(pass_: Pass, folder: CaseFolder, retry_failed: bool = False) -> Sink:
    """Return the sink for the kind of store that a pass fills."""
    failed = _FailureList(_failed_path(pass_, folder), pass_)
    if isinstance(pass_.store, MapSpec):
        return MapSink(pass_, pass_.store, folder.map_path(pass_.name), failed, retry_failed)
    return TableSink(pass_, pass_.store, folder.table_path(pass_.name), failed, retry_failed)


def failed_in(pass_: Pass, folder: CaseFolder) -> bool:
    """Whether the failure list of a pass on disk has entries."""
    return bool(_causes(_failed_path(pass_, folder)))


def _failed_path(pass_: Pass, folder: CaseFolder) -> Path:
    return folder.path / "failed" / f"{folder.map_path(pass_.name).name}.json"


def _causes(path: Path) -> dict[int, str]:
    """Read the causes of failed rows. An unreadable list is a `DamagedResults` error."""
    if not path.exists():
        return {}
    try:
        return {int(row): str(cause) for row, cause in read_json(path).items()}
    except (ResultsError, AttributeError, ValueError) as error:
        raise DamagedResults(
            "the list of failed fields is damaged", subject=path, actual=str(error)
        ) from error


class _FailureList:
    """The rows that failed, with causes. It is written to disk before the chunk that contains the rows."""

    def __init__(self, path: Path, pass_: Pass) -> None:
        self._path, self._pass = path, pass_
        self._on_disk = _causes(path)
        self.causes = dict(self._on_disk)

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Keep only the failures of the selected rows; the other rows will be computed again."""
        self.causes = {row: cause for row, cause in self.causes.items() if rows[row]}

    def save(self) -> None:
        if not self.causes:  # Nothing failed, or a retry was successful.
            self._path.unlink(missing_ok=True)
            self._on_disk = {}
        elif self.causes != self._on_disk:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {str(row): self.causes[row] for row in sorted(self.causes)})
            self._on_disk = dict(self.causes)

    def failed_fields(self) -> list[FailedField]:
        fields, name = self._pass.fields, self._pass.name
        return [
            FailedField(name, fields.image_of(row), astuple(fields.l0_box(row)), self.causes[row])
            for row in sorted(self.causes)
        ]


class _Sink(ABC):
    """What the sinks of maps and tables share: the list of failed fields."""

    needed: NDArray[np.bool_]
    chunk_of_row: NDArray[np.int64]
    _failures: _FailureList
    _is_limited = False

    def limit_to(self, rows: NDArray[np.bool_]) -> None:
        self.needed &= rows
        self._is_limited = True

    @abstractmethod
    def _store(self, row: int, outputs: Any) -> None:
        """Store the outputs of a field, or None if it failed."""

    def fail(self, row: int, cause: str) -> None:
        if self._is_limited:
            return
        if self.needed[row]:
            self._failures.causes[row] = cause
        self._store(row, None)

    def failures(self) -> list[FailedField]:
        return self._failures.failed_fields()


class MapSink(_Sink):
    """Assembles a map. A chunk is written when all of its fields have arrived.

    A new map is created when its first field arrives: the import of zarr overlaps with the computation.
    """

    def __init__(
        self, pass_: Pass, spec: MapSpec, path: Path, failed: _FailureList, retry_failed: bool
    ) -> None:
        self._spec, self._failures = spec, failed
        fields_wide = 1 if spec.scattered else max(1, CHUNK_CELLS // spec.grid.cells)
        self._info = info = MapInfo.of_grid(pass_.name, spec.image, spec.classes, spec.grid, fields_wide)
        self._path = path
        assert pass_.fields.grid_indices is not None, "a map pass states the grid position of each field"
        self._field_indices = pass_.fields.grid_indices
        self._chunk_of_row = [
            info.chunk_of(int(r) * spec.grid.cells, int(c) * spec.grid.cells) for r, c in self._field_indices
        ]
        chunk_columns = -(-info.columns // info.chunk[1])
        self.chunk_of_row = np.array(
            [row * chunk_columns + column for row, column in self._chunk_of_row], np.int64
        )
        self._opened_writer = MapWriter(path, info) if map_exists(path) else None
        written: set[tuple[int, int]] = set()
        if self._opened_writer is not None:
            if retry_failed:
                for row in failed.causes:
                    self._opened_writer.forget(self._chunk_of_row[row])
            written = self._opened_writer.written()
        self.needed = np.array([chunk not in written for chunk in self._chunk_of_row], np.bool_)
        failed.keep(~self.needed)
        self._missing: dict[tuple[int, int], int] = {}
        for chunk, needed in zip(self._chunk_of_row, self.needed, strict=True):
            if needed:
                self._missing[chunk] = self._missing.get(chunk, 0) + 1
        self._open: dict[tuple[int, int], tuple[Scores, States]] = {}
        self._chunks_without_fields = (
            []
            if spec.scattered
            else [chunk for chunk in info.chunks if chunk not in written and chunk not in self._missing]
        )
        if self._opened_writer is not None:
            self._write_chunks_without_fields()

    @property
    def _writer(self) -> MapWriter:
        if self._opened_writer is None:
            self._opened_writer = MapWriter(self._path, self._info)
            self._write_chunks_without_fields()
        return self._opened_writer

    def _write_chunks_without_fields(self) -> None:
        """Write the chunks that contain only states."""
        for chunk in self._chunks_without_fields:
            self._write(chunk, None, np.zeros(self._shape(chunk), np.uint8))

    def deliver(self, row: int, outputs: Outputs) -> None:
        values = outputs["map"]
        grid = self._spec.grid
        if values.shape != (len(self._spec.classes), grid.cells, grid.cells):
            raise ModelError(
                "the map returned by the model has the wrong shape",
                expected=f"{len(self._spec.classes)} classes of {grid.cells} × {grid.cells} cells",
                actual=str(values.shape),
            )
        if np.isfinite(values).all():
            self._store(row, values)
        else:
            self.fail(row, "the model returned a score that is NaN or infinite")

    def finish(self) -> Store:
        return self._writer

    def _shape(self, chunk: tuple[int, int]) -> tuple[int, int]:
        rows, columns = self._info.chunk_cells(chunk)
        return rows.stop - rows.start, columns.stop - columns.start

    def _store(self, row: int, values: NDArray[Any] | None) -> None:
        if not self.needed[row]:
            return
        writer, chunk = self._writer, self._chunk_of_row[row]
        if chunk not in self._open:
            height, width = self._shape(chunk)
            scores = np.zeros((len(self._spec.classes), height, width), np.float32)
            self._open[chunk] = (scores, np.zeros((height, width), np.uint8))
        scores, states = self._open[chunk]
        field_row, field_column = self._field_indices[row].tolist()
        block_rows, block_columns = writer.info.chunk_cells(chunk)
        origin = (block_rows.start, block_columns.start)
        place_field((scores, states), self._spec.grid, (field_row, field_column), values, origin)
        self._missing[chunk] -= 1
        if self._missing[chunk] == 0:
            del self._missing[chunk], self._open[chunk]
            self._failures.save()
            self._write(chunk, scores, states)

    def _write(self, chunk: tuple[int, int], scores: Scores | None, states: States) -> None:
        rows, columns = self._info.chunk_cells(chunk)
        required, glass = self._spec.required[rows, columns], self._spec.glass[rows, columns]
        states = np.where(required, states, np.where(glass, State.GLASS, State.PENDING)).astype(np.uint8)
        if scores is not None:
            scores = np.where(states == State.SCORED, scores, np.float32(0))
        _guard(lambda: self._writer.write_chunk(chunk, scores, states), self._writer.path)


class TableSink(_Sink):
    """Assembles a table. A chunk of rows is written when all of its fields have arrived."""

    def __init__(
        self, pass_: Pass, spec: TableSpec, path: Path, failed: _FailureList, retry_failed: bool
    ) -> None:
        self._pass, self._failures = pass_, failed
        info = TableInfo(pass_.name, len(pass_.fields), spec.chunk_rows)
        self._writer = TableWriter(path, info)
        if retry_failed:
            for row in failed.causes:
                self._writer.forget(row // spec.chunk_rows)
        written = self._writer.written()
        self.chunk_of_row = np.arange(len(pass_.fields)) // spec.chunk_rows
        self.needed = ~np.isin(self.chunk_of_row, sorted(written))
        failed.keep(~self.needed)
        self._rows: dict[int, dict[int, Outputs | None]] = {}
        self._chunk_rows = spec.chunk_rows

    def deliver(self, row: int, outputs: Outputs) -> None:
        bad = [name for name, values in outputs.items() if not np.isfinite(values).all()]
        if bad:
            self.fail(row, f"the model returned NaN or infinity in '{bad[0]}'")
        else:
            self._store(row, outputs)

    def finish(self) -> Store:
        return TableReader(self._writer.path)

    def _store(self, row: int, outputs: Outputs | None) -> None:
        if not self.needed[row]:
            return
        chunk = row // self._chunk_rows
        rows = self._rows.setdefault(chunk, {})
        rows[row] = outputs
        block = self._writer.info.chunk_slice(chunk)
        if len(rows) == block.stop - block.start:
            del self._rows[chunk]
            self._failures.save()
            columns = self._columns(np.arange(block.start, block.stop), rows)
            _guard(lambda: self._writer.write_chunk(chunk, columns), self._writer.path)

    def _columns(self, index: NDArray[np.int64], rows: Mapping[int, Outputs | None]) -> Columns:
        fields = self._pass.fields
        l0 = np.array([astuple(fields.l0_box(int(row))) for row in index], np.int64).reshape(-1, 4)
        columns: Columns = {
            "field": index,
            "image": np.array([fields.image_of(int(row)) for row in index]),
            **{name: l0[:, column] for column, name in enumerate(("l0_x", "l0_y", "l0_width", "l0_height"))},
            "state": np.array(
                [State.FAILED if rows[int(row)] is None else State.SCORED for row in index], np.uint8
            ),
        }
        scored = next((rows[int(row)] for row in index if rows[int(row)] is not None), None)
        for name, example in (scored or {}).items():
            dtype = example.dtype if example.dtype in COMPACT else np.float32
            blank = np.full_like(example, 0 if dtype == np.int8 else np.nan, dtype)
            values = [blank if (got := rows[int(row)]) is None else got[name] for row in index]
            columns[name] = np.stack([np.asarray(value, dtype) for value in values])
        return columns


def _guard(write: Callable[[], None], path: Path) -> None:
    """Write, and convert an error of the disk. It ends the scan, because later cases would fail as well."""
    try:
        write()
    except OSError as error:
        raise results_error(error, path) from error


def within_region(pass_: Pass, case: Case) -> Pass:
    """Leave cells outside the case's region pending, because it is unknown whether they are glass."""
    spec, box = pass_.store, case.l0_box
    if box is None or not isinstance(spec, MapSpec):
        return pass_
    inside = cells_in_box(spec.glass.shape, spec.grid.l0_cell, box)
    return replace(pass_, store=replace(spec, glass=spec.glass & inside))
