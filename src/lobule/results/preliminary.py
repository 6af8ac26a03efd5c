"""Preliminary scores of a case (`preliminary.json`): those of its coarse map, while finer ones are computed.

The file exists only until the case has a result, so it is never part of finished results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lobule.errors import LobuleError
from lobule.files import read_json, results_error, write_json
from lobule.results import checks
from lobule.results.folder import RESULT, CaseFolder

PRELIMINARY = "preliminary.json"


def write_preliminary_scores(folder: CaseFolder, scores: Mapping[str, float]) -> None:
    write_json(folder.path / PRELIMINARY, {"scores": dict(scores)}, flush_folder=False)


def remove_preliminary_scores(folder: CaseFolder) -> None:
    path = folder.path / PRELIMINARY
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise results_error(error, path) from error


def preliminary_scores(folder: CaseFolder) -> dict[str, float]:
    """Return the preliminary scores of a case; empty if it has none, or if it already has a result."""
    path = folder.path / PRELIMINARY
    if not path.exists() or (folder.path / RESULT).exists():
        return {}
    try:
        scores: Any = read_json(path, checks.LARGEST_JSON)["scores"]
        return dict(scores) if checks.are_scores(scores) else {}
    except (LobuleError, KeyError, TypeError, AttributeError):
        return {}  # The scan may just have removed the file.
