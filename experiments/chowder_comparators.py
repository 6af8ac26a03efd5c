"""What the CHOWDER experiments share: every bag model over some seeds, on bags that none has seen.

Each row is a model with its settings; `fit_all` trains it with every seed and says what it gives. The scores
of a row are means over the seeds with their lowest and highest; the interval resamples the test cases of
the mean score (2,000 times), and says how little a small test set can tell.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lobule.methods.chowder.bags import Bag
from lobule.methods.chowder.checks import auc_of, counterfactual, tile_auc
from lobule.methods.chowder.config import Config
from lobule.methods.chowder.ensemble import Ensemble, Localisation, Told, localise
from lobule.methods.chowder.fit import fit, moments_of
from lobule.methods.chowder.train import member_seed

SEEDS = 5


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    config: Config


def rows(members: int, transmil_epochs: int, epochs: int = 100) -> list[Row]:
    """Every model. The published settings are for hundreds of slides; the others say what was changed."""
    small = Config(standardise=True, members=members, epochs=epochs, rate=1e-3, patience=0)
    return [
        Row("chowder, as published", replace(Config(), members=members, patience=0)),
        Row("chowder, L2 0.001, standardised", replace(small, model="chowder", l2=1e-3)),
        Row("modern", replace(small, model="modern")),
        Row("weldon", replace(small, model="weldon")),
        Row("mean pooling", replace(small, model="mean")),
        Row("max pooling", replace(small, model="max")),
        Row("ABMIL", replace(small, model="abmil", epochs=epochs // 2, rate=2e-4)),
        Row(
            f"TransMIL, 1 member, {transmil_epochs} epochs",
            replace(small, model="transmil", members=1, epochs=transmil_epochs, rate=2e-4),
        ),
    ]


@dataclass(frozen=True, eq=False)
class Trial:
    """What one seed gave on the test bags."""

    bag_auc: float
    tile_aucs: list[float]
    scores: NDArray[np.float64]
    refused: bool
    counterfactual: dict[str, Any] | None


@dataclass(frozen=True, eq=False)
class Unseen:
    """Bags to judge on, and which of their tiles lie inside an outline."""

    name: str
    bags: Sequence[Bag]
    inside: dict[str, NDArray[np.bool_]]


def trial(row: Row, train: Sequence[Bag], tests: Sequence[Unseen], seed: int) -> list[Trial]:
    """Fit an ensemble with a seed and judge it on each set of bags that it has not seen."""
    config = row.config.resolved()
    moments = moments_of(train) if config.standardise else None
    members = [
        fit(config, train, [], member_seed(seed, number), moments=moments).model
        for number in range(config.members)
    ]
    ensemble = Ensemble(config, tuple(members))
    told_train = [(bag, ensemble.tell(bag.blocks())) for bag in train]
    where = localise(config, told_train, told_train, "the training cases themselves")
    return [trial_on(ensemble, where, unseen) for unseen in tests]


def trial_on(ensemble: Ensemble, where: Localisation, unseen: Unseen) -> Trial:
    scored_bags: list[tuple[Bag, Told]] = [(bag, ensemble.tell(bag.blocks())) for bag in unseen.bags]
    tile_aucs = []
    for bag, bag_scores in scored_bags:
        if bag.label and bag.case.id in unseen.inside:
            auc = tile_auc(where.values(bag_scores.evidence), unseen.inside[bag.case.id])
            if auc is not None:
                tile_aucs.append(auc)
    auc_value = auc_of(scored_bags)
    assert auc_value is not None, "the test bags have both labels"
    scores = np.array([bag_scores.probability for _, bag_scores in scored_bags])
    return Trial(
        auc_value, tile_aucs, scores, where.refused is not None, counterfactual(ensemble, where, scored_bags)
    )


def interval(labels: Sequence[int], scores: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % by resampling cases; resamples of one label are drawn again."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    label_array, areas = np.asarray(labels), []
    while len(areas) < 2000:
        pick = rng.integers(0, len(label_array), len(label_array))
        if len(set(label_array[pick])) == 2:
            areas.append(float(roc_auc_score(label_array[pick], scores[pick])))
    return float(np.quantile(areas, 0.025)), float(np.quantile(areas, 0.975))


def summary(row: Row, trials: Sequence[Trial], labels: Sequence[int], seconds: float) -> dict[str, Any]:
    bag = [one.bag_auc for one in trials]
    tile = [float(np.mean(one.tile_aucs)) for one in trials if one.tile_aucs]
    low, high = interval(labels, np.mean([one.scores for one in trials], axis=0))
    checks = [one.counterfactual for one in trials if one.counterfactual]
    return {
        "model": row.name,
        "bag_auc": float(np.mean(bag)),
        "bag_auc_seeds": bag,
        "interval_of_cases": [low, high],
        "tile_auc": float(np.mean(tile)) if tile else None,
        "tile_auc_seeds": tile,
        "maps_refused": sum(one.refused for one in trials),
        "fell": float(np.mean([check["removed"]["fell"] for check in checks])) if checks else None,
        "rose": float(np.mean([check["inserted"]["rose"] for check in checks])) if checks else None,
        "seconds": round(seconds, 1),
    }


def fit_all(
    some: Sequence[Row],
    train: Sequence[Bag],
    tests: Sequence[Unseen],
    seeds: int = SEEDS,
    *,
    out: Path | None = None,
) -> list[dict[str, Any]]:
    """Every row with every seed, on each set of unseen bags; written to a file as they come."""
    torch.set_num_threads(1)
    all_trials = []
    for row in some:
        began = time.perf_counter()
        trials = [trial(row, train, tests, seed) for seed in range(seeds)]
        seconds = time.perf_counter() - began
        for number, unseen in enumerate(tests):
            labels = [bag.label for bag in unseen.bags]
            row_summary = summary(row, [one[number] for one in trials], labels, seconds)
            all_trials.append({"setting": unseen.name, **row_summary})
            print(line(all_trials[-1]), flush=True)
            if out is not None:
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(all_trials[-1]) + "\n")
    return all_trials


HEADER = (
    "| setting | model | bag AUC, mean of seeds (lowest to highest) | 95 % of cases "
    "| tile AUC (lowest to highest) | removed: fell | inserted: rose |"
)


def line(one: dict[str, Any]) -> str:
    bag, tile = one["bag_auc_seeds"], one["tile_auc_seeds"]
    low, high = one["interval_of_cases"]
    where = f"{one['tile_auc']:.3f} ({min(tile):.3f} to {max(tile):.3f})" if tile else "none"
    if one["maps_refused"]:
        where += f", {one['maps_refused']} refused"
    changed = [f"{one[key]:.2f}" if one[key] is not None else "none" for key in ("fell", "rose")]
    return (
        f"| {one['setting']} | {one['model']} | {one['bag_auc']:.3f} ({min(bag):.3f} to {max(bag):.3f}) "
        f"| {low:.2f} to {high:.2f} | {where} | {' | '.join(changed)} |"
    )
