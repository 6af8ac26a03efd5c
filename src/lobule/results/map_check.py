"""The orientation check of `lobule evaluate --maps`, stored so that maps that fail it are not drawn."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lobule.errors import LobuleError, ResultsError
from lobule.files import read_json, write_json
from lobule.results.checks import LARGEST_JSON
from lobule.results.folder import CaseFolder, Results
from lobule.results.maps import MapReader

log = logging.getLogger("lobule.results")

FILE = "map_check.json"


def store_map_check(
    results: Results, orientation: float, passed: bool, slides: int, split: str | None
) -> None:
    """Store the outcome of the check in the results folder; if that cannot be written, log a warning.

    Args:
        results: The results whose maps were checked.
        orientation: The area under the ROC curve of slides by their highest cells.
        passed: Whether it was high enough.
        slides: Number of slides.
        split: The split of the slides; None for all.
    """
    outcome = {
        "bundle": results.settings.get("bundle", {}).get("fingerprint"),
        "orientation": round(orientation, 3),
        "passed": passed,
        "slides": slides,
        "split": split,
    }
    try:
        write_json(results.path / FILE, outcome)
    except (OSError, ResultsError) as error:
        log.warning("The outcome of the orientation check cannot be stored: %s", error)


def why_maps_are_hidden(results: Results) -> str | None:
    """A sentence that says why the maps are not drawn; None if they did not fail the check.

    A check of the results of another bundle does not count, nor does a damaged file.
    """
    path = results.path / FILE
    if not path.exists():
        return None
    try:
        outcome = read_json(path, LARGEST_JSON)
        bundle = results.settings.get("bundle", {}).get("fingerprint")
    except LobuleError:
        return None
    if (
        not isinstance(outcome, Mapping)
        or outcome.get("passed") is not False
        or outcome.get("bundle") != bundle
    ):
        return None
    return _sentence(outcome, path)


def _sentence(outcome: Mapping[str, Any], path: Path) -> str:
    split = "" if outcome.get("split") is None else f" of the split '{outcome['split']}'"
    measured = f"{outcome.get('orientation')} ({outcome.get('slides')} slides{split})"
    return (
        "The map is not drawn, because the maps of these results failed the orientation check of `lobule "
        "evaluate --maps`: their highest cells separate positive from negative slides with an area of only "
        f"{measured}. To draw it anyway, delete {path.name} in the results folder."
    )


def maps_to_draw(folder: CaseFolder) -> tuple[dict[str, MapReader], str | None]:
    """The maps of a case that may be drawn, and the reason if its maps are hidden."""
    maps = folder.maps
    reason = why_maps_are_hidden(Results(folder.path.parent.parent)) if maps else None
    return ({}, reason) if reason is not None else (maps, None)
