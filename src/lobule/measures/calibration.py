"""Calibration: does a score of 0.8 mean 80 %? Reliability, Brier score, and fits that correct scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, xlogy

from lobule.measures.estimate import Floats, checked, one_class


@dataclass(frozen=True)
class Bin:
    """Cases with probabilities in [low, high); the last bin includes its upper end."""

    low: float
    high: float
    cases: int
    mean_probability: float | None
    share_positive: float | None


@dataclass(frozen=True)
class Reliability:
    """How well probabilities agree with outcomes. Errors are None without cases."""

    bins: tuple[Bin, ...]
    expected_error: float | None
    """Expected calibration error: mean over cases of |mean probability - share of positives| of their bin."""
    largest_error: float | None
    brier: float | None
    reliability: float | None
    resolution: float | None
    uncertainty: float | None
    within_bins: float | None
    """The remainder due to binning: brier = reliability - resolution + uncertainty + within_bins."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def reliability(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> Reliability:
    """Measure the calibration of probabilities in bins, and decompose the Brier score.

    Args:
        labels: 1 for positive cases, 0 for negative cases.
        probabilities: Predicted probabilities from 0 to 1.
        bins: Number of bins, which have equal width.

    Raises:
        ValueError: A probability is outside 0 to 1.
    """
    label, probability = checked(labels, probabilities)
    if len(probability) and (probability.min() < 0 or probability.max() > 1):
        raise ValueError("probabilities must lie in 0 to 1; convert scores to probabilities first")
    if len(label) == 0:
        return Reliability((), None, None, None, None, None, None, None)
    edges = np.linspace(0, 1, bins + 1)
    bin_index = np.clip(np.searchsorted(edges, probability, "right") - 1, 0, len(edges) - 2)
    cases = np.bincount(bin_index, minlength=len(edges) - 1)
    divisor = np.maximum(cases, 1)
    mean = np.bincount(bin_index, probability, len(edges) - 1) / divisor
    share = np.bincount(bin_index, label, len(edges) - 1) / divisor
    weight, gap, rate = cases / len(label), np.abs(mean - share), float(label.mean())
    brier = float(((probability - label) ** 2).mean())
    calibration, resolution = float(weight @ gap**2), float(weight @ (share - rate) ** 2)
    uncertainty = rate * (1 - rate)
    all_bins = tuple(
        Bin(float(low), float(high), int(n), float(m) if n else None, float(s) if n else None)
        for low, high, n, m, s in zip(edges, edges[1:], cases, mean, share, strict=False)
    )
    return Reliability(
        all_bins, float(weight @ gap), float(gap[cases > 0].max()), brier,
        calibration, resolution, uncertainty, within_bins=brier - (calibration - resolution + uncertainty),
    )  # fmt: skip


@dataclass(frozen=True)
class Platt:
    """probability = 1 / (1 + exp(-(slope · score + intercept)))."""

    slope: float
    intercept: float

    def __call__(self, scores: ArrayLike) -> Floats:
        return np.asarray(expit(self.slope * np.asarray(scores, dtype=np.float64) + self.intercept))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "platt"} | asdict(self)


def fit_platt(labels: ArrayLike, scores: ArrayLike) -> Platt | None:
    """Platt's logistic fit; None if a class is missing.

    Platt's smoothed targets keep the slope finite if the scores separate the classes.
    """
    from scipy.optimize import minimize

    label, score = checked(labels, scores)
    if one_class(label):
        return None
    positive, negative = int(label.sum()), int((~label).sum())
    target = np.where(label, (positive + 1) / (positive + 2), 1 / (negative + 2))
    # The fit on standardised scores converges for scores of any scale.
    centre, spread = float(score.mean()), float(score.std()) or 1.0
    z = (score - centre) / spread

    def loss(line: Floats) -> tuple[float, Floats]:
        logit = line[0] * z + line[1]
        error = expit(logit) - target
        return float((np.logaddexp(0, logit) - target * logit).sum()), np.array([error @ z, error.sum()])

    start = np.array([0.0, np.log((positive + 1) / (negative + 1))])
    slope, intercept = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-8}).x
    return Platt(float(slope / spread), float(intercept - slope * centre / spread))


@dataclass(frozen=True)
class Isotonic:
    """A non-decreasing curve: linear between its knots, constant beyond them."""

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __call__(self, scores: ArrayLike) -> Floats:
        return np.asarray(np.interp(np.asarray(scores, dtype=np.float64), self.scores, self.probabilities))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "isotonic"} | asdict(self)


def fit_isotonic(labels: ArrayLike, scores: ArrayLike) -> Isotonic | None:
    """The non-decreasing curve with the smallest squared error; None if a class is missing."""
    from sklearn.isotonic import IsotonicRegression  # Only a fit needs it, and importing it takes a second.

    label, score = checked(labels, scores)
    if one_class(label):
        return None
    fit = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(score, label.astype(np.float64))
    return Isotonic(tuple(fit.X_thresholds_.tolist()), tuple(fit.y_thresholds_.tolist()))


def fit_from_dict(values: Mapping[str, Any]) -> Platt | Isotonic:
    """Restore a fit from the output of its `to_dict`."""
    if values["kind"] == "platt":
        return Platt(float(values["slope"]), float(values["intercept"]))
    if values["kind"] == "isotonic":
        return Isotonic(tuple(values["scores"]), tuple(values["probabilities"]))
    raise ValueError(f"there is no fit of the kind {values['kind']!r}")


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float | None:
    """Mean negative log likelihood; None without cases, infinite if a wrong outcome had probability 1."""
    label, probability = checked(labels, probabilities)
    if len(label) == 0:
        return None
    likelihood = xlogy(label, probability) + xlogy(~label, 1 - probability)
    return float(-likelihood.mean())
