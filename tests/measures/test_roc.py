"""ROC and precision-recall against scikit-learn, closed forms and repeated sampling."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics

from lobule.errors import UsageError
from lobule.measures.estimate import Resampling
from lobule.measures.roc import (
    Counts,
    at_threshold,
    auc,
    bootstrap_measure,
    delong,
    delong_test,
    measure,
    operating_point,
    partial_auc,
    precision_recall_curve,
    roc_curve,
    wilson,
)

cases = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40)


@settings(max_examples=40, deadline=None)
@given(cases)
def test_areas_agree_with_scikit_learn(labelled_scores: list[tuple[bool, int]]) -> None:
    labels, scores = (np.array(column) for column in zip(*labelled_scores, strict=True))
    assume(labels.any() and not labels.all())
    assert auc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert measure(labels, scores, "ap") == pytest.approx(metrics.average_precision_score(labels, scores))
    precision, recall, _ = metrics.precision_recall_curve(labels, scores)
    assert measure(labels, scores, "auprc") == pytest.approx(metrics.auc(recall, precision))
    for limit in (0.1, 0.35, 0.999):
        ours, theirs = (
            partial_auc(labels, scores, limit),
            metrics.roc_auc_score(labels, scores, max_fpr=limit),
        )
        assert ours == pytest.approx(theirs, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(cases, st.integers(0, 1000))
def test_weights_equal_repeated_cases(labelled_scores: list[tuple[bool, int]], seed: int) -> None:
    labels, scores = (np.array(column) for column in zip(*labelled_scores, strict=True))
    times = np.random.default_rng(seed).integers(0, 4, len(labels))
    again_labels, again_scores = np.repeat(labels, times), np.repeat(scores.astype(float), times)
    assume(again_labels.any() and not again_labels.all())
    weighted = Counts.of(labels, scores.astype(float), times[None].astype(float))
    for name in ("auroc", "auprc", "ap"):
        assert weighted.measure(name)[0] == pytest.approx(
            measure(again_labels, again_scores, name), abs=1e-12
        )


def test_undefined_measures_state_the_reason() -> None:
    assert auc([1, 1], [0.2, 0.3]) is None and roc_curve([0, 0], [1, 2]) is None
    assert bootstrap_measure([], [], name="ap").reason == "no cases"
    assert delong([1, 1, 0], [1, 2, 3]).reason == "fewer than two cases of a class, so no variance"
    assert precision_recall_curve([0], [1]) is None and operating_point([1], [1], sensitivity=0.5) is None
    assert partial_auc([1], [1], 0.1) is None
    for labels, scores in (([0, 2], [0, 1]), ([0, 1], [0])):
        with pytest.raises(ValueError, match="labels"):
            auc(labels, scores)
    with pytest.raises(UsageError, match="1 of 2 scores"):
        auc([0, 1], [np.nan, 1])
    barely = bootstrap_measure([1, 0], [1, 0], resampling=Resampling(100))
    assert barely.value == 1 and (barely.low == 1 or "resamples" in str(barely.reason))


def pairs_delong(labels: np.ndarray, scores: np.ndarray) -> float:
    """DeLong's variance from all pairs."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    return wins.mean(axis=1).var(ddof=1) / len(positive) + wins.mean(axis=0).var(ddof=1) / len(negative)


def test_delong_agrees_with_sum_over_all_pairs() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    scores = np.round(rng.normal(labels, 1), 1)
    estimate = delong(labels, scores)
    half = 1.959963984540054 * np.sqrt(pairs_delong(labels, scores))
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value - half, estimate.value + half))


def test_paired_delong_test() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 400)
    a = rng.normal(labels * 1.5, 1)
    b = a + rng.normal(0, 1.5, 400)
    test = delong_test(labels, a, b)
    assert test.p < 0.01 and test.z > 2.5 and test.difference.low > 0
    swapped = delong_test(labels, b, a)
    assert swapped.p == pytest.approx(test.p) and swapped.difference.value == pytest.approx(
        -test.difference.value
    )
    same = delong_test(labels, a, a * 2 + 1)
    assert same.p == 1 and same.difference.value == 0
    # The variances of independent scores add up.
    c, other = rng.normal(labels, 1), delong(labels, a)
    apart = delong_test(labels, a, c)
    spread = np.hypot(other.high - other.value, delong(labels, c).high - delong(labels, c).value)
    assert apart.difference.high - apart.difference.value == pytest.approx(spread, rel=0.15)


def test_delong_p_is_uniform_without_a_difference() -> None:
    rng = np.random.default_rng(2)
    labels = np.arange(120) % 2
    p = [delong_test(labels, rng.normal(labels, 1), rng.normal(labels, 1)).p for _ in range(250)]
    assert 0.015 < np.mean(np.array(p) < 0.05) < 0.09


def test_bootstrap_agrees_with_delong_on_independent_cases() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 500)
    scores = rng.normal(labels, 1)
    started = time.process_time()
    resampled, closed = bootstrap_measure(labels, scores), delong(labels, scores)
    assert time.process_time() - started < 3
    assert (resampled.low, resampled.high) == pytest.approx((closed.low, closed.high), abs=0.008)
    patients = np.arange(500) // 5
    clustered = np.repeat(labels[::5], 5), np.repeat(scores[::5], 5)
    wide, narrow = bootstrap_measure(*clustered, patients), bootstrap_measure(*clustered)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(np.sqrt(5), rel=0.15)
    assert resampled == bootstrap_measure(labels, scores) and resampled != bootstrap_measure(
        labels, scores, resampling=Resampling(seed=1)
    )


def test_operating_points() -> None:
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    scores = [0.1, 0.2, 0.3, 0.7, 0.3, 0.6, 0.8, 0.9]
    point = operating_point(labels, scores, sensitivity=0.75)
    assert (point.threshold, point.true_positives, point.false_positives) == (0.6, 3, 1)
    assert operating_point(labels, scores, sensitivity=1.0).threshold == 0.3
    assert operating_point(labels, scores, specificity=1.0).threshold == 0.8
    assert operating_point(labels, scores, specificity=0.5).threshold == 0.3
    none = operating_point([0, 1, 0, 1], [5, 4, 3, 2], specificity=1.0)
    assert none.threshold > 5 and none.sensitivity.value == 0 and none.positive_predictive_value.value is None
    by_hand = at_threshold(labels, scores, 0.5)
    assert by_hand.accuracy.value == 0.75 and by_hand.negative_predictive_value.value == 0.75
    json.dumps(by_hand.to_dict(), allow_nan=False)
    # Textbook examples of Wilson's interval: 0 of 10, and 8 of 10.
    assert wilson(0, 10).high == pytest.approx(0.2775, abs=1e-4)
    assert (wilson(8, 10).low, wilson(8, 10).high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_curves_integrate_to_their_areas() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 100)
    scores = np.round(rng.normal(labels, 1), 1)
    roc, pr = roc_curve(labels, scores), precision_recall_curve(labels, scores)
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(auc(labels, scores))
    assert np.trapezoid(pr.y, pr.x) == pytest.approx(measure(labels, scores, "auprc"))
    assert partial_auc(labels, scores, 1.0, standardised=False) == pytest.approx(auc(labels, scores))
    json.dumps([roc.to_dict(), pr.to_dict()], allow_nan=False)
