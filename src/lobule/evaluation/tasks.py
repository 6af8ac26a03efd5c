"""A task is a set of cases with labels, scores and patients; this module creates tasks and measures them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Case
from lobule.evaluation.few_patients import without_intervals
from lobule.evaluation.labels import TargetPlan
from lobule.evaluation.options import Options
from lobule.evaluation.sources import ANY_SCORE, CaseResult
from lobule.measures.calibration import log_loss, reliability
from lobule.measures.compare import compare_scores
from lobule.measures.estimate import Floats, one_class
from lobule.measures.roc import (
    MEASURES,
    at_threshold,
    bootstrap_measure,
    delong,
    operating_point,
    precision_recall_curve,
    roc_curve,
    wilson,
)

SENSITIVITIES = SPECIFICITIES = (0.9, 0.95)
SIDES = ("left", "right")


@dataclass(frozen=True, eq=False)
class Task:
    """Cases (or breasts), each with a label and a score."""

    name: str
    unit: str
    """What is counted: slides, images, breasts."""
    cases: tuple[Case, ...]
    labels: NDArray[np.bool_]
    scores: Floats
    other_scores: Floats | None = None
    """The scores of the other source; NaN for cases that it did not score."""

    def subset(self, keep: Sequence[bool] | NDArray[np.bool_]) -> Task:
        """The task of some of the cases."""
        chosen = np.asarray(keep, dtype=bool)
        cases = tuple(case for case, is_chosen in zip(self.cases, chosen, strict=True) if is_chosen)
        other_scores = None if self.other_scores is None else self.other_scores[chosen]
        return Task(self.name, self.unit, cases, self.labels[chosen], self.scores[chosen], other_scores)

    @property
    def patients(self) -> NDArray[np.str_]:
        return np.array([case.patient for case in self.cases], dtype=np.str_)


# -- making tasks -------------------------------------------------------------------------------------------


Row = tuple[Case, bool, float, float]
"""A case (or breast): its label, its score, and its score in the other source; NaN if that has none."""


def case_tasks(
    case_results: Sequence[tuple[Case, CaseResult]],
    plan: TargetPlan,
    other_results: Mapping[str, CaseResult] | None,
    unit: str,
) -> list[Task]:
    """One task per target, over the cases with a label and a score."""
    tasks = []
    for target in plan.targets:
        rows = [
            (
                case,
                case.label in target.positive,
                score,
                _other_score(case, other_results, target.scores, True),
            )
            for case, result in case_results
            if case.label is not None and (score := total(result.scores, target.scores)) is not None
        ]
        tasks.append(_make_task(target.name, unit, rows, other_results is not None))
    return tasks


def breast_tasks(
    case_results: Sequence[tuple[Case, CaseResult]], other_results: Mapping[str, CaseResult] | None
) -> list[Task]:
    """One task for malignant and one for benign, each over the breasts with a label and a score."""
    tasks = []
    for diagnosis in ("malignant", "benign"):
        rows = [
            (case, case.breast_labels[name], score, _other_score(case, other_results, (name,)))
            for case, result in case_results
            for name in (f"{side}_{diagnosis}" for side in SIDES)
            if name in case.breast_labels and (score := total(result.scores, (name,))) is not None
        ]
        if rows:
            tasks.append(_make_task(diagnosis, "breasts", rows, other_results is not None))
    return tasks


def total(scores: Mapping[str, float], names: Sequence[str]) -> float | None:
    """The sum of the named scores, or the score of a case without a result; None if a score is missing."""
    if ANY_SCORE in scores:
        return scores[ANY_SCORE]
    if not names or any(name not in scores for name in names):
        return None
    return float(sum(scores[name] for name in names))


def _other_score(
    case: Case, other_results: Mapping[str, CaseResult] | None, names: Sequence[str], any_name: bool = False
) -> float:
    """The score of a case in the other source; NaN if it is missing.

    With `any_name`, the only score of a case may have any name.
    """
    result = (other_results or {}).get(case.id)
    scores = {} if result is None else result.scores
    score = total(scores, names)
    if score is None and any_name and len(scores) == 1:
        score = next(iter(scores.values()))
    return np.nan if score is None else float(score)


def _make_task(name: str, unit: str, rows: Sequence[Row], compared: bool) -> Task:
    cases, labels, scores, other_scores = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Task(
        name,
        unit,
        cases,
        np.array(labels, dtype=bool),
        np.array(scores, dtype=np.float64),
        np.array(other_scores, dtype=np.float64) if compared else None,
    )


# -- measuring ----------------------------------------------------------------------------------------------


def measure_task(task: Task, options: Options) -> dict[str, Any]:
    """The areas with intervals, the calibration and the operating points of a task."""
    label, score, patients = task.labels, task.scores, task.patients
    resampling = options.resampling
    measures: dict[str, Any] = {
        task.unit: len(label),
        "positive": int(label.sum()),
        "negative": int((~label).sum()),
        "patients": len(np.unique(patients)),
    }
    for name in MEASURES:
        measures[name] = bootstrap_measure(label, score, patients, name, resampling).to_dict()
    measures["auroc_delong"] = delong(label, score).to_dict()
    measures["prevalence"] = float(label.mean()) if len(label) else None
    measures["calibration"] = _calibration(label, score)
    measures["operating_points"] = _operating_points(label, score, options)
    roc, recall = roc_curve(label, score), precision_recall_curve(label, score)
    measures["roc"] = None if roc is None else roc.to_dict()
    measures["precision_recall"] = None if recall is None else recall.to_dict()
    return measures


def _calibration(label: NDArray[np.bool_], score: Floats) -> dict[str, Any]:
    if len(score) == 0:
        return {"reason": "no cases"}
    if score.min() < 0 or score.max() > 1:
        return {"reason": "the scores are not probabilities: some lie outside 0 to 1"}
    loss = log_loss(label, score)
    finite = loss if loss is not None and np.isfinite(loss) else None
    return reliability(label, score).to_dict() | {"log_loss": finite}


def _operating_points(label: NDArray[np.bool_], score: Floats, options: Options) -> list[dict[str, Any]]:
    points = [
        {"chosen": f"threshold {value:g}, given"} | at_threshold(label, score, value).to_dict()
        for value in options.thresholds
        if len(label)
    ]
    if one_class(label):
        return points
    requirements = [("sensitivity", value) for value in SENSITIVITIES]
    requirements += [("specificity", value) for value in SPECIFICITIES]
    for name, value in requirements:
        point = operating_point(label, score, **{name: value})
        assert point is not None
        points.append({"chosen": f"{name} at least {value:g}, on these very cases"} | point.to_dict())
    return points


def compare_task(task: Task, options: Options) -> dict[str, Any]:
    """The difference, this source minus the other, on the cases that both scored."""
    assert task.other_scores is not None
    shared = task.subset(np.isfinite(task.other_scores))
    assert shared.other_scores is not None
    differences: dict[str, Any] = {
        name: compare_scores(
            shared.labels, shared.scores, shared.other_scores, shared.patients, name, options.resampling
        ).to_dict()
        for name in MEASURES
    }
    return {task.unit: len(shared.cases), **differences}


def measure_classes(case_results: Sequence[tuple[Case, CaseResult]], plan: TargetPlan) -> dict[str, Any]:
    """Accuracy and confusion matrix; the class with the highest score is the prediction."""
    names = [label for label, _ in plan.classes]
    class_index = {label: number for number, label in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    patients = set()
    for case, result in case_results:
        values = [result.scores.get(score) for _, score in plan.classes]
        if case.label in class_index and None not in values:
            counts[class_index[case.label], int(np.argmax(np.array(values, dtype=np.float64)))] += 1
            patients.add(case.patient)
    class_cases = counts.sum(axis=1)
    recall = [float(counts[i, i] / class_cases[i]) for i in range(len(names)) if class_cases[i]]
    measures = {
        "classes": names,
        "confusion": counts.tolist(),
        "accuracy": wilson(int(np.trace(counts)), int(counts.sum())).to_dict(),
        "balanced_accuracy": float(np.mean(recall)) if recall else None,
    }
    return without_intervals(measures, len(patients))
