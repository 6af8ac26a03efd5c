"""Which end of the tile scores is tumour, and what a score is worth: before any map is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from lobule.errors import ModelError, UsageError

LEAST_AUC = 0.6
"""Below this on validation slides, tile scores say nothing and no map is drawn."""

MOST_KEPT = 20_000
"""Evidences that a calibration keeps: between them a value is at most 0.0001 too low."""


@dataclass(frozen=True)
class Orientation:
    """The sign that turns tile scores into evidence of tumour, and the two AUCs that decided it."""

    sign: int
    auc_top: float
    auc_bottom: float

    def evidence(self, scores: NDArray[Any]) -> NDArray[Any]:
        return self.sign * scores


def orient(scores_of_slides: Sequence[NDArray[Any]], labels: Sequence[int], r: int) -> Orientation:
    """Compares the mean of the R highest scores with that of the R lowest, by how they tell tumour slides."""
    auc_top = _auc(labels, [slide_evidence(scores, r) for scores in scores_of_slides])
    auc_bottom = _auc(labels, [slide_evidence(-scores, r) for scores in scores_of_slides])
    return Orientation(1 if auc_top >= auc_bottom else -1, auc_top, auc_bottom)


def slide_evidence(evidence: NDArray[Any], r: int) -> float:
    """The mean of the R highest tile evidences, or of all where there are fewer; NaN without tiles."""
    if evidence.size == 0:
        return float("nan")
    return float(np.sort(evidence.astype(np.float64))[::-1][:r].mean())


def check_drawable(evidence_of_slides: Sequence[float], labels: Sequence[int]) -> float:
    """The validation AUC of the slide evidence; an error where it is too low to draw a map."""
    auc = _auc(labels, evidence_of_slides)
    if auc < LEAST_AUC:
        raise ModelError(
            "the tile scores do not tell tumour slides from normal ones, so a map of them would mislead",
            expected=f"an AUC of at least {LEAST_AUC} on validation slides, by their highest tile scores",
            actual=f"{auc:.3f}",
            remedy="Use the slide scores alone, or train on more slides or better features",
        )
    return auc


@dataclass(frozen=True, eq=False)
class Calibration:
    """The evidences of the tiles of normal training slides: what evidence is compared with."""

    normal_evidence: NDArray[np.float64]
    """Sorted; all of them, or so many that the ranks between are known well enough."""
    not_above: NDArray[np.int64]
    """For each, how many of all normal tiles are not above it."""
    tiles: int
    """All normal tiles."""

    @classmethod
    def of(cls, evidence_of_normal_slides: Sequence[NDArray[Any]], most: int = MOST_KEPT) -> Calibration:
        if not evidence_of_normal_slides or not sum(len(e) for e in evidence_of_normal_slides):
            raise UsageError(
                "no tile of a normal slide to calibrate with",
                remedy="Train with normal slides among the cases",
            )
        every = np.sort(np.concatenate(evidence_of_normal_slides).astype(np.float64))
        kept = every
        if len(every) > most:
            # half of what is kept is the upper end, where findings are decided
            spread = np.linspace(0, len(every) - 1, most - most // 2).astype(np.int64)
            kept = every[np.union1d(spread, np.arange(len(every) - most // 2, len(every)))]
        return cls(kept, np.searchsorted(every, kept, side="right"), len(every))

    def value(self, evidence: NDArray[Any]) -> NDArray[np.float64]:
        """The share of normal tiles that are not above: 0.99 is higher than 99 % of them."""
        counts = np.concatenate([[0], self.not_above])
        place = np.searchsorted(self.normal_evidence, evidence, side="right")
        share: NDArray[np.float64] = counts[place] / (self.tiles + 1.0)
        return share


def mean_value(
    scores_of_members: Sequence[NDArray[Any]],
    orientations: Sequence[Orientation],
    calibrations: Sequence[Calibration],
) -> NDArray[np.float64]:
    """An ensemble's value of each tile: every member oriented and calibrated by itself, then the mean."""
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
    known = ~np.isnan(scores)
    kept = np.asarray(labels)[known]
    if len(np.unique(kept)) < 2:
        raise UsageError(
            "slides of one label only cannot orient tile scores",
            expected="tumour and normal slides that have tiles",
            actual=f"{len(kept)} slides of one label",
        )
    return float(roc_auc_score(kept, np.asarray(scores)[known]))
