"""The findings of a map: its regions above a threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lobule.findings import Finding, components
from lobule.results.maps import MapReader
from lobule.stitch import State


def map_findings(
    reader: MapReader, classes: Sequence[str], threshold: float
) -> tuple[dict[str, float], tuple[Finding, ...]]:
    """Return the highest score of each class, and the regions above a threshold with descending scores."""
    info, (scores, states) = reader.info, reader.read()
    highest: dict[str, float] = {}
    findings: list[Finding] = []
    for name in classes:
        layer = np.where(states == State.SCORED, scores[info.classes.index(name)], np.float32(0))
        highest[name] = float(layer.max(initial=0.0))
        findings += components(layer, info.l0_stride, mpp=info.l0_mpp, threshold=threshold, label=name)
    return highest, by_score(findings)


def by_score(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return findings in descending order of their scores; equal scores keep their order."""
    return tuple(sorted(findings, key=lambda finding: -finding.score))
