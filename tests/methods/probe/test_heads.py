"""The heads of a probe, each against the library or the plain formula that it comes from."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from lobule.errors import ConfigError, ModelError
from lobule.methods.probe.config import Config
from lobule.methods.probe.heads import BoostedHead, NeighbourHead, complete_trees, fit_head, load_head

WIDTH = 6


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 2
    rows = rng.normal(size=(600, WIDTH)) * [1, 5, 0.2, 1, 1, 9] + labels[:, None] * [1, 0, 0.1, 0, 0, 4]
    return rows.astype(np.float32), labels.astype(np.int64)


def test_linear_head_is_logistic_regression(data: Any) -> None:
    rows, labels = data
    head = fit_head(Config(), rows, labels, 0)
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    reference = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit((rows - mean) / spread, labels)
    expected = reference.predict_proba((rows - mean) / spread)[:, 1]
    np.testing.assert_allclose(head(torch.from_numpy(rows)).numpy(), expected, atol=2e-3)


def test_neighbours_vote_by_similarity(data: Any) -> None:
    rows, labels = data
    head = fit_head(Config(head="knn", bank=100, neighbours=5), rows, labels, 3)
    assert isinstance(head, NeighbourHead) and head.bank.shape == (100, WIDTH)
    assert head.labels.sum() == 50
    bank, bank_labels = head.bank.numpy().astype(float), head.labels.numpy()
    scores = head(torch.from_numpy(rows[:20])).numpy()
    for row, score in zip(rows[:20], scores, strict=True):
        standardised = (row - rows.mean(axis=0)) / rows.std(axis=0)
        similarity = bank @ (standardised / np.linalg.norm(standardised))
        nearest = np.argsort(-similarity)[:5]
        votes = np.exp(similarity[nearest] / 0.07)
        assert score == pytest.approx((votes * bank_labels[nearest]).sum() / votes.sum(), abs=1e-4)


def test_boosted_head_predicts_as_lightgbm(data: Any) -> None:
    rows, labels = data
    parameters = {"objective": "binary", "num_leaves": 7, "max_depth": 4, "verbosity": -1, "num_threads": 1}
    model = lightgbm.train(parameters, lightgbm.Dataset(rows, labels), 25)
    trees = [tree["tree_structure"] for tree in model.dump_model()["tree_info"]]
    head = BoostedHead(*complete_trees(trees, 4))
    np.testing.assert_allclose(head(torch.from_numpy(rows)).numpy(), model.predict(rows), atol=1e-6)
    fitted = fit_head(Config(head="boosted", trees=30), rows, labels, 0)
    scores = fitted(torch.from_numpy(rows)).numpy()
    assert scores[labels == 1].mean() > scores[labels == 0].mean() + 0.3


@pytest.mark.parametrize("name", ["linear", "knn", "boosted"])
def test_heads_survive_storing_and_refuse_other_tokens(data: Any, name: Any) -> None:
    rows, labels = data
    config = Config(head=name, trees=4, bank=60)
    head = fit_head(config, rows, labels, 0)
    tensors = dict(head.state_dict())
    restored = load_head(config, tensors, WIDTH)
    torch.testing.assert_close(restored(torch.from_numpy(rows)), head(torch.from_numpy(rows)))
    with pytest.raises(ModelError, match=r"do not fit"):
        load_head(config, tensors, 1)
    other = Config(head="knn" if name == "linear" else "linear")
    with pytest.raises(ModelError, match="do not contain the head"):
        load_head(other, tensors, WIDTH)


def test_settings_that_cannot_work_are_refused() -> None:
    for settings in ({"overlap": 1.0}, {"strides": ()}, {"tokens": 8}, {"depth": 9}, {"bank": 10}):
        with pytest.raises(ConfigError):
            Config(**settings)  # type: ignore[arg-type]
