"""One question put to cases: labels, scores and patients, and everything that is measured of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Case
from lobule.evaluation.labels import Plan, Target
from lobule.evaluation.options import Options
from lobule.evaluation.sources import ANY_SCORE, Said
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
    """Cases (or breasts) with a label and a score each."""

    name: str
    unit: str
    """slides, images, breasts: what is counted."""
    cases: tuple[Case, ...]
    labels: NDArray[np.bool_]
    scores: Floats
    rivals: Floats | None = None
    """The scores of the other source; NaN where it has none."""

    def part(self, keep: Sequence[bool] | NDArray[np.bool_]) -> Task:
        chosen = np.asarray(keep, dtype=bool)
        cases = tuple(case for case, kept in zip(self.cases, chosen, strict=True) if kept)
        rivals = None if self.rivals is None else self.rivals[chosen]
        return Task(self.name, self.unit, cases, self.labels[chosen], self.scores[chosen], rivals)

    @property
    def patients(self) -> NDArray[np.str_]:
        return np.array([case.patient for case in self.cases], dtype=np.str_)


# -- making tasks -------------------------------------------------------------------------------------------


def case_tasks(
    told: Sequence[tuple[Case, Said]], plan: Plan, rival: Mapping[str, Said] | None, unit: str
) -> list[Task]:
    """A task for each target, over the cases with a label and a score."""
    return [_case_task(told, target, rival, unit) for target in plan.targets]


def _case_task(
    told: Sequence[tuple[Case, Said]], target: Target, rival: Mapping[str, Said] | None, unit: str
) -> Task:
    cases, labels, scores, rivals = [], [], [], []
    for case, said in told:
        score = total(said.scores, target.scores)
        if case.label is None or score is None:
            continue
        cases.append(case)
        labels.append(case.label in target.positive)
        scores.append(score)
        other = None if rival is None or case.id not in rival else rival[case.id].scores
        rivals.append(np.nan if other is None else _rival_score(other, target))
    return _task(target.name, unit, cases, labels, scores, None if rival is None else rivals)


def total(scores: Mapping[str, float], names: Sequence[str]) -> float | None:
    """The sum of some scores; None where one is missing."""
    if ANY_SCORE in scores:
        return scores[ANY_SCORE]
    if not names or any(name not in scores for name in names):
        return None
    return float(sum(scores[name] for name in names))


def _rival_score(scores: Mapping[str, float], target: Target) -> float:
    """The other source may name its one score otherwise."""
    found = total(scores, target.scores)
    if found is None and len(scores) == 1:
        return float(next(iter(scores.values())))
    return np.nan if found is None else found


def breast_tasks(told: Sequence[tuple[Case, Said]], rival: Mapping[str, Said] | None) -> list[Task]:
    """Benign and malignant, each over every breast with a label and a score."""
    tasks = []
    for what in ("malignant", "benign"):
        cases, labels, scores, rivals = [], [], [], []
        for case, said in told:
            for name in (f"{side}_{what}" for side in SIDES):
                score = total(said.scores, (name,))
                if name not in case.breast_labels or score is None:
                    continue
                cases.append(case)
                labels.append(case.breast_labels[name])
                scores.append(score)
                other = {} if rival is None or case.id not in rival else rival[case.id].scores
                theirs = total(other, (name,))
                rivals.append(np.nan if theirs is None else theirs)
        if cases:
            tasks.append(_task(what, "breasts", cases, labels, scores, None if rival is None else rivals))
    return tasks


def _task(
    name: str,
    unit: str,
    cases: Sequence[Case],
    labels: Sequence[bool],
    scores: Sequence[float],
    rivals: Sequence[float] | None,
) -> Task:
    others = None if rivals is None else np.array(rivals, dtype=np.float64)
    label, score = np.array(labels, dtype=bool), np.array(scores, dtype=np.float64)
    return Task(name, unit, tuple(cases), label, score, others)


# -- measuring ----------------------------------------------------------------------------------------------


def measure_task(task: Task, options: Options, *, curves: bool = True) -> dict[str, Any]:
    """Areas with intervals, calibration and operating points of a task."""
    label, score, patients = task.labels, task.scores, task.patients
    how = options.resampling
    found: dict[str, Any] = {
        task.unit: len(label),
        "positive": int(label.sum()),
        "negative": int((~label).sum()),
        "patients": len(np.unique(patients)),
    }
    for name in MEASURES:
        found[name] = bootstrap_measure(label, score, patients, name, how).to_dict()
    found["auroc_delong"] = delong(label, score).to_dict()
    found["prevalence"] = float(label.mean()) if len(label) else None
    found["calibration"] = _calibration(label, score)
    found["operating_points"] = _operating_points(label, score, options)
    if curves:
        roc, recall = roc_curve(label, score), precision_recall_curve(label, score)
        found["roc"] = None if roc is None else roc.to_dict()
        found["precision_recall"] = None if recall is None else recall.to_dict()
    return found


def _calibration(label: NDArray[np.bool_], score: Floats) -> dict[str, Any]:
    if len(score) == 0:
        return {"reason": "no cases"}
    if score.min() < 0 or score.max() > 1:
        return {"reason": "the scores are not probabilities: some lie outside 0 to 1"}
    loss = log_loss(label, score)
    finite = loss if loss is not None and np.isfinite(loss) else None
    return reliability(label, score).to_dict() | {"log_loss": finite}


def _operating_points(label: NDArray[np.bool_], score: Floats, options: Options) -> list[dict[str, Any]]:
    fixed = [
        {"chosen": f"threshold {value:g}, given"} | at_threshold(label, score, value).to_dict()
        for value in options.thresholds
        if len(label)
    ]
    if one_class(label):
        return fixed
    wanted = [("sensitivity", value) for value in SENSITIVITIES]
    wanted += [("specificity", value) for value in SPECIFICITIES]
    for name, value in wanted:
        point = operating_point(label, score, **{name: value})
        assert point is not None
        fixed.append({"chosen": f"{name} at least {value:g}, on these very cases"} | point.to_dict())
    return fixed


def compare_task(task: Task, options: Options) -> dict[str, Any]:
    """This source less the other, on the cases that both have."""
    assert task.rivals is not None
    shared = task.part(np.isfinite(task.rivals))
    assert shared.rivals is not None
    found: dict[str, Any] = {
        name: compare_scores(
            shared.labels, shared.scores, shared.rivals, shared.patients, name, options.resampling
        ).to_dict()
        for name in MEASURES
    }
    return {task.unit: len(shared.cases), **found}


def measure_classes(told: Sequence[tuple[Case, Said]], plan: Plan) -> dict[str, Any]:
    """Accuracy and confusion where each class has a score: the highest score is the answer."""
    names = [label for label, _ in plan.classes]
    index = {label: place for place, label in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for case, said in told:
        values = [said.scores.get(score) for _, score in plan.classes]
        if case.label in index and None not in values:
            counts[index[case.label], int(np.argmax(np.array(values, dtype=np.float64)))] += 1
    held = counts.sum(axis=1)
    recall = [float(counts[i, i] / held[i]) for i in range(len(names)) if held[i]]
    return {
        "classes": names,
        "confusion": counts.tolist(),
        "accuracy": wilson(int(np.trace(counts)), int(counts.sum())).to_dict(),
        "balanced_accuracy": float(np.mean(recall)) if recall else None,
    }
