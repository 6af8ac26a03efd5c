"""Reader studies: readers and models on the same cases, alone, on average, and combined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lobule.measures.estimate import (
    Estimate,
    Floats,
    Resampling,
    checked,
    group_of_cases,
    one_class,
    undefined,
)
from lobule.measures.roc import MEASURES, Counts, Measure


@dataclass(frozen=True)
class Row:
    """One rater, or the mean of several; `spread` is the standard deviation between them."""

    name: str
    auroc: Estimate
    auprc: Estimate
    ap: Estimate
    spread: Mapping[Measure, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"name": self.name}
        plain |= {name: getattr(self, name).to_dict() for name in MEASURES}
        return plain if self.spread is None else plain | {"spread": dict(self.spread)}


@dataclass(frozen=True, eq=False)
class ReaderStudy:
    """Cases with their truth, the scores of readers, and the patient each case belongs to."""

    labels: NDArray[np.bool_]
    readers: Mapping[str, Floats]
    patients: NDArray[Any]
    resampling: Resampling

    @classmethod
    def of(
        cls,
        labels: ArrayLike,
        readers: Mapping[str, ArrayLike],
        patients: ArrayLike | None = None,
        resampling: Resampling | None = None,
    ) -> ReaderStudy:
        if not readers:
            raise ValueError("a reader study needs at least one reader")
        scored = {name: checked(labels, scores)[1] for name, scores in readers.items()}
        label = np.asarray(labels).astype(bool)
        patient, _ = group_of_cases(patients, len(label))
        return cls(label, scored, patient, resampling or Resampling())

    def rater(self, name: str, scores: ArrayLike) -> Row:
        """The row of one rater, which is a reader or a model."""
        return self._mean_of(name, [checked(self.labels, scores)[1]])

    def each_reader(self) -> tuple[Row, ...]:
        return tuple(self.rater(name, scores) for name, scores in self.readers.items())

    def mean_of_readers(self) -> Row:
        """The mean of the areas of the readers: the performance of a single reader."""
        return self._mean_of("mean of readers", list(self.readers.values()))

    def readers_together(self) -> Row:
        """One rater whose score is the mean of all readers' scores."""
        return self.rater("readers together", np.mean(list(self.readers.values()), axis=0))

    def hybrid(self, scores: ArrayLike, weight: float = 0.5, name: str = "hybrid") -> Row:
        """The mean over readers, each combined with a model whose scores have the given weight."""
        if not 0 <= weight <= 1:
            raise ValueError(f"the weight of the model must lie in 0 to 1, not {weight}")
        model = checked(self.labels, scores)[1]
        mixed = [(1 - weight) * reader + weight * model for reader in self.readers.values()]
        return self._mean_of(f"{name}, weight {weight:g}", mixed)

    def _mean_of(self, name: str, raters: list[Floats]) -> Row:
        if reason := one_class(self.labels):
            nothing = undefined(reason)
            return Row(name, nothing, nothing, nothing)
        reader_values = {
            measure: np.array([float(Counts.of(self.labels, scores).measure(measure)) for scores in raters])
            for measure in MEASURES
        }
        resamples: dict[Measure, list[Floats]] = {measure: [] for measure in MEASURES}
        for weights in self.resampling.weights(self.patients):
            # Sort and count once for all three areas.
            counted = [Counts.of(self.labels, scores, weights) for scores in raters]
            for measure in MEASURES:
                resamples[measure].append(np.mean([counts.measure(measure) for counts in counted], axis=0))
        auroc, auprc, ap = (
            self.resampling.interval(float(values.mean()), np.concatenate(resamples[measure]), "patient")
            for measure, values in reader_values.items()
        )
        spread = {measure: float(values.std()) for measure, values in reader_values.items()}
        return Row(name, auroc, auprc, ap, spread if len(raters) > 1 else None)
