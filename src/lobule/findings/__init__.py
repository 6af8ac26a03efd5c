"""Findings: locations with a score, their extraction from a map, and features of a complete map."""

from __future__ import annotations

from lobule.findings.candidates import cell_centre, components, non_maximum_suppression, suppression_radius
from lobule.findings.finding import Finding, LesionClass, lesion_class, longest_extent
from lobule.findings.heatmap_features import HEATMAP_FEATURES, heatmap_features
from lobule.findings.outlines import Outline, mask_outlines

__all__ = [
    "HEATMAP_FEATURES",
    "Finding",
    "LesionClass",
    "Outline",
    "cell_centre",
    "components",
    "heatmap_features",
    "lesion_class",
    "longest_extent",
    "mask_outlines",
    "non_maximum_suppression",
    "suppression_radius",
]
