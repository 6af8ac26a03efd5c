"""The plan of a case (`plan.json`) records its input. If the input changes, the case is scanned again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lobule.cohort import Case
from lobule.errors import LobuleError, ResultsError
from lobule.files import read_json
from lobule.slides.identity import slide_fingerprint


def fingerprints(case: Case, careful: bool = False, full: bool = False) -> dict[str, str]:
    """Return the hashes of a case's files.

    Args:
        case: The case.
        careful: Return "unreadable" for a file that cannot be read, instead of raising an error.
        full: Read every file, even if its hash is stored.
    """
    out = {}
    for path in case.paths:
        try:
            out[path] = slide_fingerprint(path, full)
        except LobuleError:
            if not careful:
                raise
            out[path] = "unreadable"
    return out


def plan_of(case: Case, prints: Mapping[str, str]) -> dict[str, Any]:
    """Return the plan of a case whose files have these hashes."""
    box = case.l0_box
    return {
        "case": case.id,
        "input": dict(prints),
        "mpp": case.mpp,
        "l0_box": None if box is None else [box.x, box.y, box.width, box.height],
        "views": {name: list(files) for name, files in case.views.items()},
    }


def same_plan(path: Path, plan: Mapping[str, Any]) -> bool:
    """Whether the plan on disk has the same input. Files may have moved; only their contents count."""
    try:
        return _decisive(read_json(path)) == _decisive(plan)
    except (ResultsError, AttributeError, KeyError, TypeError):
        return False


def _decisive(plan: Mapping[str, Any]) -> tuple[object, ...]:
    prints = plan["input"]
    views = {name: [prints[file] for file in files] for name, files in plan.get("views", {}).items()}
    return list(prints.values()), plan.get("mpp"), plan.get("l0_box"), views
