"""Where a scan reads the features of a bag: from the table of its features pass, or from stored files."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lobule.errors import CaseError, ConfigError, DamagedFile
from lobule.geometry import Box, Lattice
from lobule.methods.chowder.bags import Bag
from lobule.results.tables import TableReader
from lobule.scanning.contract import Pixels
from lobule.scanning.tile_features import COLUMN
from lobule.stitch import State

PIECE_ROWS = 1024
CACHED_PIECES = 4


@dataclass(frozen=True, eq=False)
class TileSource:
    """The tiles of one case: their coordinates, and their features in pieces."""

    l0_coords: NDArray[np.int64]
    l0_side: float | None
    piece_of: NDArray[np.int64]
    offset: NDArray[np.int64]
    """The row of each tile within its piece."""
    piece: Callable[[int], NDArray[np.float32]]
    failed: NDArray[np.int64]
    """(n, 2) level-0 corners of tiles that could not be encoded."""

    def __len__(self) -> int:
        return len(self.l0_coords)

    def blocks(self) -> Iterator[Tensor]:
        for number in np.unique(self.piece_of):
            rows = self.offset[self.piece_of == number]
            yield torch.from_numpy(self.piece(int(number))[rows])


def tiles_of_table(table: TableReader) -> TileSource:
    """The tiles of a finished features pass; failed tiles are listed separately."""
    columns = table.read(["state", "l0_x", "l0_y", "l0_width", "l0_height"])
    if not columns:
        no_rows = np.empty(0, np.int64)
        corners = np.empty((0, 2), np.int64)
        return TileSource(corners, None, no_rows, no_rows, _empty_piece, corners)
    scored = columns["state"] == State.SCORED
    corners = np.stack([columns["l0_x"], columns["l0_y"]], axis=1).astype(np.int64)
    rows = np.flatnonzero(scored)
    per_part = table.info.part_rows
    side = float(np.sqrt(columns["l0_width"][0] * columns["l0_height"][0]))

    def piece(number: int) -> NDArray[np.float32]:
        features: NDArray[np.float32] = table.read_chunk(number, [COLUMN])[COLUMN].astype(np.float32)
        return features

    return TileSource(corners[rows], side, rows // per_part, rows % per_part, piece, corners[~scored])


def _empty_piece(number: int) -> NDArray[np.float32]:
    return np.empty((0, 0), np.float32)


def tiles_of_bag(bag: Bag) -> TileSource:
    """The tiles of a bag, read from its feature file."""
    rows = np.arange(len(bag)) if bag.rows is None else bag.rows

    def piece(number: int) -> NDArray[np.float32]:
        start = number * PIECE_ROWS
        piece_rows = slice(start, min(start + PIECE_ROWS, bag.file.count))
        return np.asarray(bag.file.read(piece_rows), np.float32)

    side = bag.file.l0_side(bag.case.mpp)
    no_corners = np.empty((0, 2), np.int64)
    return TileSource(bag.l0_coords, side, rows // PIECE_ROWS, rows % PIECE_ROWS, piece, no_corners)


def stored_tiles(case_bag: Bag, hash_: str | None, name: str | None, dim: int) -> TileSource:
    """The tiles of a bag; refused if its features are not from the encoder that the bundle was trained on."""
    file = case_bag.file
    other_hash = hash_ is not None and file.hash is not None and file.hash != hash_
    other_name = file.hash is None and None not in (file.encoder, name) and file.encoder != name
    if other_hash or other_name or file.dim != dim:
        raise ConfigError(
            "features of another backbone than the bundle was trained on",
            subject=file.path,
            expected=f"{dim} numbers of {name or 'the same encoder'}",
            actual=f"{file.dim} numbers of {file.encoder or 'an unnamed encoder'}",
            remedy="Extract features with that backbone, or scan the slides themselves",
        )
    if len(np.unique(case_bag.l0_coords, axis=0)) < len(case_bag):
        raise DamagedFile(
            "the feature file contains duplicate tile coordinates",
            subject=file.path,
            remedy="Extract the features of this slide again",
        )
    return tiles_of_bag(case_bag)


class FeaturePicture:
    """Features as an image: the box of a tile is one pixel with one channel per feature."""

    def __init__(self, source: TileSource) -> None:
        self._source = source
        self._row = {(int(x), int(y)): row for row, (x, y) in enumerate(source.l0_coords)}
        self._cache: OrderedDict[int, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def read_lattice(self, lattice: Lattice, box: Box) -> Pixels:
        row = self._row[(box.x, box.y)]
        piece = self._piece(int(self._source.piece_of[row]))
        return np.asarray(piece[int(self._source.offset[row])][None, None, :])

    def _piece(self, number: int) -> NDArray[np.float32]:
        with self._lock:
            if number not in self._cache:
                self._cache[number] = self._source.piece(number)
                if len(self._cache) > CACHED_PIECES:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(number)
            return self._cache[number]


class ValuePicture:
    """The precomputed values of a map's cells; reading a cell whose tile failed raises an error."""

    def __init__(self, values: NDArray[np.float32], failed: NDArray[np.bool_], cell: int) -> None:
        self._values, self._failed, self._cell = values, failed, cell

    def read_lattice(self, lattice: Lattice, box: Box) -> Pixels:
        row, column = box.y // self._cell, box.x // self._cell
        if self._failed[row, column]:
            raise CaseError("the features of this tile could not be computed")
        return np.full((1, 1, 1), self._values[row, column])
