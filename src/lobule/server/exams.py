"""Other exams of the same patient, so that a prior one can be shown beside an exam."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from lobule.errors import LobuleError
from lobule.mammograms.dicom import examine_dicom
from lobule.server.file_versions import file_state
from lobule.server.library import Entry, Library

DATE_COLUMNS = ("date", "study_date", "acquired", "year")
"""Columns of a cohort that state when an exam was acquired, in the order in which they are tried."""


def other_exams(library: Library, entry: Entry) -> list[dict[str, Any]]:
    """Return the other exams of the patient from the same source, the newest first.

    `relation` is prior, later, or unknown if a date is missing.
    """
    patient, acquired = library.patient(entry), exam_date(library, entry)
    if not patient:
        return []
    exams = []
    for other in library.entries():
        if other.id == entry.id or other.source != entry.source or library.patient(other) != patient:
            continue
        if library.kind(other) != "exam":
            continue
        date = exam_date(library, other)
        relation = "unknown" if not (date and acquired) else "prior" if date < acquired else "later"
        exams.append({"id": other.id, "name": other.name, "date": date, "relation": relation})
    return sorted(exams, key=lambda exam: str(exam["date"]), reverse=True)


def exam_date(library: Library, entry: Entry) -> str:
    """Return the date of an exam as YYYYMMDD, or as the cohort states it; empty if it is unknown."""
    if entry.row is not None:
        for column in DATE_COLUMNS:
            value = entry.row.attributes.get(column)
            if value:
                return value.replace("-", "")
    for file in library.images(entry).values():
        try:
            return _acquired(file.path, file_state(file.path))[:8]
        except (LobuleError, OSError):
            continue
    return ""


@lru_cache(maxsize=4096)
def _acquired(path: str, state: str) -> str:
    return "" if path.lower().endswith(".png") else examine_dicom(path).acquired
