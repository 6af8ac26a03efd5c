"""Annotation JSON of the Digital Slide Archive and HistomicsUI."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lobule.annotations.outline import Annotation, Collector, Kind, Ring, kind_of_group


def is_dsa(document: Any) -> bool:
    """Whether a parsed file is an annotation, a list of them, or one as the server returns it."""
    first = document[0] if isinstance(document, list) and document else document
    if isinstance(first, dict) and isinstance(first.get("annotation"), dict):
        first = first["annotation"]
    return isinstance(first, dict) and isinstance(first.get("elements"), list)


def read_dsa(document: Any, source: str, groups: Mapping[str, Kind] | None = None) -> Annotation:
    """Read the closed outlines and rectangles of all annotations in a file."""
    collector = Collector(source)
    annotations = document if isinstance(document, list) else [document]
    number = 0
    for annotation in annotations:
        elements = annotation.get("annotation", annotation).get("elements", [])
        for element in elements:
            number += 1
            try:
                _add(element, f"element {number}", groups, collector)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise collector.error(
                    f"element {number} is damaged", actual=f"{type(error).__name__}: {error}"
                ) from None
    return collector.annotation()


def _add(
    element: Mapping[str, Any], location: str, groups: Mapping[str, Kind] | None, collector: Collector
) -> None:
    label = str((element.get("label") or {}).get("value", ""))
    group = str(element.get("group") or label)
    kind = element["type"]
    if kind == "polyline" and element.get("closed"):
        rings = [_ring(points) for points in (element["points"], *element.get("holes", []))]
    elif kind == "rectangle":
        rings = [_rectangle(element)]
    else:
        collector.warn(f"{location} is a {kind}, which outlines no area, and is left out")
        return
    collector.add(rings, kind_of_group(group, groups), "", group, location)


def _ring(points: list[list[float]]) -> Ring:
    return np.array([point[:2] for point in points], np.float64).reshape(-1, 2)


def _rectangle(element: Mapping[str, Any]) -> Ring:
    """Return the corners of a rectangle, which is rotated about its centre by an angle in radians."""
    half = np.array([element["width"], element["height"]], np.float64) / 2
    angle = float(element.get("rotation", 0))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    centre: Ring = np.array(element["center"][:2], np.float64)
    return np.asarray(corners @ turn.T + centre)
