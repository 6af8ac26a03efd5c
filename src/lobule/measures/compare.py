"""Paired comparisons: two models (or a model and a reader) on the same cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lobule.measures.camelyon16 import SlideMatch, froc, froc_resamples, jama_froc
from lobule.measures.estimate import Estimate, Resampling, checked, group_of_cases, one_class, undefined
from lobule.measures.roc import Counts, Measure, delong_test, measure


@dataclass(frozen=True)
class Comparison:
    """A measure of models a and b on the same cases, and the difference a - b with its interval."""

    measure: str
    a: float | None
    b: float | None
    difference: Estimate
    p: float | None
    """Two-sided: DeLong's test for an AUC with one case per patient, else from the resamples."""

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self) | {"difference": self.difference.to_dict()}
        # `evaluation.json` stores the name of the measure under the key "what".
        return {"what": values.pop("measure"), **values}


def compare_scores(
    labels: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    groups: ArrayLike | None = None,
    name: Measure = "auroc",
    resampling: Resampling | None = None,
) -> Comparison:
    """The difference between two models in an area, with both models on the same resampled patients."""
    label, score_a = checked(labels, a)
    _, score_b = checked(labels, b)
    if reason := one_class(label):
        return Comparison(name, None, None, undefined(reason), None)
    group, unit = group_of_cases(groups, len(label))
    options = resampling or Resampling()
    resampled = [
        [Counts.of(label, score, weights).measure(name) for weights in options.weights(group)]
        for score in (score_a, score_b)
    ]
    differences = np.concatenate(resampled[0]) - np.concatenate(resampled[1])
    value_a, value_b = measure(label, score_a, name), measure(label, score_b, name)
    assert value_a is not None and value_b is not None
    difference = options.interval(value_a - value_b, differences, unit)
    own_patient = len(np.unique(group)) == len(label)
    p = delong_test(label, score_a, score_b).p if name == "auroc" and own_patient else None
    return Comparison(name, value_a, value_b, difference, _two_sided(differences) if p is None else p)


def compare_froc(
    a: Sequence[SlideMatch],
    b: Sequence[SlideMatch],
    groups: ArrayLike | None = None,
    resampling: Resampling | None = None,
    *,
    jama: bool = False,
) -> Comparison:
    """The difference between two models in FROC score, on the same resampled patients (or slides)."""
    if [match.name for match in a] != [match.name for match in b]:
        raise ValueError("both models must be matched on the same slides, in the same order")
    measure = "jama_froc" if jama else "froc"
    score_a, score_b = ((jama_froc if jama else froc)(matches).score for matches in (a, b))
    if score_a is None or score_b is None:
        return Comparison(measure, score_a, score_b, undefined("no lesions or no normal slides"), None)
    group, _ = group_of_cases(groups, len(a))
    options = resampling or Resampling()
    differences = froc_resamples(a, group, options, jama=jama) - froc_resamples(b, group, options, jama=jama)
    difference = options.interval(score_a - score_b, differences, "slide" if groups is None else "patient")
    return Comparison(measure, score_a, score_b, difference, _two_sided(differences))


def compare_means(
    a: ArrayLike, b: ArrayLike, groups: ArrayLike, name: str, resampling: Resampling | None = None
) -> Comparison:
    """The difference between the means of two models over the same cases, on the same resampled patients."""
    values = np.stack([np.asarray(a, np.float64), np.asarray(b, np.float64)])
    if not values.shape[1]:
        return Comparison(name, None, None, undefined("no case has values of both models"), None)
    options = resampling or Resampling()
    # Every resample contains at least one case, so that the sum of its weights is positive.
    means = [weights @ values.T / weights.sum(axis=1)[:, None] for weights in options.weights(groups)]
    resampled = np.concatenate(means)
    differences = resampled[:, 0] - resampled[:, 1]
    mean_a, mean_b = (float(value) for value in values.mean(axis=1))
    difference = options.interval(mean_a - mean_b, differences, "patient")
    return Comparison(name, mean_a, mean_b, difference, _two_sided(differences))


def _two_sided(differences: ArrayLike) -> float | None:
    """The two-sided p-value: twice the share of resamples on the rarer side of 0, counting one extra."""
    values = np.asarray(differences, dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return None
    rarer = min(np.count_nonzero(values <= 0), np.count_nonzero(values >= 0))
    return float(min(1.0, 2 * (rarer + 1) / (len(values) + 1)))
