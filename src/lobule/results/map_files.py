"""Reads and writes the files of small maps in the format Zarr 3 directly, with the bytes that zarr writes.

The library zarr takes many milliseconds to create or open a group, more than everything else in a small case.
Maps whose chunks are divided into shards, and maps that are described in another way than here, are left to
zarr.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.raw_files import make_new_folders, read_file, replace_file, write_new_file

GROUP = "zarr.json"
"""Name of the file that describes a group or an array."""
PARTIAL = ".partial"
"""Suffix of a chunk that is being written."""
LEVEL = 3
"""Level of the compression by zstd, with shuffled bytes."""

Selection = tuple[slice, ...]


@dataclass(frozen=True)
class ArrayFiles:
    """An array of a map on disk: one file per chunk. Chunks that do not exist contain the fill value."""

    path: Path
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    dimensions: tuple[str, ...]
    fill: float

    def description(self) -> dict[str, Any]:
        """Return the contents of the array's `zarr.json`, in the order of zarr."""
        kind = np.dtype(self.dtype)
        codec: dict[str, Any] = {"name": "bytes"}
        if kind.itemsize > 1:
            codec["configuration"] = {"endian": "little"}
        blosc = {
            "typesize": kind.itemsize,
            "cname": "zstd",
            "clevel": LEVEL,
            "shuffle": "shuffle",
            "blocksize": 0,
        }
        separator = {"separator": "/"}
        return {
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.chunk)}},
            "chunk_key_encoding": {"name": "default", "configuration": separator},
            "fill_value": self.fill,
            "codecs": [codec, {"name": "blosc", "configuration": blosc}],
            "attributes": {},
            "dimension_names": list(self.dimensions),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }

    def __getitem__(self, selection: Selection) -> NDArray[Any]:
        """Return the values of a block."""
        starts, stops = self._edges(selection)
        block = np.full([b - a for a, b in zip(starts, stops, strict=True)], self.fill, self.dtype)
        for index in self._chunks_under(starts, stops):
            values = self._read(index)
            if values is not None:
                inside, outside = self._overlap(index, starts, stops)
                block[outside] = values[inside]
        return block

    def __setitem__(self, selection: Selection, values: NDArray[Any]) -> None:
        """Write a block that contains complete chunks, or what of them is inside the array."""
        starts, stops = self._edges(selection)
        for index in self._chunks_under(starts, stops):
            chunk = np.full(self.chunk, self.fill, self.dtype)
            inside, outside = self._overlap(index, starts, stops)
            chunk[inside] = values[outside]
            self._write(index, chunk)

    def _edges(self, selection: Selection) -> tuple[list[int], list[int]]:
        edges = [piece.indices(length)[:2] for piece, length in zip(selection, self.shape, strict=True)]
        return [start for start, _ in edges], [max(start, stop) for start, stop in edges]

    def _chunks_under(self, starts: list[int], stops: list[int]) -> Iterator[tuple[int, ...]]:
        sides = zip(starts, stops, self.chunk, strict=True)
        return product(*(range(start // side, -(-stop // side)) for start, stop, side in sides))

    def _overlap(
        self, index: tuple[int, ...], starts: list[int], stops: list[int]
    ) -> tuple[Selection, Selection]:
        """Return where a chunk and a block overlap: in the chunk, and in the block."""
        inside, outside = [], []
        for number, side, start, stop in zip(index, self.chunk, starts, stops, strict=True):
            first, last = max(number * side, start), min((number + 1) * side, stop)
            inside.append(slice(first - number * side, last - number * side))
            outside.append(slice(first - start, last - start))
        return tuple(inside), tuple(outside)

    def _file(self, index: tuple[int, ...]) -> str:
        return "/".join((str(self.path), "c", *map(str, index)))

    def _read(self, index: tuple[int, ...]) -> NDArray[Any] | None:
        from numcodecs.blosc import Blosc

        try:
            data = read_file(self._file(index))
        except FileNotFoundError:
            return None
        expected = int(np.prod(self.chunk, dtype=np.int64)) * np.dtype(self.dtype).itemsize
        stated = int.from_bytes(data[4:8], "little")  # The size of the contents in the header of Blosc.
        if len(data) < 16 or stated != expected:
            raise ValueError(f"a chunk of {stated} bytes instead of {expected}")
        return np.frombuffer(Blosc().decode(data), np.dtype(self.dtype)).reshape(self.chunk)

    def _write(self, index: tuple[int, ...], values: NDArray[Any]) -> None:
        from numcodecs.blosc import Blosc

        file = self._file(index)
        data = Blosc("zstd", LEVEL, Blosc.SHUFFLE, typesize=values.itemsize).encode(values)
        partial = f"{file}.{os.urandom(16).hex()}{PARTIAL}"
        try:
            replace_file(file, data, partial, flush=False)
        except FileNotFoundError:  # It is the first chunk of this row.
            folders = [str(self.path), "c", *map(str, index[:-1])]
            make_new_folders("/".join(folders[: count + 1]) for count in range(1, len(folders)))
            replace_file(file, data, partial, flush=False)


def group_description(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of a group's `zarr.json`, in the order of zarr."""
    return {"attributes": attributes, "zarr_format": 3, "node_type": "group"}


def write_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Write the `zarr.json` of a group or an array."""
    write_new_file(f"{folder}/{GROUP}", json.dumps(description, indent=2).encode())
