"""What is reported with every model: its AUC, where its tiles are right, and whether they decide."""

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
from lobule.methods.chowder.ensemble import Ensemble, Localisation, Told

REMOVED_SHARE = 0.1
"""Of a bag's tiles: what the counterfactual check takes away, the highest first; at least R."""
CHECKED = 20
"""Positive bags at most that the counterfactual check looks at."""


def auc_of(judged: Sequence[tuple[Bag, Told]]) -> float | None:
    """The area under the ROC curve of the slides' probabilities; None with one label alone."""
    labels = [bag.label for bag, _ in judged]
    if len(set(labels)) < 2:
        return None
    return float(roc_auc_score(labels, [told.probability for _, told in judged]))


def tile_auc(values: NDArray[Any], inside: NDArray[np.bool_]) -> float | None:
    """How well values tell the tiles inside the outlines from the others of the same slide."""
    if inside.all() or not inside.any():
        return None
    return float(roc_auc_score(inside, values))


def tiles_in_outlines(bag: Bag) -> NDArray[np.bool_] | None:
    """Which tiles have their centre in a tumour outline; None where the case has none that can be used."""
    side = bag.file.l0_side(bag.case.mpp)
    if bag.case.annotation is None or side is None:
        return None
    annotation = read_annotation(bag.case.annotation, l0_size=bag.file.l0_size)
    return in_tumour(annotation, bag.l0_coords + side / 2)


def localisation_metrics(
    judged: Sequence[tuple[Bag, Told]], localisation: Localisation
) -> dict[str, Any] | None:
    """Tile AUC inside the positive slides that have outlines; None where there are none."""
    found, skipped = [], 0
    for bag, told in judged:
        if not bag.label:
            continue
        try:
            inside = tiles_in_outlines(bag)
        except LobuleError:
            skipped += 1
            continue
        auc = None if inside is None else tile_auc(localisation.values(told.evidence), inside)
        if auc is not None:
            found.append(auc)
    if not found:
        return None
    return {"tile_auc": float(np.mean(found)), "slides": len(found), "lowest": min(found), "skipped": skipped}


def counterfactual(
    ensemble: Ensemble, localisation: Localisation, judged: Sequence[tuple[Bag, Told]], seed: int = 0
) -> dict[str, Any] | None:
    """Does the score fall without the highest tiles, and rise where they are put into a normal bag?

    Changes are of the mean logit. `random` takes away as many tiles by lot, for comparison.
    """
    positive = [(bag, told) for bag, told in judged if bag.label == 1][:CHECKED]
    normal = [(bag, told) for bag, told in judged if bag.label == 0]
    if not positive or not normal:
        return None
    rng = np.random.default_rng([seed, 0xC0F])
    removed, random, inserted = [], [], []
    for number, (bag, told) in enumerate(positive):
        values = localisation.values(told.evidence)
        count = min(len(bag) - 1, max(ensemble.config.own("r"), round(REMOVED_SHARE * len(bag))))
        if count < 1:
            continue
        order = np.argsort(-values, kind="stable")
        outputs = ensemble.outputs(bag.blocks())
        before = told.logits.mean()
        removed.append(_mean_logit(ensemble, _kept(outputs, order[count:])) - before)
        random.append(_mean_logit(ensemble, _kept(outputs, rng.permutation(len(bag))[count:])) - before)
        host, said = normal[number % len(normal)]
        top = _kept(outputs, order[:count])
        both = [torch.cat(pair) for pair in zip(ensemble.outputs(host.blocks()), top, strict=True)]
        inserted.append(_mean_logit(ensemble, both) - said.logits.mean())
    if not removed:
        return None
    return {
        "slides": len(removed),
        "removed": {"change": float(np.mean(removed)), "fell": float(np.mean(np.array(removed) < 0))},
        "random": {"change": float(np.mean(random)), "fell": float(np.mean(np.array(random) < 0))},
        "inserted": {"change": float(np.mean(inserted)), "rose": float(np.mean(np.array(inserted) > 0))},
    }


def _kept(outputs: Sequence[Tensor], tiles: NDArray[np.int64]) -> list[Tensor]:
    index = torch.from_numpy(np.sort(tiles))
    return [one[index] for one in outputs]


def _mean_logit(ensemble: Ensemble, outputs: Sequence[Tensor]) -> float:
    return float(ensemble.of_outputs(outputs).logits.mean())
