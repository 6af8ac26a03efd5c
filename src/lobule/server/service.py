"""The state that the routes of the viewer share: opened images, maps and findings."""

from __future__ import annotations

import time
from collections.abc import Callable
from os import scandir
from threading import Lock
from typing import Any

import numpy as np
from fastapi import HTTPException

from lobule.annotations import read_annotation
from lobule.geometry import Size
from lobule.results import MapReader
from lobule.results.folder import RESULT
from lobule.server import details
from lobule.server.differences import cells_of_map, cells_of_truth
from lobule.server.events import Watcher
from lobule.server.file_versions import file_state
from lobule.server.finding_tiles import CaseFindings
from lobule.server.library import Entry, Library
from lobule.server.map_tiles import LoadedMap, MapCells, ScoreRange
from lobule.server.options import ServerOptions
from lobule.server.pixels import ByteCache, Pixels
from lobule.server.slide_tiles import OpenedImage
from lobule.stitch import State

FINDINGS_BYTES = 256 << 20
LOADED_BYTES, MOST_LOADED_BYTES = 64 << 20, 16 << 20
"""Memory for small maps, and the largest map that counts as small."""
SETTLED_NS = 20_000_000
"""A chunk that was written less than this ago may be followed by another one with the same time."""


class Service:
    """The state that the routes share."""

    def __init__(self, library: Library, options: ServerOptions) -> None:
        self.library, self.options = library, options
        self.pixels, self.watcher = Pixels(), Watcher(library)
        self._findings = ByteCache(FINDINGS_BYTES)
        self._findings_lock, self._running_lock = Lock(), Lock()
        self._range_lock, self._loading_lock = Lock(), Lock()
        self._loaded = ByteCache(LOADED_BYTES)
        self._readers = ByteCache(128)
        self._annotations = ByteCache(16)
        self._summaries: dict[str, tuple[int, dict[str, Any]]] = {}
        self._summaries_lock = Lock()
        self._ranges: dict[tuple[str, int, int], tuple[frozenset[tuple[int, int]], float, float]] = {}

    def entry(self, case_id: str) -> Entry:
        try:
            return self.library.entry(case_id)
        except KeyError:
            raise HTTPException(404, "There is no such case.") from None

    def summaries(self) -> list[dict[str, Any]]:
        """Return the rows of the list. Two threads do not read the same results at the same time."""
        with self._summaries_lock:
            return [self.summary(entry) for entry in self.library.entries()]

    def summary(self, entry: Entry) -> dict[str, Any]:
        """Return a case's row in the list. Results that have not changed are not read again."""
        result = None if entry.folder is None else entry.folder.path / RESULT
        written = result.stat().st_mtime_ns if result is not None and result.exists() else 0
        cached = self._summaries.get(entry.id)
        if not written or cached is None or cached[0] != written:
            cached = written, details.summary(self.library, entry, self.options)
            self._summaries[entry.id] = cached
        return cached[1]

    def findings(self, entry: Entry) -> CaseFindings:
        if entry.folder is None:
            return CaseFindings.empty()
        path = entry.folder.path / "findings.parquet"
        key = str(path), path.stat().st_mtime_ns if path.exists() else 0
        with self._findings_lock:  # A page that opens a case sends several requests that need them.
            findings: CaseFindings | None = self._findings.get(key)
            if findings is None:
                findings = CaseFindings.read(entry.folder)
                self._findings.put(key, findings, 200 * findings.count + 1000)
        return findings

    def reader(self, entry: Entry, name: str) -> MapReader:
        """Return a map of a case by name; names that the case does not have give 404."""
        path = None if entry.folder is None else entry.folder.map_path(name)
        if path is None or path.name in ("", ".", "..") or not (path / "zarr.json").is_file():
            raise HTTPException(404, "There is no such map.")
        key = str(path), (path / "zarr.json").stat().st_mtime_ns
        reader: MapReader | None = self._readers.get(key)
        if reader is None:
            reader = MapReader(path)
            self._readers.put(key, reader, 1)
        return reader

    def finished_map(self, reader: MapReader) -> MapReader | LoadedMap:
        """Return a map of a finished scan, in memory if it is small."""
        if LoadedMap.bytes_of(reader.info) > MOST_LOADED_BYTES:
            return reader
        key = str(reader.path), (reader.path / "zarr.json").stat().st_mtime_ns
        with self._loading_lock:  # A page that opens a case requests several tiles at once.
            loaded: LoadedMap | None = self._loaded.get(key)
            if loaded is None:
                loaded = LoadedMap(reader)
                self._loaded.put(key, loaded, loaded.nbytes)
        return loaded

    def opened(self, case_id: str) -> OpenedImage:
        """Return the opened slide of a case; 404 if it has none."""
        file = self.library.images(self.entry(case_id)).get("slide")
        if file is None:
            raise HTTPException(404, "The case has no slide.")
        return self.pixels.open(file.path, file.mpp)

    def cells_to_compare(self, entry: Entry, reader: MapReader, layer: int, other: str) -> MapCells:
        """Return what a map is compared with: the finest map of the other result, or the truth."""
        stride = reader.info.l0_stride
        if other == "truth":
            if entry.row is None or entry.row.annotation is None:
                raise HTTPException(404, "The cohort has no annotation of the case.")
            key = entry.row.annotation, file_state(entry.row.annotation)
            annotation = self._annotations.get(key)
            if annotation is None:
                annotation = read_annotation(entry.row.annotation, l0_size=self._slide_size(entry))
                self._annotations.put(key, annotation, 1)
            return cells_of_truth(annotation, stride)
        compared = self.entry(other)
        if compared.name != entry.name:
            raise HTTPException(404, "This is not another result of the same case.")
        readers = [] if compared.folder is None else list(compared.folder.maps.values())
        readers = [one for one in readers if one.info.image == reader.info.image]
        if not readers:
            raise HTTPException(404, "The other result has no map of this image.")
        name = reader.info.classes[layer]
        named = [one for one in readers if name in one.info.classes]
        finest = min(named or readers, key=lambda one: one.info.l0_stride)
        classes = finest.info.classes
        return cells_of_map(finest, classes.index(name) if name in classes else len(classes) - 1, stride)

    def _slide_size(self, entry: Entry) -> Size | None:
        file = self.library.images(entry).get("slide")
        try:
            return None if file is None else self.pixels.open(file.path, file.mpp).slide.size
        except OSError:
            return None

    def tile_of_running_scan(
        self, reader: MapReader, position: tuple[int, ...], compute: Callable[[], bytes]
    ) -> bytes:
        """Return a map tile of a scan that has not ended, computed once for all tabs that request it.

        It is computed again after the next chunk was written, which changes the time of the chunk's folder.
        """
        chunk_folders = [reader.path / "state" / "c", reader.path / "score" / "c" / "0"]
        with self._running_lock:
            times = {
                entry.path: entry.stat().st_mtime_ns
                for folder in chunk_folders
                if folder.is_dir()
                for entry in scandir(folder)
            }
            if not times or time.time_ns() - max(times.values()) < SETTLED_NS:
                return compute()
            key = str(reader.path), position, tuple(sorted(times.items()))
            return self.pixels.cached(key, compute)

    def score_range(
        self, reader: MapReader, layer: int, cells: MapReader | LoadedMap | None = None
    ) -> ScoreRange:
        """Return the range of a map's scores. Only chunks that were not looked at before are read.

        Args:
            reader: The map.
            layer: The class.
            cells: The same map, if it is in memory.
        """
        key = str(reader.path), layer, (reader.path / "zarr.json").stat().st_mtime_ns
        with self._range_lock:  # A page that opens a case requests several tiles that need the range.
            chunks, low, high = self._ranges.get(key, (frozenset(), np.inf, -np.inf))
            written = reader.written()
            for chunk in sorted(written - chunks):
                scores, states = (cells or reader).read(*reader.info.chunk_cells(chunk))
                scored = scores[layer][states == State.SCORED]
                if scored.size:
                    low, high = min(low, float(scored.min())), max(high, float(scored.max()))
            self._ranges[key] = frozenset(written), low, high
        return ScoreRange.of_limits(low, high)
