"""Calibration: closed forms, recovery of known curves, and agreement with scikit-learn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sk_log_loss

from lobule.measures.calibration import fit_isotonic, fit_platt, log_loss, reliability


def test_reliability_of_a_small_example() -> None:
    result = reliability([0, 1, 1, 1, 0], [0.05, 0.15, 0.15, 1.0, 0.95], bins=10)
    assert [bin.cases for bin in result.bins] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert result.expected_error == pytest.approx((0.05 + 2 * 0.85 + 2 * 0.475) / 5)
    assert result.largest_error == pytest.approx(0.85)
    assert result.bins[2].mean_probability is None and result.bins[9].share_positive == 0.5
    json.dumps(result.to_dict(), allow_nan=False)


def test_brier_is_the_sum_of_its_parts() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random(2000)
    label = rng.random(2000) < probability**2
    result = reliability(label, probability, bins=10)
    assert result.brier == pytest.approx(brier_score_loss(label, probability))
    terms = result.reliability - result.resolution + result.uncertainty
    assert result.within_bins == pytest.approx(result.brier - terms) and abs(result.within_bins) < 0.005
    assert 0.1 < result.expected_error < 0.25  # the mean of p - p² over 0 to 1 is 1/6
    assert log_loss(label, probability) == pytest.approx(sk_log_loss(label, probability))
    assert sum(bin.cases for bin in result.bins) == 2000
    # With one probability per bin, nothing remains within bins.
    rounded = np.floor(probability * 10) / 10 + 0.05
    assert reliability(label, rounded).within_bins == pytest.approx(0, abs=1e-12)


def test_calibrated_probabilities_have_no_error() -> None:
    rng = np.random.default_rng(1)
    probability = rng.random(50_000)
    assert reliability(rng.random(50_000) < probability, probability).expected_error < 0.012


def test_fits_recover_known_curves() -> None:
    rng = np.random.default_rng(2)
    score = rng.normal(300, 50, 20_000)
    truth = expit((score - 320) / 20)
    label = rng.random(20_000) < truth
    platt, isotonic = fit_platt(label, score), fit_isotonic(label, score)
    assert platt is not None and isotonic is not None
    assert (platt.slope, platt.intercept) == pytest.approx((1 / 20, -16), rel=0.05)
    for fit in (platt, isotonic):
        assert np.abs(fit(score) - truth).mean() < 0.02
        assert (np.diff(fit(np.sort(score))) >= 0).all()
        json.dumps(fit.to_dict(), allow_nan=False)
    assert logit(platt([platt.intercept / -platt.slope]))[0] == pytest.approx(0, abs=1e-9)


def test_separated_classes_stay_finite() -> None:
    platt, isotonic = (
        fit_platt([0, 0, 0, 1, 1, 1], [1, 2, 3, 7, 8, 9]),
        fit_isotonic([0, 0, 1, 1], [1, 2, 3, 4]),
    )
    assert platt is not None and isotonic is not None
    assert 0 < platt.slope < 10 and platt([2])[0] == pytest.approx(0.2, abs=0.02)
    assert isotonic([0, 1, 4, 9]).tolist() == [0, 0, 1, 1]
    assert fit_platt([1, 1], [0, 1]) is None and fit_isotonic([], []) is None
    constant = fit_platt([0, 1, 1, 1], [5, 5, 5, 5])
    assert constant is not None
    assert constant([5])[0] == pytest.approx(0.7, abs=0.05)


def test_values_outside_0_to_1_are_rejected() -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        reliability([0, 1], [0.5, 1.5])
    assert reliability([], []).brier is None and log_loss([], []) is None
