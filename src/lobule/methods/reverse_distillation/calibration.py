"""Conversion of raw scores to probabilities, for patches and for slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit

from lobule.measures.calibration import Platt, fit_platt, log_loss
from lobule.nets.anomaly import SLIDE_THRESHOLD, slide_score

Floats = NDArray[np.float64]

CANDIDATES, NEIGHBOURS = 60, 4
"""Number of thresholds that are tried for the slide score, from the median of all cells to the maximum, and
number of neighbouring thresholds on either side that are averaged when one is evaluated."""
CHANCE_LOG_LOSS = float(np.log(2))
"""The log loss of always predicting 1/2."""
RARE_SHARE = 0.01
"""Share of the normal patches that may score above 1/2 when there are no tumour patches."""


@dataclass(frozen=True)
class FormAgreement:
    """Agreement of the shared form with the exact one, measured on fields of the training's slides."""

    rank: float
    """Rank correlation of the two scores of each cell."""
    error: float
    """Mean absolute difference of the raw scores."""
    cells: int


@dataclass(frozen=True)
class SlideFit:
    """Slide score of one form: the threshold for cells, and the calibration of their mean."""

    threshold: float
    """Cells with at least this raw score are averaged."""
    slope: float
    intercept: float

    def probability(self, raw: NDArray[Any]) -> float:
        """The slide score of its cells' raw scores."""
        return float(Platt(self.slope, self.intercept)([slide_score(raw, self.threshold)])[0])


@dataclass(frozen=True)
class Calibration:
    """Conversion of raw scores to reported scores; without `patch`, only the paper's threshold is used."""

    patch: Platt | None = None
    slides: Mapping[str, SlideFit | None] = field(default_factory=dict)
    """Fit for each form, because the scores of the shared form have a smaller range. None for a form whose
    scores do not separate the validation slides; empty if there were no validation slides."""
    shared: FormAgreement | None = None

    def patch_probability(self, raw: ArrayLike) -> Floats:
        assert self.patch is not None
        return self.patch(raw)

    def of_form(self, form: str) -> SlideFit | None:
        """The fit of a form, or of the other form if only that one was fitted."""
        if form in self.slides:
            return self.slides[form]
        return next(iter(self.slides.values()), None)

    def threshold(self, form: str) -> float:
        """The lowest raw score of the cells that the slide score averages."""
        fit = self.of_form(form)
        if fit is not None:
            return fit.threshold
        return SLIDE_THRESHOLD if self.patch is None else half_probability_score(self.patch)

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
    def from_dict(cls, stored: Mapping[str, Any]) -> Calibration:
        return cls(
            patch=Platt(**stored["patch"]) if stored["patch"] else None,
            slides={form: fit and SlideFit(**fit) for form, fit in stored["slides"].items()},
            shared=FormAgreement(**stored["shared"]) if stored["shared"] else None,
        )


def fit_patches(labels: ArrayLike, raw: ArrayLike) -> Platt | None:
    """Fit probabilities on patches of both classes; None if tumour does not score higher."""
    fit = fit_platt(labels, raw)
    return fit if fit is not None and fit.slope > 0 else None


def fit_normal_patches(raw: Floats) -> Platt:
    """Scale the scores of normal patches when there are no tumour patches.

    The score that one normal patch in a hundred exceeds becomes 1/2, and the median becomes 1/100. The result
    is a scale from 0 to 1, not a probability.
    """
    middle, rare = np.quantile(raw, [0.5, 1 - RARE_SHARE])
    slope = float(-logit(RARE_SHARE) / max(rare - middle, 1e-6))
    return Platt(slope, float(-slope * rare))


def half_probability_score(fit: Platt) -> float:
    """The raw score of probability 1/2."""
    return -fit.intercept / fit.slope


def fit_slide_score(
    labels: Sequence[bool], cells: Sequence[NDArray[Any]]
) -> tuple[SlideFit, dict[str, float]] | None:
    """Choose the threshold whose slide scores separate the slides best.

    Each threshold is evaluated by the log loss of its fitted slide scores, averaged over neighbouring
    thresholds: on a few slides a single threshold, mostly a very high one, can be the best by chance.

    Returns:
        The fit and its metrics, or None if one class is missing or no threshold separates the slides.
    """
    if len(set(labels)) < 2:
        return None
    pooled = np.concatenate([np.asarray(slide_cells, np.float64).ravel() for slide_cells in cells])
    if not len(pooled):
        return None
    shares = np.geomspace(
        0.5, 1 / max(2, len(pooled)), CANDIDATES
    )  # a lesion may cover only a few of very many cells
    thresholds = np.sort([*np.quantile(pooled, 1 - shares), SLIDE_THRESHOLD])
    fits = [_fit_at_threshold(labels, cells, float(threshold)) for threshold in thresholds]
    if not any(fits):
        return None
    losses = np.array([CHANCE_LOG_LOSS if fit is None else fit[1]["slide_log_loss"] for fit in fits])
    padded = np.pad(losses, NEIGHBOURS, constant_values=CHANCE_LOG_LOSS)
    nearby_loss = np.lib.stride_tricks.sliding_window_view(padded, 2 * NEIGHBOURS + 1).mean(axis=1)
    usable = [index for index, fit in enumerate(fits) if fit is not None]
    return fits[min(usable, key=lambda index: float(nearby_loss[index]))]


def _fit_at_threshold(
    labels: Sequence[bool], cells: Sequence[NDArray[Any]], threshold: float
) -> tuple[SlideFit, dict[str, float]] | None:
    scores = np.array([slide_score(slide_cells, threshold) for slide_cells in cells])
    fit = fit_platt(labels, scores)
    if fit is None or fit.slope <= 0:
        return None
    loss = log_loss(labels, fit(scores))
    if loss is None:
        return None
    from sklearn.metrics import roc_auc_score

    metrics = {"slide_auc": float(roc_auc_score(labels, scores)), "slide_log_loss": loss}
    return SlideFit(threshold, fit.slope, fit.intercept), metrics


def form_agreement(exact: Floats, shared: Floats) -> FormAgreement:
    """Measure how well the scores of both forms agree."""
    from scipy.stats import spearmanr

    rank = float(spearmanr(exact, shared).statistic) if exact.std() > 0 and shared.std() > 0 else 0.0
    return FormAgreement(rank, float(np.abs(shared - exact).mean()), len(exact))
