"""Turn rows of a manifest into cases and collect their problems."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lobule.cohort.case import BREAST_LABELS, SPLITS, VIEWS, Case, Kind
from lobule.cohort.columns import BOX, STANDARD_COLUMNS
from lobule.files import LONGEST_FOLDER_NAME, fits_folder_name, is_url
from lobule.geometry import Box

_SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    "training": "train", "valid": "val", "validation": "val", "testing": "test",
}  # fmt: skip
"""Accepted names of the three splits."""

SHOWN_ROWS = 10
"""Number of rows that a message lists before it only counts the rest."""

LONGEST_ID = 200
"""Largest number of bytes of a case name, which is also the name of its results folder."""


@dataclass
class SplitUsage:
    """The splits and rows in which each patient (or file) occurs; `normalise` maps spellings to one key."""

    noun: str
    normalise: Callable[[str], str]
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    spellings: dict[str, dict[str, None]] = field(default_factory=dict)

    def add(self, name: str, split: str | None, row: int) -> None:
        if split is not None:
            key = self.normalise(name)
            self.splits.setdefault(key, {}).setdefault(split, row)
            self.spellings.setdefault(key, {}).setdefault(name)


def same_patient(name: str) -> str:
    """A key shared by all spellings of a patient: without letter case, extra spaces and a decimal zero."""
    plain = " ".join(unicodedata.normalize("NFKC", name).split()).casefold()
    return re.sub(r"^([0-9]+)\.0+$", r"\1", plain)


def same_file(path: str) -> str:
    """A key shared by all spellings of a path: links and `..` are resolved, `file://` is removed."""
    local = local_path(path)
    if is_url(local):
        return local
    try:
        return os.path.realpath(local)
    except (ValueError, OSError):
        return local


def local_path(path: str) -> str:
    """The path of a `file://` URL; anything else is returned unchanged."""
    return unquote(urlsplit(path).path) if path.lower().startswith("file://") else path


def used_in_several_splits(usages: Sequence[SplitUsage]) -> list[str]:
    """One sentence for each patient or file that is in several splits, which would leak data."""
    return [
        f"{usage.noun} {_spelled(usage, name)} is in several splits: "
        + ", ".join(f"{split} (row {row})" for split, row in splits.items())
        for usage in usages
        for name, splits in usage.splits.items()
        if len(splits) > 1
    ]


def _spelled(usage: SplitUsage, key: str) -> str:
    first_spelling, *other_spellings = usage.spellings[key]
    return f"'{first_spelling}'" + (f" (also written '{other_spellings[0]}')" if other_spellings else "")


class RowReader:
    """Turns rows into cases and collects all problems."""

    def __init__(self, folder: str, columns: Sequence[str], check_files: bool) -> None:
        self._rows_with: dict[str, list[int]] = {}
        self._problem_count = 0
        self.split_usage = (SplitUsage("patient", same_patient), SplitUsage("file", same_file))
        self._folder = folder
        self._columns = columns
        self._check_files = check_files
        self._row_of: dict[str, int] = {}
        self._family: tuple[str, int] | None = None
        self._row = 0

    def read(self, row: int, cells: Mapping[str, str]) -> Case | None:
        """The case of a row; None if the row has a problem."""
        self._row = row
        before = self._problem_count
        case_id = self._case_id(cells.get("case", ""))
        patient = cells.get("patient", "")
        if not patient and "patient" in self._columns:
            self._problem("the patient is blank")
        split = self._split(cells.get("split", ""))
        kind = self._kind(cells)
        path = None if kind == "exam" else self._file(cells, "image" if kind == "image" else "slide")
        views = {view: files for view in VIEWS if (files := self._view(cells.get(view, "")))}
        l0_box = self._box(cells, kind)
        mpp = self._mpp(cells.get("mpp", ""))
        annotation = self._file(cells, "annotation")
        breast_labels = self._breast_labels(cells)
        self._record_split(patient, split, path, views)
        if self._problem_count > before or kind is None:
            return None
        return Case(
            case_id,
            patient,
            kind,
            path=path,
            views=views,
            split=split,
            label=cells.get("label") or None,
            site=cells.get("site") or None,
            mpp=mpp,
            annotation=annotation,
            l0_box=l0_box,
            breast_labels=breast_labels,
            attributes={name: cell for name, cell in cells.items() if name not in STANDARD_COLUMNS and cell},
        )

    @property
    def problems(self) -> list[str]:
        """One sentence for each problem, with all rows that have it."""
        return [f"{_rows(rows)}: {sentence}" for sentence, rows in self._rows_with.items()]

    def _problem(self, sentence: str) -> None:
        rows = self._rows_with.setdefault(sentence, [])
        self._problem_count += 1
        if rows[-1:] != [self._row]:
            rows.append(self._row)

    def _case_id(self, name: str) -> str:
        if not name:
            self._problem("the case is blank")
            return name
        if any(letter in "/\\" or ord(letter) < 32 for letter in name) or name.startswith("."):
            self._problem(f"case '{name}' names a folder in the results: no slashes, and no dot at its start")
        if len(name.encode()) > LONGEST_ID:
            self._problem(f"the case's name has {len(name.encode())} bytes; at most {LONGEST_ID}")
        elif not fits_folder_name(name):
            self._problem(
                f"case '{name[:40]}…' is too long for the name of a folder: characters other than letters, "
                f"digits and spaces count three bytes each, and at most {LONGEST_FOLDER_NAME} are allowed"
            )
        if name in self._row_of:
            self._problem(f"case '{name}' is there already, in row {self._row_of[name]}")
        self._row_of.setdefault(name, self._row)
        return name

    def _split(self, name: str) -> str | None:
        if not name:
            return None
        split = _SPLIT_NAMES.get(name.lower())
        if split is None:
            self._problem(f"no split '{name}'; expected train, val, test or nothing")
        return split

    def _kind(self, cells: Mapping[str, str]) -> Kind | None:
        families = [name for name in ("slide", "image") if cells.get(name)]
        if any(cells.get(view) for view in VIEWS):
            families.append("exam")
        if len(families) > 1:
            self._problem(f"a case is one of slide, image and exam; this row gives {' and '.join(families)}")
            return None
        if not families:
            if any(name in self._columns for name in ("slide", "image", *VIEWS)):
                self._problem("no file is given")
            return None
        family = families[0]
        if self._family is None:
            self._family = (family, self._row)
        elif "exam" in (family, self._family[0]) and self._family[0] != family:
            other = f"row {self._family[1]} of kind {self._family[0]}"
            self._problem(f"mixed kinds: this is of kind {family}, {other}")
        if family == "slide":
            return "region" if any(cells.get(name) for name in BOX) else "slide"
        return "image" if family == "image" else "exam"

    def _box(self, cells: Mapping[str, str], kind: Kind | None) -> Box | None:
        present = [name for name in BOX if cells.get(name)]
        if not present:
            return None
        if kind in ("image", "exam"):
            self._problem("x, y, w, h belong to slides; save a region of an image as a separate file")
            return None
        missing = [name for name in BOX if name not in present]
        if missing:
            self._problem(f"a region needs all of x, y, w, h; {', '.join(missing)} missing")
        numbers = {name: self._whole_number(name, cells[name]) for name in present}
        if missing or None in numbers.values():
            return None
        x, y, width, height = (numbers[name] or 0 for name in BOX)
        if width <= 0 or height <= 0:
            self._problem(f"a region must have a positive size, not w = {width}, h = {height}")
        if x < 0 or y < 0:
            self._problem(f"a region must begin inside its slide, not at x = {x}, y = {y}")
        return Box(x, y, width, height)

    def _whole_number(self, name: str, cell: str) -> int | None:
        value = number_of(cell)
        if value is None or not value.is_integer() or abs(value) >= 2**53:
            self._problem(f"{name} = '{cell}' is not a whole number of level-0 pixels")
            return None
        return int(value)

    def _mpp(self, cell: str) -> float | None:
        if not cell:
            return None
        value = number_of(cell)
        if value is None or value <= 0:
            comma = "; write a point, not a comma" if "," in cell else ""
            self._problem(f"mpp = '{cell}' is not a positive number of µm/px{comma}")
        return value

    def _breast_labels(self, cells: Mapping[str, str]) -> dict[str, bool]:
        labels = {}
        for name in BREAST_LABELS:
            cell = cells.get(name, "")
            value = number_of(cell)
            if cell and value not in (0.0, 1.0):
                self._problem(f"{name} = '{cell}' is neither 0 nor 1 nor blank")
            elif cell:
                labels[name] = value == 1.0
        return labels

    def _view(self, cell: str) -> tuple[str, ...]:
        return tuple(self._existing_path(name.strip()) for name in cell.split(";") if name.strip())

    def _file(self, cells: Mapping[str, str], column: str) -> str | None:
        cell = cells.get(column, "")
        return self._existing_path(cell, column) if cell else None

    def _existing_path(self, cell: str, column: str = "file") -> str:
        path = resolve(cell, self._folder)
        if not self._check_files or is_url(path):
            return path
        try:
            there = Path(path).exists()
            folder = Path(path).is_dir()
        except (ValueError, OSError):  # a zero byte, a name that is too long, or a folder without permission
            there = folder = False
        if not there:
            hint = "; write / between folders, not \\" if "\\" in cell else ""
            self._problem(f"{column} '{cell}' does not exist (looked for {path}){hint}")
        elif folder and column != "slide":
            self._problem(f"{column} '{cell}' is a folder, not a file")
        return path

    def _record_split(
        self, patient: str, split: str | None, path: str | None, views: Mapping[str, tuple[str, ...]]
    ) -> None:
        patients, files = self.split_usage
        if patient:
            patients.add(patient, split, self._row)
        for file in [path] if path else [file for group in views.values() for file in group]:
            files.add(file, split, self._row)


def _rows(rows: Sequence[int]) -> str:
    """`row 2`, `rows 2 and 5`, or the first few rows and the number of the rest."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    if len(rows) <= SHOWN_ROWS:
        return f"rows {', '.join(map(str, rows[:-1]))} and {rows[-1]}"
    return f"rows {', '.join(map(str, rows[:SHOWN_ROWS]))} and {len(rows) - SHOWN_ROWS} more"


def number_of(cell: str) -> float | None:
    """The finite number in a cell; None if it contains none."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in cell else None


def resolve(cell: str, folder: str) -> str:
    """A path of a manifest, made absolute relative to the manifest's real folder; URLs are unchanged.

    Links inside the path are not resolved: some stores link `slide.svs` to a file without a suffix.
    """
    cell = local_path(cell)
    if is_url(cell):
        return cell
    if is_url(folder):
        return f"{folder}/{cell}"
    if Path(cell).is_absolute():
        return cell
    base, rest = Path(folder), Path(cell)
    while rest.parts and rest.parts[0] == "..":
        base, rest = base.parent, Path(*rest.parts[1:])
    return str(base / rest)


def ids_of_paths(paths: Sequence[str]) -> list[str]:
    """A case name for each path: its stem, with as many parent folders as make it unique."""
    components = [[*Path(path).parts[:-1], Path(path).stem or path] for path in paths]
    names = [path_components[-1] for path_components in components]
    depth = 1
    while len(set(names)) < len(names) and depth < max(map(len, components)):
        depth += 1
        names = [
            "-".join(component.strip("/:") for component in path_components[-depth:] if component.strip("/:"))
            if names.count(name) > 1
            else name
            for name, path_components in zip(names, components, strict=True)
        ]
    names = [_as_id(name) for name in names]  # from here on `.a` and `a` are equal
    for index, name in enumerate(names):
        number = index + 1
        while names[index] in names[:index]:
            names[index] = f"{name}-{number}"
            number += 1
    return names


def _as_id(name: str) -> str:
    """A name that a manifest accepts. Of a name that is too long, the end is used, as it differs most."""
    odd_bytes_out = name.lstrip(".").encode(errors="replace")
    short = odd_bytes_out[-LONGEST_ID:].decode(errors="ignore") or "case"
    while not fits_folder_name(short):
        short = short[1:]
    return short
