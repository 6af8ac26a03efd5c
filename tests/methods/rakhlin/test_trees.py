"""Checked trees predict what LightGBM predicts, and refuse what LightGBM would die of."""

from __future__ import annotations

import re

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lobule.errors import BundleError
from lobule.methods.rakhlin.trees import BoostedTrees

Rows = np.ndarray


def random_model(seed: int, missing: str = "none") -> tuple[lightgbm.Booster, Rows]:
    """A random multiclass model, and rows with missing values and zeros to predict."""
    rng = np.random.default_rng(seed)
    classes, width = int(rng.integers(2, 6)), int(rng.integers(2, 12))
    rows = rng.normal(size=(300, width)).astype(np.float32)
    parameters = {
        "objective": "multiclass", "num_class": classes, "verbosity": -1, "min_data_in_leaf": 3, "seed": seed,
        "num_leaves": int(rng.integers(2, 40)), "num_threads": 1,
    }  # fmt: skip
    if missing == "nan":
        rows[rng.random(rows.shape) < 0.2] = np.nan
    elif missing == "zero":
        rows[rng.random(rows.shape) < 0.3] = 0
        parameters["zero_as_missing"] = True
    labels = ((np.nan_to_num(rows[:, 0]) > 0) + rng.integers(0, classes, len(rows))) % classes
    booster = lightgbm.train(parameters, lightgbm.Dataset(rows, labels), int(rng.integers(1, 20)))
    other_columns = rng.normal(size=(200, width)).astype(np.float32)
    other_columns[rng.random(other_columns.shape) < 0.1] = np.nan
    other_columns[rng.random(other_columns.shape) < 0.1] = 0
    return booster, np.concatenate([rows, other_columns])


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from(["none", "nan", "zero"]))
def test_predictions_are_those_of_lightgbm(seed: int, missing: str) -> None:
    booster, rows = random_model(seed, missing)
    trees = BoostedTrees.of_text(booster.model_to_string())
    for values in (rows, rows.astype(np.float64), np.nan_to_num(rows)):
        np.testing.assert_allclose(trees.predict(values), booster.predict(values), rtol=0, atol=1e-12)


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.sampled_from(["none", "nan", "zero"]))
def test_written_text_is_the_same_model_to_lightgbm(seed: int, missing: str) -> None:
    booster, rows = random_model(seed, missing)
    again = lightgbm.Booster(model_str=BoostedTrees.of_text(booster.model_to_string()).to_text())
    np.testing.assert_array_equal(again.predict(rows), booster.predict(rows))
    np.testing.assert_allclose(
        again.predict(rows, pred_contrib=True), booster.predict(rows, pred_contrib=True), atol=1e-12
    )


def test_trees_without_splits_predict_the_class_shares() -> None:
    rows, labels = np.zeros((40, 3), np.float32), np.repeat([0, 1], [10, 30])
    booster = lightgbm.train(
        {"objective": "multiclass", "num_class": 2, "verbosity": -1}, lightgbm.Dataset(rows, labels), 2
    )
    trees = BoostedTrees.of_text(booster.model_to_string())
    np.testing.assert_allclose(trees.predict(rows[:1]), booster.predict(rows[:1]), atol=1e-12)
    again = lightgbm.Booster(model_str=trees.to_text())
    np.testing.assert_array_equal(again.predict(rows[:1]), booster.predict(rows[:1]))


def test_rows_of_another_width_are_refused() -> None:
    booster, rows = random_model(0)
    with pytest.raises(BundleError, match="do not fit the descriptors"):
        BoostedTrees.of_text(booster.model_to_string()).predict(rows[:, :-1])


FIRST_OF = r"(?m)^({}=)\S+"
ALTERED = {
    "more leaves": (FIRST_OF.format("num_leaves"), r"\g<1>9999"),
    "fewer leaves": (FIRST_OF.format("num_leaves"), r"\g<1>2"),
    "absurd leaves": (FIRST_OF.format("num_leaves"), r"\g<1>99999999999999999999999"),
    "no leaves": (FIRST_OF.format("num_leaves"), r"\g<1>0"),
    "no classes": (FIRST_OF.format("num_class"), r"\g<1>0"),
    "no trees in a round": (FIRST_OF.format("num_tree_per_iteration"), r"\g<1>0"),
    "fewer features": (FIRST_OF.format("max_feature_idx"), r"\g<1>0"),
    "negative features": (FIRST_OF.format("max_feature_idx"), r"\g<1>-5"),
    "feature out of range": (FIRST_OF.format("split_feature"), r"\g<1>1000000"),
    "child out of range": (FIRST_OF.format("left_child"), r"\g<1>1000000"),
    "child of itself": (FIRST_OF.format("left_child"), r"\g<1>0"),
    "leaf out of range": (FIRST_OF.format("right_child"), r"\g<1>-1000000"),
    "categorical split": (FIRST_OF.format("decision_type"), r"\g<1>1"),
    "categories": (FIRST_OF.format("num_cat"), r"\g<1>3"),
    "linear tree": (FIRST_OF.format("is_linear"), r"\g<1>1"),
    "no count": (FIRST_OF.format("internal_count"), r"\g<1>0"),
    "leaf value that is not a number": (FIRST_OF.format("leaf_value"), r"\g<1>nan"),
    "infinite leaf value": (FIRST_OF.format("leaf_value"), r"\g<1>1e999"),
    "threshold that is not a number": (FIRST_OF.format("threshold"), r"\g<1>nan"),
    "words": (FIRST_OF.format("threshold"), r"\g<1>many"),
    "a missing tree": (r"(?m)^Tree=1$", "Tree=2"),
    "another objective": (r"(?m)^objective=.*$", "objective=regression"),
    "cut short": (r"(?s)\nend of trees.*", ""),
    "averaged trees": (r"(?m)^label_index=", "average_output\nlabel_index="),
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERED)
def test_altered_text_is_refused(name: str) -> None:
    text = random_model(3)[0].model_to_string()
    altered = re.sub(*ALTERED[name], text, count=1)
    assert altered != text
    with pytest.raises(BundleError, match=r"m\.txt: this is not a complete LightGBM model"):
        BoostedTrees.of_text(altered, "m.txt")
