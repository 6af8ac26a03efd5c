"""Reviews as annotations: the outlines that the reviewers of a case agree on, for training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lobule.annotations import Annotation, Polygon
from lobule.reviews.files import Review, in_force
from lobule.reviews.verdicts import ReviewedFinding, reviewed_findings


def reviewed_annotation(
    reviews: Mapping[str, Sequence[Review]], columns: Mapping[str, Any], image: str = "slide"
) -> Annotation:
    """Return the outlines of a case that its reviewers accept or have drawn.

    A finding counts as tumour if more reviewers accept than reject it, and as normal tissue otherwise. All
    drawn outlines are included.

    Args:
        reviews: The entries of each person, as `read_reviews` returns them.
        columns: The findings table of the case.
        image: The image of the case to which the outlines belong.

    Returns:
        The polygons in level-0 pixels. Accepted findings without an outline are counted in a warning.
    """
    drawn_findings: list[tuple[str, ReviewedFinding]] = []
    opinions_of_finding: dict[int, list[tuple[str, ReviewedFinding]]] = {}
    for person, entries in sorted(reviews.items()):
        for finding in reviewed_findings(in_force(entries), columns):
            if finding.image != image:
                continue
            if finding.finding is None:
                drawn_findings.append((person, finding))
            else:
                opinions_of_finding.setdefault(finding.finding, []).append((person, finding))
    polygons: list[Polygon] = []
    without_outline = 0
    for number, opinions in sorted(opinions_of_finding.items()):
        votes = sum(1 if finding.is_tumour else -1 for _, finding in opinions)
        name = f"finding {number}: " + ", ".join(person for person, _ in opinions)
        without_outline += votes > 0 and not opinions[0][1].polygons
        polygons += _polygons(opinions[0][1], name, is_tumour=votes > 0)
    for person, finding in drawn_findings:
        polygons += _polygons(finding, f"drawn by {person}", is_tumour=finding.is_tumour)
    warnings = (f"{without_outline} accepted findings have no outline",) if without_outline else ()
    return Annotation(tuple(polygons), warnings)


def _polygons(finding: ReviewedFinding, name: str, *, is_tumour: bool) -> list[Polygon]:
    kind, group = ("tumour", "Tumor") if is_tumour else ("normal", "Normal")
    outlines = []
    for exterior, *holes in finding.polygons:
        rings = [np.array(ring, np.float64) for ring in (exterior, *holes)]
        outlines.append(Polygon(rings[0], kind, name, group, tuple(rings[1:])))  # type: ignore[arg-type]
    return outlines
