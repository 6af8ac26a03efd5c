"""Tests of orientation and calibration with recorded values and generated slides."""

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
    orientation = orient(slides, labels, R)
    assert orientation.auc_top == pytest.approx(expected["auc_mean_top"])
    assert orientation.auc_bottom == pytest.approx(expected["auc_minus_mean_bottom"])
    assert orientation.sign == expected["sign"]
    normal = [orientation.evidence(s) for s, label in zip(slides, labels, strict=True) if not label]
    calibration = Calibration.of(normal)
    assert len(calibration.normal_evidence) == expected["reference_tiles"]
    queries = orientation.evidence(np.array(expected["calibration_queries_raw_score"]))
    np.testing.assert_allclose(calibration.value(queries), expected["calibrated"], rtol=1e-12)
    evidence = [slide_evidence(orientation.evidence(s), R) for s in slides]
    np.testing.assert_allclose(evidence, expected["slide_evidence_mean_top5"], rtol=1e-12)


def slides_with_tumour_low(seed: int = 0) -> tuple[list[np.ndarray], list[int]]:
    rng = np.random.default_rng(seed)
    labels = [0, 1] * 6
    slides = [rng.normal(size=60) - 6.0 * label * (np.arange(60) < 8) for label in labels]
    return slides, labels


def test_sign_is_negative_if_tumour_tiles_have_low_scores() -> None:
    slides, labels = slides_with_tumour_low()
    orientation = orient(slides, labels, R)
    assert orientation.sign == -1
    assert orientation.auc_bottom == 1.0
    assert orientation.evidence(slides[1])[:8].mean() > 3
    assert orient([-s for s in slides], labels, R).sign == 1


def test_mean_value_is_independent_of_sign_and_scale_of_members() -> None:
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


def test_calibrated_values_of_the_normal_tiles_are_uniform() -> None:
    rng = np.random.default_rng(3)
    calibration = Calibration.of([rng.normal(size=500), rng.normal(size=499)])
    np.testing.assert_allclose(calibration.value(calibration.normal_evidence), np.arange(1, 1000) / 1000)


def test_map_is_refused_if_tile_scores_do_not_separate_slides() -> None:
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
    with pytest.raises(UsageError, match="normal slides have no tiles"):
        Calibration.of([])


def test_reduced_calibration_differs_by_less_than_its_step() -> None:
    rng = np.random.default_rng(5)
    evidence = np.round(rng.normal(size=30_000), 3)  # with ties
    full, thinned = Calibration.of([evidence], max_stored=10**9), Calibration.of([evidence], max_stored=2000)
    assert len(thinned.normal_evidence) < 2100 < len(full.normal_evidence)
    queries = rng.normal(size=5000)
    difference = full.value(queries) - thinned.value(queries)
    assert difference.min() >= 0
    assert 0 < difference.max() < 1.5e-3
    upper = queries > np.quantile(evidence, 0.99)
    np.testing.assert_allclose(full.value(queries)[upper], thinned.value(queries)[upper], atol=1e-12)
    assert thinned.value(np.array([-9.0, 9.0])).tolist() == [0.0, 30_000 / 30_001]
