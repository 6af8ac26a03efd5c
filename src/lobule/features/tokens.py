"""Files of tokens: the vectors of the patches of every tile, in half precision or as 8-bit numbers.

A file is written and read block by block. Like a feature file of TRIDENT, it has the datasets `features` and
`coords`; `features` has the shape (tiles, patches, width). With 8-bit numbers, `scales` (tiles, patches) has
the factor of each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lobule.errors import ConfigError, DamagedFile
from lobule.features.frame import Encoding, TileFrame
from lobule.features.hdf5 import coords_dataset, create_hdf5, open_hdf5, refuse_foreign_storage

FORMAT = "lobule-tokens/1"
CHUNK_BYTES = 1 << 20
BLOCK_BYTES = 64 << 20
"""Size of a block, in float32, when a whole file is streamed."""

Storage = Literal["float16", "int8"]
AppendTokens = Callable[[NDArray[Any], NDArray[Any] | None, NDArray[np.int64]], None]
"""Appends tokens (n, patches × width), factors (n, patches) or None, and level-0 corners (n, 2)."""


@dataclass(frozen=True)
class TokenGrid:
    """The patches of a tile."""

    rows: int
    columns: int
    width: int
    """Length of the vector of a patch."""
    storage: Storage = "float16"

    @property
    def count(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class TokenFile:
    """The metadata of a file of tokens, and methods that read it block by block."""

    path: Path
    count: int
    grid: TokenGrid
    encoder: str
    hash: str

    def l0_coords(self) -> NDArray[np.int64]:
        """(n, 2) level-0 x and y of the tiles' corners."""
        with open_hdf5(self.path) as file:
            return np.asarray(file["coords"]).astype(np.int64)

    def read(self, rows: slice) -> NDArray[np.float32]:
        """The tokens of a slice of tiles, (n, rows, columns, width)."""
        with open_hdf5(self.path) as file:
            return self._block(file, rows)

    def blocks(self, tiles: int | None = None) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield the tokens in order: a slice of tiles, and their tokens."""
        size = tiles or max(1, BLOCK_BYTES // (4 * self.grid.count * self.grid.width))
        with open_hdf5(self.path) as file:
            for start in range(0, self.count, size):
                rows = slice(start, min(start + size, self.count))
                yield rows, self._block(file, rows)

    def _block(self, file: Any, rows: slice) -> NDArray[np.float32]:
        values = np.asarray(file["features"][rows], np.float32)
        if self.grid.storage == "int8":
            values *= np.asarray(file["scales"][rows], np.float32)[..., None]
        if not np.isfinite(values).all():
            raise DamagedFile("the file contains tokens that are not numbers", subject=self.path)
        return values.reshape(-1, self.grid.rows, self.grid.columns, self.grid.width)


@contextmanager
def write_tokens(
    path: str | Path, frame: TileFrame, encoding: Encoding, grid: TokenGrid, *, source: str | None = None
) -> Iterator[AppendTokens]:
    """Write a file of tokens through the function `append(tokens, scales, l0_coords)` that is yielded."""
    shape = (grid.count, grid.width)
    tile_bytes = grid.count * grid.width * np.dtype(grid.storage).itemsize
    chunk_tiles = max(1, CHUNK_BYTES // tile_bytes)
    with create_hdf5(path) as file:
        file.attrs.update(
            {
                "lobule_format": FORMAT,
                "encoder": encoding.name,
                "encoder_hash": encoding.hash,
                "token_rows": grid.rows,
                "token_columns": grid.columns,
                "mpp": frame.mpp,
                **({} if source is None else {"source": source}),
            }
        )
        tokens = file.create_dataset(
            "features", (0, *shape), grid.storage, maxshape=(None, *shape), chunks=(chunk_tiles, *shape)
        )
        folder = str(Path(path).parent)
        tokens.attrs.update({"name": frame.name, "savetodir": folder, "encoder": encoding.name})
        factors = None
        if grid.storage == "int8":
            sizes = {"maxshape": (None, grid.count), "chunks": (256, grid.count)}
            factors = file.create_dataset("scales", (0, grid.count), "float16", **sizes)
        coords = coords_dataset(file, frame, folder, "int64")

        def append(values: NDArray[Any], scales: NDArray[Any] | None, l0_coords: NDArray[np.int64]) -> None:
            expected = (len(l0_coords), grid.count * grid.width)
            if (
                values.shape != expected
                or values.dtype != grid.storage
                or (scales is None) != (factors is None)
            ):
                raise ConfigError(
                    "these tokens belong to another grid",
                    subject=path,
                    expected=f"{expected} numbers of type {grid.storage}",
                    actual=f"{values.shape} numbers of type {values.dtype}",
                )
            start, stop = tokens.shape[0], tokens.shape[0] + len(l0_coords)
            for dataset in (tokens, factors, coords):
                if dataset is not None:
                    dataset.resize(stop, axis=0)
            tokens[start:] = values.reshape(-1, *shape)
            if factors is not None:
                factors[start:] = scales
            coords[start:] = l0_coords

        yield append


def read_token_file(path: str | Path, expected: TokenGrid | None = None) -> TokenFile:
    """Read the metadata of a file of tokens.

    Args:
        path: The file.
        expected: The grid that the file must have.

    Raises:
        DamagedFile: The file is damaged, or it is not a file of tokens.
        ConfigError: The tokens are on another grid.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        refuse_foreign_storage(path, file, "features", "coords", "scales")
        attributes = dict(file.attrs)
        if attributes.get("lobule_format") != FORMAT:
            raise DamagedFile(
                "not a file of tokens",
                subject=path,
                expected=FORMAT,
                actual=str(attributes.get("lobule_format", "no format")),
                remedy="Write one with `lobule features --tokens float16`",
            )
        features, coords = file["features"], file["coords"]
        rows, columns = int(attributes["token_rows"]), int(attributes["token_columns"])
        has_factors = "scales" in file.keys()  # noqa: SIM118 - follows no link
        shapes = [features.shape[:2], *([file["scales"].shape] if has_factors else [])]
        storage: Any = str(features.dtype)
        is_valid = features.ndim == 3 and storage == ("int8" if has_factors else "float16")
        if not is_valid or any(shape != (len(coords), rows * columns) for shape in shapes):
            raise DamagedFile(
                "half-written: the datasets do not belong together",
                subject=path,
                expected=f"{len(coords)} tiles of {rows} × {columns} tokens",
                actual=f"features {features.shape} of type {features.dtype}",
                remedy="Extract the tokens of this slide again",
            )
        grid = TokenGrid(rows, columns, int(features.shape[2]), storage)
        token_file = TokenFile(
            path, len(coords), grid, str(attributes["encoder"]), str(attributes["encoder_hash"])
        )
    if expected is not None and grid != expected:
        raise ConfigError(
            "the tokens are on another grid",
            subject=path,
            expected=_as_text(expected),
            actual=_as_text(grid),
            remedy="Extract the tokens again with the encoder of this folder",
        )
    return token_file


def _as_text(grid: TokenGrid) -> str:
    return f"{grid.rows} × {grid.columns} tokens of {grid.width} numbers as {grid.storage}"
