"""Checks reported with every model: slide AUC, tile AUC, and whether the highest tiles decide the score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from lobule.annotations import in_tumour, read_annotation
from lobule.errors import LobuleError
from lobule.methods.chowder.bags import Bag
from lobule.methods.chowder.ensemble import BagScores, Ensemble, Localisation

REMOVED_SHARE = 0.1
"""Share of a bag's tiles that the counterfactual check removes, highest first; at least R tiles."""
MAX_CHECKED_BAGS = 20
"""The counterfactual check uses at most this many positive bags."""


def auc_of(scored_bags: Sequence[tuple[Bag, BagScores]]) -> float | None:
    """The area under the ROC curve of the slides' probabilities; None if all slides have the same label."""
    labels = [bag.label for bag, _ in scored_bags]
    if len(set(labels)) < 2:
        return None
    return float(roc_auc_score(labels, [scores.probability for _, scores in scored_bags]))


def tile_auc(values: NDArray[Any], inside: NDArray[np.bool_]) -> float | None:
    """How well the values separate the tiles inside the outlines from the other tiles of the slide."""
    if inside.all() or not inside.any():
        return None
    return float(roc_auc_score(inside, values))


def tiles_in_outlines(bag: Bag) -> NDArray[np.bool_] | None:
    """Which tiles have their centre in a tumour outline; None without an annotation or a known tile size."""
    side = bag.file.l0_side(bag.case.mpp)
    if bag.case.annotation is None or side is None:
        return None
    annotation = read_annotation(bag.case.annotation, l0_size=bag.file.l0_size)
    return in_tumour(annotation, bag.l0_coords + side / 2)


def localisation_metrics(
    scored_bags: Sequence[tuple[Bag, BagScores]], localisation: Localisation
) -> dict[str, Any] | None:
    """Tile AUC within the positive slides that have outlines; None if no slide has any."""
    tile_aucs, skipped = [], 0
    for bag, scores in scored_bags:
        if not bag.label:
            continue
        try:
            inside = tiles_in_outlines(bag)
        except LobuleError:
            skipped += 1
            continue
        auc = None if inside is None else tile_auc(localisation.values(scores.evidence), inside)
        if auc is not None:
            tile_aucs.append(auc)
    if not tile_aucs:
        return None
    return {
        "tile_auc": float(np.mean(tile_aucs)),
        "slides": len(tile_aucs),
        "lowest": min(tile_aucs),
        "skipped": skipped,
    }


def counterfactual(
    ensemble: Ensemble,
    localisation: Localisation,
    scored_bags: Sequence[tuple[Bag, BagScores]],
    seed: int = 0,
) -> dict[str, Any] | None:
    """Test whether the score falls without the highest tiles, and rises if they are added to a normal bag.

    The changes are those of the mean logit. For comparison, `random` removes as many tiles at random.
    """
    positive = [(bag, scores) for bag, scores in scored_bags if bag.label == 1][:MAX_CHECKED_BAGS]
    normal = [(bag, scores) for bag, scores in scored_bags if bag.label == 0]
    if not positive or not normal:
        return None
    rng = np.random.default_rng([seed, 0xC0F])
    removed, random, inserted = [], [], []
    for number, (bag, scores) in enumerate(positive):
        values = localisation.values(scores.evidence)
        count = min(len(bag) - 1, max(ensemble.config.setting("r"), round(REMOVED_SHARE * len(bag))))
        if count < 1:
            continue
        order = np.argsort(-values, kind="stable")
        outputs = ensemble.outputs(bag.blocks())
        before = scores.logits.mean()
        removed.append(_mean_logit(ensemble, _select_tiles(outputs, order[count:])) - before)
        random.append(
            _mean_logit(ensemble, _select_tiles(outputs, rng.permutation(len(bag))[count:])) - before
        )
        normal_bag, normal_scores = normal[number % len(normal)]
        top_outputs = _select_tiles(outputs, order[:count])
        combined = [
            torch.cat(pair) for pair in zip(ensemble.outputs(normal_bag.blocks()), top_outputs, strict=True)
        ]
        inserted.append(_mean_logit(ensemble, combined) - normal_scores.logits.mean())
    if not removed:
        return None
    return {
        "slides": len(removed),
        "removed": {"change": float(np.mean(removed)), "fell": float(np.mean(np.array(removed) < 0))},
        "random": {"change": float(np.mean(random)), "fell": float(np.mean(np.array(random) < 0))},
        "inserted": {"change": float(np.mean(inserted)), "rose": float(np.mean(np.array(inserted) > 0))},
    }


def _select_tiles(outputs: Sequence[Tensor], tiles: NDArray[np.int64]) -> list[Tensor]:
    index = torch.from_numpy(np.sort(tiles))
    return [output[index] for output in outputs]


def _mean_logit(ensemble: Ensemble, outputs: Sequence[Tensor]) -> float:
    return float(ensemble.score_outputs(outputs).logits.mean())
