"""Splits of bags: no patient (or site) is divided, and labels are distributed evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError
from lobule.features import FeatureFolder
from lobule.methods.chowder.bags import Bag, gather, refuse_mixed, refuse_one_class
from lobule.methods.chowder.config import Config
from lobule.training.division import (
    grouped_folds,
    groups_by_site,
    held_out_patients,
    refuse_missing_classes,
    training_split,
)

MIN_PATIENTS = 5
"""With fewer patients, none is held out for validation."""


def folds_of(
    bags: Sequence[Bag], folds: int, seed: int, *, by_site: bool = False, setting: str = "folds"
) -> NDArray[np.intp]:
    """The fold of each bag. A patient is in one fold; with `by_site`, so is a site.

    Raises:
        ConfigError: There are too few patients or sites, or all bags of a label are in one fold.
    """
    cases, labels = [bag.case for bag in bags], [bag.label for bag in bags]
    without_site = next((case.id for case in cases if case.site is None), None) if by_site else None
    if without_site is not None:
        raise ConfigError(
            f"the case '{without_site}' has no site", remedy="Fill in the site column of the cohort"
        )
    unit = "sites that share no patient" if by_site else "patients"
    groups = groups_by_site(cases) if by_site else [case.patient for case in cases]
    fold_of_bag = grouped_folds(labels, groups, folds, seed, unit=unit, setting=setting)
    refuse_missing_classes(labels, fold_of_bag, ("normal", "positive"), "sites" if by_site else "patients")
    return fold_of_bag


def hold_out(bags: Sequence[Bag], seed: int) -> tuple[list[Bag], list[Bag], str]:
    """Divide the bags into training and validation bags, and return them with a note for the user."""
    is_positive: dict[str, bool] = {}
    for bag in bags:
        is_positive[bag.case.patient] = is_positive.get(bag.case.patient, False) or bool(bag.label)
    held_out = held_out_patients(is_positive, seed) if len(is_positive) >= MIN_PATIENTS else set()
    val = [bag for bag in bags if bag.case.patient in held_out]
    train = [bag for bag in bags if bag.case.patient not in held_out]
    if all(len({bag.label for bag in side}) == 2 for side in (train, val)):
        note = f"the cohort has no validation split: {len(held_out)} patients are held out for validation"
        return train, val, note
    note = (
        "too few patients of a class for a validation split: there is no validation and the last weights are "
        "used"
    )
    return list(bags), [], note


@dataclass(frozen=True)
class TrainingBags:
    """The training and validation bags, the cases without usable features, and notes for the user."""

    train: list[Bag]
    val: list[Bag]
    held_out: bool
    failures: dict[str, str]
    notes: tuple[str, ...]

    @property
    def cases(self) -> tuple[list[Case], list[Case]]:
        return [bag.case for bag in self.train], [bag.case for bag in self.val]


def training_bags(
    cohort: Cohort, val: str | None, seed: int, folder: FeatureFolder, config: Config
) -> TrainingBags:
    """Gather the bags of a cohort, and divide them into training and validation bags."""
    has_val_split = bool(val and cohort.split(val))
    split = training_split(cohort, val if has_val_split else None, seed)
    train = gather(split.train, folder, config.positive)
    refuse_one_class(train.bags, "training", train.failures)
    if val is None:
        return TrainingBags(list(train.bags), [], False, train.failures, (*train.notes, *split.notes))
    if not has_val_split:
        train_bags, val_bags, note = hold_out(train.bags, seed)
        return TrainingBags(train_bags, val_bags, bool(val_bags), train.failures, (*train.notes, note))
    validating = gather(split.val, folder, config.positive)
    refuse_mixed([*train.bags, *validating.bags])
    val_bags, notes = list(validating.bags), (*train.notes, *validating.notes)
    if len({bag.label for bag in val_bags}) < 2:
        note = "the validation split has only one label: there is no validation and the last weights are used"
        val_bags, notes = [], (*notes, note)
    return TrainingBags(list(train.bags), val_bags, False, train.failures | validating.failures, notes)
