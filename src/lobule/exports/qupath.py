"""`qupath`: GeoJSON that QuPath opens with File > Import objects, one file per image.

QuPath crops a slide to the bounds that OpenSlide reports, so coordinates are relative to these bounds unless
`uncropped` is set.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lobule.exports.case import ExportCase, ImageFrame, Ring, iterate_blocks, rings_of
from lobule.exports.colours import REVIEW, TISSUE, Colour, colour_of
from lobule.exports.export import CaseOutput, Export
from lobule.exports.json_stream import Append, closed_points, json_list, number
from lobule.exports.options import ExportOptions
from lobule.findings import Finding
from lobule.results.maps import MapReader
from lobule.results.result import RESEARCH_USE
from lobule.stitch import State

Offset = tuple[float, float]
MEASUREMENTS = {"score": "score", "size_um": "size µm", "area_um2": "area µm^2"}


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    notes: list[str] = []
    for frame in case.frames.values():
        offset = (0, 0) if options.uncropped else frame.crop_offset
        head = {"type": "FeatureCollection", "lobule": {"research_use": RESEARCH_USE, "l0_offset": offset}}
        with json_list(folder / f"{case.file_name_of(frame.name)}.geojson", head, "features") as append:
            notes += write_layers(case, frame, options, offset, append)
    return CaseOutput(tuple(notes))


def write_layers(
    case: ExportCase, frame: ImageFrame, options: ExportOptions, offset: Offset, append: Append
) -> Iterator[str]:
    """Write the chosen layers of an image, and yield notes about layers that the case lacks."""
    layers = EXPORT.layers_of(options)
    reader = case.map(options, frame.name)
    if reader is None and not {"tissue", "tiles"}.isdisjoint(layers):
        yield f"There is no map of the image '{frame.name}', so tissue and tiles are not exported."
    if "tissue" in layers:
        for number_, outline in enumerate(case.tissue(frame.name), 1):
            append(outline_feature([outline.exterior, *outline.holes], f"Tissue {number_}", offset))
    if "tiles" in layers and reader is not None:
        for feature in tile_features(reader, options, offset):
            append(feature)
    if "findings" in layers:
        reviews = case.reviews_of_findings if "reviews" in layers else {}
        for index, finding in case.findings(options, frame.name):
            append(finding_feature(index, finding, case.label, reviews.get(index, []), offset))
    if "reviews" in layers:
        for sketch in case.drawn_outlines():
            if sketch.image == frame.name:
                append(drawn_feature(sketch.ring, sketch.label or case.label, sketch.person, offset))


def finding_feature(
    index: int, finding: Finding, label: str, reviews: list[str], offset: Offset
) -> dict[str, Any]:
    name = finding.label or label
    properties: dict[str, Any] = {
        "objectType": "annotation",
        "name": f"Finding {index}",
        "classification": _classification(name, colour_of(name)),
        "isLocked": False,
        "measurements": _measurements(finding),
    }
    metadata: dict[str, str] = {"lesion class": finding.lesion_class} if finding.lesion_class else {}
    if reviews:
        metadata["review"] = "; ".join(reviews)
    if metadata:
        properties["metadata"] = metadata
    return _feature(_geometry(finding, offset), properties, f"finding {index}")


def _measurements(finding: Finding) -> dict[str, Any]:
    values = {name: getattr(finding, attribute) for attribute, name in MEASUREMENTS.items()}
    return {name: _measurement(value) for name, value in values.items() if value is not None}


def _measurement(value: float) -> float | str:
    """Return a measurement; QuPath reads NaN as text."""
    return float(value) if np.isfinite(value) else "NaN"


def _geometry(finding: Finding, offset: Offset) -> dict[str, Any]:
    polygons = [[closed_points(ring, offset) for ring in rings] for rings in rings_of(finding)]
    if not polygons:
        position = [number(finding.l0_x - offset[0]), number(finding.l0_y - offset[1])]
        return {"type": "Point", "coordinates": position}
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}


def outline_feature(rings: list[Ring], name: str, offset: Offset) -> dict[str, Any]:
    """Return a locked annotation of tissue."""
    geometry = {"type": "Polygon", "coordinates": [closed_points(ring, offset) for ring in rings]}
    properties = {
        "objectType": "annotation",
        "name": name,
        "classification": _classification("Tissue", TISSUE),
        "isLocked": True,
    }
    return _feature(geometry, properties, name)


def drawn_feature(ring: Ring, label: str, person: str, offset: Offset) -> dict[str, Any]:
    geometry = {"type": "Polygon", "coordinates": [closed_points(ring, offset)]}
    properties = {
        "objectType": "annotation",
        "name": f"Drawn by {person}",
        "classification": _classification(label, REVIEW),
        "isLocked": False,
    }
    return _feature(geometry, properties, f"{person} {ring.tolist()}")


def tile_features(reader: MapReader, options: ExportOptions, offset: Offset) -> Iterator[dict[str, Any]]:
    """Yield a locked tile for each scored cell of a map, with one measurement per class."""
    info, lowest = reader.info, -np.inf if options.min_score is None else options.min_score
    for (rows, columns), (scores, states) in iterate_blocks(reader):
        chosen = (states == State.SCORED) & ~(scores[-1] < lowest)
        for row, column in np.argwhere(chosen).tolist():
            top, left = rows.start + row, columns.start + column
            x, y = (
                (left * info.l0_stride[0] - offset[0], (left + 1) * info.l0_stride[0] - offset[0]),
                (top * info.l0_stride[1] - offset[1], (top + 1) * info.l0_stride[1] - offset[1]),
            )
            ring = [[x[0], y[0]], [x[1], y[0]], [x[1], y[1]], [x[0], y[1]], [x[0], y[0]]]
            geometry = {"type": "Polygon", "coordinates": [[[number(a), number(b)] for a, b in ring]]}
            measurements = {
                name: _measurement(round(float(value), 6))
                for name, value in zip(info.classes, scores[:, row, column], strict=True)
            }
            properties = {"objectType": "tile", "isLocked": True, "measurements": measurements}
            yield _feature(geometry, properties, f"tile {info.name} {top} {left}")


def _classification(name: str, colour: Colour) -> dict[str, Any]:
    """Return a classification. It always has a colour, because QuPath cannot read one without."""
    return {"name": name, "color": list(colour)}


def _feature(geometry: dict[str, Any], properties: dict[str, Any], identity: str) -> dict[str, Any]:
    # The id depends only on the content, so that the same result gives the same bytes.
    identifier = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{identity} {geometry['coordinates']}"))
    return {"type": "Feature", "id": identifier, "geometry": geometry, "properties": properties}


EXPORT = Export(
    "qupath",
    "GeoJSON for QuPath: findings, tissue, tile scores and reviews",
    write,
    kinds=frozenset({"slide", "image", "exam"}),
    supports=frozenset({"layers", "min_score", "map_name", "uncropped"}),
    layers=("findings", "tissue", "reviews"),
)
