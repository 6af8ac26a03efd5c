"""Validation of the files of a results folder, which may come from an untrusted source."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

LARGEST_JSON = 32 << 20
"""Largest JSON file of a results folder, in bytes."""
MOST_ROWS = 50_000_000
"""Largest number of rows of a table."""


def is_number(value: object) -> bool:
    """Whether a value is a finite number that fits in a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def is_text_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def are_scores(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))


def are_maps(value: object) -> bool:
    """Whether a value is a list of maps, each with a name and the number of cells in each state."""
    return isinstance(value, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("cells"), dict)
        and all(is_count(entry["cells"].get(state)) for state in ("scored", "failed", "pending"))
        for entry in value
    )


def are_images(value: object) -> bool:
    """Whether a value describes images by name, each with a size and optionally a resolution."""
    return isinstance(value, dict) and all(
        isinstance(image, dict)
        and _is_pair(image.get("size"), lambda side: is_count(side) and side > 0)
        and (image.get("mpp") is None or _is_pair(image["mpp"], lambda mpp: is_number(mpp) and mpp > 0))
        for image in value.values()
    )


def _is_pair(value: object, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(holds, value))


SETTINGS: Mapping[str, Callable[[Any], bool]] = {
    "bundle": lambda bundle: isinstance(bundle, dict),
    "options": lambda options: isinstance(options, dict),
    "cases": is_text_list,
    "research_use": lambda text: isinstance(text, str),
}
"""Checks of the fields of `scan.json` that may be present."""


def wrong_settings(settings: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields of `scan.json` with invalid values."""
    return [name for name, holds in SETTINGS.items() if name in settings and not holds(settings[name])]
