"""The random forest that scores a slide by 31 features of its map: grown by folds, kept as plain arrays."""

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

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FOREST = "slide_forest.json"
"""The forest's file in a bundle."""
FORMAT = "lobule-forest/1"
FOLDS = 5
FEWEST = 5
"""Patients of each kind below which there is nothing to learn a forest from."""
LEAF = -1


@dataclass(frozen=True, eq=False)
class Forest:
    """Binary classification trees, one after another in common arrays; children come after their parent."""

    roots: Integers
    """The node that each tree begins at."""
    feature: Integers
    """The column that a node asks about; -1 at a leaf."""
    threshold: Floats
    """A node goes left where the column is at most this."""
    left: Integers
    right: Integers
    share: Floats
    """Of the training slides at a node, by weight, those with tumour."""

    def probability(self, rows: Floats) -> Floats:
        """(slides,) of (slides, columns): the mean over the trees of the share at the leaf reached."""
        values = np.asarray(rows, np.float32)  # columns are compared as they were when the trees grew
        slide = np.arange(len(values))[:, None]
        node = np.tile(self.roots, (len(values), 1))
        while (inner := self.feature[node] != LEAF).any():
            goes_left = values[slide, self.feature[node]] <= self.threshold[node]
            node = np.where(inner, np.where(goes_left, self.left[node], self.right[node]), node)
        mean: Floats = self.share[node].mean(axis=1)
        return mean

    def to_text(self) -> str:
        """JSON whose numbers read back to the last bit."""
        arrays = {item.name: getattr(self, item.name).tolist() for item in fields(self)}
        return json.dumps({"format": FORMAT, "columns": list(HEATMAP_FEATURES), **arrays})

    @classmethod
    def of_text(cls, text: str) -> Forest:
        """A forest from its file; one that would not end, or asks for a column there is not, is refused."""
        try:
            facts: Mapping[str, Any] = json.loads(text)
            if facts["format"] != FORMAT or list(facts["columns"]) != list(HEATMAP_FEATURES):
                raise ValueError("it is of another format, or of other features")
            forest = cls(
                roots=np.array(facts["roots"], np.int64),
                feature=np.array(facts["feature"], np.int64),
                threshold=np.array(facts["threshold"], np.float64),
                left=np.array(facts["left"], np.int64),
                right=np.array(facts["right"], np.int64),
                share=np.array(facts["share"], np.float64),
            )
            forest._check()
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise BundleError("the forest of the slide score cannot be used", actual=str(error)) from error
        return forest

    def _check(self) -> None:
        nodes, own = len(self.feature), np.arange(len(self.feature))
        arrays = [self.feature, self.threshold, self.left, self.right, self.share]
        if any(array.shape != (nodes,) for array in arrays) or self.roots.ndim != 1 or not len(self.roots):
            raise ValueError("its arrays do not fit one another")
        if not (np.isfinite(self.threshold).all() and ((self.share >= 0) & (self.share <= 1)).all()):
            raise ValueError("a threshold or a share is out of range")
        inner = self.feature != LEAF
        children = np.stack([self.left, self.right])[:, inner]
        if (
            ((self.feature < LEAF) | (self.feature >= len(HEATMAP_FEATURES))).any()
            or ((self.roots < 0) | (self.roots >= nodes)).any()
            or ((children <= own[inner]) | (children >= nodes)).any()
        ):
            raise ValueError("a node points to what is not there")


def grown(rows: Floats, positive: NDArray[np.bool_], trees: int, seed: int) -> Forest:
    """A forest of so many trees, by scikit-learn."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(trees, class_weight="balanced", random_state=seed, n_jobs=1)
    model.fit(rows.astype(np.float32), positive.astype(np.int64))
    parts = [one.tree_ for one in model.estimators_]
    starts = np.cumsum([0, *(part.node_count for part in parts)])[:-1]
    inner = np.concatenate([part.children_left != LEAF for part in parts])
    shift = np.repeat(starts, [part.node_count for part in parts])
    own = np.arange(len(inner))

    def child(name: str) -> Integers:
        return np.where(inner, np.concatenate([getattr(part, name) for part in parts]) + shift, own)

    weights = np.concatenate([part.value[:, 0, :] for part in parts])
    return Forest(
        starts.astype(np.int64),
        np.where(inner, np.concatenate([part.feature for part in parts]), LEAF).astype(np.int64),
        np.where(inner, np.concatenate([part.threshold for part in parts]), 0.0),
        child("children_left"),
        child("children_right"),
        weights[:, 1] / weights.sum(axis=1),
    )


def map_features(scores: Scores, states: States) -> Floats:
    """The 31 features of a map of one class, (1, rows, columns); what was not scored is no tissue."""
    scored = states == State.SCORED
    return heatmap_features(np.where(scored, scores[0], np.float32(0)), scored)


# -- cross-fitting ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CrossFitted:
    """A forest of all slides, and of each slide the score of one that saw none of its patient."""

    forest: Forest
    scores: Floats
    """(slides,), each from the forest of the other folds."""
    folds: Integers
    """(slides,): the fold that each slide was scored in."""
    auc: float
    """The area under the ROC curve of `scores`."""


def too_few(positive: NDArray[np.bool_], patients: Sequence[str]) -> str | None:
    """Why no forest can be learned from these slides; None where one can."""
    pairs = set(zip(positive.tolist(), patients, strict=True))
    counts = [sum(kind == wanted for kind, _ in pairs) for wanted in (True, False)]
    if min(counts) >= FEWEST:
        return None
    return (
        f"{counts[0]} patients with tumour and {counts[1]} without are too few for a forest "
        f"({FEWEST} of each at least)"
    )


def cross_fitted(
    rows: Floats, positive: NDArray[np.bool_], patients: Sequence[str], *, trees: int, seed: int
) -> CrossFitted:
    """Forests by folds of patients, for scores that no forest learned from, and then one of all slides."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold

    number = {name: index for index, name in enumerate(sorted(set(patients)))}
    groups = np.array([number[name] for name in patients])
    splits = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    scores, folds = np.zeros(len(rows)), np.zeros(len(rows), np.int64)
    for fold, (others, own) in enumerate(splits.split(rows, positive, groups)):
        forest = grown(rows[others], positive[others], trees, seed)
        scores[own], folds[own] = forest.probability(rows[own]), fold
    auc = float(roc_auc_score(positive, scores))
    return CrossFitted(grown(rows, positive, trees, seed), scores, folds, auc)
