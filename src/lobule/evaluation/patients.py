"""Combine the scores of several slides into one score per patient, and judge it by patient.

A patient's score is the highest score of the slides, their mean, or a learned combination: a logistic
regression on the highest, the second-highest and the mean score, fitted to the patients of another split.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Case
from lobule.errors import UsageError
from lobule.evaluation.options import ANY_SLIDE, SAME_LABEL, Options
from lobule.evaluation.tasks import Task
from lobule.measures.estimate import Floats

FEWEST_OF_A_CLASS = 3
"""Patients of each class that a learned combination needs in its split."""
FEATURES = ("highest score", "second-highest score", "mean score")
RULES = {
    "max": "the highest score of the patient's slides",
    "mean": "the mean score of the patient's slides",
    "learned": "logistic regression on the highest, second-highest and mean score of the patient's slides",
}

Combine = Callable[[Floats], float]
"""Returns the score of a patient from the scores of the slides."""


@dataclass(frozen=True)
class LearnedCombination:
    """A logistic regression on standardised features of a patient's slide scores."""

    mean: Floats
    spread: Floats
    coefficients: Floats
    intercept: float
    patients: int
    """Number of patients that it was fitted to."""

    def __call__(self, scores: Floats) -> float:
        rows = (patient_features(scores) - self.mean) / self.spread
        return float(1 / (1 + np.exp(-(rows @ self.coefficients + self.intercept))))

    def to_dict(self) -> dict[str, Any]:
        """The coefficients for unstandardised features, and the intercept that belongs to them."""
        slopes = self.coefficients / self.spread
        return {
            "patients": self.patients,
            "coefficients": dict(zip(FEATURES, slopes.tolist(), strict=True)),
            "intercept": float(self.intercept - slopes @ self.mean),
        }


def patient_features(scores: Floats) -> Floats:
    """The highest, second-highest and mean score. A patient with one slide has the same score three times."""
    ordered = np.sort(np.asarray(scores, np.float64))[::-1]
    return np.array([ordered[0], ordered[min(1, len(ordered) - 1)], ordered.mean()])


def fit_combination(scores: Sequence[Floats], labels: NDArray[np.bool_]) -> LearnedCombination:
    """Fit the learned combination to the slide scores and the label of each patient.

    Raises:
        UsageError: A class has too few patients.
    """
    from sklearn.linear_model import LogisticRegression

    smaller_class = min(int(labels.sum()), int((~labels).sum()))
    if smaller_class < FEWEST_OF_A_CLASS:
        raise UsageError(
            "there are too few patients for a learned combination of slides",
            expected=f"at least {FEWEST_OF_A_CLASS} positive and {FEWEST_OF_A_CLASS} negative patients",
            actual=f"{int(labels.sum())} positive and {int((~labels).sum())} negative",
            remedy="Use --patients max or mean, or fit on a larger split with --patient-fit",
        )
    rows = np.stack([patient_features(values) for values in scores])
    mean, spread = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The optimiser of separable data may say that it has not converged.
        model = LogisticRegression(max_iter=1000).fit((rows - mean) / spread, labels)
    return LearnedCombination(mean, spread, model.coef_[0], float(model.intercept_[0]), len(rows))


@dataclass(frozen=True, eq=False)
class PatientTasks:
    """The tasks of patients, and how their scores were combined."""

    tasks: tuple[Task, ...]
    fits: Mapping[str, Any]
    """The fitted combination of each target; empty without one."""
    incomplete: int
    """Patients of whose slides some have no score."""

    def head(self, options: Options) -> dict[str, Any]:
        """How scores and labels of patients come about, for the report."""
        assert options.patients is not None
        return {
            "combination": options.patients,
            "rule": RULES[options.patients],
            "labels": _label_rule(options),
            "fitted_on": options.patient_fit if options.patients == "learned" else None,
            "fits": dict(self.fits),
            "incomplete": self.incomplete,
        }


def patient_tasks(
    tasks: Sequence[Task], fit_tasks: Sequence[Task], cases: Sequence[Case], options: Options
) -> PatientTasks:
    """Combine the tasks of slides into tasks of patients.

    Args:
        tasks: The tasks to combine, one per target.
        fit_tasks: The same targets on the split that a learned combination is fitted to.
        cases: All evaluated cases, to count patients with slides that have no score.
        options: `patients`, `patient_label` and `patient_fit` say how.

    Raises:
        UsageError: The labels of a patient contradict each other, the tasks are not those of slides, or a
            patient occurs in both splits.
    """
    if any(task.unit == "breasts" for task in tasks):
        raise UsageError(
            "scores of breasts are not combined into scores of patients", remedy="Remove --patients"
        )
    fits: dict[str, Any] = {}
    combined = []
    for task in tasks:
        fit_task = next((one for one in fit_tasks if one.name == task.name), None)
        one, fit = _combine_task(task, fit_task, options)
        combined.append(one)
        if fit is not None:
            fits[task.name] = fit
    scored = {case.id for task in tasks for case in task.cases}
    incomplete = {case.patient for case in cases if case.label is not None and case.id not in scored}
    scored_patients = {case.patient for task in tasks for case in task.cases}
    return PatientTasks(tuple(combined), fits, len(incomplete & scored_patients))


def check_patient_options(options: Options) -> None:
    """Raise `UsageError` if the split of a learned combination is not another one than the evaluated one."""
    if options.patients != "learned":
        return
    if options.split is None or options.split == options.patient_fit:
        raise UsageError(
            "a learned combination of slides must be judged on another split than it is fitted to",
            expected=f"--split with another name than '{options.patient_fit}', the split of the fit",
            actual=f"--split {options.split}" if options.split else "no --split",
            remedy="Add --split test, or choose the split of the fit with --patient-fit",
        )


def _combine_task(task: Task, fit_task: Task | None, options: Options) -> tuple[Task, dict[str, Any] | None]:
    """The task of patients for one target, and the fit of its combination if there is one."""
    assert options.patients is not None
    patients = list(dict.fromkeys(case.patient for case in task.cases))
    rows = [np.flatnonzero(task.patients == patient) for patient in patients]
    labels = np.array([_patient_label(task, of_patient, options) for of_patient in rows], bool)
    cases = tuple(_patient_case([task.cases[row] for row in of_patient]) for of_patient in rows)
    combine = _combination(task, fit_task, options, other=False)
    other_scores = None
    if task.other_scores is not None:
        combine_other = _combination(task, fit_task, options, other=True)
        other_scores = np.array([_of_defined(task.other_scores[row], combine_other) for row in rows])
    scores = np.array([combine(task.scores[of_patient]) for of_patient in rows], np.float64)
    fit = combine.to_dict() if isinstance(combine, LearnedCombination) else None
    return Task(task.name, "patients", cases, labels, scores, other_scores), fit


def _of_defined(scores: Floats, combine: Combine) -> float:
    defined = scores[np.isfinite(scores)]
    return combine(defined) if len(defined) else np.nan


def _combination(task: Task, fit_task: Task | None, options: Options, *, other: bool) -> Combine:
    """The function that combines the scores of slides; `other` is for the scores of the other source."""
    if options.patients == "max":
        return lambda scores: float(scores.max())
    if options.patients == "mean":
        return lambda scores: float(scores.mean())
    if fit_task is None or not fit_task.cases:
        raise UsageError(
            f"no case of the split '{options.patient_fit}' has a label and a score",
            expected="results of the cases to which the combination is fitted",
            remedy=f"Scan the split '{options.patient_fit}' too, or choose another with --patient-fit",
        )
    shared = sorted({case.patient for case in task.cases} & {case.patient for case in fit_task.cases})
    if shared:
        raise UsageError(
            "patients are in the split of the fit and in the evaluated split",
            actual=", ".join(shared[:5]),
            remedy="Put all slides of a patient into one split",
        )
    scores = fit_task.other_scores if other else fit_task.scores
    assert scores is not None
    patients = dict.fromkeys(case.patient for case in fit_task.cases)
    rows = [np.flatnonzero((fit_task.patients == name) & np.isfinite(scores)) for name in patients]
    rows = [of_patient for of_patient in rows if len(of_patient)]
    labels = np.array([_patient_label(fit_task, of_patient, options) for of_patient in rows], bool)
    return fit_combination([scores[of_patient] for of_patient in rows], labels)


def _patient_label(task: Task, rows: NDArray[np.intp], options: Options) -> bool:
    """The label of a patient from the labels of the slides, or from a column of the cohort."""
    labels = task.labels[rows]
    cases = [task.cases[row] for row in rows]
    if options.patient_label == ANY_SLIDE:
        return bool(labels.any())
    if options.patient_label != SAME_LABEL:
        return _label_of_column(cases, task, options.patient_label)
    if labels.any() != labels.all():
        stated = ", ".join(f"{case.id}: {case.label}" for case in cases[:6])
        raise UsageError(
            f"the slides of patient '{cases[0].patient}' have contradictory labels",
            expected="the same meaning of the label on every slide of a patient",
            actual=stated + (", …" if len(cases) > 6 else ""),
            remedy="Correct the labels; or use --patient-label any if one positive slide makes a patient "
            "positive, or --patient-label COLUMN if a column has the label of the patient",
        )
    return bool(labels.all())


def _label_of_column(cases: Sequence[Case], task: Task, column: str) -> bool:
    from lobule.cohort.labels import polarity

    values = dict.fromkeys(case.value(column) for case in cases)
    patient = cases[0].patient
    if len(values) != 1:
        raise UsageError(
            f"the column '{column}' has contradictory labels of patient '{patient}'",
            expected="one value on all rows of a patient",
            actual=", ".join(f"{case.id}: {case.value(column) or 'blank'}" for case in cases[:6]),
            remedy="Correct the column in the manifest",
        )
    (value,) = values
    positive = None if value is None else True if value == task.name else polarity(value)
    if positive is None:
        raise UsageError(
            f"the column '{column}' does not say whether patient '{patient}' is positive",
            expected="words such as positive and negative, tumor and normal, 1 and 0",
            actual=value or "a blank cell",
        )
    return positive


def _label_rule(options: Options) -> str:
    if options.patient_label == SAME_LABEL:
        return "all slides of a patient have the same label"
    if options.patient_label == ANY_SLIDE:
        return "a patient is positive if any slide is"
    return f"the column '{options.patient_label}' states the label of the patient"


def _patient_case(cases: Sequence[Case]) -> Case:
    """A case that stands for a patient; a column has a value only if all slides of the patient share it."""
    first = cases[0]

    def shared(values: Sequence[str | None]) -> str | None:
        return values[0] if len(set(values)) == 1 else None

    attributes = {
        name: value
        for name, value in first.attributes.items()
        if all(case.attributes.get(name) == value for case in cases)
    }
    return replace(
        first,
        id=first.patient,
        path=None,
        annotation=None,
        label=shared([case.label for case in cases]),
        site=shared([case.site for case in cases]),
        attributes=attributes,
    )
