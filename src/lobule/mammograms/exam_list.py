"""Exam lists: as JSON, or pickled as the published ones.

A pickle is a program that can call any function by its name. Here every name is refused, except the few that
occur in plain NumPy numbers, and those stand for functions of this module. Nothing is ever imported.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lobule.errors import DamagedFile, TooLarge
from lobule.files import open_url
from lobule.mammograms.views import VIEWS, View

MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class ListedExam:
    """One exam of a list: the names of its images without suffix, and its labels."""

    images: Mapping[View, tuple[str, ...]]
    labels: Mapping[str, bool] = field(default_factory=dict)
    """Labels such as `left_malignant`; a label that the list does not state is absent."""


def read_exam_list(path: str | Path) -> list[ListedExam]:
    """Read a list of exams, JSON or pickled."""
    with open_url(path) as file:
        content = file.read(MOST_BYTES + 1)
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
    return ListedExam(images, {name: bool(value) for name, value in labels.items()})


# -- pickles ------------------------------------------------------------------------------------------------

NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"}


def plain_pickle(content: bytes, path: str | Path = "pickle") -> Any:
    """Return the plain data of a pickle. A pickle that contains anything else is refused."""
    try:
        return _PlainUnpickler(content, path).load()
    except DamagedFile:
        raise
    except Exception as error:  # the unpickler raises any exception on damaged bytes
        raise DamagedFile(f"the pickle cannot be read: {error}", subject=path) from error


class _PlainUnpickler(pickle._Unpickler):
    """Python's unpickler with an allow-list: of all names, only those of NumPy numbers are allowed.

    The faster unpickler in C is not used: a few bytes make it allocate any amount of memory.
    """

    def __init__(self, content: bytes, path: str | Path) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        allowed = ALLOWED_NAMES.get((module, name))
        if allowed is None:
            raise DamagedFile(
                "the pickle contains more than plain data and is not read",
                subject=self._path,
                expected="lists, dictionaries, strings and numbers",
                actual=f"the name {module}.{name}",
                remedy="Convert the list to JSON with the program that wrote it",
            )
        return allowed


class _Dtype:
    """The type of a NumPy number, as written in a pickle."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in NUMBERS:
            raise ValueError(f"numbers of the type {code}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in "<>" else "="


def _number(dtype: _Dtype, data: bytes | str) -> Any:
    raw = data if isinstance(data, bytes) else data.encode("latin1")
    return np.frombuffer(raw, np.dtype(dtype.order + dtype.code), count=1)[0].item()


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


ALLOWED_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy._core.multiarray", "scalar"): _number,
    ("_codecs", "encode"): _bytes,
}
"""Replacements of the names that occur in the pickle of a NumPy number."""
