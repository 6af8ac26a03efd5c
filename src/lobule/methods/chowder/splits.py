"""Splits of bags: patients (or sites) stay whole, labels are spread evenly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lobule.errors import ConfigError
from lobule.methods.chowder.bags import Bag

HELD_OUT_OF = 5
"""A fifth of the patients validates where the cohort has no validation split."""


def folds_of(bags: Sequence[Bag], folds: int, seed: int, *, by_site: bool = False) -> NDArray[np.int64]:
    """The fold of each bag. A patient is in one fold; with `by_site`, so is a site.

    Groups are dealt out one by one, the largest first, each to the fold that then is the most even in
    positive and in negative bags; ties fall by a seeded shuffle.
    """
    groups: dict[str, list[int]] = {}
    for number, bag in enumerate(bags):
        site = bag.case.site
        if by_site and site is None:
            raise ConfigError(f"the case '{bag.case.id}' has no site", remedy="Fill the cohort's site column")
        groups.setdefault(site if by_site and site is not None else bag.case.patient, []).append(number)
    if len(groups) < folds:
        raise ConfigError(
            f"{folds} folds need as many {'sites' if by_site else 'patients'}", found=f"{len(groups)}"
        )
    rng = np.random.default_rng([seed, 0xF01D])
    order = [list(groups)[number] for number in rng.permutation(len(groups))]
    counts = {name: np.bincount([bags[n].label for n in groups[name]], minlength=2) for name in order}
    order.sort(key=lambda name: -int(counts[name].max()))  # stable: equals stay shuffled
    filled = np.zeros((folds, 2))
    found = np.zeros(len(bags), np.int64)
    for name in order:
        crowding = [
            float(((filled[f] + counts[name]) ** 2).sum() - (filled[f] ** 2).sum()) for f in range(folds)
        ]
        fold = int(np.argmin(crowding))
        filled[fold] += counts[name]
        found[groups[name]] = fold
    return found


def hold_out(bags: Sequence[Bag], seed: int) -> tuple[list[Bag], list[Bag], str]:
    """Training and validation bags where the cohort has no validation split, and what there is to say."""
    patients = {bag.case.patient for bag in bags}
    if len(patients) >= HELD_OUT_OF:
        held = folds_of(bags, HELD_OUT_OF, seed) == 0
        val = [bag for bag, out in zip(bags, held, strict=True) if out]
        train = [bag for bag, out in zip(bags, held, strict=True) if not out]
        if all(len({bag.label for bag in side}) == 2 for side in (train, val)):
            count = len({bag.case.patient for bag in val})
            return train, val, f"the cohort has no validation split: {count} patients are held out for it"
    return (
        list(bags),
        [],
        "too few patients to hold any out: nothing is validated and the last weights are kept",
    )
