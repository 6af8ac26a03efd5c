"""From raw scores to probabilities: of patches, and of slides by a threshold tuned on validation slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from lobule.measures.calibration import Platt, fit_platt, log_loss
from lobule.nets.anomaly import SLIDE_THRESHOLD, slide_score

Floats = NDArray[np.float64]

CANDIDATES = 60
"""Thresholds tried for the slide score, beside the published one."""
RARE = 0.01
"""Of normal patches, those that may count as tumour where no tumour patch is known."""


@dataclass(frozen=True)
class Shared:
    """How near the shared form comes to the exact one, measured on fields of the training's slides."""

    rank: float
    """Rank correlation of the scores of the same cells."""
    error: float
    """The mean distance of the two, in raw scores."""
    cells: int


@dataclass(frozen=True)
class Calibration:
    """What turns raw scores into those that are reported; without `patch`, the paper's threshold is all."""

    patch: Platt | None = None
    threshold: float = SLIDE_THRESHOLD
    """Cells with at least this raw score count for the slide score."""
    slide: Platt | None = None
    shared: Shared | None = None

    def patch_probability(self, raw: ArrayLike) -> Floats:
        assert self.patch is not None
        return self.patch(raw)

    def slide_probability(self, raw: NDArray[Any]) -> float:
        """The slide score of its cells' raw scores."""
        if self.slide is not None:
            return float(self.slide([slide_score(raw, self.threshold)])[0])
        score = slide_score(raw, self.threshold)
        return float(self.patch_probability([score])[0]) if score > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "patch": self.patch and asdict(self.patch),
            "threshold": self.threshold,
            "slide": self.slide and asdict(self.slide),
            "shared": self.shared and asdict(self.shared),
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Calibration:
        return cls(
            patch=Platt(**facts["patch"]) if facts["patch"] else None,
            threshold=float(facts["threshold"]),
            slide=Platt(**facts["slide"]) if facts["slide"] else None,
            shared=Shared(**facts["shared"]) if facts["shared"] else None,
        )


def of_patches(labels: ArrayLike, raw: ArrayLike) -> Platt | None:
    """Raw score to probability, from patches of both classes; None where tumour does not score higher."""
    fit = fit_platt(labels, raw)
    return fit if fit is not None and fit.slope > 0 else None


def of_normal(raw: Floats) -> Platt:
    """Where no tumour patch is known: one normal patch in a hundred counts as tumour.

    The score that so many exceed becomes 1/2, the middle patch 1/100: a scale, and no probability.
    """
    middle, rare = np.quantile(raw, [0.5, 1 - RARE])
    slope = float(-logit(RARE) / max(rare - middle, 1e-6))
    return Platt(slope, float(-slope * rare))


def half(fit: Platt) -> float:
    """The raw score of probability 1/2."""
    return -fit.intercept / fit.slope


def of_slides(
    labels: Sequence[bool], cells: Sequence[NDArray[Any]]
) -> tuple[float, Platt, dict[str, float]] | None:
    """The threshold whose slide scores tell the slides apart best, the fit of these scores, and how well.

    Best is the smallest log loss after the fit; of equals the lowest threshold. None without both classes.
    """
    if len(set(labels)) < 2:
        return None
    pooled = np.concatenate([np.asarray(own, np.float64).ravel() for own in cells])
    tried = np.unique([*np.quantile(pooled, np.linspace(0.5, 1, CANDIDATES)), SLIDE_THRESHOLD])
    best: tuple[float, float, Platt, Floats] | None = None
    for threshold in tried:
        scores = np.array([slide_score(own, threshold) for own in cells])
        fit = fit_platt(labels, scores)
        if fit is None or fit.slope <= 0:
            continue
        loss = log_loss(labels, fit(scores))
        if loss is not None and (best is None or loss < best[0] - 1e-9):
            best = (loss, float(threshold), fit, scores)
    if best is None:
        return None
    loss, threshold, fit, scores = best
    told = {"slide_auc": float(roc_auc_score(labels, scores)), "slide_log_loss": loss}
    return threshold, fit, told


def of_shared(exact: Floats, shared: Floats) -> Shared:
    """How well the scores of both forms agree."""
    from scipy.stats import spearmanr

    rank = float(spearmanr(exact, shared).statistic) if exact.std() > 0 and shared.std() > 0 else 0.0
    return Shared(rank, float(np.abs(shared - exact).mean()), len(exact))
