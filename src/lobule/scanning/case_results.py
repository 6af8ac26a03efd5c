"""Writes the result of a case, and what accompanies it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lobule import __version__
from lobule.cohort import Case
from lobule.errors import ResultsError
from lobule.files import flush_all, make_folder, write_json
from lobule.results.folder import PLAN, RESULT, CaseFolder
from lobule.results.plan import fingerprints, plan_of, same_plan
from lobule.results.preliminary import remove_preliminary_scores
from lobule.results.result import (
    COMPLETE,
    FAILED,
    FORMAT,
    PARTIAL,
    RESEARCH_USE,
    UNSCORED,
    FailedField,
    Result,
    error_to_dict,
)
from lobule.results.writing import map_summaries
from lobule.scanning.contract import EngineSettings
from lobule.scanning.open_case import OpenedCase
from lobule.slides.slide import Slide
from lobule.stitch import State

log = logging.getLogger("lobule.scan")

DEVICE_LOST = "device_lost"
"""Field of the result of a case that failed because no device was left. The next run continues the case."""
NOTHING_SCORED = "Nothing was scored: {}."


def write_result(
    case: Case,
    folder: CaseFolder,
    status: str,
    bundle: Mapping[str, Any],
    engine: EngineSettings,
    extra_fields: Mapping[str, Any],
    result: Result | None = None,
    error: BaseException | None = None,
    maps: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write the result of a case, which marks the case as finished, and return it.

    `maps` are the summaries of its maps, if they have been read already.
    """
    body: dict[str, Any] = {
        "format": FORMAT,
        "case": case.id,
        "patient": case.patient,
        "status": status,
        "scores": {name: float(value) for name, value in (result.scores if result else {}).items()},
        "maps": map_summaries(folder) if maps is None else maps,
        "tables": folder.table_names,
        "findings": {"count": len(result.findings) if result else 0},
        "notes": list(result.notes) if result else [],
        "error": None if error is None else error_to_dict(error),
        "bundle": dict(bundle),
        "engine": engine.deciding(),
        "lobule": __version__,
        "research_use": RESEARCH_USE,
        **extra_fields,
    }
    if "input" not in body:
        body["input"] = fingerprints(case, careful=True)
    make_folder(folder.path)
    remove_preliminary_scores(folder)
    # After a power failure, a case that has a result must also have its complete maps.
    flush_all(folder.path / "maps")
    write_json(folder.path / RESULT, body)
    return body


def write_plan(case: Case, folder: CaseFolder, prints: Mapping[str, str]) -> None:
    """Write the plan of a case, and delete what a killed process was writing."""
    if folder.path.exists():
        for leftover in folder.path.glob(".*.part*"):
            leftover.unlink(missing_ok=True)
    make_folder(folder.path)
    write_json(folder.path / PLAN, plan_of(case, prints))


def result_metadata(opened: OpenedCase, failed: Sequence[FailedField], result: Result) -> dict[str, Any]:
    """Return what the result of a case says about its images and its failed fields."""
    return {
        "images": {name: _image_metadata(slide) for name, slide in opened.slides.items()},
        "failed": [entry.to_dict() for entry in failed],
        **result.metadata,
    }


def _image_metadata(slide: Slide) -> dict[str, Any]:
    resolution = slide.stated_mpp
    return {
        "path": slide.path,
        "format": slide.format,
        "size": list(slide.size),
        "mpp": None if resolution is None else [resolution.mpp.x, resolution.mpp.y],
        "mpp_source": None if resolution is None else resolution.source,
        "bounds": [slide.bounds.x, slide.bounds.y, slide.bounds.width, slide.bounds.height],
    }


def any_scored(folder: CaseFolder, maps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any cell or row was scored. A chunk of a table is written even if all of its rows failed.

    Args:
        folder: The folder of the case, with its tables.
        maps: The summaries of its maps.
    """
    return any(summary["cells"]["scored"] for summary in maps) or any(
        (chunk["state"] == State.SCORED).any()
        for reader in folder.tables.values()
        for chunk in reader.iterate(["state"])
    )


def without_scores(result: Result, opened: OpenedCase) -> Result:
    """Return the result of a case in which nothing was scored: no scores, and a note with the reason."""
    reason = opened.why_nothing_scored
    notes = result.notes if reason is None else (NOTHING_SCORED.format(reason), *result.notes)
    # Metadata that accompanies default scores has no meaning. A method that itself reports that nothing was
    # scored returns valid metadata.
    metadata = result.metadata if result.scored is False else {}
    return Result(
        {}, notes=notes or (NOTHING_SCORED.format("no cell or row was computed"),), metadata=metadata
    )


def write_run(folder: CaseFolder, seconds: float) -> None:
    if folder.path.is_dir():
        times = {"seconds": round(seconds, 3), "ended": time.time()}
        write_json(folder.path / "run.json", times, flush_folder=False)


def correct_patient(case: Case, folder: CaseFolder, result: Mapping[str, Any]) -> None:
    """Update the patient in the result if the cohort was corrected after the case was scanned."""
    if result.get("patient") != case.patient:
        write_json(folder.path / RESULT, {**result, "patient": case.patient})


def is_finished(folder: CaseFolder) -> bool:
    """Whether a case was scanned and did not fail."""
    try:
        return folder.status in (COMPLETE, PARTIAL, UNSCORED)
    except ResultsError:
        return False


def result_if_done(
    case: Case, folder: CaseFolder, prints: Mapping[str, str], retry_failed: bool
) -> dict[str, Any] | None:
    """Return the result of a case that is done with the same input. Delete results of a different input."""
    plan = folder.path / PLAN
    if plan.exists() and not same_plan(plan, plan_of(case, prints)):
        if is_finished(folder):
            log.warning(
                "Case %s: its files, its µm/px or its region have changed since it was scanned; "
                "scanning it again", case.id,
            )  # fmt: skip
        folder.clear()
    try:
        result = folder.result
    except ResultsError:
        return None  # The result is damaged: it is written again from the maps that exist.
    if result is None or DEVICE_LOST in result:
        return None
    if not plan.exists():
        is_done = result["status"] == FAILED and not retry_failed and result.get("input") == dict(prints)
    else:
        is_done = result["status"] in (COMPLETE, UNSCORED) or not retry_failed
    return result if is_done else None
