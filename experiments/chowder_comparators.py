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
from lobule.methods.chowder.ensemble import BagScores, Ensemble, Localisation, localise
from lobule.methods.chowder.fit import fit, moments_of
from lobule.methods.chowder.train import member_seed

SEEDS = 5


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    config: Config


def rows(members: int, transmil_epochs: int, epochs: int = 100) -> list[Row]:
    """All models. The published settings are meant for hundreds of slides; other rows name their changes."""
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
    """The results of one seed on the test bags."""

    bag_auc: float
    tile_aucs: list[float]
    scores: NDArray[np.float64]
    refused: bool
    counterfactual: dict[str, Any] | None


@dataclass(frozen=True, eq=False)
class Unseen:
    """Test bags, and which of their tiles lie inside an outline."""

    name: str
    bags: Sequence[Bag]
    inside: dict[str, NDArray[np.bool_]]


def trial(row: Row, train: Sequence[Bag], tests: Sequence[Unseen], seed: int) -> list[Trial]:
    """Train an ensemble with one seed and evaluate it on each set of test bags."""
    config = row.config.resolved()
    moments = moments_of(train) if config.standardise else None
    members = [
        fit(config, train, [], member_seed(seed, number), moments=moments).model
        for number in range(config.members)
    ]
    ensemble = Ensemble(config, tuple(members))
    scored_train = [(bag, ensemble.score_bag(bag.blocks())) for bag in train]
    localisation = localise(config, scored_train, scored_train, "the training cases themselves")
    return [trial_on(ensemble, localisation, unseen) for unseen in tests]


def trial_on(ensemble: Ensemble, localisation: Localisation, unseen: Unseen) -> Trial:
    scored_bags: list[tuple[Bag, BagScores]] = [
        (bag, ensemble.score_bag(bag.blocks())) for bag in unseen.bags
    ]
    tile_aucs = []
    for bag, bag_scores in scored_bags:
        if bag.label and bag.case.id in unseen.inside:
            auc = tile_auc(localisation.values(bag_scores.evidence), unseen.inside[bag.case.id])
            if auc is not None:
                tile_aucs.append(auc)
    auc_value = auc_of(scored_bags)
    assert auc_value is not None, "the test bags have both labels"
    scores = np.array([bag_scores.probability for _, bag_scores in scored_bags])
    return Trial(
        auc_value,
        tile_aucs,
        scores,
        localisation.refused is not None,
        counterfactual(ensemble, localisation, scored_bags),
    )


def interval(labels: Sequence[int], scores: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval over cases; resamples with one label only are discarded."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    label_array = np.asarray(labels)
    areas: list[float] = []
    while len(areas) < 2000:
        pick = rng.integers(0, len(label_array), len(label_array))
        if len(set(label_array[pick])) == 2:
            areas.append(float(roc_auc_score(label_array[pick], scores[pick])))
    return float(np.quantile(areas, 0.025)), float(np.quantile(areas, 0.975))


def summary(row: Row, trials: Sequence[Trial], labels: Sequence[int], seconds: float) -> dict[str, Any]:
    bag_aucs = [trial_result.bag_auc for trial_result in trials]
    tile_aucs = [float(np.mean(trial_result.tile_aucs)) for trial_result in trials if trial_result.tile_aucs]
    low, high = interval(labels, np.mean([trial_result.scores for trial_result in trials], axis=0))
    checks = [trial_result.counterfactual for trial_result in trials if trial_result.counterfactual]
    return {
        "model": row.name,
        "bag_auc": float(np.mean(bag_aucs)),
        "bag_auc_seeds": bag_aucs,
        "interval_of_cases": [low, high],
        "tile_auc": float(np.mean(tile_aucs)) if tile_aucs else None,
        "tile_auc_seeds": tile_aucs,
        "maps_refused": sum(trial_result.refused for trial_result in trials),
        "fell": float(np.mean([check["removed"]["fell"] for check in checks])) if checks else None,
        "rose": float(np.mean([check["inserted"]["rose"] for check in checks])) if checks else None,
        "seconds": round(seconds, 1),
    }


def fit_all(
    rows_to_fit: Sequence[Row],
    train: Sequence[Bag],
    tests: Sequence[Unseen],
    seeds: int = SEEDS,
    *,
    out: Path | None = None,
) -> list[dict[str, Any]]:
    """Run every row with every seed on each set of test bags; append each result to the file at once."""
    torch.set_num_threads(1)
    summaries = []
    for row in rows_to_fit:
        began = time.perf_counter()
        trials = [trial(row, train, tests, seed) for seed in range(seeds)]
        seconds = time.perf_counter() - began
        for number, unseen in enumerate(tests):
            labels = [bag.label for bag in unseen.bags]
            row_summary = summary(row, [trials_of_seed[number] for trials_of_seed in trials], labels, seconds)
            summaries.append({"setting": unseen.name, **row_summary})
            print(line(summaries[-1]), flush=True)
            if out is not None:
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(summaries[-1]) + "\n")
    return summaries


HEADER = (
    "| setting | model | bag AUC, mean of seeds (lowest to highest) | 95 % of cases "
    "| tile AUC (lowest to highest) | removed: fell | inserted: rose |"
)


def line(result: dict[str, Any]) -> str:
    bag_aucs, tile_aucs = result["bag_auc_seeds"], result["tile_auc_seeds"]
    low, high = result["interval_of_cases"]
    tile_text = (
        f"{result['tile_auc']:.3f} ({min(tile_aucs):.3f} to {max(tile_aucs):.3f})" if tile_aucs else "none"
    )
    if result["maps_refused"]:
        tile_text += f", {result['maps_refused']} refused"
    changes = [f"{result[key]:.2f}" if result[key] is not None else "none" for key in ("fell", "rose")]
    return (
        f"| {result['setting']} | {result['model']} | {result['bag_auc']:.3f} "
        f"({min(bag_aucs):.3f} to {max(bag_aucs):.3f}) "
        f"| {low:.2f} to {high:.2f} | {tile_text} | {' | '.join(changes)} |"
    )
