"""Cross-validation by patient or site, repeated or nested; every out-of-fold score is kept."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from lobule.files import read_json, write_json
from lobule.methods.chowder.bags import Bag
from lobule.methods.chowder.config import Config
from lobule.methods.chowder.ensemble import Ensemble
from lobule.methods.chowder.fit import Fitted
from lobule.methods.chowder.splits import folds_of, hold_out, refuse_lopsided

Fitter = Callable[[Config, Sequence[Bag], Sequence[Bag], int], Fitted]


@dataclass(frozen=True)
class CrossValidated:
    """What cross-validation found."""

    metrics: dict[str, Any]
    table: str
    """CSV: one row a case and repeat, with the score of members that never saw its patient."""
    chosen: tuple[float, float] | None
    """Rate and decay that nested folds chose most often; None where they were not chosen."""


@dataclass(frozen=True)
class _Fold:
    """One fold: scores of the cases held out, and the rate and decay that were chosen for it."""

    scores: dict[str, float]
    choice: tuple[float, float] | None


def cross_validate(
    config: Config,
    bags: Sequence[Bag],
    place: Path,
    seed: int,
    fitter: Fitter,
    stage: Callable[[str], None],
) -> CrossValidated:
    """Each fold is scored by an ensemble that trained on the others; a fold on disk is not done again."""
    labels = {bag.case.id: bag.label for bag in bags}
    rows: list[list[Any]] = []
    pooled, within, choices = [], [], []
    _check_folds(config, bags, seed)
    for repeat in range(config.repeats):
        folds = folds_of(bags, config.folds, seed + repeat, by_site=config.by_site)
        scores: dict[str, float] = {}
        for fold in range(config.folds):
            stage(f"fold {fold + 1} of {config.folds}, repeat {repeat + 1} of {config.repeats}")
            kept = place / f"fold-{repeat}-{fold}.json"
            if not kept.exists():
                inside = [bag for bag, f in zip(bags, folds, strict=True) if f != fold]
                outside = [bag for bag, f in zip(bags, folds, strict=True) if f == fold]
                done = _fold(config, inside, outside, _seed_of(seed, repeat, fold), fitter)
                write_json(kept, {"scores": done.scores, "choice": done.choice})
            found = read_json(kept)
            scores |= found["scores"]
            rows += [[repeat, fold, name, labels[name], score] for name, score in found["scores"].items()]
            if found["choice"] is not None:
                choices.append(tuple(found["choice"]))
            within.append(_auc(found["scores"], labels))
        pooled.append(_auc(scores, labels))
    chosen = Counter(choices).most_common(1)
    return CrossValidated(
        _summary(config, pooled, within, choices),
        _table(rows),
        chosen[0][0] if chosen else None,
    )


def _seed_of(seed: int, repeat: int, fold: int) -> int:
    return seed + 1000 * (repeat + 1) + fold


def _check_folds(config: Config, bags: Sequence[Bag], seed: int) -> None:
    """Refuse folds, and inner ones, that cannot be trained on: now, and not after hours of the others."""
    for repeat in range(config.repeats):
        folds = folds_of(bags, config.folds, seed + repeat, by_site=config.by_site)
        refuse_lopsided(bags, folds, config.by_site)
        for fold in range(config.folds if config.nested else 0):
            inside = [bag for bag, f in zip(bags, folds, strict=True) if f != fold]
            inner = folds_of(inside, config.inner_folds, _seed_of(seed, repeat, fold), by_site=config.by_site)
            refuse_lopsided(inside, inner, config.by_site)


def _fold(config: Config, inside: Sequence[Bag], outside: Sequence[Bag], seed: int, fitter: Fitter) -> _Fold:
    choice = _choose(config, inside, seed, fitter) if config.nested else None
    if choice is not None:
        config = replace(config, rate=choice[0], decay=choice[1])
    train, val, _ = hold_out(inside, seed)
    members = [fitter(config, train, val, seed + 31 * number).model for number in range(config.members)]
    return _Fold(_scores(Ensemble(config, tuple(members)), outside), choice)


def _choose(config: Config, inside: Sequence[Bag], seed: int, fitter: Fitter) -> tuple[float, float]:
    """The rate and decay whose inner folds have the best AUC; of equals the first of the grid."""
    folds = folds_of(inside, config.inner_folds, seed, by_site=config.by_site)
    best, best_auc = (config.grid_rates[0], config.grid_decays[0]), -1.0
    for rate, decay in product(config.grid_rates, config.grid_decays):
        tried = replace(config, rate=rate, decay=decay)
        scores: dict[str, float] = {}
        for fold in range(config.inner_folds):
            train = [bag for bag, f in zip(inside, folds, strict=True) if f != fold]
            rest = [bag for bag, f in zip(inside, folds, strict=True) if f == fold]
            scores |= _scores(Ensemble(tried, (fitter(tried, train, (), seed + fold).model,)), rest)
        auc = _auc(scores, {bag.case.id: bag.label for bag in inside})
        if auc is not None and auc > best_auc:
            best, best_auc = (rate, decay), auc
    return best


def _scores(ensemble: Ensemble, bags: Sequence[Bag]) -> dict[str, float]:
    return {bag.case.id: ensemble.tell(bag.blocks()).probability for bag in bags}


def _auc(scores: dict[str, float], labels: dict[str, int]) -> float | None:
    told = [labels[name] for name in scores]
    return float(roc_auc_score(told, list(scores.values()))) if len(set(told)) == 2 else None


def _summary(
    config: Config, pooled: list[float | None], within: list[float | None], choices: list[Any]
) -> dict[str, Any]:
    whole = [auc for auc in pooled if auc is not None]
    each = [auc for auc in within if auc is not None]
    facts = {
        "folds": config.folds,
        "repeats": config.repeats,
        "by": "site" if config.by_site else "patient",
        "auc_of_repeats": whole,
        "auc_of_folds": each,
        "spread_of_folds": float(np.std(each, ddof=1)) if len(each) > 1 else None,
        "choices": [list(choice) for choice in choices],
    }
    return {"cv_auc": float(np.mean(whole)) if whole else None, "cross_validation": facts}


def _table(rows: list[list[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["repeat", "fold", "case", "label", "score"])
    writer.writerows(rows)
    return out.getvalue()
