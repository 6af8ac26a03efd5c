"""The routes of the viewer's API. Paths never come from a client: cases and maps are looked up by name."""

from __future__ import annotations

from base64 import b64encode
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response, StreamingResponse

from lobule import __version__
from lobule.errors import LobuleError
from lobule.geometry import Box, Size
from lobule.results.folder import RESULT
from lobule.results.map_check import maps_to_draw
from lobule.results.result import RESEARCH_USE
from lobule.server import details
from lobule.server.answers import (
    BINARY,
    CaseId,
    Coordinate,
    Extent,
    Index,
    Label,
    Layer,
    Level,
    OtherCase,
    Text,
    binary_answer,
    service_of,
)
from lobule.server.differences import difference_cells, difference_range, reduce_difference
from lobule.server.map_tiles import highest_cells, map_tile, tile_of_cells
from lobule.server.pixels import MAX_REGION_SIDE, exam_picture
from lobule.server.slide_tiles import encode

GALLERY = 10
GALLERY_UM = 250.0
"""Side of a field of the gallery in µm; without µm/px, `GALLERY_PX` level-0 pixels."""
GALLERY_PX = 1000

router = APIRouter(prefix="/api")


@router.get("/session")
def session(request: Request) -> dict[str, Any]:
    """The sources that the server shows, and what it shows of them."""
    service = service_of(request)
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
    return service_of(request).summaries()


@router.get("/cases/{case_id}")
def case(request: Request, case_id: CaseId) -> dict[str, Any]:
    """Everything about a case but its pixels, maps and findings."""
    service = service_of(request)
    return details.detail(service.library, service.pixels, service.entry(case_id), service.options)


@router.get("/cases/{case_id}/thumbnail")
def thumbnail(request: Request, case_id: CaseId) -> Response:
    """A small picture of the slide, or of the views of an exam."""
    service = service_of(request)
    entry = service.entry(case_id)
    files = service.library.images(entry)
    if not files:
        raise HTTPException(404, "The case has no image.")
    exam = service.library.kind(entry) == "exam"

    def compute() -> bytes:
        if not exam:
            opened = service.opened(case_id)
            return encode(opened.to_srgb(opened.slide.thumbnail(256)))
        pictures = [exam_picture(service.pixels.view(file.path, name), 128) for name, file in files.items()]
        height = max(picture.shape[0] for picture in pictures)
        padded = [np.pad(p, ((0, height - p.shape[0]), (0, 4), (0, 0))) for p in pictures[:4]]
        return encode(np.concatenate(padded, axis=1))

    key = "thumbnail", *(file.path for file in files.values())
    return binary_answer(request, service.pixels.cached(key, compute), "image/jpeg")


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
    service = service_of(request)
    opened = service.opened(case_id)
    l0_box = Box(round(x), round(y), max(1, round(width)), max(1, round(height)))
    if max(l0_box.size) > 64 * MAX_REGION_SIDE:
        raise HTTPException(422, "The region is too large.")
    pixels = opened.to_srgb(service.pixels.region(opened, l0_box, side))
    return binary_answer(request, encode(pixels), "image/jpeg")


@router.get("/cases/{case_id}/view")
def view(request: Request, case_id: CaseId, name: Text) -> Response:
    """The pixels of a view of an exam: little-endian uint16, row by row, as stored."""
    service = service_of(request)
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
    service = service_of(request)
    entry = service.entry(case_id)
    reader = service.reader(entry, name)
    if layer >= len(reader.info.classes):
        raise HTTPException(404, "There is no such class.")
    side = 256 << level
    if column * side >= reader.info.columns or row * side >= reader.info.rows:
        raise HTTPException(404, "There is no such tile.")

    assert entry.folder is not None
    result = entry.folder.path / RESULT
    is_finished = result.exists()

    def compute() -> bytes:
        cells = service.finished_map(reader) if is_finished else reader
        score_range = service.score_range(reader, layer, cells)
        return map_tile(cells, layer, level, column, row, score_range)

    if not is_finished:
        tile = service.tile_of_running_scan(reader, (layer, level, column, row), compute)
        return binary_answer(request, tile, BINARY, compressed=True)
    key = str(reader.path), layer, level, column, row, result.stat().st_mtime_ns
    return binary_answer(request, service.pixels.cached(key, compute), BINARY, compressed=True)


@router.get("/cases/{case_id}/difference")
def difference_tile(
    request: Request,
    case_id: CaseId,
    name: Text,
    layer: Layer,
    level: Level,
    column: Index,
    row: Index,
    other: OtherCase,
) -> Response:
    """One tile of the difference of a map and another result of the case, or the truth."""
    service = service_of(request)
    entry = service.entry(case_id)
    reader = service.reader(entry, name)
    side = 256 << level
    if (
        layer >= len(reader.info.classes)
        or column * side >= reader.info.columns
        or row * side >= reader.info.rows
    ):
        raise HTTPException(404, "There is no such tile.")
    cells = difference_cells(reader, layer, service.cells_to_compare(entry, reader, layer, other))
    score_range = difference_range(service.score_range(reader, layer))
    data = tile_of_cells(cells, reader.info, (level, column, row), score_range, reduce_difference)
    return binary_answer(request, data, BINARY, compressed=True)


@router.get("/cases/{case_id}/colours")
def colours(request: Request, case_id: CaseId) -> Response:
    """The table that converts the colours of a slide to sRGB: 33 × 33 × 33 colours of three bytes."""
    profile = service_of(request).opened(case_id).profile
    if profile is None or profile.table is None:
        raise HTTPException(404, "The slide has no colour profile that can be applied.")
    return binary_answer(request, profile.table.tobytes(), BINARY)


@router.get("/cases/{case_id}/label-image")
def label_image(request: Request, case_id: CaseId, name: Text) -> Response:
    """The label or macro image of a slide, if the server was started with `--show-labels`."""
    service = service_of(request)
    if not service.options.show_labels:
        raise HTTPException(404, "There is no such image.")
    slide = service.opened(case_id).slide
    if name not in slide.associated:
        raise HTTPException(404, "There is no such image.")
    return binary_answer(request, encode(slide.read_associated(name)), "image/jpeg")


@router.get("/cases/{case_id}/findings")
def findings(
    request: Request,
    case_id: CaseId,
    offset: Index = 0,
    limit: Annotated[int, Query(ge=0, le=500)] = 100,
    label: Label = None,
) -> dict[str, Any]:
    """A page of the findings, highest score first, and how the tiles of each image are divided.

    With the limit 0, only the counts and tiles are stated, which is faster where the findings are many. The
    tile that covers all findings of an image is included in base64, so that they are shown at once.
    """
    loaded = service_of(request).findings(service_of(request).entry(case_id))
    total, page = loaded.page(offset, limit, label)
    images: dict[str, dict[str, Any]] = {
        name: {"count": len(image), "tile_side": image.tile_side, "levels": image.levels}
        for name, image in loaded.images.items()
    }
    if not limit:
        for name, image in loaded.images.items():
            images[name]["top"] = b64encode(image.tile(image.levels - 1, 0, 0)).decode()
    return {"total": total, "findings": page, "labels": list(loaded.labels), "images": images}


@router.get("/cases/{case_id}/findings/{number}")
def finding(request: Request, case_id: CaseId, number: int) -> dict[str, Any]:
    """One finding with its outlines."""
    loaded = service_of(request).findings(service_of(request).entry(case_id))
    if not 0 <= number < loaded.count:
        raise HTTPException(404, "There is no such finding.")
    return loaded.finding(number)


@router.get("/cases/{case_id}/finding-tile")
def finding_tile(
    request: Request,
    case_id: CaseId,
    image: Text,
    level: Level,
    column: Index,
    row: Index,
    label: Label = None,
) -> Response:
    """One tile of findings, all or those of one class: single ones at level 0, counts and maxima above it."""
    loaded = service_of(request).findings(service_of(request).entry(case_id))
    image_findings = loaded.images.get(image)
    if image_findings is None or level >= image_findings.levels:
        raise HTTPException(404, "There is no such tile.")
    if label is not None and label not in loaded.labels:
        raise HTTPException(404, "There is no such class.")
    code = None if label is None else loaded.labels.index(label)
    return binary_answer(request, image_findings.tile(level, column, row, code), BINARY)


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
    loaded = service_of(request).findings(service_of(request).entry(case_id))
    image_findings = loaded.images.get(image)
    if image_findings is None:
        return []
    numbers = image_findings.highest_in(x, y, width, height)[:limit]
    return [
        {"number": int(number), "polygon": polygons}
        for number in numbers
        if (polygons := loaded.outline(int(number)))
    ]


@router.get("/cases/{case_id}/gallery")
def gallery(request: Request, case_id: CaseId) -> list[dict[str, Any]]:
    """The highest-scoring fields: around the highest findings, or else around the highest map cells."""
    service = service_of(request)
    entry = service.entry(case_id)
    _, rows = service.findings(entry).page(0, GALLERY)
    if rows:
        return [
            {"x": row["l0_x"], "y": row["l0_y"], "score": row["score"], "image": row.get("image", "slide"),
             "finding": row["number"], "label": row.get("label")}
            for row in rows
        ]  # fmt: skip
    fields: list[dict[str, Any]] = []
    for name in () if entry.folder is None else maps_to_draw(entry.folder)[0]:
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
    service = service_of(request)
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
        service_of(request).watcher.listen(), media_type="text/event-stream", headers=headers
    )
