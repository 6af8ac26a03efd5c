"""One case on several workers: each computes a share of the fields of a pass, and the shares are merged.

A share consists of complete chunks of a map or table, and is written into its own folder. The bytes of a
chunk do not depend on the worker, so shares are merged by moving files. The scan of the case that follows
computes what no share contains, such as chunks in which a field failed.

Only a map that an earlier version of Lobule started may have chunks with other bytes. Into such a map, the
scores and states are copied.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lobule.errors import ResultsError
from lobule.files import results_error
from lobule.results.folder import CaseFolder
from lobule.results.map_files import GROUP
from lobule.results.maps import MAKING, MapReader, MapWriter
from lobule.results.tables import TableReader
from lobule.scanning.contract import MapSpec, Pass, Store

log = logging.getLogger("lobule.scan")

SHARES = "shares"
"""Folder of a case with a folder for each share that is not merged yet."""


@dataclass(frozen=True)
class Share:
    """One of `count` shares of the fields of a pass. With a count of 0, nothing is computed: see `SCOUT`."""

    number: int
    count: int

    def folder(self, folder: CaseFolder) -> CaseFolder:
        """Return the folder into which the share is written."""
        return CaseFolder(folder.path / SHARES / f"{self.number:04d}")

    def rows(self, chunk_of_row: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return the rows of the share. The shares have about the same number of rows, in complete chunks."""
        chunks, sizes = np.unique(chunk_of_row, return_counts=True)
        middles = (np.cumsum(sizes) - sizes / 2) / max(1, sizes.sum())
        own_chunks = chunks[(middles * self.count).astype(np.int64) == self.number]
        return np.isin(chunk_of_row, own_chunks)


SCOUT = Share(0, 0)
"""Only finds out whether a pass is left, so that not every worker has to compute the result for that."""


def complete_store(pass_: Pass, folder: CaseFolder, chunk_of_row: NDArray[np.int64]) -> Store | None:
    """Return the map or table of a pass if all chunks with fields exist; otherwise None."""
    if isinstance(pass_.store, MapSpec):
        path = folder.map_path(pass_.name)
        if not (path / "state" / "zarr.json").exists():
            return None
        reader = MapReader(path)
        columns = -(-reader.info.columns // reader.info.chunk[1])
        written = {row * columns + column for row, column in reader.written()}
        return reader if set(chunk_of_row.tolist()) <= written else None
    path = folder.table_path(pass_.name)
    if not (path / "table.json").exists():
        return None
    table = TableReader(path)
    return table if set(chunk_of_row.tolist()) <= table.written() else None


def merge_shares(folder: CaseFolder) -> None:
    """Move the chunks of all shares into the maps and tables of the case. It can be repeated after a crash.

    Raises:
        ResultsError: The files cannot be moved or copied.
    """
    shares = folder.path / SHARES
    try:
        for share in sorted(shares.iterdir()) if shares.is_dir() else ():
            for kind in ("maps", "tables"):
                for store in sorted((share / kind).glob("*")):
                    if store.suffix == MAKING:  # Its worker was lost while it created the map.
                        continue
                    _merge_store(store, folder.path / kind / store.name)
        shutil.rmtree(shares, ignore_errors=True)
    except OSError as error:
        raise results_error(error, shares) from error


def _merge_store(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        return
    if _array_formats(source) != _array_formats(target):
        _copy_chunks(source, target)
        return
    for path in _chunk_files(source):
        destination = target / path.relative_to(source)
        destination.parent.mkdir(parents=True, exist_ok=True)
        path.replace(destination)


def _array_formats(store: Path) -> list[bytes | None]:
    """Return the descriptions of the arrays of a map. They are missing in a table, which has one format."""
    files = (store / name / GROUP for name in ("score", "state"))
    return [file.read_bytes() if file.is_file() else None for file in files]


def _copy_chunks(source: Path, target: Path) -> None:
    """Copy the chunks of a map that are missing in another map of the same shape.

    Earlier versions divided chunks into blocks that are not divided any more.
    """
    try:
        reader = MapReader(source)
        writer = MapWriter(target, reader.info)
        for chunk in sorted(reader.written() - writer.written()):
            scores, states = reader.read(*reader.info.chunk_cells(chunk))
            has_scores = source.joinpath("score", "c", "0", *map(str, chunk)).exists()
            writer.write_chunk(chunk, scores if has_scores else None, states)
    except ResultsError as error:  # The scan of the case computes these chunks, or meets the same error.
        log.warning("The share %s of a map cannot be copied, and is computed again: %s", source, error)


def _chunk_files(store: Path) -> Iterator[Path]:
    """Yield the files of complete chunks. States follow the scores, because they mark a chunk as complete."""
    yield from sorted(store.glob("part-*.parquet"))
    for name in ("score", "state"):
        files = (store / name / "c").rglob("*")
        yield from sorted(path for path in files if path.is_file() and path.suffix != ".partial")
