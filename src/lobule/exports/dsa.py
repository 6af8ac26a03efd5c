"""`dsa`: annotations of the Digital Slide Archive and HistomicsUI, one JSON file per image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lobule.exports.case import ExportCase, ImageFrame, Ring, rings_of
from lobule.exports.colours import Colour, colour_of
from lobule.exports.export import CaseOutput, Export
from lobule.exports.json_stream import finite, json_list, points
from lobule.exports.options import ExportOptions
from lobule.findings import Finding
from lobule.results.result import RESEARCH_USE

LONGEST_LABEL = 200


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    for frame in case.frames.values():
        path = folder / f"{case.file_name_of(frame.name)}.json"
        with json_list(path, _head(case), "elements") as append:
            for element in _elements(case, frame, options):
                append(element)
    return CaseOutput()


def _head(case: ExportCase) -> dict[str, Any]:
    bundle = case.result.get("bundle") or {}
    attributes = {
        "lobule": str(case.result.get("lobule", "")),
        "method": str(bundle.get("method", "")),
        "bundle": str(bundle.get("fingerprint", "")),
    }
    return {"name": "Lobule", "description": RESEARCH_USE, "attributes": attributes}


def _elements(case: ExportCase, frame: ImageFrame, options: ExportOptions) -> Iterator[dict[str, Any]]:
    layers = EXPORT.layers_of(options)
    if "tissue" in layers:
        for outline in case.tissue(frame.name):
            yield _polyline([outline.exterior, *outline.holes], "Tissue", None)
    for _, finding in case.findings(options, frame.name) if "findings" in layers else ():
        yield from _finding_elements(finding, finding.label or case.label)
    for sketch in case.drawn_outlines() if "reviews" in layers else ():
        if sketch.image == frame.name:
            yield _polyline([sketch.ring], sketch.label or case.label, None)


def _finding_elements(finding: Finding, label: str) -> Iterator[dict[str, Any]]:
    score = finite(finding.score)
    if finding.polygon:
        for rings in rings_of(finding):
            yield _polyline(rings, label, score)
    elif finding.box is not None:
        box = finding.box
        centre = [box.x + box.width / 2, box.y + box.height / 2, 0]
        shape = {"type": "rectangle", "center": centre, "width": box.width, "height": box.height}
        yield shape | {"rotation": 0} | _style(label, score)
    else:
        yield {"type": "point", "center": [finding.l0_x, finding.l0_y, 0]} | _style(label, score)


def _polyline(rings: list[Ring], label: str, score: float | None) -> dict[str, Any]:
    outlines = [[[x, y, 0] for x, y in points(ring)] for ring in rings]
    element: dict[str, Any] = {"type": "polyline", "closed": True, "points": outlines[0]}
    if outlines[1:]:
        element["holes"] = outlines[1:]
    return element | _style(label, score)


def _style(label: str, score: float | None) -> dict[str, Any]:
    text = label if score is None else f"{label} {score:.4f}"
    style: dict[str, Any] = {
        "group": label[:LONGEST_LABEL],
        "label": {"value": text[:LONGEST_LABEL]},
        "lineColor": _css(colour_of(label)),
        "lineWidth": 2,
    }
    return style if score is None else style | {"user": {"score": score}}


def _css(colour: Colour) -> str:
    return "rgb({}, {}, {})".format(*colour)


EXPORT = Export(
    "dsa",
    "annotation JSON of the Digital Slide Archive and HistomicsUI",
    write,
    kinds=frozenset({"slide", "image", "exam"}),
    supports=frozenset({"layers", "min_score"}),
    layers=("findings", "reviews"),
)
