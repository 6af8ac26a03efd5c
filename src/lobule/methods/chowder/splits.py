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
    for number, name in enumerate(_sites(bags) if by_site else [bag.case.patient for bag in bags]):
        groups.setdefault(name, []).append(number)
    if len(groups) < folds:
        raise ConfigError(
            f"{folds} folds need as many {'sites that share no patient' if by_site else 'patients'}",
            actual=f"{len(groups)}",
            remedy="Ask for fewer: --set folds=N, and of nested ones --set inner_folds=N",
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


def _sites(bags: Sequence[Bag]) -> list[str]:
    """The site of each bag; sites that share a patient go by one name, so that no patient is torn apart."""
    above: dict[str, str] = {}

    def root(name: str) -> str:
        while above.get(name, name) != name:
            name = above[name]
        return name

    first: dict[str, str] = {}
    for bag in bags:
        site = bag.case.site
        if site is None:
            raise ConfigError(f"the case '{bag.case.id}' has no site", remedy="Fill the cohort's site column")
        above[root(site)] = root(first.setdefault(bag.case.patient, site))
    return [root(bag.case.site or "") for bag in bags]


def refuse_lopsided(bags: Sequence[Bag], folds: NDArray[np.int64], by_site: bool) -> None:
    """Refuse folds of which one holds all cases of a label: what trains on the others would learn nothing."""
    labels = np.array([bag.label for bag in bags])
    for fold in np.unique(folds):
        missing = {0, 1} - set(labels[folds != fold].tolist())
        if missing:
            raise ConfigError(
                f"all {'positive' if 1 in missing else 'normal'} cases are in one fold",
                expected=f"cases of both labels from two {'sites' if by_site else 'patients'} or more",
                remedy="Add cases of others, or leave cross-validation out: --set folds=0",
            )


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
