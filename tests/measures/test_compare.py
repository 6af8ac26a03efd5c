"""Paired comparisons: narrower intervals by pairing, symmetry, and differences in FROC score."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lobule.measures.camelyon16 import SlideMatch
from lobule.measures.compare import _two_sided, compare_froc, compare_scores
from lobule.measures.estimate import Resampling
from lobule.measures.roc import bootstrap_measure, delong_test

RESAMPLING = Resampling(400)


def slide(name: str, fp: list[float], tp: list[float]) -> SlideMatch:
    values = np.array(tp, np.float32)
    return SlideMatch(
        name, bool(tp), np.array(fp), values, values.astype(float), (None,) * len(tp), len(tp),
        ("macro",) * len(tp), 0.0,
    )  # fmt: skip


def test_pairing_narrows_the_interval_of_similar_models() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    a = rng.normal(labels, 1)
    b = a + rng.normal(0, 0.2, 300)
    comparison = compare_scores(labels, a, b, resampling=RESAMPLING)
    alone = bootstrap_measure(labels, a, resampling=RESAMPLING)
    assert comparison.difference.high - comparison.difference.low < 0.5 * (alone.high - alone.low)
    assert comparison.p == pytest.approx(delong_test(labels, a, b).p)
    back = compare_scores(labels, b, a, resampling=RESAMPLING)
    assert back.difference.low == pytest.approx(-comparison.difference.high, abs=1e-12)
    plain = comparison.to_dict()
    assert list(plain) == ["what", "a", "b", "difference", "p"] and plain["what"] == "auroc"
    json.dumps(plain, allow_nan=False)


def test_patients_with_several_cases_are_drawn_together() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(rng.integers(0, 2, 100), 4)
    a = np.repeat(rng.normal(labels[::4] * 1.2, 1), 4)
    b = np.repeat(rng.normal(labels[::4] * 0.8, 1), 4)
    patients = np.repeat(np.arange(100), 4)
    apart, together = (compare_scores(labels, a, b, groups, "ap", RESAMPLING) for groups in (None, patients))
    ratio = (together.difference.high - together.difference.low) / (
        apart.difference.high - apart.difference.low
    )
    assert ratio == pytest.approx(2, rel=0.2) and together.p > apart.p


def test_froc_difference() -> None:
    rng = np.random.default_rng(2)
    good = [slide(str(i), [0.3], [0.9, 0.8] if rng.random() < 0.9 else [0.0, 0.9]) for i in range(30)]
    good += [slide(str(i), rng.uniform(0, 0.6, 2).tolist(), []) for i in range(30, 60)]
    poor = [
        replace(match, false_positives=np.append(match.false_positives, rng.uniform(0, 1, 3)))
        for match in good
    ]
    comparison = compare_froc(good, poor, resampling=RESAMPLING)
    assert (
        comparison.a > comparison.b
        and comparison.difference.low > 0
        and comparison.p == pytest.approx(2 / 401)
    )
    same = compare_froc(good, good, resampling=RESAMPLING)
    assert same.difference.value == same.difference.low == same.difference.high == 0 and same.p == 1
    assert compare_froc(good, poor, resampling=RESAMPLING, jama=True).measure == "jama_froc"
    with pytest.raises(ValueError, match="same slides"):
        compare_froc(good, poor[::-1])
    assert compare_froc(good[30:], poor[30:]).difference.value is None


def test_p_value_is_undefined_without_a_defined_resample() -> None:
    assert _two_sided([float("nan"), float("nan")]) is None
    assert _two_sided([0.25]) == 1.0


def test_intervals_are_from_2000_resamples_unless_another_number_is_set() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    comparison = compare_scores(labels, rng.random(40), rng.random(40), list(range(40)))
    assert comparison.difference.resamples == 2000
