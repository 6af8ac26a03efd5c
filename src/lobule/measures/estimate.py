"""Estimates with intervals, and the resampling of patients that gives the intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lobule.errors import UsageError

Floats = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
WEIGHTS_AT_ONCE = 100_000
"""Weights (resamples × cases) in memory at a time; few enough for the cache of a core."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval. If the value is undefined, it is None and `reason` says why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    level: float = LEVEL
    method: str | None = None
    """How the interval was computed."""
    resamples: int | None = None
    """Resamples in which the value was defined."""
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None or name == "value"}

    def __str__(self) -> str:
        if self.value is None:
            return f"undefined ({self.reason})"
        if self.low is None or self.high is None:
            return f"{self.value:.4f}"
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


def undefined(reason: str) -> Estimate:
    return Estimate(None, reason=reason)


@dataclass(frozen=True)
class Resampling:
    """The bootstrap: groups (patients) are drawn with replacement, each with all its cases."""

    resamples: int = RESAMPLES
    level: float = LEVEL
    seed: int = 0

    def weights(self, groups: ArrayLike) -> Iterator[Floats]:
        """How often each case is drawn, in blocks of (resamples, cases). Equal seeds give equal draws."""
        names, group_of = np.unique(np.asarray(groups), return_inverse=True)
        rng = np.random.default_rng(self.seed)
        block = max(1, WEIGHTS_AT_ONCE // max(1, len(group_of)))
        for start in range(0, self.resamples, block):
            draws = rng.integers(0, len(names), (min(block, self.resamples - start), len(names)))
            flat = draws + np.arange(len(draws))[:, None] * len(names)
            times = np.bincount(flat.ravel(), minlength=draws.shape[0] * len(names))
            yield times.reshape(draws.shape)[:, group_of].astype(np.float64)

    def estimate(
        self, value: float | None, groups: ArrayLike, statistic: Callable[[Floats], Floats], unit: str
    ) -> Estimate:
        """The interval of a statistic.

        Args:
            value: The statistic of the sample; None if it is undefined.
            groups: The group (patient) of each case.
            statistic: Computes it for each resample from weights (resamples, cases); NaN if undefined.
            unit: What the groups are, such as "patient".
        """
        if value is None:
            return undefined("undefined in the sample itself")
        resampled = np.concatenate([statistic(weights) for weights in self.weights(groups)])
        return self.interval(value, resampled, unit)

    def interval(self, value: float, resampled: Sequence[float] | Floats, unit: str) -> Estimate:
        """The percentile interval of resampled values."""
        values = np.asarray(resampled, dtype=np.float64)
        defined = values[np.isfinite(values)]
        method = f"bootstrap of {unit}s, percentiles"
        if len(defined) < max(2, len(values) // 2):
            reason = f"defined in only {len(defined)} of {len(values)} resamples"
            return Estimate(value, None, None, self.level, method, len(defined), reason)
        tail = (1 - self.level) / 2
        low, high = np.quantile(defined, [tail, 1 - tail])
        return Estimate(value, float(low), float(high), self.level, method, len(defined))


def group_of_cases(groups: ArrayLike | None, cases: int) -> tuple[NDArray[Any], str]:
    """The groups to resample and the word for one group; without groups every case is one."""
    if groups is None:
        return np.arange(cases), "case"
    array = np.asarray(groups)
    if array.shape != (cases,):
        raise ValueError(f"there are {cases} cases but groups of shape {array.shape}")
    return array, "patient"


def checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    """Labels as bool and scores as float64.

    Raises:
        ValueError: The lists differ in length, or a label is not 0 or 1.
        UsageError: A score is NaN or infinite.
    """
    label, score = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise ValueError(
            f"labels {label.shape} and scores {score.shape} must be two lists of the same length"
        )
    if not np.isin(label, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if not np.isfinite(score).all():
        raise UsageError(
            f"{np.count_nonzero(~np.isfinite(score))} of {len(score)} scores are not numbers",
            remedy="Leave out cases without a score, and report their number",
        )
    return label.astype(bool), score


def one_class(labels: NDArray[np.bool_]) -> str | None:
    """Why measures of two classes are undefined for these labels; None if both classes occur."""
    if len(labels) == 0:
        return "no cases"
    if labels.all():
        return "no negative cases"
    return None if labels.any() else "no positive cases"
