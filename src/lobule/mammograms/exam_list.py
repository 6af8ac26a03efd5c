"""Exam lists: Lobule's own as JSON, and the published pickled ones, read without unpickling anything.

A pickle is a program. This module interprets only the opcodes that build lists, dictionaries, strings and
numbers, and the few names used for plain NumPy numbers. Any other name is refused, and nothing is ever
imported or called.
"""

from __future__ import annotations

import json
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lobule.errors import DamagedFile, TooLarge
from lobule.files import open_url, write_json
from lobule.mammograms.views import VIEWS, View

MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class ListedExam:
    """One exam of a list: the names of its images without suffix, and the other entries of the list."""

    horizontal_flip: str
    images: Mapping[View, tuple[str, ...]]
    labels: Mapping[str, bool] = field(default_factory=dict)
    """Labels such as `left_malignant`; a label that the list does not state is absent."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Every other entry of the list, unchanged, such as `window_location` or `best_center`."""


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


def write_exam_list(path: str | Path, exams: list[ListedExam]) -> None:
    """Write a list as JSON, with the keys of the published lists."""
    entries = [
        {
            "horizontal_flip": exam.horizontal_flip,
            **{view: list(names) for view, names in exam.images.items()},
            **({"cancer_label": {k: int(v) for k, v in exam.labels.items()}} if exam.labels else {}),
            **exam.details,
        }
        for exam in exams
    ]
    write_json(path, entries)


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
    used_keys = {*VIEWS, "cancer_label", "horizontal_flip"}
    return ListedExam(
        str(entry.get("horizontal_flip", "NO")),
        images,
        {name: bool(value) for name, value in labels.items()},
        {str(key): value for key, value in entry.items() if key not in used_keys},
    )


class _Mark:
    """Marks where the items of a container begin on the stack."""


@dataclass(frozen=True)
class _Name:
    """A name in a pickle. It is only compared and never looked up."""

    module: str
    name: str


class _Dtype:
    """The type of a NumPy number, as written in a pickle."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "="


DTYPE = _Name("numpy", "dtype")
SCALARS = (_Name("numpy.core.multiarray", "scalar"), _Name("numpy._core.multiarray", "scalar"))
ENCODE = _Name("_codecs", "encode")
NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"}

LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def plain_pickle(content: bytes, path: str | Path = "pickle") -> Any:
    """The plain data of a pickle. A pickle that contains anything else is refused."""
    reader = _Reader(path)
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                return reader.stack.pop()
            reader.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"the pickle cannot be read: {error}", subject=path) from error
    raise DamagedFile("the pickle is cut off", subject=path)


class _Reader:
    """The stack and memo of a pickle program, restricted to harmless opcodes."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in ("PROTO", "FRAME"):
            return
        if name in LITERALS:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in TUPLES:
            self._tuple(TUPLES[name])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._name(name, argument)
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        else:
            step = getattr(self, f"_{name.lower()}", None)
            if step is None:
                raise self._refused(f"the opcode {name}")
            step()

    def _refused(self, content: str) -> DamagedFile:
        return DamagedFile(
            "the pickle contains more than plain data and is not read",
            subject=self.path,
            expected="lists, dictionaries, strings and numbers",
            actual=content,
            remedy="Convert the list to JSON with the program that wrote it",
        )

    def _since_mark(self) -> list[Any]:
        mark_index = max(i for i, item in enumerate(self.stack) if isinstance(item, _Mark))
        items = self.stack[mark_index + 1 :]
        del self.stack[mark_index:]
        return items

    def _tuple(self, count: int | None = None) -> None:
        if count is None:
            items = self._since_mark()
        else:
            items = self.stack[len(self.stack) - count :]
            del self.stack[len(self.stack) - count :]
        self.stack.append(tuple(items))

    def _mark(self) -> None:
        self.stack.append(_Mark())

    def _pop(self) -> None:
        self.stack.pop()

    def _empty_list(self) -> None:
        self.stack.append([])

    def _empty_dict(self) -> None:
        self.stack.append({})

    def _list(self) -> None:
        self.stack.append(self._since_mark())

    def _dict(self) -> None:
        items = self._since_mark()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _append(self) -> None:
        item = self.stack.pop()
        self._on(list).append(item)

    def _appends(self) -> None:
        items = self._since_mark()
        self._on(list).extend(items)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._on(dict)[key] = value

    def _setitems(self) -> None:
        items = self._since_mark()
        self._on(dict).update(zip(items[::2], items[1::2], strict=True))

    def _on(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise self._refused(f"{kind.__name__} items added to a {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def _name(self, opcode: str, argument: Any) -> None:
        if opcode == "GLOBAL":
            module, _, attribute = argument.partition(" ")
        else:
            attribute, module = self.stack.pop(), self.stack.pop()
        name = _Name(module, attribute)
        if name not in (DTYPE, ENCODE, *SCALARS):
            raise self._refused(f"the name {module}.{attribute}")
        self.stack.append(name)

    def _reduce(self) -> None:
        """Interpret the three calls that occur in the pickle of a NumPy number."""
        arguments, name = self.stack.pop(), self.stack.pop()
        if name == DTYPE and arguments[0] in NUMBERS:
            self.stack.append(_Dtype(arguments[0]))
        elif name == ENCODE and arguments[1:] == ("latin1",):
            self.stack.append(arguments[0].encode("latin1"))
        elif name in SCALARS and isinstance(arguments[0], _Dtype):
            dtype, data = arguments
            raw = data if isinstance(data, bytes) else data.encode("latin1")
            code = np.dtype(dtype.order + dtype.code)
            self.stack.append(np.frombuffer(raw, code, count=1)[0].item())
        else:
            raise self._refused(f"a call of {name}")

    def _build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Dtype):
            raise self._refused("a state set on an object")
        self.stack[-1].order = state[1] if state[1] in "<>" else "="
