"""NCRF JSON: `positive` and `negative` lists of named vertices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from lobule.annotations.outline import Annotation, Collector, Kind, Polygon, written_group

GROUP_ORDER = ("Tumor", "_0", "_1", "_2", "Exclusion")
"""Groups in the order of NCRF's converter; other groups follow."""


def read_ncrf(document: Mapping[str, Any], source: str) -> Annotation:
    """Read NCRF JSON: `positive` polygons outline tumour, `negative` ones are excluded from it.

    A file without positive polygons belongs to a normal slide; its negative polygons outline normal tissue.
    """
    collector = Collector(source)
    positive, negative = document.get("positive") or [], document.get("negative") or []
    negative_kind: Kind = "exclusion" if positive else "normal"
    groups: dict[str, tuple[Any, Kind]]
    groups = {"positive": (positive, "tumour"), "negative": (negative, negative_kind)}
    for group, (polygons, kind) in groups.items():
        if not isinstance(polygons, list):
            raise collector.error(f"'{group}' is not a list")
        for number, polygon in enumerate(polygons, 1):
            location = f"{group} polygon {number}"
            if not isinstance(polygon, dict) or not isinstance(polygon.get("vertices"), list):
                raise collector.error(f"{location} has no list of vertices")
            collector.add([polygon["vertices"]], kind, str(polygon.get("name", "")), "", location)
    return collector.annotation()


def write_ncrf(annotation: Annotation) -> bytes:
    """Convert to NCRF JSON, with vertices rounded half to even like NCRF's converter.

    NCRF's converter drops `Exclusion` polygons; this function writes them. Kinds that the format cannot
    represent (other, and normal together with tumour) are left out.
    """
    positive = annotation.of_kind("tumour")
    negative = annotation.of_kind("exclusion") or (() if positive else annotation.of_kind("normal"))
    document = {"positive": _as_records(positive), "negative": _as_records(negative)}
    return json.dumps(document, indent=1).encode()


def _as_records(polygons: tuple[Polygon, ...]) -> list[dict[str, Any]]:
    def order(polygon: Polygon) -> int:
        group = written_group(polygon)
        return GROUP_ORDER.index(group) if group in GROUP_ORDER else len(GROUP_ORDER)

    return [
        {"name": polygon.name, "vertices": np.rint(polygon.keyholed()).astype(np.int64).tolist()}
        for polygon in sorted(polygons, key=order)
    ]
