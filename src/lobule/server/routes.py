"""The routes of the viewer's API. Paths never come from a client: cases and maps are looked up by name."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

from lobule import __version__
from lobule.errors import LobuleError
from lobule.geometry import Box, Size
from lobule.results.folder import RESULT
from lobule.results.result import RESEARCH_USE
from lobule.reviews import Review, append_review, in_force, read_reviews, reviewed_cases
from lobule.server import details
from lobule.server.library import Entry
from lobule.server.map_tiles import highest_cells, map_tile
from lobule.server.pixels import MAX_REGION_SIDE, encode, exam_picture
from lobule.server.service import Service

GALLERY = 10
GALLERY_UM = 250.0
"""Side of a field of the gallery in µm; without µm/px, `GALLERY_PX` level-0 pixels."""
GALLERY_PX = 1000
BINARY = "application/octet-stream"

CaseId = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{24}$")]
Index = Annotated[int, Query(ge=0, le=10_000_000)]
Layer = Annotated[int, Query(ge=0, le=1000)]
Level = Annotated[int, Query(ge=0, le=30)]
Text = Annotated[str, Query(max_length=500)]
Coordinate = Annotated[float, Query(ge=-1e7, le=1e7, allow_inf_nan=False)]
Extent = Annotated[float, Query(gt=0, le=1e7, allow_inf_nan=False)]


router = APIRouter(prefix="/api")


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@router.get("/session")
def session(request: Request) -> dict[str, Any]:
    """The sources that the server shows, and what it shows of them."""
    service = _service(request)
    sources = []
    for source in service.library.sources:
        try:
            settings = source.results.settings if source.results is not None else {}
        except LobuleError:
            settings = {}
        sources.append({"name": source.name, "method": (settings.get("bundle") or {}).get("method")})
    return {
        "version": __version__,
        "research_use": RESEARCH_USE,
        "sources": sources,
        "show_patients": service.options.show_patients,
    }


@router.get("/cases")
def cases(request: Request) -> list[dict[str, Any]]:
    """One row per case."""
    service = _service(request)
    return [service.summary(entry) for entry in service.library.entries()]


@router.get("/cases/{case_id}")
def case(request: Request, case_id: CaseId) -> dict[str, Any]:
    """Everything about a case but its pixels, maps and findings."""
    service = _service(request)
    return details.detail(
        service.library, service.pixels, service.entry(case_id), service.options.show_patients
    )


@router.get("/cases/{case_id}/thumbnail")
def thumbnail(request: Request, case_id: CaseId) -> Response:
    """A small picture of the slide, or of the views of an exam."""
    service = _service(request)
    entry = service.entry(case_id)
    files = service.library.images(entry)
    if not files:
        raise HTTPException(404, "The case has no image.")
    exam = service.library.kind(entry) == "exam"

    def compute() -> bytes:
        if not exam:
            file = files["slide"]
            return encode(service.pixels.open(file.path, file.mpp).slide.thumbnail(256))
        pictures = [exam_picture(service.pixels.view(file.path, name), 128) for name, file in files.items()]
        height = max(picture.shape[0] for picture in pictures)
        padded = [np.pad(p, ((0, height - p.shape[0]), (0, 4), (0, 0))) for p in pictures[:4]]
        return encode(np.concatenate(padded, axis=1))

    key = "thumbnail", *(file.path for file in files.values())
    return _binary(request, service.pixels.cached(key, compute), "image/jpeg")


@router.get("/cases/{case_id}/region")
def region(
    request: Request,
    case_id: CaseId,
    x: Coordinate,
    y: Coordinate,
    width: Extent,
    height: Extent,
    side: Annotated[int, Query(ge=16, le=MAX_REGION_SIDE)] = 256,
) -> Response:
    """A box of a slide in level-0 pixels as JPEG, its longest side about `side` pixels."""
    service = _service(request)
    file = service.library.images(service.entry(case_id)).get("slide")
    if file is None:
        raise HTTPException(404, "The case has no slide.")
    opened = service.pixels.open(file.path, file.mpp)
    l0_box = Box(round(x), round(y), max(1, round(width)), max(1, round(height)))
    if max(l0_box.size) > 64 * MAX_REGION_SIDE:
        raise HTTPException(422, "The region is too large.")
    return _binary(request, encode(service.pixels.region(opened, l0_box, side)), "image/jpeg")


@router.get("/cases/{case_id}/view")
def view(request: Request, case_id: CaseId, name: Text) -> Response:
    """The pixels of a view of an exam: little-endian uint16, row by row, as stored."""
    service = _service(request)
    file = service.library.images(service.entry(case_id)).get(name)
    if file is None or service.library.kind(service.entry(case_id)) != "exam":
        raise HTTPException(404, "There is no such view.")
    pixels = service.pixels.view(file.path, name).pixels
    return Response(np.ascontiguousarray(pixels, "<u2").tobytes(), media_type=BINARY)


@router.get("/cases/{case_id}/map")
def map_tile_route(
    request: Request, case_id: CaseId, name: Text, layer: Layer, level: Level, column: Index, row: Index
) -> Response:
    """One tile of a map: scores and cell states."""
    service = _service(request)
    entry = service.entry(case_id)
    reader = service.reader(entry, name)
    if layer >= len(reader.info.classes):
        raise HTTPException(404, "There is no such class.")
    side = 256 << level
    if column * side >= reader.info.columns or row * side >= reader.info.rows:
        raise HTTPException(404, "There is no such tile.")

    def compute() -> bytes:
        score_range = service.score_range(reader, layer)
        return map_tile(reader, layer, level, column, row, score_range)

    assert entry.folder is not None
    result = entry.folder.path / RESULT
    if not result.exists():
        return _binary(request, compute(), BINARY, compressed=True)
    key = str(reader.path), layer, level, column, row, result.stat().st_mtime_ns
    return _binary(request, service.pixels.cached(key, compute), BINARY, compressed=True)


@router.get("/cases/{case_id}/findings")
def findings(
    request: Request,
    case_id: CaseId,
    offset: Index = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    label: Annotated[str | None, Query(max_length=200)] = None,
) -> dict[str, Any]:
    """A page of the findings, highest score first, and how the tiles of each image are divided."""
    loaded = _service(request).findings(_service(request).entry(case_id))
    total, page = loaded.page(offset, limit, label)
    images = {
        name: {"count": len(image), "tile_side": image.tile_side, "levels": image.levels}
        for name, image in loaded.images.items()
    }
    return {"total": total, "findings": page, "labels": list(loaded.labels), "images": images}


@router.get("/cases/{case_id}/findings/{number}")
def finding(request: Request, case_id: CaseId, number: int) -> dict[str, Any]:
    """One finding with its outlines."""
    loaded = _service(request).findings(_service(request).entry(case_id))
    if not 0 <= number < len(loaded.order):
        raise HTTPException(404, "There is no such finding.")
    return loaded.finding(number, outline=True)


@router.get("/cases/{case_id}/finding-tile")
def finding_tile(
    request: Request, case_id: CaseId, image: Text, level: Level, column: Index, row: Index
) -> Response:
    """One tile of findings: single ones at level 0, counts and maxima above it."""
    image_findings = _service(request).findings(_service(request).entry(case_id)).images.get(image)
    if image_findings is None or level >= image_findings.levels:
        raise HTTPException(404, "There is no such tile.")
    return _binary(request, image_findings.tile(level, column, row), BINARY)


@router.get("/cases/{case_id}/outlines")
def outlines(
    request: Request,
    case_id: CaseId,
    image: Text,
    x: Coordinate,
    y: Coordinate,
    width: Extent,
    height: Extent,
    limit: Annotated[int, Query(ge=1, le=1000)] = 300,
) -> list[dict[str, Any]]:
    """The outlines of the highest findings in a box."""
    loaded = _service(request).findings(_service(request).entry(case_id))
    image_findings = loaded.images.get(image)
    if image_findings is None:
        return []
    inside = (image_findings.l0_x >= x) & (image_findings.l0_x < x + width)
    inside &= (image_findings.l0_y >= y) & (image_findings.l0_y < y + height)
    numbers = image_findings.number[inside][:limit]
    return [
        {"number": int(number), "polygon": polygons}
        for number in numbers
        if (polygons := loaded.outline(int(number)))
    ]


@router.get("/cases/{case_id}/gallery")
def gallery(request: Request, case_id: CaseId) -> list[dict[str, Any]]:
    """The highest-scoring fields: around the highest findings, or else around the highest map cells."""
    service = _service(request)
    entry = service.entry(case_id)
    _, rows = service.findings(entry).page(0, GALLERY)
    if rows:
        return [
            {"x": row["l0_x"], "y": row["l0_y"], "score": row["score"], "image": row.get("image", "slide"),
             "finding": row["number"], "label": row.get("label")}
            for row in rows
        ]  # fmt: skip
    fields: list[dict[str, Any]] = []
    for name in () if entry.folder is None else entry.folder.maps:
        reader = service.reader(entry, name)
        step_x, step_y = reader.info.l0_stride
        layer = len(reader.info.classes) - 1
        for row, column, score in highest_cells(reader, layer, GALLERY):
            fields.append(
                {"x": (column + 0.5) * step_x, "y": (row + 0.5) * step_y, "score": score,
                 "image": reader.info.image, "finding": None, "label": reader.info.classes[layer]}
            )  # fmt: skip
    return sorted(fields, key=lambda one: -float(one["score"]))[:GALLERY]


@router.get("/cases/{case_id}/truth")
def truth(request: Request, case_id: CaseId) -> list[dict[str, Any]]:
    """The outlines of the case's annotation in the cohort."""
    service = _service(request)
    entry = service.entry(case_id)
    size: Size | None = None
    if service.library.kind(entry) != "exam" and (file := service.library.images(entry).get("slide")):
        try:
            size = service.pixels.open(file.path, file.mpp).slide.size
        except OSError:
            size = None
    return details.truth(entry, size)


@router.get("/events")
def events(request: Request) -> StreamingResponse:
    """Server-sent events of running scans: identities of chunks and cases only."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(
        _service(request).watcher.listen(), media_type="text/event-stream", headers=headers
    )


# -- reviews ------------------------------------------------------------------------------------------------


class ReviewEntry(BaseModel):
    """One entry of a review as a client sends it."""

    person: Annotated[str, Field(min_length=1, max_length=64)]
    action: Literal["accept", "reject", "relabel", "note", "draw", "undo"]
    finding: Annotated[int, Field(ge=0)] | None = None
    label: Annotated[str, Field(max_length=200)] | None = None
    text: Annotated[str, Field(max_length=4000)] | None = None
    image: Annotated[str, Field(max_length=200)] = "slide"
    polygon: Annotated[list[tuple[float, float]], Field(max_length=5000)] = []


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
    service = _service(request)
    entry = service.entry(case_id)
    if service.library.sources[entry.source].results is None:
        return {}
    return _reviews(_results_of(service, entry), entry.name)


@router.post("/cases/{case_id}/reviews")
def review(request: Request, case_id: CaseId, body: ReviewEntry) -> dict[str, list[dict[str, Any]]]:
    """Append an entry, and return the entries in force."""
    service = _service(request)
    entry = service.entry(case_id)
    results = _results_of(service, entry)
    if body.finding is not None and body.finding >= len(service.findings(entry).order):
        raise HTTPException(422, "There is no such finding.")
    values = body.model_dump(exclude={"person"})
    append_review(results, entry.name, body.person, Review.from_dict(values))
    return _reviews(results, entry.name)


@router.get("/reviews")
def all_reviews(request: Request) -> list[dict[str, Any]]:
    """Who has reviewed which case, with the number of entries in force."""
    service = _service(request)
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
                table.append({"case": name, "id": by_name.get((index, name)), "person": person, **counts})
    return table


def _binary(request: Request, data: bytes, media_type: str, *, compressed: bool = False) -> Response:
    """Return bytes with an ETag of their content; 304 if the client has them."""
    tag = f'"{hashlib.blake2b(data, digest_size=12).hexdigest()}"'
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    if compressed:
        headers["content-encoding"] = "deflate"
    return Response(data, media_type=media_type, headers=headers)
