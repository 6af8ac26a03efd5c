"""The division of a cohort into training and validation cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lobule.cohort import Cohort, Kind
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
    return TrainingSplit(training, validating) if validating else _held_out(training, seed)


def _held_out(training: Cohort, seed: int) -> TrainingSplit:
    """Hold out a fifth of the patients with outlines or a positive breast, and a fifth of the others."""
    with_outlines = {
        case.patient for case in training if case.annotation is not None or any(case.breast_labels.values())
    }
    rng = np.random.default_rng([seed, HOLDING_OUT])
    held_out: set[str] = set()
    for outlined in (True, False):
        kind = [patient for patient in training.patients() if (patient in with_outlines) == outlined]
        if len(kind) < 2 and outlined:
            note = "too few patients to hold any out: nothing is validated and the last weights are kept"
            return TrainingSplit(training, Cohort(()), (note,))
        if len(kind) >= 2:
            chosen = rng.permutation(len(kind))[: max(1, round(HELD_OUT * len(kind)))]
            held_out |= {kind[number] for number in chosen}
    note = f"the cohort has no validation split: {len(held_out)} patients are held out for it"
    return TrainingSplit(
        training.where(lambda case: case.patient not in held_out),
        training.where(lambda case: case.patient in held_out),
        (note,),
    )
