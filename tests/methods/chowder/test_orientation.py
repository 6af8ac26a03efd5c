"""Orientation and calibration against the recorded numbers and hand-made slides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lobule.errors import ModelError, UsageError
from lobule.methods.chowder.orientation import (
    Calibration,
    Orientation,
    check_drawable,
    mean_value,
    orient,
    slide_evidence,
)

R = 5


def golden_slides(s: float) -> tuple[list[np.ndarray], list[int]]:
    t = np.arange(30)
    labels = [int(k % 3 != 0) for k in range(10)]
    slides = [
        np.sin(0.9 * t * (k + 1) + s) * (0.5 + 0.05 * k) - 0.45 * labels[k] * (t % 7 == 0) + 0.02 * k
        for k in range(10)
    ]
    return slides, labels


def test_recorded_orientation_and_calibration(goldens: Path) -> None:
    golden: dict[str, Any] = json.loads((goldens / "chowder/goldens.json").read_text())
    expected = golden["orientation"]
    slides, labels = golden_slides(golden["S"])
    found = orient(slides, labels, R)
    assert found.auc_top == pytest.approx(expected["auc_mean_top"])
    assert found.auc_bottom == pytest.approx(expected["auc_minus_mean_bottom"])
    assert found.sign == expected["sign"]
    normal = [found.evidence(s) for s, label in zip(slides, labels, strict=True) if not label]
    calibration = Calibration.of(normal)
    assert len(calibration.normal_evidence) == expected["reference_tiles"]
    queries = found.evidence(np.array(expected["calibration_queries_raw_score"]))
    np.testing.assert_allclose(calibration.value(queries), expected["calibrated"], rtol=1e-12)
    evidence = [slide_evidence(found.evidence(s), R) for s in slides]
    np.testing.assert_allclose(evidence, expected["slide_evidence_mean_top5"], rtol=1e-12)


def slides_with_tumour_low(seed: int = 0) -> tuple[list[np.ndarray], list[int]]:
    rng = np.random.default_rng(seed)
    labels = [0, 1] * 6
    slides = [rng.normal(size=60) - 6.0 * label * (np.arange(60) < 8) for label in labels]
    return slides, labels


def test_tumour_at_the_low_end_turns_the_sign() -> None:
    slides, labels = slides_with_tumour_low()
    found = orient(slides, labels, R)
    assert found.sign == -1
    assert found.auc_bottom == 1.0
    assert found.evidence(slides[1])[:8].mean() > 3
    assert orient([-s for s in slides], labels, R).sign == 1


def test_the_mean_of_an_ensemble_does_not_care_for_signs_and_scales() -> None:
    slides, labels = slides_with_tumour_low()
    members = [slides, [-50.0 * s for s in slides]]
    orientations = [orient(member, labels, R) for member in members]
    assert [o.sign for o in orientations] == [-1, 1]
    calibrations = [
        Calibration.of([o.evidence(s) for s, label in zip(m, labels, strict=True) if not label])
        for m, o in zip(members, orientations, strict=True)
    ]
    values = mean_value([m[1] for m in members], orientations, calibrations)
    np.testing.assert_allclose(values, calibrations[0].value(orientations[0].evidence(slides[1])))
    assert values[:8].min() > 0.99
    assert values.max() < 1


def test_calibrated_values_of_the_reference_are_even() -> None:
    rng = np.random.default_rng(3)
    calibration = Calibration.of([rng.normal(size=500), rng.normal(size=499)])
    np.testing.assert_allclose(calibration.value(calibration.normal_evidence), np.arange(1, 1000) / 1000)


def test_scores_that_say_nothing_are_not_drawn() -> None:
    assert check_drawable([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == 1.0
    with pytest.raises(ModelError, match=r"at least 0\.6.*Found 0\.500"):
        check_drawable([0.1, 0.9, 0.1, 0.9], [0, 0, 1, 1])


def test_small_and_empty_slides() -> None:
    assert slide_evidence(np.array([3.0, 1.0]), 5) == 2.0
    assert np.isnan(slide_evidence(np.array([]), 5))
    slides = [np.array([]), np.array([0.1]), np.array([5.0, 4.0])]
    assert orient(slides, [0, 0, 1], 3) == Orientation(1, 1.0, 0.0)
    with pytest.raises(UsageError, match="one label"):
        orient(slides, [1, 1, 1], 3)
    with pytest.raises(UsageError, match="normal slide"):
        Calibration.of([])


def test_a_thinned_calibration_differs_by_less_than_its_steps() -> None:
    rng = np.random.default_rng(5)
    evidence = np.round(rng.normal(size=30_000), 3)  # with ties
    whole, thin = Calibration.of([evidence], most=10**9), Calibration.of([evidence], most=2000)
    assert len(thin.normal_evidence) < 2100 < len(whole.normal_evidence)
    queries = rng.normal(size=5000)
    difference = whole.value(queries) - thin.value(queries)
    assert difference.min() >= 0
    assert 0 < difference.max() < 1.5e-3
    upper = queries > np.quantile(evidence, 0.99)
    np.testing.assert_allclose(whole.value(queries)[upper], thin.value(queries)[upper], atol=1e-12)
    assert thin.value(np.array([-9.0, 9.0])).tolist() == [0.0, 30_000 / 30_001]
