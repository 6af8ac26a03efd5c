"""Splits of bags: no patient (or site) is divided, and labels are distributed evenly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lobule.errors import ConfigError
from lobule.methods.chowder.bags import Bag

HELD_OUT_OF = 5
"""Without a validation split in the cohort, one of this many folds is used for validation."""


def folds_of(bags: Sequence[Bag], folds: int, seed: int, *, by_site: bool = False) -> NDArray[np.int64]:
    """The fold of each bag. A patient is in one fold; with `by_site`, so is a site.

    Patients or sites are assigned one by one, largest first, to the fold for which positive and negative bags
    stay most evenly distributed over the folds. Groups of equal size are in a random order set by `seed`.
    """
    groups: dict[str, list[int]] = {}
    for number, name in enumerate(_sites(bags) if by_site else [bag.case.patient for bag in bags]):
        groups.setdefault(name, []).append(number)
    if len(groups) < folds:
        raise ConfigError(
            f"{folds} folds need as many {'sites that share no patient' if by_site else 'patients'}",
            actual=f"{len(groups)}",
            remedy="Use fewer folds: --set folds=N, and for nested folds --set inner_folds=N",
        )
    rng = np.random.default_rng([seed, 0xF01D])
    order = [list(groups)[number] for number in rng.permutation(len(groups))]
    counts = {name: np.bincount([bags[n].label for n in groups[name]], minlength=2) for name in order}
    order.sort(key=lambda name: -int(counts[name].max()))  # a stable sort keeps the shuffled order of equals
    filled = np.zeros((folds, 2))
    fold_of_bag = np.zeros(len(bags), np.int64)
    for name in order:
        crowding = [
            float(((filled[f] + counts[name]) ** 2).sum() - (filled[f] ** 2).sum()) for f in range(folds)
        ]
        fold = int(np.argmin(crowding))
        filled[fold] += counts[name]
        fold_of_bag[groups[name]] = fold
    return fold_of_bag


def _sites(bags: Sequence[Bag]) -> list[str]:
    """The site of each bag. Sites that share a patient get the same name, so that no patient is divided."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.get(name, name) != name:
            name = parent[name]
        return name

    first_site: dict[str, str] = {}
    for bag in bags:
        site = bag.case.site
        if site is None:
            raise ConfigError(
                f"the case '{bag.case.id}' has no site", remedy="Fill in the site column of the cohort"
            )
        parent[root(site)] = root(first_site.setdefault(bag.case.patient, site))
    return [root(bag.case.site or "") for bag in bags]


def refuse_one_sided_folds(bags: Sequence[Bag], folds: NDArray[np.int64], by_site: bool) -> None:
    """Refuse folds if one contains all cases of a label: training on the others would have one label only."""
    labels = np.array([bag.label for bag in bags])
    for fold in np.unique(folds):
        missing = {0, 1} - set(labels[folds != fold].tolist())
        if missing:
            raise ConfigError(
                f"all {'positive' if 1 in missing else 'normal'} cases are in one fold",
                expected=f"cases of both labels from two {'sites' if by_site else 'patients'} or more",
                remedy="Add cases of the rare label, or skip cross-validation with --set folds=0",
            )


def hold_out(bags: Sequence[Bag], seed: int) -> tuple[list[Bag], list[Bag], str]:
    """Divide the bags into training and validation bags, and return them with a note for the user."""
    patients = {bag.case.patient for bag in bags}
    if len(patients) >= HELD_OUT_OF:
        is_held_out = folds_of(bags, HELD_OUT_OF, seed) == 0
        val = [bag for bag, held_out in zip(bags, is_held_out, strict=True) if held_out]
        train = [bag for bag, held_out in zip(bags, is_held_out, strict=True) if not held_out]
        if all(len({bag.label for bag in side}) == 2 for side in (train, val)):
            count = len({bag.case.patient for bag in val})
            return (
                train,
                val,
                f"the cohort has no validation split: {count} patients are held out for validation",
            )
    return (
        list(bags),
        [],
        "too few patients for a validation split: there is no validation and the last weights are used",
    )
