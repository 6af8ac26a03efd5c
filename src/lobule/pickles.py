"""Plain data from pickles of other programs. Nothing in them is executed.

A pickle is a program that can call any function by its name. Here every name is refused, except the few that
occur in NumPy numbers and arrays of numbers or text, and those stand for functions of this module. Nothing is
ever imported.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from lobule.errors import DamagedFile

NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"}
TEXT = re.compile(r"[SU][1-9]\d{0,5}")


def plain_pickle(content: bytes, path: str | Path = "pickle") -> Any:
    """Return the plain data of a pickle, arrays as flat lists. Pickles of anything else are refused."""
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
    """The type of a NumPy number or text, as written in a pickle."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in NUMBERS and not TEXT.fullmatch(code):
            raise ValueError(f"values of the type {code}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in "<>" else "="

    def values(self, data: bytes | str, count: int) -> list[Any]:
        """The values in the memory of a NumPy array."""
        raw = data if isinstance(data, bytes) else data.encode("latin1")
        dtype = np.dtype(self.order + self.code)
        if len(raw) != count * dtype.itemsize:
            raise ValueError(f"{len(raw)} bytes for {count} values of the type {self.code}")
        values: list[Any] = np.frombuffer(raw, dtype).tolist()
        return values


class _Array(list[Any]):
    """A NumPy array of a pickle as a flat list of its values."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, _, data = state
        if not isinstance(dtype, _Dtype):
            raise ValueError("an array without a type")
        self[:] = dtype.values(data, math.prod(shape))


class _ArrayType:
    """Stands for `numpy.ndarray`, which arrays of a pickle name as their type."""


def _array(*_: object) -> _Array:
    return _Array()


def _number(dtype: _Dtype, data: bytes | str) -> Any:
    return dtype.values(data, 1)[0]


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


ALLOWED_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayType,
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy._core.multiarray", "scalar"): _number,
    ("_codecs", "encode"): _bytes,
}
"""Replacements of the names that occur in the pickles of NumPy numbers and arrays."""
