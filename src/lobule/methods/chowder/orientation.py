"""Orientation and calibration of tile scores: which sign means tumour, and how unusual a score is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from lobule.errors import ModelError, UsageError

LEAST_AUC = 0.6
"""If the AUC on validation slides is lower than this, no map is drawn."""

MAX_STORED = 20_000
"""Number of normal tile scores that a calibration stores, evenly spaced in their order."""


@dataclass(frozen=True)
class Orientation:
    """The sign that converts tile scores to evidence of tumour, and the two AUCs that decided it."""

    sign: int
    auc_top: float
    auc_bottom: float

    def evidence(self, scores: NDArray[Any]) -> NDArray[Any]:
        return self.sign * scores


def orient(scores_of_slides: Sequence[NDArray[Any]], labels: Sequence[int], r: int) -> Orientation:
    """Choose the sign by comparing how well the R highest and the R lowest scores separate tumour slides."""
    auc_top = _auc(labels, [slide_evidence(scores, r) for scores in scores_of_slides])
    auc_bottom = _auc(labels, [slide_evidence(-scores, r) for scores in scores_of_slides])
    return Orientation(1 if auc_top >= auc_bottom else -1, auc_top, auc_bottom)


def slide_evidence(evidence: NDArray[Any], r: int) -> float:
    """The mean evidence of the R highest tiles, or of all tiles if there are fewer; NaN without tiles."""
    if evidence.size == 0:
        return float("nan")
    return float(np.sort(evidence.astype(np.float64))[::-1][:r].mean())


def check_drawable(evidence_of_slides: Sequence[float], labels: Sequence[int]) -> float:
    """Return the validation AUC of the slide evidence; raise an error if it is too low to draw a map."""
    auc = _auc(labels, evidence_of_slides)
    if auc < LEAST_AUC:
        raise ModelError(
            "the tile scores do not separate tumour slides from normal ones, so a map would mislead",
            expected=f"an AUC of at least {LEAST_AUC} on validation slides, by their highest tile scores",
            actual=f"{auc:.3f}",
            remedy="Use only the slide scores, or train on more slides or better features",
        )
    return auc


@dataclass(frozen=True, eq=False)
class Calibration:
    """The evidence of the tiles of normal training slides, with which other tiles are compared."""

    normal_evidence: NDArray[np.float64]
    """Sorted evidence of all normal tiles, or of a subset if there are too many."""
    not_above: NDArray[np.int64]
    """For each stored value, the number of normal tiles with at most this evidence."""
    tiles: int
    """The number of all normal tiles."""

    @classmethod
    def of(
        cls, evidence_of_normal_slides: Sequence[NDArray[Any]], max_stored: int = MAX_STORED
    ) -> Calibration:
        if not evidence_of_normal_slides or not sum(len(e) for e in evidence_of_normal_slides):
            raise UsageError(
                "the normal slides have no tiles, so tile scores cannot be calibrated",
                remedy="Add normal slides with tissue to the training cases",
            )
        evidence = np.sort(np.concatenate(evidence_of_normal_slides).astype(np.float64))
        stored = evidence
        if len(evidence) > max_stored:
            # Half of the stored values are the highest ones, because findings depend on them.
            spread = np.linspace(0, len(evidence) - 1, max_stored - max_stored // 2).astype(np.int64)
            stored = evidence[np.union1d(spread, np.arange(len(evidence) - max_stored // 2, len(evidence)))]
        return cls(stored, np.searchsorted(evidence, stored, side="right"), len(evidence))

    def value(self, evidence: NDArray[Any]) -> NDArray[np.float64]:
        """The share of normal tiles that do not score higher; at 0.99, 99 % of the normal tiles do not."""
        counts = np.concatenate([[0], self.not_above])
        ranks = np.searchsorted(self.normal_evidence, evidence, side="right")
        share: NDArray[np.float64] = counts[ranks] / (self.tiles + 1.0)
        return share


def mean_value(
    scores_of_members: Sequence[NDArray[Any]],
    orientations: Sequence[Orientation],
    calibrations: Sequence[Calibration],
) -> NDArray[np.float64]:
    """The mean value of each tile over the members, each of which is oriented and calibrated separately."""
    values = [
        calibration.value(orientation.evidence(scores))
        for scores, orientation, calibration in zip(
            scores_of_members, orientations, calibrations, strict=True
        )
    ]
    mean: NDArray[np.float64] = np.mean(values, axis=0)
    return mean


def _auc(labels: Sequence[int], scores: Sequence[float]) -> float:
    """AUC over the slides that have a score."""
    has_score = ~np.isnan(scores)
    scored_labels = np.asarray(labels)[has_score]
    if len(np.unique(scored_labels)) < 2:
        raise UsageError(
            "tile scores cannot be oriented with slides of one label",
            expected="tumour and normal slides that have tiles",
            actual=f"{len(scored_labels)} slides with tiles, all of one label",
        )
    return float(roc_auc_score(scored_labels, np.asarray(scores)[has_score]))
