"""Exam lists: as JSON, or pickled as the published ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lobule.errors import DamagedFile, TooLarge
from lobule.files import open_url, read_at_most
from lobule.mammograms.views import VIEWS, View
from lobule.pickles import plain_pickle

MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class ListedExam:
    """One exam of a list: the names of its images without suffix, and its labels."""

    images: Mapping[View, tuple[str, ...]]
    labels: Mapping[str, bool] = field(default_factory=dict)
    """Labels such as `left_malignant`; a label that the list does not state is absent."""
    horizontal_flip: str | None = None
    """NO or YES as the list states it; None if it does not."""


def read_exam_list(path: str | Path) -> list[ListedExam]:
    """Read a list of exams, JSON or pickled."""
    with open_url(path) as file:
        content = read_at_most(file, MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise TooLarge("the exam list is too large", subject=path, expected=f"at most {MOST_BYTES >> 20} MiB")
    if content.lstrip()[:1] == b"[":
        try:
            entries = json.loads(content)
        except ValueError as error:
            raise DamagedFile(f"the exam list is not JSON: {error}", subject=path) from error
    else:
        entries = plain_pickle(content, path)
    if not isinstance(entries, list):
        raise DamagedFile(
            "the file is not an exam list", subject=path, expected="a list", actual=type(entries).__name__
        )
    return [_exam_from_entry(entry, number, path) for number, entry in enumerate(entries)]


def _exam_from_entry(entry: object, number: int, path: str | Path) -> ListedExam:
    if not isinstance(entry, dict) or not any(view in entry for view in VIEWS):
        raise DamagedFile(
            f"entry {number} of the list is not an exam",
            subject=path,
            expected=f"a dictionary with {', '.join(VIEWS)}",
            actual=type(entry).__name__,
        )
    labels = entry.get("cancer_label") or {}
    images: dict[View, tuple[str, ...]] = {}
    for view in VIEWS:
        names = entry.get(view, ())
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise DamagedFile(
                f"{view} of entry {number} is not a list of names", subject=path, actual=repr(names)[:60]
            )
        if names:
            images[view] = tuple(names)
    flip = entry.get("horizontal_flip")
    flip = flip if flip in ("NO", "YES") else None
    return ListedExam(images, {name: bool(value) for name, value in labels.items()}, flip)
