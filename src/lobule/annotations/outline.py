"""Annotations as polygons in level-0 pixels, each with a kind, and the checks applied while reading them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray

from lobule.errors import AnnotationError
from lobule.geometry import Box

Kind = Literal["tumour", "exclusion", "normal", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Ring = NDArray[np.float64]
"""(n, 2): x and y in level-0 pixels, closed implicitly: the last point joins the first."""

MAX_COORDINATE = 1e7
"""Largest coordinate in level-0 pixels; the largest real slides have about 300,000 a side."""

KIND_OF_GROUP: dict[str, Kind] = {
    "_0": "tumour", "_1": "tumour", "tumor": "tumour", "tumour": "tumour", "metastases": "tumour",
    "_2": "exclusion", "exclusion": "exclusion", "normal": "normal",
}  # fmt: skip
"""Kinds of groups (in QuPath: classifications) by lower-case name; any other group has the kind "other"."""

GROUP_OF_KIND: dict[Kind, str] = {
    "tumour": "Tumor", "exclusion": "Exclusion", "normal": "Normal", "other": "None",
}  # fmt: skip
"""The group written for a polygon whose group does not imply its kind."""


@dataclass(frozen=True, eq=False)
class Polygon:
    """One outlined region. Where its rings cross, the even-odd rule decides which points are inside."""

    points: Ring
    kind: Kind = "tumour"
    name: str = ""
    group: str = ""
    holes: tuple[Ring, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _frozen_ring(self.points))
        object.__setattr__(self, "holes", tuple(_frozen_ring(hole) for hole in self.holes))
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Polygon):
            return NotImplemented
        same_words = (self.kind, self.name, self.group) == (other.kind, other.name, other.group)
        mine, theirs = self.rings, other.rings
        return same_words and len(mine) == len(theirs) and all(map(np.array_equal, mine, theirs))

    __hash__ = None  # type: ignore[assignment]

    @property
    def rings(self) -> tuple[Ring, ...]:
        return (self.points, *self.holes)

    @property
    def l0_box(self) -> Box:
        """The smallest box of whole pixels that covers the polygon."""
        left, top = np.floor(self.points.min(axis=0))
        right, bottom = np.ceil(self.points.max(axis=0))
        return Box.of_edges(int(left), int(top), int(right), int(bottom))

    def moved(self, dx: float, dy: float) -> Polygon:
        shift = np.array([dx, dy])
        return replace(self, points=self.points + shift, holes=tuple(hole + shift for hole in self.holes))

    def keyholed(self) -> Ring:
        """All rings joined to one ring, for formats that do not support holes.

        Each hole is connected by a bridge that is followed in both directions. By the even-odd rule the two
        passes cancel, so exactly the same points are inside.
        """
        start = self.points[:1]
        paths = [self.points]
        for hole in self.holes:
            paths += [start, hole, hole[:1]]
        return np.concatenate([*paths, start]) if self.holes else self.points


@dataclass(frozen=True)
class Annotation:
    """All polygons of one slide, and warnings about the file they come from."""

    polygons: tuple[Polygon, ...]
    warnings: tuple[str, ...] = ()
    source: str | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.polygons)

    def of_kind(self, *kinds: Kind) -> tuple[Polygon, ...]:
        return tuple(polygon for polygon in self.polygons if polygon.kind in kinds)

    def moved(self, dx: float, dy: float) -> Annotation:
        return replace(self, polygons=tuple(polygon.moved(dx, dy) for polygon in self.polygons))


def _frozen_ring(points: ArrayLike) -> Ring:
    ring = np.array(points, dtype=np.float64)
    if ring.ndim != 2 or ring.shape[1] != 2:
        raise ValueError(f"points must be (n, 2), not {ring.shape}")
    ring.flags.writeable = False
    return ring


def kind_of_group(group: str, groups: Mapping[str, Kind] | None = None) -> Kind:
    """The kind of a group; `groups` adds names or overrides the default ones."""
    if groups is not None and group in groups:
        return groups[group]
    return KIND_OF_GROUP.get(group.strip().lower(), "other")


def written_group(polygon: Polygon) -> str:
    """The group to write: that of the polygon if it implies the same kind, otherwise the default name."""
    if polygon.group and kind_of_group(polygon.group) == polygon.kind:
        return polygon.group
    return GROUP_OF_KIND[polygon.kind]


@dataclass
class Collector:
    """Collects and checks the polygons that a reader finds, together with warnings."""

    source: str
    polygons: list[Polygon] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        rings: Sequence[Sequence[Sequence[float]] | Ring],
        kind: Kind,
        name: str,
        group: str,
        location: str,
    ) -> None:
        """Add a polygon (exterior first); one with fewer than three different points is left out."""
        checked = [self._ring(ring, location) for ring in rings]
        if not checked or checked[0] is None:
            self.warn(f"{location} has fewer than 3 different points and is left out")
            return
        holes = tuple(hole for hole in checked[1:] if hole is not None)
        if len(holes) < len(checked) - 1:
            self.warn(f"{location}: holes with fewer than 3 different points are left out")
        if kind == "other":
            self.count(f"polygons of the group '{group or 'None'}' are kept but have no meaning")
        self.polygons.append(Polygon(checked[0], kind, name, group, holes))

    def _ring(self, points: Sequence[Sequence[float]] | Ring, location: str) -> Ring | None:
        if len(points) == 0:
            return None
        try:
            ring = np.array(points, dtype=np.float64)
        except (ValueError, TypeError, OverflowError):
            ring = np.empty(0)
        if ring.ndim != 2 or ring.shape[1] not in (2, 3):
            raise self.error(f"{location} has points that are not pairs of numbers")
        ring = ring[:, :2]
        if not np.isfinite(ring).all():
            raise self.error(f"{location} has a coordinate that is not a number")
        if (np.abs(ring) > MAX_COORDINATE).any():
            raise self.error(
                f"{location} reaches far beyond any slide",
                expected=f"level-0 pixels, at most {MAX_COORDINATE:.0f}",
                actual=f"{np.abs(ring).max():g}",
            )
        return None if len(np.unique(ring, axis=0)) < 3 else ring

    def error(self, problem: str, **rest: str | None) -> AnnotationError:
        return AnnotationError(problem, subject=self.source, **rest)

    def warn(self, warning: str) -> None:
        self.warnings.append(warning)

    def count(self, description: str) -> None:
        """Record a warning that may occur for many objects. It is reported once, with their number."""
        self.counted[description] = self.counted.get(description, 0) + 1

    def annotation(self) -> Annotation:
        polygons = _camelyon17_normal_as_exclusion(self.polygons)
        shapes = [shapely.Polygon(polygon.points, polygon.holes) for polygon in polygons]
        if crossing := int(np.count_nonzero(~shapely.is_valid(shapes))):
            problem = f"{crossing} polygons cross or touch themselves"
            self.warn(f"{problem}; the even-odd rule decides what is inside")
        warnings = tuple(f"{number} {description}" for description, number in self.counted.items())
        return Annotation(tuple(polygons), (*self.warnings, *warnings), self.source)


def _camelyon17_normal_as_exclusion(polygons: list[Polygon]) -> list[Polygon]:
    """Camelyon17 excludes `normal` from its `metastases`, as Camelyon16 does with `_2`."""
    if not any(polygon.group.lower() == "metastases" for polygon in polygons):
        return polygons
    return [
        replace(polygon, kind="exclusion") if polygon.group.lower() == "normal" else polygon
        for polygon in polygons
    ]
