"""Maps on disk: a Zarr group per map with scores and states. A chunk is done if its file of states exists.

Zarr is imported when the first map with divided chunks is opened; other maps do not need it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.errors import DamagedResults, ResultsError
from lobule.files import require_regular
from lobule.geometry import Box, Size, tiles_over
from lobule.raw_files import files_in_subfolders, is_file, path_exists
from lobule.results.checks import LARGEST_JSON
from lobule.results.map_creation import MAKING, create_map, is_sharded, plain_arrays
from lobule.results.map_files import GROUP, PARTIAL, ArrayFiles, group_description
from lobule.results.map_info import MapInfo, check_sizes
from lobule.stitch import Scores, State, States

MOST_BYTES = 8 << 30
"""A larger block is not read at once."""

__all__ = ["MAKING", "MapInfo", "MapReader", "MapWriter", "map_exists"]

_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


class MapReader:
    """A map being written or finished. Cells not yet written read as pending."""

    info: MapInfo
    _score: Any
    _state: Any

    def __init__(self, path: Path) -> None:
        self.path = path
        for metadata in (path / GROUP, path / "score" / GROUP, path / "state" / GROUP):
            require_regular(metadata)
            if metadata.exists() and metadata.stat().st_size > LARGEST_JSON:
                raise DamagedResults("the map cannot be read", subject=metadata, actual="too large a file")
        if not self._open_plain():
            self._open_with_zarr()

    def _open_with_zarr(self) -> None:
        import zarr
        from zarr.storage import LocalStore

        try:
            # With a fixed format, zarr opens only these three files.
            store = LocalStore(self.path, read_only=True)
            group = zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=False)
            self.info = MapInfo.of_attributes(dict(group.attrs))
            self._score, self._state = group["score"], group["state"]
            check_sizes(self.info)
            _check_arrays(self.info, self._score, self._state)
        except OSError as error:
            raise ResultsError("the map cannot be read", subject=self.path, actual=str(error)) from error
        except Exception as error:  # zarr may raise any error for damaged metadata.
            raise DamagedResults("the map cannot be read", subject=self.path, actual=str(error)) from error

    def _open_plain(self) -> bool:
        """Open a map without zarr if it is described exactly as `create_map` does."""
        try:
            group = json.loads((self.path / GROUP).read_bytes())
            info = MapInfo.of_attributes(group["attributes"])
            check_sizes(info)
            arrays = None if is_sharded(info) else plain_arrays(self.path, info)
            if arrays is None or group != group_description(info.to_attributes()):
                return False
            if any(json.loads((array.path / GROUP).read_bytes()) != array.description() for array in arrays):
                return False
        except Exception:  # The files are damaged in some way, of which zarr will tell.
            return False
        self.info, (self._score, self._state) = info, arrays
        return True

    def read(self, rows: slice | None = None, columns: slice | None = None) -> tuple[Scores, States]:
        """Scores (classes, rows, columns) and states (rows, columns) of a block, or of everything."""
        rows, columns = rows or slice(0, self.info.rows), columns or slice(0, self.info.columns)
        cells = (rows.stop - rows.start) * (columns.stop - columns.start)
        if cells * (4 * len(self.info.classes) + 1) > MOST_BYTES:
            raise self._damaged(f"{cells:,} cells are too many to read at once")
        self._refuse_special_files(rows, columns)
        # States are read first, because a running scan writes them after the scores.
        state = self._states(rows, columns)
        try:
            score = np.asarray(self._score[:, rows, columns], np.float32)
        except Exception as error:  # zarr and its codecs may raise any error for damaged data.
            raise self._damaged(str(error)) from error
        self._refuse_missing(rows, columns, state)
        return score, state

    def _refuse_special_files(self, rows: slice, columns: slice) -> None:
        """Refuse chunks that are not regular files: opening a FIFO, for example, would block."""
        for row, column in self._chunks_under(rows, columns):
            for folder in ("score/c/0", "state/c"):
                path = f"{self.path}/{folder}/{row}/{column}"
                if path_exists(path) and not is_file(path):
                    raise self._damaged(f"chunk {row}, {column} is not a regular file")

    def _chunks_under(self, rows: slice, columns: slice) -> Iterator[tuple[int, int]]:
        """Yield the chunks that contain cells of a block."""
        height, width = self.info.chunk
        block = Box.of_edges(columns.start, rows.start, columns.stop, rows.stop)
        for column, row in tiles_over(block, Size(width, height)):
            yield row, column

    def _states(self, rows: slice, columns: slice) -> States:
        try:
            return np.asarray(self._state[rows, columns], np.uint8)
        except Exception as error:  # zarr and its codecs may raise any error for damaged data.
            raise self._damaged(str(error)) from error

    def _damaged(self, actual: str) -> DamagedResults:
        return _damaged_chunk(self.path, actual=actual)

    def _refuse_missing(self, rows: slice, columns: slice, state: States) -> None:
        """Raise an error if scores of scored cells are missing: they would read as 0 (no tumour)."""
        height, width = self.info.chunk
        for row, column in self._chunks_under(rows, columns):
            if path_exists(f"{self.path}/score/c/0/{row}/{column}"):
                continue
            top, left = row * height - rows.start, column * width - columns.start
            block = state[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
            if (block == State.SCORED).any():
                raise self._damaged(f"the scores of chunk {row}, {column} are missing")

    def scores(self, name: str | None = None) -> NDArray[np.float32]:
        """Return the scores (rows, columns) of a class, by default the last; 0 for cells without a score."""
        index = -1 if name is None else self.info.classes.index(name)
        return np.asarray(self.read()[0][index])

    def states(self) -> States:
        return self.read()[1]

    def written(self) -> set[tuple[int, int]]:
        """Return the chunks that are completely on disk."""
        states = _chunk_files(self.path / "state" / "c", self.info)
        lone = states - _chunk_files(self.path / "score" / "c" / "0", self.info)
        scored = [chunk for chunk in lone if State.SCORED in self._states(*self.info.chunk_cells(chunk))]
        return states.difference(scored)

    def counts(self) -> dict[str, int]:
        """Count the cells in each state, chunk by chunk to use little memory."""
        totals = np.zeros(len(State), np.int64)
        totals[State.PENDING] = self.info.rows * self.info.columns
        for chunk in sorted(self.written()):
            states = self._states(*self.info.chunk_cells(chunk))
            totals += np.bincount(states.ravel(), minlength=len(State))[: len(State)]
            totals[State.PENDING] -= states.size
        return {state.name.lower(): int(totals[state]) for state in State}


def _damaged_chunk(path: Path, **details: str) -> DamagedResults:
    remedy = "Delete the case's folder; the next scan creates it again"
    return DamagedResults("a chunk of the map is damaged", subject=path, remedy=remedy, **details)


def _chunk_files(folder: Path, info: MapInfo) -> set[tuple[int, int]]:
    """Return the chunks in a folder. A chunk outside the map, or that is not a file, raises an error."""
    down, across = -(-info.rows // info.chunk[0]), -(-info.columns // info.chunk[1])
    chunks = set()
    for path in files_in_subfolders(str(folder)):
        row, column = path.rsplit("/", 2)[1:]
        if not (_NUMBER.fullmatch(row) and _NUMBER.fullmatch(column)):
            continue  # A temporary file.
        if int(row) >= down or int(column) >= across or not is_file(path):
            raise _damaged_chunk(Path(path), expected=f"a file within {down} × {across} chunks")
        chunks.add((int(row), int(column)))
    return chunks


def _check_arrays(info: MapInfo, score: Any, state: Any) -> None:
    """Refuse arrays that differ from the description of the map."""
    shape, count = (info.rows, info.columns), len(info.classes)
    expected = (
        (score, "float32", (count, *shape), (count, *info.chunk)),
        (state, "uint8", shape, info.chunk),
    )
    for array, kind, array_shape, chunk in expected:
        stored = array.shards or array.chunks
        if (str(array.dtype), tuple(array.shape), tuple(stored)) != (kind, array_shape, tuple(chunk)):
            raise ValueError(f"arrays of {array.dtype}, {array.shape} in {stored} do not fit the map")


class MapWriter(MapReader):
    """Writes a map in complete chunks: first the scores, then the states, which mark the chunk as done."""

    def __init__(self, path: Path, info: MapInfo) -> None:
        if not map_exists(path):
            create_map(path, info)
            if not is_sharded(info):  # It is as it was created a moment ago.
                self.path, self.info, (self._score, self._state) = path, info, plain_arrays(path, info)
                return
        for partial in path.rglob(f"*{PARTIAL}"):
            partial.unlink(missing_ok=True)
        super().__init__(path)
        if self.info != info:
            raise ResultsError(
                "the map on disk has a different geometry than the one to be written",
                subject=path,
                remedy="Start over with --fresh, or use another results folder",
            )
        if not isinstance(self._score, ArrayFiles):
            self._open_for_writing()

    def _open_for_writing(self) -> None:
        import zarr
        from zarr.storage import LocalStore

        arrays: Any = zarr.open_group(LocalStore(self.path), mode="r+")
        # Without this option, which zarr does not store, a chunk of zeros would not be written.
        config = {"write_empty_chunks": True}
        self._score, self._state = (arrays[name].with_config(config) for name in ("score", "state"))

    def write_chunk(self, chunk: tuple[int, int], scores: Scores | None, states: States) -> None:
        """Write one chunk. `scores` is None if nothing in the chunk is scored."""
        rows, columns = self.info.chunk_cells(chunk)
        if scores is not None:
            self._score[:, rows, columns] = scores
        self._state[rows, columns] = states

    def forget(self, chunk: tuple[int, int]) -> None:
        """Delete the states of a chunk, so that it is computed again."""
        (self.path / "state" / "c" / str(chunk[0]) / str(chunk[1])).unlink(missing_ok=True)


def map_exists(path: Path) -> bool:
    """Whether a map was created in this folder."""
    return path_exists(f"{path}/state/{GROUP}")
