"""QuPath GeoJSON: annotation objects with their classification."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from lobule.annotations.outline import Annotation, Collector, Kind, Polygon, kind_of_group, written_group

COLOURS = {
    "tumour": [200, 0, 0], "exclusion": [40, 40, 40], "normal": [0, 128, 255], "other": [128, 128, 128],
}  # fmt: skip


def read_geojson(document: Any, source: str, groups: Mapping[str, Kind] | None = None) -> Annotation:
    """Polygons of the annotation objects of a FeatureCollection, a Feature, or a list of Features."""
    collector = Collector(source)
    for number, feature in enumerate(_features(document, collector), 1):
        if not isinstance(feature, dict):
            raise collector.error(f"feature {number} is not an object")
        properties = feature.get("properties") or {}
        drawn_as = properties.get("objectType", properties.get("object_type", "annotation"))
        if drawn_as not in ("annotation", "annotation object"):
            collector.count(f"objects of the type '{drawn_as}' are left out: only annotations outline")
            continue
        group = _classification(properties)
        name = str(properties.get("name") or "")
        location, kind = f"feature {number} ('{name or group}')", kind_of_group(group, groups)
        for rings in _polygons(feature.get("geometry"), location, collector):
            collector.add([_without_closing_point(ring) for ring in rings], kind, name, group, location)
    return collector.annotation()


def _features(document: Any, collector: Collector) -> list[Any]:
    if isinstance(document, list):
        return document
    if document.get("type") == "Feature":
        return [document]
    features = document.get("features")
    if not isinstance(features, list):
        raise collector.error("the file has no list of features", expected="a GeoJSON FeatureCollection")
    return features


def _classification(properties: Mapping[str, Any]) -> str:
    """The name of the class. Of a derived class such as "Tumor: Positive" it is the base class."""
    classification = properties.get("classification") or {}
    if isinstance(classification, str):
        return classification
    names = classification.get("names")
    name = names[0] if isinstance(names, list) and names else classification.get("name")
    return str(name or "").split(":")[0].strip()


def _polygons(geometry: Any, location: str, collector: Collector) -> Iterator[list[Any]]:
    """The rings of each polygon of a geometry."""
    if not isinstance(geometry, dict):
        raise collector.error(f"{location} has no geometry")
    kind = geometry.get("type")
    members: Any = geometry.get("geometries" if kind == "GeometryCollection" else "coordinates")
    if kind not in ("Polygon", "MultiPolygon", "GeometryCollection"):
        collector.warn(f"{location} is a {kind}, which outlines no area, and is left out")
    elif not isinstance(members, list):
        raise collector.error(f"{location} has no coordinates")
    elif kind == "GeometryCollection":
        for member in members:
            yield from _polygons(member, location, collector)
    else:
        for rings in [members] if kind == "Polygon" else members:
            if not isinstance(rings, list) or not all(isinstance(ring, list) for ring in rings):
                raise collector.error(f"{location} has rings that are not lists of points")
            yield rings


def _without_closing_point(ring: list[Any]) -> list[Any]:
    """Remove the last point if it repeats the first: GeoJSON closes rings explicitly, `Ring` implicitly."""
    return ring[:-1] if len(ring) > 1 and ring[0] == ring[-1] else ring


def write_geojson(annotation: Annotation) -> bytes:
    """Convert to a FeatureCollection that QuPath can open."""
    features = [_feature(polygon, index) for index, polygon in enumerate(annotation.polygons)]
    return json.dumps({"type": "FeatureCollection", "features": features}, allow_nan=False).encode()


def _feature(polygon: Polygon, index: int) -> dict[str, Any]:
    rings = [ring.tolist() for ring in polygon.rings]
    group = written_group(polygon)
    properties: dict[str, Any] = {"objectType": "annotation", "isLocked": False}
    if polygon.name:
        properties["name"] = polygon.name
    if group != "None":
        properties["classification"] = {"name": group, "color": COLOURS[polygon.kind]}
    # The id depends only on the content, so that the same annotation gives the same bytes.
    identity = uuid.uuid5(uuid.NAMESPACE_OID, f"{index} {group} {polygon.name} {rings}")
    return {
        "type": "Feature",
        "id": str(identity),
        "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]] for ring in rings]},
        "properties": properties,
    }
