"""The findings of a case as a person sees them: those that were judged, and those that were drawn."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from lobule.cohort.labels import polarity
from lobule.reviews.files import Review

Rings = list[list[list[float]]]
"""One polygon: the exterior ring, followed by holes, each a list of [x, y] in level-0 pixels."""


@dataclass(frozen=True)
class ReviewedFinding:
    """A finding that a person has judged or drawn."""

    l0_x: float
    l0_y: float
    is_tumour: bool
    """False if the finding was rejected or got a label that is not a positive one."""
    label: str | None = None
    """The label that the person gave; None if the person gave none."""
    polygons: tuple[Rings, ...] = ()
    finding: int | None = None
    """Row of the findings table; None for a drawn finding."""
    image: str = "slide"


def verdicts(entries: Sequence[Review]) -> dict[int, Review]:
    """Return the last verdict on each finding: accept, reject or relabel."""
    return {
        entry.finding: entry
        for entry in entries
        if entry.finding is not None and entry.action in ("accept", "reject", "relabel")
    }


def reviewed_findings(
    entries: Sequence[Review], columns: Mapping[str, Any], positive: Collection[str] = ()
) -> list[ReviewedFinding]:
    """Return the judged and the drawn findings of one person.

    A verdict on a finding that is no longer in the table is left out: the case was scanned again.

    Args:
        entries: The valid entries of the person, without those that were undone.
        columns: The findings table of the case.
        positive: Labels that mean tumour, in addition to the usual ones.
    """
    findings = []
    for number, entry in sorted(verdicts(entries).items()):
        if not _is_current(entry, columns):
            continue
        is_tumour = entry.action == "accept"
        if entry.action == "relabel":
            is_tumour = _is_positive(entry.label, positive)
        findings.append(
            ReviewedFinding(
                float(columns["l0_x"][number]),
                float(columns["l0_y"][number]),
                is_tumour,
                entry.label,
                _stored_polygons(columns, number),
                number,
                entry.image,
            )
        )
    return findings + [_drawn_finding(entry, positive) for entry in entries if entry.action == "draw"]


def _is_positive(label: str | None, positive: Collection[str]) -> bool:
    return label is not None and (label in positive or polarity(label) is True)


def _drawn_finding(entry: Review, positive: Collection[str]) -> ReviewedFinding:
    ring = [list(point) for point in entry.polygon]
    centre = shapely.make_valid(shapely.Polygon(ring)).representative_point()
    x, y = (centre.x, centre.y) if not centre.is_empty else np.mean(ring, axis=0).tolist()
    is_tumour = entry.label is None or _is_positive(entry.label, positive)
    return ReviewedFinding(x, y, is_tumour, entry.label, ([ring],), image=entry.image)


def _is_current(entry: Review, columns: Mapping[str, Any]) -> bool:
    """Whether the findings table still has the finding that the person judged."""
    number = entry.finding
    if number is None or "l0_x" not in columns or number >= len(columns["l0_x"]):
        return False
    if entry.position is None:
        return True
    return entry.position == (int(columns["l0_x"][number]), int(columns["l0_y"][number]))


def _stored_polygons(columns: Mapping[str, Any], number: int) -> tuple[Rings, ...]:
    text = columns["polygon"][number] if "polygon" in columns else None
    if not isinstance(text, str):
        return ()
    polygons = json.loads(text)
    return tuple(polygons) if isinstance(polygons, list) else ()
