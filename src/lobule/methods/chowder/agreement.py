"""How far the members of an ensemble agree, and when their mean score is unreliable.

Members differ only in their seed and their random sample of tiles, so their disagreement is chance.
The rules:

- A score is unstable where the standard deviation of the members' scores is above `UNSTABLE_SD`, or where the
  standard error of their mean is above the standard deviation of the mean scores of the training cases: the
  error is then larger than the differences between cases.
- An ensemble is unreliable where less than `LEAST_RELIABILITY` of the variance of its scores lies between
  cases; the rest is disagreement of the members.
- A validation set is small where a label has fewer than `LEAST_VALIDATED` cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNSTABLE_SD = 0.2
"""For comparison: uniformly distributed scores between 0 and 1 have a standard deviation of 0.29."""
LEAST_RELIABILITY = 0.5
LEAST_VALIDATED = 10
WIDE_RANGE = 0.2
"""Members whose validation AUCs are further apart than this are reported."""

Floats = NDArray[np.float64]


def probabilities(logits: NDArray[Any]) -> Floats:
    """Convert logits to scores between 0 and 1."""
    scores: Floats = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    return scores


def case_spread(logits: NDArray[Any]) -> dict[str, Any]:
    """Describe the members' scores of one case, for `result.json`."""
    scores = probabilities(logits)
    return {
        "scores": [round(float(score), 6) for score in scores],
        "mean": float(scores.mean()),
        "spread": float(scores.std()),
        "min": float(scores.min()),
        "max": float(scores.max()),
    }


def case_note(logits: NDArray[Any], case_sd: float | None) -> str | None:
    """Explain why the mean score of a case is unstable, or return None if it can be used.

    Args:
        logits: One logit for each member.
        case_sd: Standard deviation of the mean scores of the training cases; None if the bundle lacks it.
    """
    scores = probabilities(logits)
    if len(scores) < 2:
        return None
    sd = float(scores.std(ddof=1))
    values = f"the {len(scores)} members score this case from {scores.min():.3f} to {scores.max():.3f}"
    if sd > UNSTABLE_SD:
        return f"unstable score: {values} (standard deviation {sd:.3f}, above {UNSTABLE_SD})"
    error = sd / np.sqrt(len(scores))
    if case_sd is not None and error > case_sd:
        return (
            f"unstable score: {values}; the standard error of their mean, {error:.4f}, is above the "
            f"standard deviation between the training cases, {case_sd:.4f}"
        )
    return None


def ensemble_agreement(logits_of_cases: Sequence[NDArray[Any]]) -> dict[str, Any]:
    """Measure how much of the variance of an ensemble's scores lies between cases.

    Args:
        logits_of_cases: For each case the logits of all members.

    Returns:
        `case_sd`, the standard deviation of the mean scores; `member_sd`, the typical standard deviation of
        the members' scores within a case; `reliability`, the estimated share of the variance of the mean
        scores that is not disagreement of the members, from 0 to 1. The values are None if there are fewer
        than two cases or members.
    """
    scores = probabilities(np.stack(logits_of_cases))
    cases, members = scores.shape
    if cases < 2 or members < 2:
        return {"case_sd": None, "member_sd": None, "reliability": None}
    # A member that scores every case higher does not change the ranking of cases. Therefore the mean level of
    # each member is removed before the disagreement is measured.
    centred = scores - scores.mean(axis=0)
    between = float(centred.mean(axis=1).var(ddof=1))
    residual = centred - centred.mean(axis=1, keepdims=True)
    within = float((residual**2).sum() / ((cases - 1) * (members - 1)))
    reliability = max(0.0, 1 - within / members / between) if between > 0 else 0.0
    return {
        "case_sd": float(scores.mean(axis=1).std(ddof=1)),
        "member_sd": float(np.sqrt(scores.var(axis=1, ddof=1).mean())),
        "reliability": reliability,
    }


def auc_spread(aucs: Sequence[float | None]) -> dict[str, Any] | None:
    """Summarise the members' validation AUCs; None if there was no validation."""
    values = np.array([auc for auc in aucs if auc is not None])
    if len(values) == 0:
        return None
    sd = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "sd": sd, "min": float(values.min()), "max": float(values.max())}


def training_notes(
    agreement: dict[str, Any], spread: dict[str, Any] | None, validation_labels: Sequence[int], members: int
) -> list[str]:
    """Warn about an unreliable ensemble, and about a validation set that is too small."""
    notes = []
    if members == 1:
        notes.append(
            "the ensemble has one member: its scores depend on the seed by an unknown amount. "
            "Use --set members=10"
        )
    reliability = agreement["reliability"]
    if reliability is not None and reliability < LEAST_RELIABILITY:
        notes.append(
            f"the members disagree more than the cases differ: {reliability:.0%} of the variance of the "
            f"scores lies between cases (at least {LEAST_RELIABILITY:.0%} expected). "
            "Train more members or longer"
        )
    if spread is not None and spread["max"] - spread["min"] > WIDE_RANGE:
        notes.append(
            f"the validation AUC of single members ranges from {spread['min']:.3f} to {spread['max']:.3f}"
        )
    positive = sum(validation_labels)
    normal = len(validation_labels) - positive
    if validation_labels and min(positive, normal) < LEAST_VALIDATED:
        error = chance_error(positive, normal)
        notes.append(
            f"the validation set is too small: with {positive} positive and {normal} normal cases, the AUC "
            f"of random scores has a standard error of {error:.2f}"
        )
    return notes


def chance_error(positive: int, normal: int) -> float:
    """Return the standard error of the AUC of random scores (the null variance of Mann-Whitney's U)."""
    return float(np.sqrt((positive + normal + 1) / (12 * positive * normal)))
