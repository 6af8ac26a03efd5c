"""`Finding`: a location with a score, and its outline and size if they are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lobule.findings.outlines import Outline
from lobule.geometry import Box

LesionClass = Literal["macro", "micro", "itc"]

MACRO_UM = 2000.0
MICRO_UM = 200.0

FEW_POINTS = 64
"""For at most this many points, comparing all pairs is faster than computing the hull first."""


def lesion_class(extent_um: float) -> LesionClass:
    """Class by largest extent: macrometastasis above 2 mm, micrometastasis from 0.2 mm, else single cells."""
    if extent_um > MACRO_UM:
        return "macro"
    return "micro" if extent_um >= MICRO_UM else "itc"


@dataclass(frozen=True)
class Finding:
    """A location with a score. Coordinates are level-0 pixels; x and y are its highest-scoring point."""

    l0_x: int
    l0_y: int
    score: float
    kind: Literal["point", "box", "polygon"] = "point"
    label: str | None = None
    """The class of the score, if the model has several."""
    box: Box | None = None
    polygon: tuple[Outline, ...] = ()
    """Outlines of the finding. There are several if its cells touch only at corners."""
    cells: int | None = None
    size_um: float | None = None
    """The longest distance between two of its points."""
    area_um2: float | None = None
    lesion_class: LesionClass | None = None
    image: str = "slide"
    """The image of the case that contains the finding: a view if the case is an exam."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. Unknown values are left out."""
        plain: dict[str, Any] = {"l0_x": self.l0_x, "l0_y": self.l0_y, "score": self.score, "kind": self.kind}
        for name in ("label", "cells", "size_um", "area_um2", "lesion_class"):
            if (value := getattr(self, name)) is not None:
                plain[name] = value
        if self.image != "slide":
            plain["image"] = self.image
        if self.box is not None:
            plain["box"] = [self.box.x, self.box.y, self.box.width, self.box.height]
        if self.polygon:
            rings = [(outline.exterior, *outline.holes) for outline in self.polygon]
            plain["polygon"] = [[ring.tolist() for ring in outline] for outline in rings]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Finding:
        values = dict(plain)
        if "box" in values:
            values["box"] = Box(*values["box"])
        if "polygon" in values:
            polygons = [[np.array(ring, dtype=np.float64) for ring in rings] for rings in values["polygon"]]
            values["polygon"] = tuple(Outline(exterior, tuple(holes)) for exterior, *holes in polygons)
        return cls(**values)


def longest_extent(points: NDArray[np.float64]) -> float:
    """The longest distance between two of the points (n, 2)."""
    from scipy.spatial import ConvexHull, QhullError

    if len(points) > FEW_POINTS:
        try:
            points = points[ConvexHull(points).vertices]
        except QhullError:  # all points are on one line: its two ends are the farthest apart
            points = points[np.lexsort(points.T)[[0, -1]]]
    distances = points[:, None, :] - points[None, :, :]
    return float(np.sqrt((distances**2).sum(axis=2).max(initial=0.0)))
