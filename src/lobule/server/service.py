"""The state that the routes of the viewer share: opened images, maps and findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import HTTPException

from lobule.results import MapReader
from lobule.results.folder import RESULT
from lobule.server import details
from lobule.server.events import Watcher
from lobule.server.finding_tiles import CaseFindings
from lobule.server.gate import LOOPBACK
from lobule.server.library import Entry, Library
from lobule.server.map_tiles import ScoreRange
from lobule.server.pixels import ByteCache, Pixels
from lobule.stitch import State

FINDINGS_BYTES = 256 << 20


@dataclass(frozen=True)
class ServerOptions:
    """How the server behaves towards clients."""

    hosts: frozenset[str] = LOOPBACK
    token: str | None = None
    show_patients: bool = False


class Service:
    """The state that the routes share."""

    def __init__(self, library: Library, options: ServerOptions) -> None:
        self.library, self.options = library, options
        self.pixels, self.watcher = Pixels(), Watcher(library)
        self._findings = ByteCache(FINDINGS_BYTES)
        self._readers = ByteCache(128)
        self._summaries: dict[str, tuple[int, dict[str, Any]]] = {}
        self._ranges: dict[tuple[str, int, int], tuple[frozenset[tuple[int, int]], float, float]] = {}

    def entry(self, case_id: str) -> Entry:
        try:
            return self.library.entry(case_id)
        except KeyError:
            raise HTTPException(404, "There is no such case.") from None

    def summary(self, entry: Entry) -> dict[str, Any]:
        """Return a case's row in the list. Results that have not changed are not read again."""
        result = None if entry.folder is None else entry.folder.path / RESULT
        written = result.stat().st_mtime_ns if result is not None and result.exists() else 0
        cached = self._summaries.get(entry.id)
        if not written or cached is None or cached[0] != written:
            cached = written, details.summary(self.library, entry, self.options.show_patients)
            self._summaries[entry.id] = cached
        return cached[1]

    def findings(self, entry: Entry) -> CaseFindings:
        if entry.folder is None:
            return CaseFindings({}, np.zeros(0, np.int64), (), {})
        path = entry.folder.path / "findings.parquet"
        key = str(path), path.stat().st_mtime_ns if path.exists() else 0
        findings: CaseFindings | None = self._findings.get(key)
        if findings is None:
            findings = CaseFindings.read(entry.folder)
            self._findings.put(key, findings, 200 * len(findings.order) + 1000)
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

    def score_range(self, reader: MapReader, layer: int) -> ScoreRange:
        """Return the range of a map's scores. Only chunks that were not looked at before are read."""
        key = str(reader.path), layer, (reader.path / "zarr.json").stat().st_mtime_ns
        chunks, low, high = self._ranges.get(key, (frozenset(), np.inf, -np.inf))
        written = reader.written()
        for chunk in sorted(written - chunks):
            scores, states = reader.read(*reader.info.chunk_cells(chunk))
            scored = scores[layer][states == State.SCORED]
            if scored.size:
                low, high = min(low, float(scored.min())), max(high, float(scored.max()))
        self._ranges[key] = frozenset(written), low, high
        return ScoreRange.of_limits(low, high)
