"""The forest of the slide score: probabilities from plain arrays, and out-of-fold scores."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from lobule.errors import BundleError
from lobule.findings import HEATMAP_FEATURES
from lobule.methods.scannet.forest import Forest, cross_fit, grow_forest, too_few
from tests.test_findings import TEST_TUMOURS

WIDTH = len(HEATMAP_FEATURES)


def slides(count: int, seed: int, strength: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Feature rows with two decimals, in which some columns depend on the class."""
    rng = np.random.default_rng(seed)
    positive = np.arange(count) % 3 == 0
    rows = rng.normal(0, 1, (count, WIDTH)) * 10.0 ** rng.integers(-1, 5, WIDTH)
    rows[:, :5] += strength * positive[:, None] * np.abs(rows[:, :5]).mean(0)
    return rows.round(2), positive


def test_probabilities_equal_those_of_scikit_learn() -> None:
    """Compared with scikit-learn for the same data and seed, on training rows and unseen rows."""
    rows, positive = slides(80, 1)
    reference = RandomForestClassifier(25, class_weight="balanced", random_state=3, n_jobs=1)
    reference.fit(rows.astype(np.float32), positive.astype(int))
    forest = grow_forest(rows, positive, 25, 3)
    unseen_rows = np.concatenate([rows, slides(200, 2)[0], np.zeros((1, WIDTH))])
    expected = reference.predict_proba(unseen_rows)[:, 1]
    assert expected.std() > 0.1
    np.testing.assert_allclose(forest.probability(unseen_rows), expected, rtol=0, atol=1e-12)
    # Exactly on a threshold, where float32 and float64 may differ.
    edge = np.full((1, WIDTH), float(np.float32(forest.threshold[forest.roots[0]])))
    assert forest.probability(edge)[0] == pytest.approx(reference.predict_proba(edge)[0, 1], abs=1e-12)


def test_a_forest_round_trips_exactly() -> None:
    rows, positive = slides(60, 4)
    forest = grow_forest(rows, positive, 10, 0)
    again = Forest.of_text(forest.to_text())
    assert again.to_text() == forest.to_text()
    assert (again.probability(rows) == forest.probability(rows)).all()


@pytest.mark.parametrize(
    "damage",
    [
        {"format": "pickle"},
        {"columns": ["area"]},
        {"left": [0, 1, 2]},  # a root that is its own child
        {"right": [7, 1, 2]},
        {"feature": [31, -1, -1]},
        {"roots": [-1]},
        {"roots": []},
        {"share": [0.5, 0.0, 2.0]},
        {"threshold": [float("nan"), 0.0, 0.0]},
        {"threshold": [0.0]},
    ],
)
def test_damaged_forests_are_rejected(damage: dict[str, object]) -> None:
    stored = {
        "format": "lobule-forest/1", "columns": list(HEATMAP_FEATURES), "roots": [0], "feature": [0, -1, -1],
        "threshold": [0.5, 0.0, 0.0], "left": [1, 1, 2], "right": [2, 1, 2], "share": [0.5, 0.25, 1.0],
    }  # fmt: skip
    intact = Forest.of_text(json.dumps(stored))
    row = np.zeros((2, WIDTH))
    row[1, 0] = 0.75
    assert intact.probability(row).tolist() == [0.25, 1.0]
    with pytest.raises(BundleError, match="forest of the slide score cannot be used"):
        Forest.of_text(json.dumps(stored | damage))


def test_no_slide_is_scored_by_a_forest_that_saw_its_patient() -> None:
    rows, positive = slides(90, 5)
    patients = [f"p{number // 2}" for number in range(90)]
    fitted = cross_fit(rows, positive, patients, trees=15, seed=7)
    assert set(fitted.folds) == set(range(5))
    for patient in set(patients):
        assert (
            len({fold for fold, in_fold in zip(fitted.folds, patients, strict=True) if in_fold == patient})
            == 1
        )
    for fold in range(5):
        in_fold = fitted.folds == fold
        alone = grow_forest(rows[~in_fold], positive[~in_fold], 15, 7)
        assert (alone.probability(rows[in_fold]) == fitted.scores[in_fold]).all()
    assert fitted.auc == roc_auc_score(positive, fitted.scores)


def test_random_labels_are_not_learned_out_of_fold() -> None:
    """A forest separates its training slides by any labels, but out-of-fold scores do not."""
    rng = np.random.default_rng(8)
    rows = rng.normal(0, 1, (120, WIDTH)).round(2)
    positive = rng.permutation(np.arange(120) % 2 == 0)
    patients = [f"p{number}" for number in range(120)]
    fitted = cross_fit(rows, positive, patients, trees=40, seed=0)
    assert roc_auc_score(positive, fitted.forest.probability(rows)) > 0.99
    assert 0.35 < fitted.auc < 0.65


def test_too_few_patients_are_reported() -> None:
    positive = np.array([True] * 6 + [False] * 6)
    assert too_few(positive, [f"p{number}" for number in range(12)]) is None
    assert "4 patients with tumour and 6 without" in str(
        too_few(positive, ["p0", "p0", "p0", *[f"p{number}" for number in range(3, 12)]])
    )
    assert "0 patients with tumour" in str(too_few(np.zeros(12, bool), [f"p{n}" for n in range(12)]))


def test_published_features_give_the_published_score(kit: Path) -> None:
    """On the published features of Camelyon16 slides, forests reach the published area of 0.89 to 0.91."""

    def table(name: str) -> list[dict[str, str]]:
        with (kit / f"camelyon16/heatmap_features/{name}.csv").open() as file:
            return list(csv.DictReader(file))

    train, test = table("heatmap_features_train_all_model8"), table("heatmap_features_test")
    rows, test_rows = (
        np.array([[float(row[n]) for n in HEATMAP_FEATURES] for row in t]) for t in (train, test)
    )
    positive = np.array([row["label"] == "1" for row in train])
    labels = np.isin(np.arange(1, 131), TEST_TUMOURS)
    areas = [
        roc_auc_score(labels, grow_forest(rows, positive, 200, seed).probability(test_rows))
        for seed in range(2)
    ]
    assert all(0.88 < area < 0.92 for area in areas), areas
