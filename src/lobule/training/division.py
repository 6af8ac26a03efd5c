"""The division of a cohort: training and validation cases, and folds in which no patient is divided."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lobule.cohort import Case, Cohort, Kind
from lobule.errors import ConfigError, Leakage

HELD_OUT = 0.2
"""Share of the patients that validate if the cohort has no validation split."""
HOLDING_OUT = 0x7A1
"""Mixed into the seed so that the choice of patients is independent of other uses of the seed."""


@dataclass(frozen=True)
class TrainingSplit:
    """The training cases, the validation cases, and notes on the division."""

    train: Cohort
    val: Cohort
    notes: tuple[str, ...] = ()


def training_split(
    cohort: Cohort, val: str | None, seed: int, kinds: tuple[Kind, ...] = ("slide", "region")
) -> TrainingSplit:
    """Divide a cohort into training and validation cases.

    Args:
        cohort: The cases. Without a `split` column, all of them train.
        val: Name of the validation split, or None for no validation. If the cohort has no such split, a fifth
            of the training patients validate.
        seed: Seed for the choice of these patients.
        kinds: The kinds of cases that the method supports.

    Raises:
        Leakage: A patient is in more than one split.
        ConfigError: There are no training cases, or a case is of another kind.
    """
    splits: dict[str, set[str | None]] = {}
    for case in cohort:
        splits.setdefault(case.patient, set()).add(case.split)
    split_patients = sorted(patient for patient, patient_splits in splits.items() if len(patient_splits) > 1)
    if split_patients:
        raise Leakage(
            f"{len(split_patients)} patients are in more than one split",
            subject=cohort.path,
            actual=", ".join(split_patients[:5]),
            remedy="Give all cases of a patient the same split",
        )
    if val == "train":
        raise ConfigError("the training split cannot validate itself", expected="--val val, test or none")
    training = cohort.split("train") if cohort.splits() else cohort
    if not training:
        raise ConfigError("no case is in the split 'train'", subject=cohort.path)
    unsupported = next((case for case in training if case.kind not in kinds), None)
    if unsupported is not None:
        raise ConfigError(
            f"this method learns from cases of kind {' or '.join(kinds)}",
            subject=unsupported.id,
            actual=f"a case of kind {unsupported.kind}",
        )
    if val is None:
        return TrainingSplit(training, Cohort(()), ("there is no validation: the last weights are kept",))
    validating = cohort.split(val)
    split = TrainingSplit(training, validating) if validating else _held_out(training, seed)
    _refuse_missing_grades(split)
    return split


def _refuse_missing_grades(split: TrainingSplit) -> None:
    """Refuse a division in which only validation cases have a kind of positive breast."""
    positive = [
        {name.rpartition("_")[2] for case in cases for name, value in case.breast_labels.items() if value}
        for cases in (split.train, split.val)
    ]
    missing = sorted(positive[1] - positive[0])
    if missing:
        raise ConfigError(
            f"all patients with a {missing[0]} breast are in the validation split",
            subject=split.train.path,
            expected="training cases of every class",
            remedy="Move one of these patients to the split 'train', or train with --val none",
        )


def _held_out(training: Cohort, seed: int) -> TrainingSplit:
    """Hold out a fifth of the patients with outlines or a positive breast, and a fifth of the others."""
    positive = {
        case.patient for case in training if case.annotation is not None or any(case.breast_labels.values())
    }
    if len(positive) == 1:
        note = "too few patients to hold any out: nothing is validated and the last weights are kept"
        return TrainingSplit(training, Cohort(()), (note,))
    held_out = held_out_patients({patient: patient in positive for patient in training.patients()}, seed)
    note = f"the cohort has no validation split: {len(held_out)} patients are held out for it"
    return TrainingSplit(
        training.where(lambda case: case.patient not in held_out),
        training.where(lambda case: case.patient in held_out),
        (note,),
    )


def held_out_patients(is_positive: Mapping[str, bool], seed: int) -> set[str]:
    """Choose a fifth of the positive patients and a fifth of the others; none of a class with one patient."""
    rng = np.random.default_rng([seed, HOLDING_OUT])
    held_out: set[str] = set()
    for positive in (True, False):
        patients = [patient for patient, value in is_positive.items() if value == positive]
        if len(patients) >= 2:
            chosen = rng.permutation(len(patients))[: max(1, round(HELD_OUT * len(patients)))]
            held_out |= {patients[number] for number in chosen}
    return held_out


def grouped_folds(
    labels: ArrayLike,
    groups: Sequence[str],
    folds: int,
    seed: int,
    *,
    unit: str = "patients",
    setting: str = "folds",
) -> NDArray[np.intp]:
    """Return the fold of each case: groups stay whole, and each class is spread evenly over the folds.

    Args:
        labels: The class of each case.
        groups: The group of each case, such as its patient.
        folds: Number of folds.
        seed: Seed of the order in which groups are assigned.
        unit: What a group is, for messages.
        setting: The setting with the number of folds, for messages.

    Raises:
        ConfigError: There are not enough groups for the folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    classes = np.asarray(labels)
    largest_class = int(np.unique(classes, return_counts=True)[1].max())
    for count, name in ((len(set(groups)), unit), (largest_class, "cases of one class")):
        if count < folds:
            raise ConfigError(
                f"{folds} folds need as many {name}",
                actual=f"{count}",
                remedy=f"Use fewer folds: --set {setting}=N",
            )
    fold_of_case = np.zeros(len(groups), np.intp)
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # scikit-learn warns about classes with fewer cases than folds. They may be absent from a fold.
        warnings.simplefilter("ignore", UserWarning)
        for fold, (_, rows) in enumerate(splits.split(classes, classes, groups)):
            if not len(rows):
                raise ConfigError("a fold is empty", remedy=f"Use fewer folds: --set {setting}=N")
            fold_of_case[rows] = fold
    return fold_of_case


def refuse_missing_classes(
    labels: ArrayLike, folds: NDArray[np.intp], classes: Sequence[str], unit: str = "patients"
) -> None:
    """Raise `ConfigError` if the cases outside a fold, which train for it, lack a class."""
    labels = np.asarray(labels)
    for fold in np.unique(folds):
        missing = np.setdiff1d(np.arange(len(classes)), labels[folds != fold])
        if len(missing):
            raise ConfigError(
                f"all cases of the class '{classes[missing[0]]}' are in one fold",
                expected=f"cases of every class from two {unit} or more",
                remedy=f"Add cases of other {unit}, or do not divide the cohort by these {unit}",
            )


def groups_by_site(cases: Sequence[Case]) -> list[str]:
    """Return the group of each case: its site, joined with the sites that share a patient with it.

    A patient without a site is a group.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes: dict[tuple[str, str], int] = {}

    def node(kind: str, name: str) -> int:
        return nodes.setdefault((kind, name), len(nodes))

    patients = [node("patient", case.patient) for case in cases]
    sites = [node("site", case.site) if case.site else node("patient", case.patient) for case in cases]
    links = coo_array((np.ones(len(cases)), (patients, sites)), shape=(len(nodes), len(nodes)))
    _, group_of_node = connected_components(links, directed=False)
    return [str(group_of_node[patient]) for patient in patients]
