"""ROC and precision-recall: areas, DeLong's intervals and test, bootstrap by patient, operating points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from lobule.measures.estimate import (
    LEVEL,
    Estimate,
    Floats,
    Resampling,
    checked,
    group_of_cases,
    one_class,
    undefined,
)

Measure = Literal["auroc", "auprc", "ap"]
MEASURES: tuple[Measure, ...] = ("auroc", "auprc", "ap")


@dataclass(frozen=True, eq=False)
class Counts:
    """True and false positives at every distinct score, along the last axis, from the highest score down.

    Cases may have weights, so that the scores are sorted only once for all resamples.
    """

    thresholds: Floats
    true_positives: Floats
    false_positives: Floats

    @classmethod
    def of(cls, labels: NDArray[np.bool_], scores: Floats, weights: Floats | None = None) -> Counts:
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        ends = np.nonzero(np.append(np.diff(ordered) != 0, True))[0]
        weight = np.ones(len(scores)) if weights is None else weights[..., order]
        hits = np.cumsum(weight * labels[order], axis=-1)[..., ends]
        alarms = np.cumsum(weight * ~labels[order], axis=-1)[..., ends]
        return cls(ordered[ends], hits, alarms)

    def auroc(self) -> Floats:
        """P(positive > negative) + ½ P(tie); NaN if a class is missing."""
        tp, fp = _with_origin(self.true_positives), _with_origin(self.false_positives)
        area = (np.diff(fp) * (tp[..., 1:] + tp[..., :-1])).sum(axis=-1) / 2
        return _ratio(area, tp[..., -1] * fp[..., -1], np.nan)

    def precision_recall(self) -> tuple[Floats, Floats]:
        """Precision and recall; precision is 1 if no case is called positive."""
        tp, fp = self.true_positives, self.false_positives
        return _ratio(tp, tp + fp, 1.0), _ratio(tp, tp[..., -1:], np.nan)

    def auprc(self) -> Floats:
        """Area under precision over recall by the trapezoidal rule, from (recall 0, precision 1)."""
        precision, recall = self.precision_recall()
        step = np.diff(_with_origin(recall))
        before = np.concatenate([np.ones_like(precision[..., :1]), precision[..., :-1]], axis=-1)
        return np.asarray((step * (precision + before)).sum(axis=-1) / 2)

    def ap(self) -> Floats:
        """Average precision: the sum of precision times the increase in recall."""
        precision, recall = self.precision_recall()
        return np.asarray((np.diff(_with_origin(recall)) * precision).sum(axis=-1))

    def measure(self, name: Measure) -> Floats:
        return {"auroc": self.auroc, "auprc": self.auprc, "ap": self.ap}[name]()


def _with_origin(values: Floats) -> Floats:
    return np.concatenate([np.zeros_like(values[..., :1]), values], axis=-1)


def _ratio(above: Floats, below: Floats, otherwise: float) -> Floats:
    above, below = np.broadcast_arrays(np.asarray(above), np.asarray(below))
    out = np.full(above.shape, otherwise)
    np.divide(above, below, out=out, where=below != 0)
    return out


def measure(labels: ArrayLike, scores: ArrayLike, name: Measure = "auroc") -> float | None:
    """The area under the ROC curve (or "auprc", "ap"); None if a class is missing."""
    label, score = checked(labels, scores)
    if one_class(label):
        return None
    return float(Counts.of(label, score).measure(name))


def auc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """The area under the ROC curve, ties counted half; None if a class is missing."""
    return measure(labels, scores, "auroc")


def bootstrap_measure(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike | None = None,
    name: Measure = "auroc",
    resampling: Resampling | None = None,
) -> Estimate:
    """An area with an interval from resampled patients (`groups`)."""
    label, score = checked(labels, scores)
    if reason := one_class(label):
        return undefined(reason)
    group, unit = group_of_cases(groups, len(label))
    value = float(Counts.of(label, score).measure(name))

    def statistic(weights: Floats) -> Floats:
        return Counts.of(label, score, weights).measure(name)

    return (resampling or Resampling()).estimate(value, group, statistic, unit)


# -- DeLong -------------------------------------------------------------------------------------------------


def _placements(label: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """The share of negatives below each positive, and the share of positives above each negative."""
    positive, negative = scores[label], scores[~label]
    everyone = rankdata(np.concatenate([positive, negative]))
    m, n = len(positive), len(negative)
    of_positive = (everyone[:m] - rankdata(positive)) / n
    of_negative = 1 - (everyone[m:] - rankdata(negative)) / m
    return of_positive, of_negative


def _covariance(label: NDArray[np.bool_], raters: list[Floats]) -> tuple[Floats, Floats]:
    """AUCs of several score lists on the same cases, and their covariance after DeLong."""
    placements = [_placements(label, scores) for scores in raters]
    of_positive = np.stack([placement[0] for placement in placements])
    of_negative = np.stack([placement[1] for placement in placements])
    m, n = of_positive.shape[1], of_negative.shape[1]
    spread = np.atleast_2d(np.cov(of_positive)) / m + np.atleast_2d(np.cov(of_negative)) / n
    return of_positive.mean(axis=1), spread


def delong(labels: ArrayLike, scores: ArrayLike) -> Estimate:
    """The AUC with DeLong's interval. It takes cases as independent: with several a patient, bootstrap."""
    label, score = checked(labels, scores)
    if reason := _too_few(label):
        return undefined(reason)
    areas, spread = _covariance(label, [score])
    half = norm.ppf(0.5 + LEVEL / 2) * np.sqrt(spread[0, 0])
    low, high = np.clip([areas[0] - half, areas[0] + half], 0, 1)
    return Estimate(float(areas[0]), float(low), float(high), method="DeLong")


def _too_few(label: NDArray[np.bool_]) -> str | None:
    if reason := one_class(label):
        return reason
    few = min(label.sum(), (~label).sum()) < 2
    return "fewer than two cases of a class, so no variance" if few else None


@dataclass(frozen=True)
class AucDifference:
    """The difference, AUC of a minus AUC of b, on the same cases by DeLong's paired test."""

    difference: Estimate
    z: float | None
    p: float | None


def delong_test(labels: ArrayLike, a: ArrayLike, b: ArrayLike) -> AucDifference:
    """Test whether two lists of scores of the same cases differ in AUC (two-sided)."""
    label, score_a = checked(labels, a)
    _, score_b = checked(labels, b)
    if reason := _too_few(label):
        return AucDifference(undefined(reason), None, None)
    areas, spread = _covariance(label, [score_a, score_b])
    difference = float(areas[0] - areas[1])
    deviation = float(np.sqrt(max(0.0, spread[0, 0] + spread[1, 1] - 2 * spread[0, 1])))
    half = float(norm.ppf(0.5 + LEVEL / 2)) * deviation
    estimate = Estimate(difference, difference - half, difference + half, method="DeLong, paired")
    if deviation < 1e-12:
        same = abs(difference) < 1e-12
        return AucDifference(estimate, 0.0 if same else None, 1.0 if same else None)
    z = difference / deviation
    return AucDifference(estimate, z, float(2 * norm.sf(abs(z))))


# -- parts of the curve -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Curve:
    """The points of a curve from left to right, with the threshold of each point."""

    x: Floats
    y: Floats
    thresholds: Floats

    def to_dict(self) -> dict[str, Any]:
        finite = [value if np.isfinite(value) else None for value in self.thresholds.tolist()]
        return {"x": self.x.tolist(), "y": self.y.tolist(), "thresholds": finite}


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> Curve | None:
    """False-positive rate and sensitivity at every distinct score; None if a class is missing."""
    label, score = checked(labels, scores)
    if one_class(label):
        return None
    counts = Counts.of(label, score)
    fpr = _with_origin(counts.false_positives / counts.false_positives[-1])
    tpr = _with_origin(counts.true_positives / counts.true_positives[-1])
    return Curve(fpr, tpr, np.concatenate([[np.inf], counts.thresholds]))


def precision_recall_curve(labels: ArrayLike, scores: ArrayLike) -> Curve | None:
    """Recall and precision at every distinct score, from (0, 1); None without positive cases."""
    label, score = checked(labels, scores)
    if not label.any():
        return None
    counts = Counts.of(label, score)
    precision, recall = counts.precision_recall()
    thresholds = np.concatenate([[np.inf], counts.thresholds])
    return Curve(_with_origin(recall), np.concatenate([[1.0], precision]), thresholds)


def partial_auc(
    labels: ArrayLike, scores: ArrayLike, max_fpr: float, standardised: bool = True
) -> float | None:
    """The area for false-positive rates up to `max_fpr`; standardised (McClish) so that chance is ½."""
    if not 0 < max_fpr <= 1:
        raise ValueError(f"the largest false-positive rate must lie in (0, 1], not {max_fpr}")
    curve = roc_curve(labels, scores)
    if curve is None:
        return None
    inside = curve.x <= max_fpr
    x = np.append(curve.x[inside], max_fpr)
    y = np.append(curve.y[inside], np.interp(max_fpr, curve.x, curve.y))
    area = float(np.trapezoid(y, x))
    if not standardised:
        return area
    chance = max_fpr**2 / 2
    return 0.5 * (1 + (area - chance) / (max_fpr - chance))


# -- operating points ---------------------------------------------------------------------------------------


def wilson(successes: int, trials: int) -> Estimate:
    """A proportion with Wilson's interval."""
    if trials == 0:
        return undefined("no cases")
    z = float(norm.ppf(0.5 + LEVEL / 2))
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return Estimate(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)), method="Wilson")


@dataclass(frozen=True)
class OperatingPoint:
    """Counts and rates if cases with score >= threshold are called positive."""

    threshold: float
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    sensitivity: Estimate
    specificity: Estimate
    positive_predictive_value: Estimate
    negative_predictive_value: Estimate
    accuracy: Estimate

    def to_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: v.to_dict() if isinstance(v, Estimate) else v for name, v in values.items()}


def at_threshold(labels: ArrayLike, scores: ArrayLike, threshold: float) -> OperatingPoint:
    """The operating point at a threshold."""
    label, score = checked(labels, scores)
    called_positive = score >= threshold
    tp, fp = int((called_positive & label).sum()), int((called_positive & ~label).sum())
    fn, tn = int((~called_positive & label).sum()), int((~called_positive & ~label).sum())
    return OperatingPoint(
        float(threshold), tp, fp, tn, fn,
        sensitivity=wilson(tp, tp + fn),
        specificity=wilson(tn, tn + fp),
        positive_predictive_value=wilson(tp, tp + fp),
        negative_predictive_value=wilson(tn, tn + fn),
        accuracy=wilson(tp + tn, len(label)),
    )  # fmt: skip


def operating_point(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    sensitivity: float | None = None,
    specificity: float | None = None,
) -> OperatingPoint | None:
    """The most specific point that reaches a sensitivity, or the most sensitive that reaches a specificity.

    The threshold is one of the scores, or just above the highest score if no case may be called positive.
    Measure a threshold on other cases than those on which it was chosen.

    Args:
        labels: 1 for positive cases, 0 for negative cases.
        scores: The score of each case.
        sensitivity: The sensitivity to reach. Pass either this or `specificity`.
        specificity: The specificity to reach.

    Returns:
        The operating point; None if a class is missing.
    """
    if (sensitivity is None) == (specificity is None):
        raise ValueError("pass either sensitivity or specificity")
    label, score = checked(labels, scores)
    if one_class(label):
        return None
    counts = Counts.of(label, score)
    if sensitivity is not None:
        reached = counts.true_positives >= sensitivity * label.sum() - 1e-9
        return at_threshold(label, score, float(counts.thresholds[np.argmax(reached)]))
    assert specificity is not None
    true_negatives = (~label).sum() - counts.false_positives
    allowed = np.nonzero(true_negatives >= specificity * (~label).sum() - 1e-9)[0]
    if len(allowed) == 0:
        return at_threshold(label, score, float(np.nextafter(counts.thresholds[0], np.inf)))
    return at_threshold(label, score, float(counts.thresholds[allowed[-1]]))
