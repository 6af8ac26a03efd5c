"""Writes values as indented JSON, as `json.dumps` does, whose indented form takes several times as long."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring, encode_basestring_ascii
from math import isfinite
from typing import Any

Formats = Mapping[type, Callable[[Any], str]]
"""The functions that write values of simple types."""


def indented_json(value: Any, indent: int = 1, *, ensure_ascii: bool = False) -> str:
    """Return a value as JSON, with one item per line.

    Args:
        value: Dictionaries, lists, tuples, text, numbers, booleans and None.
        indent: Spaces per level.
        ensure_ascii: Escape letters outside of ASCII.

    Raises:
        ValueError: A number is NaN or infinite, which is not valid JSON.
        TypeError: A value cannot be written as JSON.
    """
    return _text(value, "\n", " " * indent, _ASCII if ensure_ascii else _UNICODE)


def _text(value: Any, newline: str, indent: str, formats: Formats) -> str:
    """Return the JSON of a value. `newline` starts a line of the level that contains the value."""
    write = formats.get(type(value))
    if write is not None:
        return write(value)
    inner, get = newline + indent, formats.get
    if isinstance(value, dict):
        if not value:
            return "{}"
        string = formats[str]
        pairs = [
            f"{string(key) if type(key) is str else _key(key, formats)}: "
            f"{_text(item, inner, indent, formats) if (write := get(type(item))) is None else write(item)}"
            for key, item in value.items()
        ]
        return "{" + inner + ("," + inner).join(pairs) + newline + "}"
    if isinstance(value, (list, tuple)):
        if not value:
            return "[]"
        items = [
            _text(item, inner, indent, formats) if (write := get(type(item))) is None else write(item)
            for item in value
        ]
        return "[" + inner + ("," + inner).join(items) + newline + "]"
    return _other(value, formats)


def _other(value: Any, formats: Formats) -> str:
    """Return the JSON of a value of a derived type, or raise the error of `json.dumps`."""
    return json.dumps(value, allow_nan=False, ensure_ascii=formats is _ASCII)


def _key(key: Any, formats: Formats) -> str:
    """Return the key of an object. Numbers and constants become text, as `json.dumps` writes them."""
    return _other({key: 0}, formats)[1:-4]


def _float(value: float) -> str:
    return float.__repr__(value) if isfinite(value) else json.dumps(value, allow_nan=False)


_NUMBERS: dict[type, Callable[[Any], str]] = {
    int: int.__repr__,
    float: _float,
    bool: {True: "true", False: "false"}.__getitem__,
    type(None): {None: "null"}.__getitem__,
}
_UNICODE: Formats = {str: encode_basestring, **_NUMBERS}
_ASCII: Formats = {str: encode_basestring_ascii, **_NUMBERS}
