"""From raw scores to probabilities: of patches, and of slides by a threshold tuned on validation slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from lobule.measures.calibration import Platt, fit_platt, log_loss
from lobule.nets.anomaly import SLIDE_THRESHOLD, slide_score

Floats = NDArray[np.float64]

CANDIDATES, AROUND = 60, 4
"""Thresholds tried for the slide score, from the middle of all cells to the highest one; and how many of its
neighbours on either side count when one is judged."""
NOTHING_KNOWN = float(np.log(2))
"""The log loss of saying 1/2."""
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
class SlideFit:
    """The slide score of one form: which cells count, and what their mean says."""

    threshold: float
    """Cells with at least this raw score count."""
    slope: float
    intercept: float

    def probability(self, raw: NDArray[Any]) -> float:
        """The slide score of its cells' raw scores."""
        return float(Platt(self.slope, self.intercept)([slide_score(raw, self.threshold)])[0])


@dataclass(frozen=True)
class Calibration:
    """What turns raw scores into those that are reported; without `patch`, the paper's threshold is all."""

    patch: Platt | None = None
    slides: Mapping[str, SlideFit | None] = field(default_factory=dict)
    """By form, since shared cells reach neither as high nor as low; None for one whose scores do not tell the
    validation slides apart, and empty where there were none."""
    shared: Shared | None = None

    def patch_probability(self, raw: ArrayLike) -> Floats:
        assert self.patch is not None
        return self.patch(raw)

    def of_form(self, form: str) -> SlideFit | None:
        """The fit of a form, or that of the other one where only it was judged."""
        if form in self.slides:
            return self.slides[form]
        return next(iter(self.slides.values()), None)

    def threshold(self, form: str) -> float:
        """The raw score from which cells count for the slide score."""
        fit = self.of_form(form)
        if fit is not None:
            return fit.threshold
        return SLIDE_THRESHOLD if self.patch is None else half(self.patch)

    def slide_probability(self, raw: NDArray[Any], form: str) -> float:
        """The slide score of its cells' raw scores."""
        fit = self.of_form(form)
        if fit is not None:
            return fit.probability(raw)
        score = slide_score(raw, self.threshold(form))
        return float(self.patch_probability([score])[0]) if score > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "patch": self.patch and asdict(self.patch),
            "slides": {form: fit and asdict(fit) for form, fit in self.slides.items()},
            "shared": self.shared and asdict(self.shared),
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Calibration:
        return cls(
            patch=Platt(**facts["patch"]) if facts["patch"] else None,
            slides={form: fit and SlideFit(**fit) for form, fit in facts["slides"].items()},
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
) -> tuple[SlideFit, dict[str, float]] | None:
    """The threshold whose slide scores tell the slides apart best, with the fit of them, and how well.

    Each threshold has the log loss of its fitted slide scores; best is the one whose neighbourhood is: on a
    few slides a single threshold, mostly a very high one, can be best by chance. None without both classes.
    """
    if len(set(labels)) < 2:
        return None
    pooled = np.concatenate([np.asarray(own, np.float64).ravel() for own in cells])
    if not len(pooled):
        return None
    shares = np.geomspace(0.5, 1 / max(2, len(pooled)), CANDIDATES)  # lesions may be few of many cells
    tried = np.sort([*np.quantile(pooled, 1 - shares), SLIDE_THRESHOLD])
    fits = [_fit_slides(labels, cells, float(threshold)) for threshold in tried]
    if not any(fits):
        return None
    losses = np.array([NOTHING_KNOWN if found is None else found[1]["slide_log_loss"] for found in fits])
    padded = np.pad(losses, AROUND, constant_values=NOTHING_KNOWN)
    nearby = np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND + 1).mean(axis=1)
    usable = [index for index, found in enumerate(fits) if found is not None]
    return fits[min(usable, key=lambda index: float(nearby[index]))]


def _fit_slides(
    labels: Sequence[bool], cells: Sequence[NDArray[Any]], threshold: float
) -> tuple[SlideFit, dict[str, float]] | None:
    scores = np.array([slide_score(own, threshold) for own in cells])
    fit = fit_platt(labels, scores)
    if fit is None or fit.slope <= 0:
        return None
    loss = log_loss(labels, fit(scores))
    if loss is None:
        return None
    told = {"slide_auc": float(roc_auc_score(labels, scores)), "slide_log_loss": loss}
    return SlideFit(threshold, fit.slope, fit.intercept), told


def of_shared(exact: Floats, shared: Floats) -> Shared:
    """How well the scores of both forms agree."""
    from scipy.stats import spearmanr

    rank = float(spearmanr(exact, shared).statistic) if exact.std() > 0 and shared.std() > 0 else 0.0
    return Shared(rank, float(np.abs(shared - exact).mean()), len(exact))
