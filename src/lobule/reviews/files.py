"""The files of reviews: one per case and person, to which entries are only ever appended."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote, unquote

from lobule.errors import ConfigError, ResultsError
from lobule.files import case_folder_name, make_folder, require_regular, results_error
from lobule.results.folder import COPY_OF

FOLDER = "reviews"
Action = Literal["accept", "reject", "relabel", "note", "draw", "undo"]
ACTIONS: tuple[Action, ...] = get_args(Action)
LARGEST_FILE = 16 << 20
LONGEST_TEXT = 4000
MOST_POINTS = 5000
PERSON = re.compile(r"[\w][\w .@-]{0,63}")


@dataclass(frozen=True)
class Review:
    """One entry of a review file."""

    action: Action
    finding: int | None = None
    """Row of the finding in the findings table."""
    label: str | None = None
    text: str | None = None
    image: str = "slide"
    polygon: tuple[tuple[float, float], ...] = ()
    """Outline of a drawn finding in level-0 pixels."""
    position: tuple[int, int] | None = None
    """Level-0 position of the judged finding. It shows whether the table still has the same finding."""
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem is not None:
            raise ConfigError(f"the review is not valid: {problem}")

    def _problem(self) -> str | None:
        if self.action not in ACTIONS:
            return f"'{self.action}' is not one of {', '.join(ACTIONS)}"
        if self.action in ("accept", "reject", "relabel") and self.finding is None:
            return f"'{self.action}' needs a finding"
        if self.action == "relabel" and not self.label:
            return "'relabel' needs a label"
        if self.action == "note" and not (self.text or "").strip():
            return "'note' needs a text"
        if self.action == "draw" and not 3 <= len(self.polygon) <= MOST_POINTS:
            return f"'draw' needs an outline of 3 to {MOST_POINTS:,} points"
        if any(len(text or "") > LONGEST_TEXT for text in (self.text, self.label, self.image)):
            return f"a text is longer than {LONGEST_TEXT:,} characters"
        return None

    def to_dict(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if value not in (None, ())}
        if self.polygon:
            values["polygon"] = [list(point) for point in self.polygon]
        if self.position is not None:
            values["position"] = list(self.position)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Review:
        plain = dict(values)
        plain["polygon"] = tuple((float(x), float(y)) for x, y in plain.get("polygon", ()))
        if plain.get("position") is not None:
            x, y = plain["position"]
            plain["position"] = int(x), int(y)
        return cls(**plain)


def append_review(results: Path, case_id: str, person: str, review: Review) -> None:
    """Append an entry. If it cannot be written completely, the file stays as it was.

    Raises:
        ConfigError: The name of the person is not valid.
        ResultsError: The file cannot be written, for example because the disk is full.
    """
    if (results / COPY_OF).exists():
        raise ResultsError(
            "reviews cannot be written into the copy of results from an object store",
            subject=(results / COPY_OF).read_text(),
            remedy="Download the results into a folder, then view that folder",
        )
    path = review_path(results, case_id, person)
    line = json.dumps(review.to_dict(), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    try:
        make_folder(path.parent)
        with path.open("a+b") as file:
            length = file.seek(0, os.SEEK_END)
            if length + len(line) > LARGEST_FILE:
                raise ResultsError(
                    "the review file is full", subject=path, expected=f"{LARGEST_FILE:,} bytes"
                )
            try:
                file.write(line if _ends_with_newline(path, length) else b"\n" + line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(length)
                raise
    except OSError as error:
        raise results_error(error, path) from error


def read_reviews(results: Path, case_id: str) -> dict[str, list[Review]]:
    """Return the entries of every person who reviewed a case. Lines that cannot be read are left out."""
    folder = results / FOLDER / case_folder_name(case_id)
    return {unquote(path.stem): list(_entries(path)) for path in sorted(folder.glob("*.jsonl"))}


def reviewed_cases(results: Path) -> list[str]:
    """Return the names of the cases that someone has reviewed."""
    return sorted(unquote(path.name) for path in (results / FOLDER).glob("*") if path.is_dir())


def in_force(entries: Sequence[Review]) -> list[Review]:
    """Return the entries that no later `undo` takes back."""
    valid: list[Review] = []
    for entry in entries:
        if entry.action == "undo":
            del valid[-1:]
        else:
            valid.append(entry)
    return valid


def review_path(results: Path, case_id: str, person: str) -> Path:
    if not PERSON.fullmatch(person) or person != person.strip():
        raise ConfigError(
            "the name of the reviewer is not valid",
            expected="1 to 64 letters, digits, spaces and the characters . @ - _",
            actual=repr(person[:80]),
        )
    return results / FOLDER / case_folder_name(case_id) / f"{quote(person, safe='')}.jsonl"


def _ends_with_newline(path: Path, length: int) -> bool:
    if length == 0:
        return True
    with path.open("rb") as file:
        file.seek(length - 1)
        return file.read(1) == b"\n"


def _entries(path: Path) -> Iterator[Review]:
    require_regular(path)
    if path.stat().st_size > LARGEST_FILE:
        raise ResultsError("the review file is too large", subject=path, expected=f"{LARGEST_FILE:,} bytes")
    for line in path.read_bytes().splitlines():
        try:
            yield Review.from_dict(json.loads(line))
        except (ValueError, TypeError, ConfigError):
            continue
