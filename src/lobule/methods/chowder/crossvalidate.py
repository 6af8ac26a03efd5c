"""Cross-validation by patient or site, repeated or nested; every out-of-fold score is stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from lobule.files import csv_text, read_json, write_json
from lobule.methods.chowder.bags import Bag
from lobule.methods.chowder.config import Config
from lobule.methods.chowder.ensemble import Ensemble
from lobule.methods.chowder.fit import Fitted
from lobule.methods.chowder.splits import folds_of, hold_out

Fitter = Callable[[Config, Sequence[Bag], Sequence[Bag], int], Fitted]


@dataclass(frozen=True)
class CrossValidationResult:
    """The result of cross-validation."""

    metrics: dict[str, Any]
    table: str
    """CSV with one row per case and repeat: the score by members that were not trained on its patient."""
    config: Config
    """The settings with the rate and decay that nested folds chose most often."""


@dataclass(frozen=True)
class _Fold:
    """One fold: the scores of its held-out cases, and the rate and decay chosen for it."""

    scores: dict[str, float]
    choice: tuple[float, float] | None


def cross_validate(
    config: Config, bags: Sequence[Bag], folder: Path, seed: int, fitter: Fitter, stage: Callable[[str], None]
) -> CrossValidationResult:
    """Score each fold with an ensemble trained on the other folds; results already on disk are reused."""
    labels = {bag.case.id: bag.label for bag in bags}
    rows: list[list[Any]] = []
    repeat_aucs, fold_aucs, choices = [], [], []
    _check_folds(config, bags, seed)
    for repeat in range(config.repeats):
        folds = folds_of(bags, config.folds, seed + repeat, by_site=config.by_site)
        scores: dict[str, float] = {}
        for fold in range(config.folds):
            stage(f"fold {fold + 1} of {config.folds}, repeat {repeat + 1} of {config.repeats}")
            fold_path = folder / f"fold-{repeat}-{fold}.json"
            if not fold_path.exists():
                train_bags = [bag for bag, f in zip(bags, folds, strict=True) if f != fold]
                test_bags = [bag for bag, f in zip(bags, folds, strict=True) if f == fold]
                new_fold = _fold(config, train_bags, test_bags, _seed_of(seed, repeat, fold), fitter)
                write_json(fold_path, {"scores": new_fold.scores, "choice": new_fold.choice})
            fold_result = read_json(fold_path)
            scores |= fold_result["scores"]
            rows += [
                [repeat, fold, name, labels[name], score] for name, score in fold_result["scores"].items()
            ]
            if fold_result["choice"] is not None:
                choices.append(tuple(fold_result["choice"]))
            fold_aucs.append(_auc(fold_result["scores"], labels))
        repeat_aucs.append(_auc(scores, labels))
    metrics = _summary(config, repeat_aucs, fold_aucs, choices)
    for (rate, decay), _ in Counter(choices).most_common(1):
        config = replace(config, rate=rate, decay=decay)
    return CrossValidationResult(
        metrics, csv_text(["repeat", "fold", "case", "label", "score"], rows), config
    )


def _seed_of(seed: int, repeat: int, fold: int) -> int:
    return seed + 1000 * (repeat + 1) + fold


def _check_folds(config: Config, bags: Sequence[Bag], seed: int) -> None:
    """Refuse outer and inner folds that cannot be trained on, before hours are spent on other folds."""
    for repeat in range(config.repeats):
        folds = folds_of(bags, config.folds, seed + repeat, by_site=config.by_site)
        for fold in range(config.folds if config.nested else 0):
            train_bags = [bag for bag, f in zip(bags, folds, strict=True) if f != fold]
            _inner_folds(config, train_bags, _seed_of(seed, repeat, fold))


def _inner_folds(config: Config, bags: Sequence[Bag], seed: int) -> NDArray[np.intp]:
    return folds_of(bags, config.inner_folds, seed, by_site=config.by_site, setting="inner_folds")


def _fold(
    config: Config, train_bags: Sequence[Bag], test_bags: Sequence[Bag], seed: int, fitter: Fitter
) -> _Fold:
    choice = _choose(config, train_bags, seed, fitter) if config.nested else None
    if choice is not None:
        config = replace(config, rate=choice[0], decay=choice[1])
    train, val, _ = hold_out(train_bags, seed)
    members = [fitter(config, train, val, seed + 31 * number).model for number in range(config.members)]
    return _Fold(_scores(Ensemble(config, tuple(members)), test_bags), choice)


def _choose(config: Config, bags: Sequence[Bag], seed: int, fitter: Fitter) -> tuple[float, float]:
    """The rate and decay with the best AUC over the inner folds; of equals, the first in the grid."""
    folds = _inner_folds(config, bags, seed)
    best, best_auc = (config.grid_rates[0], config.grid_decays[0]), -1.0
    for rate, decay in product(config.grid_rates, config.grid_decays):
        candidate = replace(config, rate=rate, decay=decay)
        scores: dict[str, float] = {}
        for fold in range(config.inner_folds):
            train_bags = [bag for bag, f in zip(bags, folds, strict=True) if f != fold]
            test_bags = [bag for bag, f in zip(bags, folds, strict=True) if f == fold]
            scores |= _scores(
                Ensemble(candidate, (fitter(candidate, train_bags, (), seed + fold).model,)), test_bags
            )
        auc = _auc(scores, {bag.case.id: bag.label for bag in bags})
        if auc is not None and auc > best_auc:
            best, best_auc = (rate, decay), auc
    return best


def _scores(ensemble: Ensemble, bags: Sequence[Bag]) -> dict[str, float]:
    return {bag.case.id: ensemble.score_bag(bag.blocks()).probability for bag in bags}


def _auc(scores: dict[str, float], labels: dict[str, int]) -> float | None:
    case_labels = [labels[name] for name in scores]
    return float(roc_auc_score(case_labels, list(scores.values()))) if len(set(case_labels)) == 2 else None


def _summary(
    config: Config, repeat_aucs: list[float | None], fold_aucs: list[float | None], choices: list[Any]
) -> dict[str, Any]:
    valid_repeat_aucs = [auc for auc in repeat_aucs if auc is not None]
    valid_fold_aucs = [auc for auc in fold_aucs if auc is not None]
    summary = {
        "folds": config.folds,
        "repeats": config.repeats,
        "by": "site" if config.by_site else "patient",
        "auc_of_repeats": valid_repeat_aucs,
        "auc_of_folds": valid_fold_aucs,
        "spread_of_folds": float(np.std(valid_fold_aucs, ddof=1)) if len(valid_fold_aucs) > 1 else None,
        "choices": [list(choice) for choice in choices],
    }
    return {
        "cv_auc": float(np.mean(valid_repeat_aucs)) if valid_repeat_aucs else None,
        "cross_validation": summary,
    }
