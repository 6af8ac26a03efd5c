"""What the API says about cases, as JSON-compatible values without file paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lobule.annotations import read_annotation
from lobule.errors import LobuleError
from lobule.geometry import Size
from lobule.mammograms.record import Mammogram
from lobule.results import MapReader
from lobule.results.map_check import maps_to_draw
from lobule.results.preliminary import preliminary_scores
from lobule.server.exams import other_exams
from lobule.server.library import Entry, ImageFile, Library
from lobule.server.map_tiles import SIDE, level_count
from lobule.server.options import ServerOptions
from lobule.server.pixels import Pixels
from lobule.server.slide_tiles import OpenedImage

STANDARD_FIELDS = frozenset(
    {
        "format", "case", "patient", "status", "scores", "maps", "tables", "findings", "notes", "error",
        "bundle", "engine", "lobule", "research_use", "images", "failed", "input",
    }
)  # fmt: skip
"""Fields of `result.json` that have a place of their own in the answers; others are listed as they are."""
MOST_FAILED = 1000
MOST_TRUTH_POINTS = 400_000


def summary(library: Library, entry: Entry, options: ServerOptions) -> dict[str, Any]:
    """Return a case's row in the case list."""
    row: dict[str, Any] = {
        "id": entry.id,
        "name": entry.name,
        "source": entry.source,
        "kind": library.kind(entry),
        "status": "not started",
        "scores": {},
        "findings": 0,
        "remarks": 0,
    }
    if entry.row is not None:
        row |= {name: value for name in ("label", "split", "site") if (value := getattr(entry.row, name))}
        if entry.row.breast_labels:
            row["breast_labels"] = dict(entry.row.breast_labels)
    if entry.folder is None:
        row["status"] = "no result"
    elif entry.folder.path.is_dir():
        row |= _status_of(entry)
    if options.show_patients:
        row["patient"] = entry.row.patient if entry.row is not None else row.pop("recorded_patient", None)
    row.pop("recorded_patient", None)
    return row


def _status_of(entry: Entry) -> dict[str, Any]:
    try:
        result = entry.result
    except LobuleError as error:
        return {"status": "damaged", "error": error.problem}
    if result is None:
        assert entry.folder is not None
        preliminary = preliminary_scores(entry.folder)
        return {"status": "unfinished", **({"preliminary_scores": preliminary} if preliminary else {})}
    cause = result.get("error")
    return {
        "status": result["status"],
        "scores": result["scores"],
        "findings": result["findings"]["count"],
        "remarks": len(result["notes"]) + len(result.get("failed") or []),
        "recorded_patient": result.get("patient"),
        **({"error": cause["message"]} if cause else {}),
    }


def detail(library: Library, pixels: Pixels, entry: Entry, options: ServerOptions) -> dict[str, Any]:
    """Return everything about a case but its pixels, maps and findings."""
    info = summary(library, entry, options)
    files = library.images(entry)
    info["images"] = {
        name: _image(pixels, name, file, exam=info["kind"] == "exam") for name, file in files.items()
    }
    if not options.show_labels:
        for image in info["images"].values():
            image.pop("label_images", None)
    if info["kind"] == "exam":
        info["other_exams"] = other_exams(library, entry)
        info["missing_views"] = [view for view in ("L-CC", "R-CC", "L-MLO", "R-MLO") if view not in files]
    result: Mapping[str, Any] = {}
    info["maps"], hidden = [], None
    if entry.folder is not None:
        try:
            result = entry.result or {}
            cells = {recorded["name"]: recorded["cells"] for recorded in result.get("maps", [])}
            readers, hidden = maps_to_draw(entry.folder)
            info["maps"] = [_map(reader, cells) for reader in readers.values()]
        except LobuleError as error:
            info["error"] = str(error.problem)
    _fill_missing_sizes(info, result)
    info["notes"] = [*result.get("notes", []), *([] if hidden is None else [hidden])]
    info["failed_fields"] = [
        {name: field.get(name) for name in ("pass", "image", "l0_box", "cause")}
        for field in (result.get("failed") or [])[:MOST_FAILED]
        if isinstance(field, dict)
    ]
    info["failed_count"] = len(result.get("failed") or [])
    info["provenance"] = provenance(library, entry, result)
    info["details"] = {name: value for name, value in result.items() if name not in STANDARD_FIELDS}
    info["has_truth"] = entry.row is not None and entry.row.annotation is not None
    info["others"] = [
        {"id": other.id, "source": other.source}
        for other in library.entries()
        if other.name == entry.name and other.id != entry.id
    ]
    return info


def provenance(library: Library, entry: Entry, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bundle, the options and the version that produced a result."""
    source = library.sources[entry.source]
    try:
        settings = source.results.settings if source.results is not None else {}
    except LobuleError:
        settings = {}
    bundle = result.get("bundle") or settings.get("bundle") or {}
    return {
        "source": source.name,
        "bundle": bundle,
        "calibration": library.calibrations.get(bundle.get("fingerprint", "")),
        "options": settings.get("options") or {},
        "engine": result.get("engine") or settings.get("engine") or {},
        "lobule": result.get("lobule") or settings.get("lobule"),
        "research_use": result.get("research_use") or settings.get("research_use"),
        "input": sorted(map(str, (result.get("input") or {}).values())),
    }


def _map(reader: MapReader, cells: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a map. `cells` has the recorded counts of finished maps; others are counted now."""
    info = reader.info
    return {
        "name": info.name,
        "image": info.image,
        "classes": list(info.classes),
        "rows": info.rows,
        "columns": info.columns,
        "l0_stride": list(info.l0_stride),
        "um_stride": None if info.um_stride is None else list(info.um_stride),
        "chunk": list(info.chunk),
        "levels": level_count(reader),
        "tile": SIDE,
        "cells": cells.get(info.name) or reader.counts(),
    }


def _image(pixels: Pixels, name: str, file: ImageFile, *, exam: bool) -> dict[str, Any]:
    try:
        if exam:
            return view_metadata(pixels.view(file.path, name))
        return slide_metadata(pixels.open(file.path, file.mpp))
    except OSError:
        text = "The image file is not there, so only its results are shown."
        return {"missing": f"{text} Name its folder: `lobule view RESULTS --slides FOLDER`."}
    except LobuleError as error:
        return {"missing": f"The image cannot be read: {error.problem}."}


def slide_metadata(opened: OpenedImage) -> dict[str, Any]:
    slide = opened.slide
    resolution = slide.stated_mpp
    bounds = slide.bounds
    return {
        "width": slide.size.width,
        "height": slide.size.height,
        "mpp": None if resolution is None else [resolution.mpp.x, resolution.mpp.y],
        "mpp_source": None if resolution is None else resolution.source,
        "format": slide.format,
        "bounds": [bounds.x, bounds.y, bounds.width, bounds.height],
        "version": opened.version,
        "profile": None
        if opened.profile is None
        else {"name": opened.profile.name, "applied": opened.profile.changes_colours},
        "label_images": sorted(slide.associated),
        "levels": [
            {"size": list(level.size), "tile": list(level.tile), "step": list(level.step)}
            for level in opened.levels
        ],
    }


def view_metadata(mammogram: Mammogram) -> dict[str, Any]:
    heading, pixels = mammogram.heading, mammogram.pixels
    inside = pixels[pixels > 0]
    low, high = (int(inside.min()), int(inside.max())) if inside.size else (0, 1)
    inverted = [one.value for one in mammogram.decisions if one.rule == "photometric" and one.value]
    return {
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "view": mammogram.view,
        "pointing": mammogram.pointing,
        "mm_per_px": heading.mm_per_px,
        "inverted_from": int(inverted[0]) if inverted else None,
        "lowest": low,
        "highest": high,
        "decisions": [
            decision.sentence for decision in mammogram.decisions if decision.outcome in ("noted", "allowed")
        ],
    }


def _fill_missing_sizes(info: dict[str, Any], result: Mapping[str, Any]) -> None:
    """Add the recorded size of images that cannot be opened, so that their maps can still be shown."""
    recorded = result.get("images") or {}
    for entry in info["maps"]:
        image = info["images"].setdefault(entry["image"], {"missing": "The image is not known."})
        if "width" in image:
            continue
        size = (recorded.get(entry["image"]) or {}).get("size")
        extent = entry["columns"] * entry["l0_stride"][0], entry["rows"] * entry["l0_stride"][1]
        width, height = size if size is not None else map(round, extent)
        image |= {"width": width, "height": height, "levels": [], "pointing": None}
        image |= {"mpp": (recorded.get(entry["image"]) or {}).get("mpp")}


def truth(entry: Entry, size: Size | None) -> list[dict[str, Any]]:
    """Return the outlines of the case's annotation: kind, name, group and rings of points."""
    if entry.row is None or entry.row.annotation is None:
        return []
    annotation = read_annotation(entry.row.annotation, l0_size=size)
    outlines, points = [], 0
    for polygon in annotation.polygons:
        rings = [polygon.points, *polygon.holes]
        points += sum(map(len, rings))
        if points > MOST_TRUTH_POINTS:
            break
        outlines.append(
            {
                "kind": polygon.kind,
                "name": polygon.name,
                "group": polygon.group,
                "rings": [ring.round(1).tolist() for ring in rings],
            }
        )
    return outlines
