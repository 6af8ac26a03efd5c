"""Estimated work per case (`work.json`), by which shards are balanced and the time left is estimated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from lobule.errors import LobuleError
from lobule.files import read_json, write_json

WORK = "work.json"
WORK_FORMAT = "lobule-work/1"


def read_work(root: Path) -> dict[str, float]:
    """Return the estimated work of each case. Without the file, or if it is damaged, nothing is known."""
    path = root / WORK
    if not path.is_file():
        return {}
    try:
        data = read_json(path)
        if data["format"] != WORK_FORMAT:
            return {}
        work = {str(name): float(value) for name, value in data["cases"].items()}
    except (LobuleError, AttributeError, KeyError, TypeError, ValueError):
        return {}
    return work if all(math.isfinite(value) and value > 0 for value in work.values()) else {}


def write_work(root: Path, work: Mapping[str, float]) -> None:
    """Write the estimated work of each case."""
    write_json(root / WORK, {"format": WORK_FORMAT, "unit": "mm² to scan", "cases": dict(work)})
