"""The cases that the server shows, known to clients by opaque ids, and the files of their images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Literal

from lobule.cohort import Case, Cohort
from lobule.cohort.manifest import IMAGE_SUFFIXES
from lobule.errors import LobuleError, NotReadable, ResultsError
from lobule.files import read_json
from lobule.mammograms.exams import view_named
from lobule.mammograms.views import VIEWS
from lobule.results import CaseFolder, Results
from lobule.results.checks import LARGEST_JSON
from lobule.results.folder import PLAN

Kind = Literal["slide", "image", "exam"]
MAX_WALKED_FILES = 200_000
"""Files under the slides folder that are indexed by name."""


@dataclass(frozen=True)
class Source:
    """One results folder, or cases without results (`results` is None)."""

    name: str
    results: Results | None = None
    cohort: Cohort | None = None


@dataclass(frozen=True)
class ImageFile:
    """One image of a case: its path, and µm/px from the cohort that replace those of the file."""

    path: str
    mpp: float | None = None


@dataclass(frozen=True)
class Entry:
    """One case of one source."""

    id: str
    source: int
    name: str
    folder: CaseFolder | None
    row: Case | None
    """The case's row in the cohort, if there is one."""

    @property
    def result(self) -> dict[str, Any] | None:
        return None if self.folder is None else self.folder.result

    def plan(self) -> Mapping[str, Any]:
        """Return `plan.json` of the case; empty if it is missing or damaged."""
        if self.folder is None or not (self.folder.path / PLAN).is_file():
            return {}
        try:
            plan = read_json(self.folder.path / PLAN, LARGEST_JSON)
        except (NotReadable, ResultsError):
            return {}
        return plan if isinstance(plan, dict) else {}


@dataclass
class Library:
    """All cases of all sources.

    Args:
        sources: Results folders and cohorts.
        cohort: Rows of cases in results folders: paths, labels and annotations.
        slides: A folder that is searched for images whose recorded path does not exist.
        calibrations: The calibration of models, by the fingerprint of their bundle.
    """

    sources: Sequence[Source]
    cohort: Cohort | None = None
    slides: Path | None = None
    calibrations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    _entries: dict[str, Entry] = field(default_factory=dict, init=False)
    _images: dict[str, tuple[int, dict[str, ImageFile]]] = field(default_factory=dict, init=False)
    _patients: dict[str, str | None] = field(default_factory=dict, init=False)
    _files: dict[str, list[Path]] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._rows = {case.id: case for case in self.cohort or ()}

    def entries(self) -> list[Entry]:
        """Return every case, also those that a running scan has added since the last call."""
        entries = [entry for index, source in enumerate(self.sources) for entry in self._of(index, source)]
        self._entries = {entry.id: entry for entry in entries}
        return entries

    def entry(self, case_id: str) -> Entry:
        """Return a case by its opaque id. Raises `KeyError`."""
        if case_id not in self._entries:
            self.entries()
        return self._entries[case_id]

    def _of(self, index: int, source: Source) -> Iterator[Entry]:
        if source.results is None:
            for case in source.cohort or ():
                yield Entry(_opaque_id(index, source, case.id), index, case.id, None, case)
            return
        folders = {folder.case_id: folder for folder in source.results.cases()}
        try:
            planned = source.results.planned()
        except ResultsError:
            planned = []  # The settings are damaged or gone; the cases are still shown.
        for name in dict.fromkeys([*planned, *folders]):
            folder = folders.get(name) or source.results.case_folder(name)
            yield Entry(_opaque_id(index, source, name), index, name, folder, self._rows.get(name))

    def images(self, entry: Entry) -> dict[str, ImageFile]:
        """Return the images of a case by name: `slide`, or the views of an exam. Paths may not exist."""
        try:
            planned = 0 if entry.folder is None else (entry.folder.path / PLAN).stat().st_mtime_ns
        except OSError:
            planned = 0
        cached = self._images.get(entry.id)
        if cached is None or cached[0] != planned:
            cached = self._images[entry.id] = planned, self._read_images(entry)
        return cached[1]

    def _read_images(self, entry: Entry) -> dict[str, ImageFile]:
        row, plan = entry.row, entry.plan()
        recorded_mpp = plan.get("mpp")
        mpp = recorded_mpp if isinstance(recorded_mpp, float) else None
        mpp = row.mpp if row is not None and row.mpp is not None else mpp
        views = row.views if row is not None else plan.get("views") or {}
        if isinstance(views, Mapping) and views:
            return dict(self._views(views))
        paths = list(row.paths) if row is not None else list(plan.get("input") or {})
        return {"slide": ImageFile(self.locate(str(paths[0])), mpp)} if paths else {}

    def _views(self, views: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, ImageFile]]:
        files_of = {}
        for name, files in views.items():
            try:
                files_of[view_named(str(name))] = files
            except LobuleError:
                continue
        for view in VIEWS:
            for number, file in enumerate(files_of.get(view, ()), start=1):
                name = view if number == 1 else f"{view} {number}"
                yield name, ImageFile(self.locate(str(file)))

    def patient(self, entry: Entry) -> str | None:
        """Return the patient of a case by the cohort or the result; None if neither states it."""
        if entry.row is not None:
            return entry.row.patient
        if entry.id not in self._patients:
            try:
                result = entry.result
            except LobuleError:
                result = None
            if result is None:
                return None
            self._patients[entry.id] = result.get("patient")
        return self._patients[entry.id]

    def kind(self, entry: Entry) -> Kind:
        files = self.images(entry)
        if not files or "slide" in files:
            is_image = bool(files) and files["slide"].path.lower().endswith(IMAGE_SUFFIXES)
            return "image" if is_image else "slide"
        return "exam"

    def locate(self, path: str) -> str:
        """Return a recorded path, or the file of that name in the slides folder if the path is gone.

        Of several files with the name, the one whose parent folders agree best with the recorded path is
        returned. If two of them agree equally well, either could be another patient's image, so the recorded
        path is returned and the image counts as missing.
        """
        if self.slides is None or Path(path).exists():
            return path
        if self._files is None:
            self._files = {}
            for file in islice(self.slides.rglob("*"), MAX_WALKED_FILES):
                self._files.setdefault(file.name, []).append(file)
        recorded = Path(path)
        candidates = self._files.get(recorded.name, [])
        agreement = [_equal_folders(file, recorded) for file in candidates]
        best = [file for file, equal in zip(candidates, agreement, strict=True) if equal == max(agreement)]
        return str(best[0]) if len(best) == 1 else path


def _equal_folders(file: Path, recorded: Path) -> int:
    """Return how many folders above both paths have the same names, counted from the file upwards."""
    pairs = zip(reversed(file.parent.parts), reversed(recorded.parent.parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _opaque_id(index: int, source: Source, case_id: str) -> str:
    """Return an id that does not show the case's name and stays the same when the server restarts."""
    key = f"{index}\0{source.name}\0{case_id}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(key, digest_size=12, person=b"lobule view").hexdigest()
