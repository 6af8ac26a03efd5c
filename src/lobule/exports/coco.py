"""`coco`: the JSON of object detection data sets, one file per image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lobule.annotations import Polygon
from lobule.exports.case import ExportCase, ImageFrame, Ring, rings_of
from lobule.exports.export import CaseOutput, Export
from lobule.exports.json_stream import finite, json_list, number
from lobule.exports.options import ExportOptions
from lobule.findings import Finding
from lobule.findings.outlines import shoelace
from lobule.geometry import Box
from lobule.results.result import RESEARCH_USE


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    notes = []
    for frame in case.frames.values():
        if frame.size is None:
            notes.append(f"The size of the image '{frame.name}' is not recorded; it is written as 0.")
        labels = list(dict.fromkeys(name for name, _, _ in _shapes(case, frame.name, options)))
        ids = {label: index for index, label in enumerate(labels, 1)}
        head = _head(case, frame, ids)
        with json_list(folder / f"{case.file_name_of(frame.name)}.json", head, "annotations") as append:
            for index, (label, score, polygons) in enumerate(_shapes(case, frame.name, options), 1):
                append(_annotation(index, ids[label], score, polygons))
    return CaseOutput(tuple(notes))


def _head(case: ExportCase, frame: ImageFrame, ids: dict[str, int]) -> dict[str, Any]:
    width, height = frame.size or (0, 0)
    image = {
        "id": 1, "width": width, "height": height,
        "file_name": frame.file_name or case.file_name_of(frame.name),
    }  # fmt: skip
    return {
        "info": {"description": f"Findings of Lobule. {RESEARCH_USE}", "version": "1.0"},
        "licenses": [],
        "images": [image],
        "categories": [{"id": number_, "name": name, "supercategory": ""} for name, number_ in ids.items()],
    }


def _shapes(
    case: ExportCase, image: str, options: ExportOptions
) -> Iterator[tuple[str, float | None, list[list[Ring]]]]:
    """Yield the label, the score and the polygons of each object. A drawn outline has no score."""
    layers = EXPORT.layers_of(options)
    for _, finding in case.findings(options, image) if "findings" in layers else ():
        yield finding.label or case.label, finite(finding.score), rings_of(finding) or [_pixel(finding)]
    for sketch in case.drawn_outlines() if "reviews" in layers else ():
        if sketch.image == image:
            yield sketch.label or case.label, None, [[sketch.ring]]


def _pixel(finding: Finding) -> list[Ring]:
    """Return the pixel of a point as a polygon, because COCO has no points without a skeleton."""
    from lobule.exports.case import box_ring

    return [box_ring(Box(finding.l0_x, finding.l0_y, 1, 1))]


def _annotation(index: int, category: int, score: float | None, polygons: list[list[Ring]]) -> dict[str, Any]:
    corners = np.concatenate([rings[0] for rings in polygons])
    left, top = corners.min(axis=0)
    right, bottom = corners.max(axis=0)
    # COCO has no holes: they are connected to the outline by bridges.
    outlines = [Polygon(rings[0], holes=tuple(rings[1:])).keyholed() for rings in polygons]
    area = sum(abs(shoelace(rings[0])) - sum(map(abs, map(shoelace, rings[1:]))) for rings in polygons)
    annotation: dict[str, Any] = {
        "id": index,
        "image_id": 1,
        "category_id": category,
        "segmentation": [[number(value) for value in outline.ravel()] for outline in outlines],
        "bbox": [number(left), number(top), number(right - left), number(bottom - top)],
        "area": number(area),
        "iscrowd": 0,
    }
    return annotation if score is None else annotation | {"score": score}


EXPORT = Export(
    "coco",
    "COCO JSON: findings and drawn outlines as polygons",
    write,
    kinds=frozenset({"slide", "image", "exam"}),
    supports=frozenset({"layers", "min_score"}),
    layers=("findings", "reviews"),
)
