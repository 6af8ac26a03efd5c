"""Calibration of patch scores and slide scores, separately for each form."""

from __future__ import annotations

import numpy as np
import pytest

from lobule.measures.calibration import Platt
from lobule.methods.reverse_distillation.calibration import (
    Calibration,
    SlideFit,
    fit_normal_patches,
    fit_patches,
    fit_slide_score,
    form_agreement,
    half_probability_score,
)
from lobule.nets import anomaly
from tests.methods.reverse_distillation.support import CALIBRATION


def test_patch_scores_are_calibrated_only_if_tumour_scores_higher() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(4000) % 2 == 1
    raw = rng.normal(np.where(labels, 2.0, 1.0), 0.5)
    fit = fit_patches(labels, raw)
    assert fit is not None
    # For two normal distributions of equal spread the log odds are linear, here with slope 1 / 0.25 and
    # centre 1.5.
    assert fit.slope == pytest.approx(4, rel=0.1)
    assert half_probability_score(fit) == pytest.approx(1.5, abs=0.05)
    assert fit_patches(labels, -raw) is None
    assert fit_patches(labels[:1], raw[:1]) is None
    normal = fit_normal_patches(raw[~labels])
    assert (raw[~labels] > half_probability_score(normal)).mean() == pytest.approx(0.01, abs=0.002)
    assert normal(np.median(raw[~labels])) == pytest.approx(0.01)


def test_the_slide_threshold_separates_the_slides() -> None:
    """Every slide has noise below 1; tumour slides have a few cells at 1.5."""
    rng = np.random.default_rng(1)
    cells = [rng.uniform(0, 1, 500) for _ in range(12)]
    labels = [number % 2 == 0 for number in range(12)]
    for number in range(0, 12, 2):
        cells[number][:5] = 1.5
    result = fit_slide_score(labels, cells)
    assert result is not None
    fit, metrics = result
    assert 1 < fit.threshold <= 1.5
    assert metrics["slide_auc"] == 1
    assert fit.probability(cells[0]) > 0.5 > fit.probability(cells[1])
    assert fit_slide_score(labels[::2], cells[::2]) is None


def test_a_threshold_that_is_best_by_chance_is_not_chosen() -> None:
    """Tumour slides have more high cells, but a single very high threshold would also separate the slides."""
    rng = np.random.default_rng(3)
    cells = [rng.uniform(0, 1, 400) for _ in range(10)]
    labels = [number < 5 for number in range(10)]
    for number in range(5):
        cells[number][:60] += 0.3
    for number in range(5):
        cells[number][0] = 1.9 + 0.01 * number
    for number in range(5, 10):
        cells[number][0] = 1.9 - 0.01 * number
    result = fit_slide_score(labels, cells)
    assert result is not None
    assert result[0].threshold < 1.4, "a threshold between the highest cells would also separate the slides"
    assert result[1]["slide_auc"] == 1


def test_each_form_has_a_separate_slide_score() -> None:
    exact, shared = SlideFit(1.2, 2.0, -1.0), SlideFit(0.9, 4.0, -2.0)
    raw = np.array([0.5, 1.0, 1.4])
    both = Calibration(Platt(3.0, -4.0), {"exact": exact, "shared": shared})
    assert (both.threshold("exact"), both.threshold("shared")) == (1.2, 0.9)
    assert both.slide_probability(raw, "exact") == pytest.approx(1 / (1 + np.exp(-(2.0 * 1.4 - 1.0))))
    assert both.slide_probability(raw, "shared") == pytest.approx(1 / (1 + np.exp(-(4.0 * 1.2 - 2.0))))
    only = Calibration(Platt(3.0, -4.0), {"exact": exact})
    assert only.slide_probability(raw, "shared") == only.slide_probability(raw, "exact")
    useless = Calibration(Platt(3.0, -4.0), {"exact": None, "shared": shared})
    assert useless.threshold("exact") == pytest.approx(4 / 3), (
        "the form was fitted and does not separate the slides"
    )
    assert Calibration.from_dict(useless.to_dict()) == useless
    assert Calibration(Platt(3.0, -4.0)).threshold("exact") == pytest.approx(4 / 3)
    assert Calibration().threshold("shared") == anomaly.SLIDE_THRESHOLD


def test_calibration_round_trip_and_agreement_of_the_forms() -> None:
    assert Calibration.from_dict(CALIBRATION.to_dict()) == CALIBRATION
    exact = np.array([1.0, 2.0, 3.0, 4.0])
    agreement = form_agreement(exact, np.array([1.1, 1.9, 3.2, 4.0]))
    assert (agreement.rank, agreement.cells) == (1.0, 4)
    assert agreement.error == pytest.approx(0.1)
    assert form_agreement(exact, -exact).rank == -1
    assert form_agreement(np.ones(3), exact[:3]).rank == 0
