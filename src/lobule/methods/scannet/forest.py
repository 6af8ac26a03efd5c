"""The random forest that scores a slide by 31 features of its map, stored as plain arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.errors import BundleError
from lobule.findings import HEATMAP_FEATURES, heatmap_features
from lobule.stitch import Scores, State, States
from lobule.training.division import grouped_folds

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FOREST = "slide_forest.json"
"""File of the forest in a bundle."""
FORMAT = "lobule-forest/1"
FOLDS = 5
FEWEST = 5
"""Minimum number of patients with tumour, and of patients without, for training a forest."""
LEAF = -1


@dataclass(frozen=True, eq=False)
class Forest:
    """Binary classification trees, concatenated in common arrays; children come after their parent."""

    roots: Integers
    """Index of the root node of each tree."""
    feature: Integers
    """Column that a node compares; -1 at a leaf."""
    threshold: Floats
    """The left child is chosen if the column is at most this."""
    left: Integers
    right: Integers
    share: Floats
    """Weighted share of the training slides at a node that have tumour."""

    def probability(self, rows: Floats) -> Floats:
        """Probabilities (slides,) for rows (slides, columns): the mean over the trees of the leaf's share."""
        values = np.asarray(rows, np.float32)  # scikit-learn grew the trees on float32 columns
        slide = np.arange(len(values))[:, None]
        node = np.tile(self.roots, (len(values), 1))
        while (inner := self.feature[node] != LEAF).any():
            goes_left = values[slide, self.feature[node]] <= self.threshold[node]
            node = np.where(inner, np.where(goes_left, self.left[node], self.right[node]), node)
        mean: Floats = self.share[node].mean(axis=1)
        return mean

    def to_text(self) -> str:
        """The forest as JSON, without loss of precision."""
        arrays = {item.name: getattr(self, item.name).tolist() for item in fields(self)}
        return json.dumps({"format": FORMAT, "columns": list(HEATMAP_FEATURES), **arrays})

    @classmethod
    def of_text(cls, text: str) -> Forest:
        """Read a forest from the text of its file.

        Raises:
            BundleError: If the file is damaged, for example if its nodes form a cycle.
        """
        try:
            stored: Mapping[str, Any] = json.loads(text)
            if stored["format"] != FORMAT or list(stored["columns"]) != list(HEATMAP_FEATURES):
                raise ValueError("the file has another format or other features")
            forest = cls(
                roots=np.array(stored["roots"], np.int64),
                feature=np.array(stored["feature"], np.int64),
                threshold=np.array(stored["threshold"], np.float64),
                left=np.array(stored["left"], np.int64),
                right=np.array(stored["right"], np.int64),
                share=np.array(stored["share"], np.float64),
            )
            forest._check()
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise BundleError("the forest of the slide score cannot be used", actual=str(error)) from error
        return forest

    def _check(self) -> None:
        nodes, indices = len(self.feature), np.arange(len(self.feature))
        arrays = [self.feature, self.threshold, self.left, self.right, self.share]
        if any(array.shape != (nodes,) for array in arrays) or self.roots.ndim != 1 or not len(self.roots):
            raise ValueError("the arrays have inconsistent shapes")
        if not (np.isfinite(self.threshold).all() and ((self.share >= 0) & (self.share <= 1)).all()):
            raise ValueError("a threshold or a share is out of range")
        inner = self.feature != LEAF
        children = np.stack([self.left, self.right])[:, inner]
        if (
            ((self.feature < LEAF) | (self.feature >= len(HEATMAP_FEATURES))).any()
            or ((self.roots < 0) | (self.roots >= nodes)).any()
            or ((children <= indices[inner]) | (children >= nodes)).any()
        ):
            raise ValueError("a node refers to a missing column or node")


def grow_forest(rows: Floats, positive: NDArray[np.bool_], trees: int, seed: int) -> Forest:
    """Train a forest with scikit-learn and convert it to arrays."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(trees, class_weight="balanced", random_state=seed, n_jobs=1)
    model.fit(rows.astype(np.float32), positive.astype(np.int64))
    fitted_trees = [estimator.tree_ for estimator in model.estimators_]
    starts = np.cumsum([0, *(tree.node_count for tree in fitted_trees)])[:-1]
    inner = np.concatenate([tree.children_left != LEAF for tree in fitted_trees])
    shift = np.repeat(starts, [tree.node_count for tree in fitted_trees])
    indices = np.arange(len(inner))

    def child(name: str) -> Integers:
        return np.where(
            inner, np.concatenate([getattr(tree, name) for tree in fitted_trees]) + shift, indices
        )

    weights = np.concatenate([tree.value[:, 0, :] for tree in fitted_trees])
    return Forest(
        starts.astype(np.int64),
        np.where(inner, np.concatenate([tree.feature for tree in fitted_trees]), LEAF).astype(np.int64),
        np.where(inner, np.concatenate([tree.threshold for tree in fitted_trees]), 0.0),
        child("children_left"),
        child("children_right"),
        weights[:, 1] / weights.sum(axis=1),
    )


def map_features(scores: Scores, states: States) -> Floats:
    """The 31 features of a map (1, rows, columns) of one class; cells that were not scored are not tissue."""
    scored = states == State.SCORED
    return heatmap_features(np.where(scored, scores[0], np.float32(0)), scored)


# -- cross-fitting ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CrossFitted:
    """A forest of all slides, and out-of-fold scores that do not depend on the slide's patient."""

    forest: Forest
    scores: Floats
    """(slides,), each from the forest of the other folds."""
    folds: NDArray[np.intp]
    """(slides,): the fold that each slide was scored in."""
    auc: float
    """The area under the ROC curve of `scores`."""


def too_few(positive: NDArray[np.bool_], patients: Sequence[str]) -> str | None:
    """The reason why a forest cannot be trained on these slides; None if it can."""
    pairs = set(zip(positive.tolist(), patients, strict=True))
    counts = [sum(label == has_tumour for label, _ in pairs) for has_tumour in (True, False)]
    if min(counts) >= FEWEST:
        return None
    return (
        f"{counts[0]} patients with tumour and {counts[1]} without are too few for a forest "
        f"({FEWEST} of each at least)"
    )


def cross_fit(
    rows: Floats, positive: NDArray[np.bool_], patients: Sequence[str], *, trees: int, seed: int
) -> CrossFitted:
    """Train one forest per fold of patients for out-of-fold scores, and then a forest on all slides."""
    from sklearn.metrics import roc_auc_score

    folds, scores = grouped_folds(positive, patients, FOLDS, seed), np.zeros(len(rows))
    for fold in range(FOLDS):
        forest = grow_forest(rows[folds != fold], positive[folds != fold], trees, seed)
        scores[folds == fold] = forest.probability(rows[folds == fold])
    auc = float(roc_auc_score(positive, scores))
    return CrossFitted(grow_forest(rows, positive, trees, seed), scores, folds, auc)
