"""One finished case as the formats use it: image frames, findings, map cells, tissue and reviews."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.errors import ConfigError, LobuleError
from lobule.exports.options import ExportOptions, Kind
from lobule.files import case_folder_name
from lobule.findings import Finding, Outline, mask_outlines
from lobule.geometry import Box, Size
from lobule.results import CaseFolder, MapReader
from lobule.results.maps import MapInfo
from lobule.results.parquet import iterate_parquet
from lobule.results.result import PARTIAL
from lobule.reviews import Review, in_force, read_reviews
from lobule.server.library import Entry, ImageFile, Library
from lobule.stitch import State
from lobule.units import Mpp

Ring = NDArray[np.float64]
ROWS_AT_ONCE = 32_768
"""Findings that are in memory at once."""


@dataclass(frozen=True)
class ImageFrame:
    """One image of a case: its size, its resolution and the area with pixels, as far as they are recorded."""

    name: str
    """`slide`, or the view of an exam."""
    size: Size | None = None
    mpp: Mpp | None = None
    bounds: Box | None = None
    """The level-0 box with pixels if the slide declares one that is smaller than the slide."""
    file_name: str | None = None
    path: str | None = None
    """None if the file is gone."""
    fingerprint: str | None = None

    @property
    def crop_offset(self) -> tuple[int, int]:
        """Level-0 position of the first pixel in programs that crop a slide to its bounds."""
        return (0, 0) if self.bounds is None else (self.bounds.x, self.bounds.y)


@dataclass(frozen=True)
class DrawnOutline:
    """An outline that a reviewer drew."""

    person: str
    image: str
    label: str | None
    text: str | None
    ring: Ring


class ExportCase:
    """A case with a result. Everything is read at first use, and findings are read in blocks."""

    def __init__(self, library: Library, entry: Entry, results: Path) -> None:
        assert entry.folder is not None
        self.library, self.entry, self.results = library, entry, results
        self.folder: CaseFolder = entry.folder
        self.name = entry.name

    @cached_property
    def result(self) -> Mapping[str, Any]:
        return self.folder.result or {}

    @property
    def status(self) -> str:
        return str(self.result.get("status", "unfinished"))

    @property
    def file_name(self) -> str:
        """The name of the case without characters that file names must not have."""
        return case_folder_name(self.name)

    @cached_property
    def kind(self) -> Kind:
        return self.library.kind(self.entry)

    @property
    def patient(self) -> str | None:
        """The name of the patient. A format writes it only if `ExportOptions.show_patients` is set."""
        recorded = self.entry.row.patient if self.entry.row is not None else self.result.get("patient")
        return None if recorded is None else str(recorded)

    @cached_property
    def label(self) -> str:
        """The label of findings without one: the last class of the bundle."""
        classes = (self.result.get("bundle") or {}).get("classes") or []
        return str(classes[-1]) if classes else "tumour"

    def file_name_of(self, image: str) -> str:
        """The stem of a file about one image of the case."""
        return self.file_name if image == "slide" else f"{self.file_name}.{case_folder_name(image)}"

    # -- images -------------------------------------------------------------------------------------------

    @cached_property
    def frames(self) -> dict[str, ImageFrame]:
        """The images of the case by name, also those whose files are gone."""
        files = self.library.images(self.entry)
        recorded = self.result.get("images") or {}
        names = [*files, *recorded, *(reader.info.image for reader in self.maps.values())]
        return {name: self._frame(name, files.get(name), recorded.get(name) or {}) for name in names}

    def _frame(self, name: str, file: ImageFile | None, recorded: Mapping[str, Any]) -> ImageFrame:
        size = Size(*recorded["size"]) if recorded.get("size") else None
        mpp = Mpp(*recorded["mpp"]) if recorded.get("mpp") else None
        maps = [reader.info for reader in self.maps.values() if reader.info.image == name]
        if mpp is None and maps:
            mpp = maps[0].l0_mpp
        bounds = Box(*recorded["bounds"]) if recorded.get("bounds") else None
        if size is not None and bounds == Box(0, 0, *size):
            bounds = None
        recorded_path = str(recorded.get("path") or (file.path if file is not None else ""))
        inputs = self.result.get("input") or {}
        fingerprint = inputs.get(recorded_path) or (file and inputs.get(file.path)) or None
        exists = file is not None and (Path(file.path).exists() or "://" in file.path)
        return ImageFrame(
            name, size, mpp, bounds, Path(recorded_path).name or None,
            file.path if file is not None and exists else None, fingerprint,
        )  # fmt: skip

    def notes(self) -> list[str]:
        """Sentences about what is missing in the case, whatever the format."""
        notes = []
        if self.status == PARTIAL:
            failed = len(self.result.get("failed") or [])
            notes.append(f"The result is partial: {failed:,} fields could not be read or scored.")
        for frame in self.frames.values():
            if frame.path is None:
                subject = "slide" if frame.name == "slide" else f"view {frame.name}"
                notes.append(f"The file of the {subject} is gone; recorded values are used.")
        return notes

    # -- findings -----------------------------------------------------------------------------------------

    @property
    def finding_count(self) -> int:
        return int((self.result.get("findings") or {}).get("count", 0))

    def findings(self, options: ExportOptions, image: str | None = None) -> Iterator[tuple[int, Finding]]:
        """Yield the number and the value of each finding, in the order of the table.

        Args:
            options: Leaves out findings below `min_score`.
            image: Yield only the findings of this image.
        """
        path = self.folder.path / "findings.parquet"
        if not path.exists():
            return
        first, lowest = 0, -np.inf if options.min_score is None else options.min_score
        for rows in iterate_parquet(path, "the findings are damaged", ROWS_AT_ONCE):
            for offset, row in enumerate(rows):
                finding = _finding_of(row)
                if (image is None or finding.image == image) and not finding.score < lowest:
                    yield first + offset, finding
            first += len(rows)

    # -- maps ---------------------------------------------------------------------------------------------

    @cached_property
    def maps(self) -> dict[str, MapReader]:
        return self.folder.maps

    def map(self, options: ExportOptions, image: str = "slide") -> MapReader | None:
        """Return the map to export for an image: the one that was chosen, or the densest.

        Raises:
            ConfigError: The chosen map does not exist.
        """
        readers = {name: reader for name, reader in self.maps.items() if reader.info.image == image}
        if options.map_name is not None and options.map_name not in self.maps:
            raise ConfigError(
                f"there is no map '{options.map_name}'",
                subject=self.name,
                expected=", ".join(self.maps) or "a case with a map",
            )
        if options.map_name is not None:
            return readers.get(options.map_name)
        return min(readers.values(), key=lambda reader: _cell_area(reader.info), default=None)

    def tissue(self, image: str = "slide") -> list[Outline]:
        """Return the outlines of the cells of the coarsest map that are not glass, in level-0 pixels."""
        readers = [reader for reader in self.maps.values() if reader.info.image == image]
        if not readers:
            return []
        reader = max(readers, key=lambda reader: _cell_area(reader.info))
        mask = np.zeros((reader.info.rows, reader.info.columns), np.bool_)
        for block, (_, states) in iterate_blocks(reader):
            mask[block] = (states == State.SCORED) | (states == State.FAILED)
        outlines, _ = mask_outlines(mask)
        return [outline.scaled(*reader.info.l0_stride) for outline in outlines]

    # -- reviews ------------------------------------------------------------------------------------------

    @cached_property
    def reviews(self) -> dict[str, list[Review]]:
        """The valid entries of each reviewer."""
        return {
            person: in_force(entries) for person, entries in read_reviews(self.results, self.name).items()
        }

    @cached_property
    def reviews_of_findings(self) -> dict[int, list[str]]:
        """The reviews of each finding as sentences, by the number of the finding."""
        sentences: dict[int, list[str]] = {}
        for person, entries in self.reviews.items():
            for entry in entries:
                if entry.finding is not None:
                    detail = entry.label or entry.text or ""
                    sentences.setdefault(entry.finding, []).append(
                        f"{person}: {entry.action} {detail}".strip()
                    )
        return sentences

    def drawn_outlines(self) -> Iterator[DrawnOutline]:
        for person, entries in self.reviews.items():
            for entry in entries:
                if entry.polygon:
                    ring = np.array(entry.polygon, np.float64)
                    yield DrawnOutline(person, entry.image, entry.label, entry.text, ring)


def _cell_area(info: MapInfo) -> float:
    return info.l0_stride[0] * info.l0_stride[1]


def iterate_blocks(
    reader: MapReader,
) -> Iterator[tuple[tuple[slice, slice], tuple[NDArray[np.float32], NDArray[np.uint8]]]]:
    """Yield the position of each written chunk of a map, with its scores and states, row by row."""
    for chunk in sorted(reader.written()):
        block = reader.info.chunk_cells(chunk)
        yield block, reader.read(*block)


def rings_of(finding: Finding) -> list[list[Ring]]:
    """Return the polygons of a finding, each a list of rings, the exterior first; none for a point."""
    if finding.polygon:
        return [[outline.exterior, *outline.holes] for outline in finding.polygon]
    if finding.box is not None:
        return [[box_ring(finding.box)]]
    return []


def box_ring(box: Box) -> Ring:
    x = [box.x, box.right, box.right, box.x]
    return np.array(list(zip(x, [box.y, box.y, box.bottom, box.bottom], strict=True)), np.float64)


def _finding_of(row: Mapping[str, Any]) -> Finding:
    values = {name: value for name, value in row.items() if value is not None}
    if isinstance(values.get("polygon"), str):
        values["polygon"] = json.loads(values["polygon"])
    return Finding.from_dict(values)


def unreadable(error: LobuleError) -> str:
    """Format an error of one case as a sentence without the path of the user's files."""
    return f"{error.problem}." if not error.remedy else f"{error.problem}. {error.remedy}."
