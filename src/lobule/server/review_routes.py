"""The routes of reviews: what a person says about a case, and who has reviewed which case."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel, Field

from lobule.annotations.outline import MAX_COORDINATE
from lobule.reviews import Review, append_review, in_force, read_reviews, reviewed_cases
from lobule.server.answers import CaseId, service_of
from lobule.server.library import Entry
from lobule.server.service import Service

router = APIRouter(prefix="/api")

Position = Annotated[float, Field(ge=-MAX_COORDINATE, le=MAX_COORDINATE, allow_inf_nan=False)]


class ReviewEntry(BaseModel):
    """One entry of a review as a client sends it."""

    person: Annotated[str, Field(min_length=1, max_length=64)]
    action: Literal["accept", "reject", "relabel", "note", "draw", "undo"]
    finding: Annotated[int, Field(ge=0)] | None = None
    label: Annotated[str, Field(max_length=200)] | None = None
    text: Annotated[str, Field(max_length=4000)] | None = None
    image: Annotated[str, Field(max_length=200)] = "slide"
    polygon: Annotated[list[tuple[Position, Position]], Field(max_length=5000)] = []


def _results_of(service: Service, entry: Entry) -> Path:
    results = service.library.sources[entry.source].results
    if results is None:
        raise HTTPException(409, "The case has no results, so a review of it has no folder.")
    return results.path


def _reviews(results: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    return {
        person: [review.to_dict() for review in in_force(entries)]
        for person, entries in read_reviews(results, name).items()
    }


@router.get("/cases/{case_id}/reviews")
def reviews(request: Request, case_id: CaseId) -> dict[str, list[dict[str, Any]]]:
    """The entries in force of every person who reviewed the case."""
    service = service_of(request)
    entry = service.entry(case_id)
    if service.library.sources[entry.source].results is None:
        return {}
    return _reviews(_results_of(service, entry), entry.name)


@router.post("/cases/{case_id}/reviews")
def review(request: Request, case_id: CaseId, body: ReviewEntry) -> dict[str, list[dict[str, Any]]]:
    """Append an entry, and return the entries in force."""
    service = service_of(request)
    entry = service.entry(case_id)
    results = _results_of(service, entry)
    values = body.model_dump(exclude={"person"})
    if body.finding is not None:
        loaded = service.findings(entry)
        if body.finding >= loaded.count:
            raise HTTPException(422, "There is no such finding.")
        (finding,) = loaded.rows(np.array([body.finding]))
        values["position"] = [finding["l0_x"], finding["l0_y"]]
    append_review(results, entry.name, body.person, Review.from_dict(values))
    return _reviews(results, entry.name)


@router.get("/reviews")
def all_reviews(request: Request) -> list[dict[str, Any]]:
    """Who has reviewed which case, with the number of entries in force."""
    service = service_of(request)
    table = []
    by_name = {(entry.source, entry.name): entry.id for entry in service.library.entries()}
    for index, source in enumerate(service.library.sources):
        if source.results is None:
            continue
        for name in reviewed_cases(source.results.path):
            for person, entries in _reviews(source.results.path, name).items():
                counts = dict.fromkeys(("accept", "reject", "relabel", "note", "draw"), 0)
                for entry in entries:
                    counts[str(entry["action"])] += 1
                last = max((str(entry["time"]) for entry in entries), default="")
                row: dict[str, Any] = {"case": name, "id": by_name.get((index, name)), "person": person}
                table.append({**row, **counts, "last": last})
    return table
