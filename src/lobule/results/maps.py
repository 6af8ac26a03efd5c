"""Maps on disk: a Zarr group per map with scores and states. A chunk is done if its file of states exists.

Zarr is imported when the first map is opened, so that a scan can begin to compute before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.errors import DamagedResults, ResultsError
from lobule.files import require_regular
from lobule.geometry import Box, Size, tiles_over
from lobule.grid import MapGrid
from lobule.results.checks import LARGEST_JSON
from lobule.stitch import Scores, State, States
from lobule.units import Mpp

INNER = 512
"""Largest number of cells per side of the blocks that can be read separately from a chunk."""

MAKING = ".making"
"""Suffix of the folder of a map that is being created or deleted."""

MOST_SIDE = 1 << 24
MOST_CHUNK_CELLS = 1 << 26
MOST_CHUNKS = 1 << 18
MOST_BYTES = 8 << 30
"""Limits that no scan exceeds: side of a map, cells of a chunk, number of chunks, and bytes read at once."""

_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class MapInfo:
    """The description of a map and of its position on the image, stored as attributes of the Zarr group."""

    name: str
    image: str
    classes: tuple[str, ...]
    rows: int
    columns: int
    l0_stride: tuple[float, float]
    """Level-0 pixels per cell in x and y. Cell (r, c) covers [c·x, (c+1)·x) × [r·y, (r+1)·y)."""
    um_stride: tuple[float, float] | None
    chunk: tuple[int, int]
    """Rows and columns of one chunk: a whole number of fields."""

    @classmethod
    def of_grid(cls, name: str, image: str, classes: Sequence[str], grid: MapGrid, fields: int) -> MapInfo:
        """Return the description of a map on a grid. A chunk is `fields` fields wide and one field high."""
        mpp = grid.lattice.mpp
        um = None if mpp is None else (mpp.x * grid.stride, mpp.y * grid.stride)
        columns = min(fields, grid.field_columns) * grid.cells
        return cls(
            name, image, tuple(classes), grid.rows, grid.columns, grid.l0_cell, um, (grid.cells, columns)
        )

    def chunk_of(self, row: int, column: int) -> tuple[int, int]:
        return row // self.chunk[0], column // self.chunk[1]

    def chunk_cells(self, chunk: tuple[int, int]) -> tuple[slice, slice]:
        top, left = chunk[0] * self.chunk[0], chunk[1] * self.chunk[1]
        bottom, right = min(top + self.chunk[0], self.rows), min(left + self.chunk[1], self.columns)
        return slice(top, bottom), slice(left, right)

    @property
    def chunks(self) -> list[tuple[int, int]]:
        down, across = -(-self.rows // self.chunk[0]), -(-self.columns // self.chunk[1])
        return [(row, column) for row in range(down) for column in range(across)]

    @property
    def l0_mpp(self) -> Mpp | None:
        """µm per level-0 pixel; None if the slide does not state it."""
        if self.um_stride is None:
            return None
        return Mpp(self.um_stride[0] / self.l0_stride[0], self.um_stride[1] / self.l0_stride[1])

    def l0_box(self, rows: slice, columns: slice) -> Box:
        x, y = self.l0_stride
        return Box.of_edges(
            int(columns.start * x), int(rows.start * y), round(columns.stop * x), round(rows.stop * y)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the description without the division into chunks."""
        return {
            "name": self.name,
            "image": self.image,
            "classes": list(self.classes),
            "shape": [self.rows, self.columns],
            "l0_stride": list(self.l0_stride),
            "um_stride": None if self.um_stride is None else list(self.um_stride),
        }

    def to_attributes(self) -> dict[str, Any]:
        states = {state.name.lower(): int(state) for state in State}
        return {"lobule": {"kind": "map", **self.to_dict(), "chunk": list(self.chunk), "states": states}}

    @classmethod
    def of_attributes(cls, attributes: dict[str, Any]) -> MapInfo:
        metadata = attributes["lobule"]
        um, l0 = metadata["um_stride"], metadata["l0_stride"]
        (rows, columns), (chunk_rows, chunk_columns) = metadata["shape"], metadata["chunk"]
        return cls(
            metadata["name"], metadata["image"], tuple(metadata["classes"]), int(rows), int(columns),
            (float(l0[0]), float(l0[1])), None if um is None else (float(um[0]), float(um[1])),
            (int(chunk_rows), int(chunk_columns)),
        )  # fmt: skip


class MapReader:
    """A map being written or finished. Cells not yet written read as pending."""

    def __init__(self, path: Path) -> None:
        import zarr
        from zarr.storage import LocalStore

        self.path = path
        for metadata in (path / "zarr.json", path / "score/zarr.json", path / "state/zarr.json"):
            require_regular(metadata)
            if metadata.exists() and metadata.stat().st_size > LARGEST_JSON:
                raise DamagedResults("the map cannot be read", subject=metadata, actual="too large a file")
        try:
            # With a fixed format, zarr opens only these three files.
            store = LocalStore(path, read_only=True)
            group = zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=False)
            self.info = MapInfo.of_attributes(dict(group.attrs))
            self._score, self._state = group["score"], group["state"]
            _check(self.info, self._score, self._state)
        except OSError as error:
            raise ResultsError("the map cannot be read", subject=path, actual=str(error)) from error
        except Exception as error:  # zarr may raise any error for damaged metadata.
            raise DamagedResults("the map cannot be read", subject=path, actual=str(error)) from error

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
            score = np.asarray(self._score[:, rows, columns], np.float32)  # type: ignore[index]
        except Exception as error:  # zarr and its codecs may raise any error for damaged data.
            raise self._damaged(str(error)) from error
        self._refuse_missing(rows, columns, state)
        return score, state

    def _refuse_special_files(self, rows: slice, columns: slice) -> None:
        """Refuse chunks that are not regular files: opening a FIFO, for example, would block."""
        for row, column in self._chunks_under(rows, columns):
            for folder in ("score/c/0", "state/c"):
                path = self.path / folder / str(row) / str(column)
                if path.exists() and not path.is_file():
                    raise self._damaged(f"chunk {row}, {column} is not a regular file")

    def _chunks_under(self, rows: slice, columns: slice) -> Iterator[tuple[int, int]]:
        """Yield the chunks that contain cells of a block."""
        height, width = self.info.chunk
        block = Box.of_edges(columns.start, rows.start, columns.stop, rows.stop)
        for column, row in tiles_over(block, Size(width, height)):
            yield row, column

    def _states(self, rows: slice, columns: slice) -> States:
        try:
            return np.asarray(self._state[rows, columns], np.uint8)  # type: ignore[index]
        except Exception as error:  # zarr and its codecs may raise any error for damaged data.
            raise self._damaged(str(error)) from error

    def _damaged(self, actual: str) -> DamagedResults:
        return _damaged_chunk(self.path, actual=actual)

    def _refuse_missing(self, rows: slice, columns: slice, state: States) -> None:
        """Raise an error if scores of scored cells are missing: they would read as 0 (no tumour)."""
        height, width = self.info.chunk
        for row, column in self._chunks_under(rows, columns):
            if (self.path / "score" / "c" / "0" / str(row) / str(column)).exists():
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
    for path in folder.glob("*/*"):
        row, column = path.parent.name, path.name
        if not (_NUMBER.fullmatch(row) and _NUMBER.fullmatch(column)):
            continue  # A temporary file.
        if int(row) >= down or int(column) >= across or not path.is_file():
            raise _damaged_chunk(path, expected=f"a file within {down} × {across} chunks")
        chunks.add((int(row), int(column)))
    return chunks


def _check(info: MapInfo, score: Any, state: Any) -> None:
    """Refuse shapes that no scan writes, before anything is allocated for them."""
    shape = (info.rows, info.columns)
    strides = (*info.l0_stride, *(info.um_stride or ()))
    chunk_cells = info.chunk[0] * info.chunk[1]
    if min(*shape, *info.chunk) < 1 or max(shape) > MOST_SIDE or chunk_cells > MOST_CHUNK_CELLS:
        raise ValueError(f"a map of {shape} cells in chunks of {info.chunk}")
    if (down := -(-shape[0] // info.chunk[0])) * (across := -(-shape[1] // info.chunk[1])) > MOST_CHUNKS:
        raise ValueError(f"a map of {down} × {across} chunks")
    if not all(0 < stride < np.inf for stride in strides):
        raise ValueError(f"cells of {strides}")
    if not info.classes or not all(isinstance(name, str) for name in (info.name, info.image, *info.classes)):
        raise ValueError("names that are not text")
    count = len(info.classes)
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
        import zarr
        from zarr.storage import LocalStore

        if not map_exists(path):
            _create(path, info)
        for partial in path.rglob("*.partial"):
            partial.unlink(missing_ok=True)
        super().__init__(path)
        if self.info != info:
            raise ResultsError(
                "the map on disk has a different geometry than the one to be written",
                subject=path,
                remedy="Start over with --fresh, or use another results folder",
            )
        group = zarr.open_group(LocalStore(path), mode="r+")
        # Without this option, which zarr does not store, a chunk of zeros would not be written.
        arrays: Any = group
        config = {"write_empty_chunks": True}
        self._score, self._state = (arrays[name].with_config(config) for name in ("score", "state"))

    def write_chunk(self, chunk: tuple[int, int], scores: Scores | None, states: States) -> None:
        """Write one chunk. `scores` is None if nothing in the chunk is scored."""
        rows, columns = self.info.chunk_cells(chunk)
        if scores is not None:
            self._score[:, rows, columns] = scores  # type: ignore[index]
        self._state[rows, columns] = states  # type: ignore[index]

    def forget(self, chunk: tuple[int, int]) -> None:
        """Delete the states of a chunk, so that it is computed again."""
        (self.path / "state" / "c" / str(chunk[0]) / str(chunk[1])).unlink(missing_ok=True)


def map_exists(path: Path) -> bool:
    """Whether a map was created in this folder."""
    return (path / "state" / "zarr.json").exists()


def _create(path: Path, info: MapInfo) -> None:
    import zarr
    from zarr.codecs import BloscCodec
    from zarr.storage import LocalStore

    # The group is created under another name and then renamed, so that an existing group is complete.
    aside = path.with_name(path.name + MAKING)
    if aside.exists():
        import shutil

        shutil.rmtree(aside)
    group = zarr.create_group(LocalStore(aside), attributes=info.to_attributes())
    height, width = info.chunk
    inner = (_divisor(height), _divisor(width))
    sharded = inner != info.chunk
    classes = (len(info.classes),)
    arrays: tuple[tuple[str, str, tuple[int, ...], tuple[str, ...], float], ...] = (
        ("score", "float32", classes, ("class", "y", "x"), 0.0),
        ("state", "uint8", (), ("y", "x"), int(State.PENDING)),
    )
    for name, dtype, leading, dimension_names, fill_value in arrays:
        group.create_array(
            name,
            shape=(*leading, info.rows, info.columns),
            dtype=dtype,
            chunks=(*leading, *inner) if sharded else (*leading, *info.chunk),
            shards=(*leading, *info.chunk) if sharded else None,
            compressors=BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),
            fill_value=fill_value,
            config={"write_empty_chunks": True},
            dimension_names=dimension_names,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    aside.rename(path)


def _divisor(length: int) -> int:
    """Return the largest divisor of a chunk's side that is at most `INNER`.

    If the divisor is very small, as for a prime number, the side itself is returned.
    """
    divisor = next(divisor for divisor in range(min(length, INNER), 0, -1) if length % divisor == 0)
    return divisor if divisor >= INNER // 8 else length
