"""Splits of bags: no patient (or site) is divided, and labels are distributed evenly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lobule.errors import ConfigError
from lobule.methods.chowder.bags import Bag
from lobule.training.division import (
    grouped_folds,
    groups_by_site,
    held_out_patients,
    refuse_missing_classes,
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
        return (
            train,
            val,
            f"the cohort has no validation split: {len(held_out)} patients are held out for validation",
        )
    return (
        list(bags),
        [],
        "too few patients of a class for a validation split: there is no validation and the last weights are "
        "used",
    )
