"""Fusion of predictions against the recorded numbers, worked examples and a plain loop."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobule.methods.rakhlin import forests
from tests.reference.rakhlin import CARCINOMA_PAIRS, fuse, fuse_held_out, geometric_mean

merged = partial(forests.merged, groups=CARCINOMA_PAIRS)


@pytest.fixture(scope="module")
def expected(goldens: Path) -> dict[str, Any]:
    return json.loads((goldens / "rakhlin/goldens.json").read_text())


def golden_scores() -> np.ndarray:
    model, image, aug, c = np.ogrid[:6, :5, :4, :4]
    logits = 1.5 * np.sin(1.1 * model + 2.3 * image * c + 0.7 * aug + 0.9 * c + 3)
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def test_fusion(expected: Any) -> None:
    golden = expected["fusion"]
    fused = fuse(golden_scores())
    np.testing.assert_allclose(fused, golden["fused4"], rtol=1e-12)
    assert fused.argmax(axis=1).tolist() == golden["argmax4"]
    two = merged(fused)
    np.testing.assert_allclose(two, golden["fused2"], rtol=1e-12)
    assert two.argmax(axis=1).tolist() == golden["argmax2"]
    geometric = geometric_mean(golden_scores()[0])
    np.testing.assert_allclose(geometric, golden["geometric_mean_model0"], rtol=1e-12)


def test_two_class_mapping(expected: Any) -> None:
    for case in expected["two_class_mapping"]:
        two = merged(np.array(case["four"]))
        np.testing.assert_allclose(two, case["two"], rtol=1e-12)
        assert two.argmax() == case["label_max_rule"]


def test_the_largest_of_a_pair_decides_not_the_sum() -> None:
    np.testing.assert_allclose(merged(np.array([0.40, 0.00, 0.35, 0.25])), [0.5333, 0.4667], atol=5e-5)


@given(st.lists(st.floats(0.001, 1), min_size=4, max_size=4, unique=True))
def test_the_merged_label_is_the_pair_of_the_winner(weights: list[float]) -> None:
    four = np.array(weights) / np.sum(weights)
    two = merged(four)
    if len(np.unique(two)) == 2:
        assert two.argmax() == four.argmax() // 2
    assert two.sum() == pytest.approx(1)


def test_held_out_fusion_asks_only_the_models_that_left_the_image_out() -> None:
    sets, folds, seeds, images, augmentations, classes = 3, 4, 2, 9, 5, 4
    p = np.random.default_rng(0).random((sets, folds, seeds, images, augmentations, classes))
    fold_of = np.random.default_rng(1).integers(0, folds, images)
    fused = fuse_held_out(p, fold_of)
    for image in range(images):
        np.testing.assert_allclose(fused[image], p[:, fold_of[image], :, image].mean(axis=(0, 1, 2)))
