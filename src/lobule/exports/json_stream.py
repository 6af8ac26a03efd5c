"""Write long JSON lists item by item, so that a million findings need little memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lobule.exports.case import Ring

Append = Callable[[Mapping[str, Any]], None]


@contextmanager
def json_list(path: Path, head: Mapping[str, Any], name: str) -> Iterator[Append]:
    """Write an object whose last member is a list.

    Args:
        path: The file.
        head: The other members.
        name: Name of the list.

    Yields:
        A function that appends an item to the list.
    """
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        opening = encoder.encode(dict(head))[:-1]
        file.write(f"{opening}{',' if head else ''}{encoder.encode(name)}:[")
        count = 0

        def append(item: Mapping[str, Any]) -> None:
            nonlocal count
            file.write(",\n" if count else "\n")
            file.write(encoder.encode(item))
            count += 1

        yield append
        file.write("\n]}\n")


def number(value: float) -> int | float:
    """Return a coordinate for JSON: a whole number without a decimal point."""
    return int(value) if float(value).is_integer() else round(float(value), 4)


def points(ring: Ring, offset: tuple[float, float] = (0, 0)) -> list[list[int | float]]:
    """Return the points of a ring minus an offset, for JSON."""
    moved = ring - np.array(offset, np.float64)
    if (moved == np.round(moved)).all():
        integers: list[list[int | float]] = moved.astype(np.int64).tolist()
        return integers
    return [[number(x), number(y)] for x, y in moved.tolist()]


def closed_points(ring: Ring, offset: tuple[float, float] = (0, 0)) -> list[list[int | float]]:
    """Return the points of a ring, the first repeated at the end, as GeoJSON requires."""
    pairs = points(ring, offset)
    return [*pairs, pairs[0]]


def finite(value: float | None) -> float | None:
    """Return a number that JSON can represent, or None."""
    return None if value is None or not np.isfinite(value) else float(value)
