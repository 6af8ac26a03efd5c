"""Calibration to a site: fits, thresholds, the scores of the next scan, and invalid input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from lobule.api import evaluate
from lobule.bundles import Bundle, patient_hash, read_bundle
from lobule.cohort import Cohort
from lobule.errors import BundleError, ConfigError, Leakage, UsageError
from lobule.evaluation.calibrate import calibrate
from lobule.measures.calibration import fit_from_dict
from lobule.methods import load
from lobule.results import open_results
from lobule.scanning.calibrated import CalibratedPredictor, calibrated
from tests.methods.four_view.made_exams import exams
from tests.methods.four_view.support import bundle_of, run


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cohort, Cohort]:
    """A model with random weights, and its results on the labelled exams of a site and on two other exams."""
    folder = tmp_path_factory.mktemp("site")
    bundle = bundle_of(folder / "bundle", epochs=1, augmentation=False, window=(96, 56))
    labelled = Cohort(tuple(exams(folder / "exams", 14, None, 1)))
    other_exams = Cohort(tuple(exams(folder / "exams", 2, None, 40)))
    run(bundle, labelled, folder / "results")
    run(bundle, other_exams, folder / "others")
    return folder, labelled, other_exams


@pytest.fixture(scope="module")
def platt(site: tuple[Path, Cohort, Cohort]) -> Bundle:
    folder, labelled, _ = site
    return calibrate(folder / "bundle", folder / "results", labelled, folder / "platt", sensitivities=(0.8,))


def breast_labels_and_scores(
    folder: Path, cohort: Cohort, key: str = "scores"
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and malignant scores of every breast."""
    opened, labels, scores = open_results(folder), [], []
    for case in cohort:
        for side in ("left", "right"):
            labels.append(case.breast_labels[f"{side}_malignant"])
            scores.append(opened.case_folder(case.id).result[key][f"{side}_malignant"])
    return np.array(labels), np.array(scores)


def test_fit_agrees_with_logistic_regression_on_platts_targets(
    site: tuple[Path, Cohort, Cohort], platt: Bundle
) -> None:
    folder, labelled, _ = site
    labels, scores = breast_labels_and_scores(folder / "results", labelled)
    positive, negative = labels.sum(), (~labels).sum()
    # Each breast occurs twice, weighted by Platt's smoothed targets.
    target = np.where(labels, (positive + 1) / (positive + 2), 1 / (negative + 2))
    z = (scores - scores.mean()) / scores.std()
    regression = LogisticRegression(C=np.inf, tol=1e-10).fit(
        np.tile(z, 2)[:, None], np.repeat([1, 0], len(z)), sample_weight=np.concatenate([target, 1 - target])
    )
    fit = fit_from_dict(platt.calibration["targets"]["malignant"]["fit"])
    np.testing.assert_allclose(fit(scores), regression.predict_proba(z[:, None])[:, 1], atol=1e-4)


def test_scan_with_calibrated_bundle_writes_calibrated_and_raw_scores(
    site: tuple[Path, Cohort, Cohort], platt: Bundle
) -> None:
    folder, _, other_exams = site
    run(platt.path, other_exams, folder / "calibrated")
    fit = fit_from_dict(platt.calibration["targets"]["malignant"]["fit"])
    _, before = breast_labels_and_scores(folder / "others", other_exams)
    _, raw = breast_labels_and_scores(folder / "calibrated", other_exams, "raw_scores")
    _, after = breast_labels_and_scores(folder / "calibrated", other_exams)
    np.testing.assert_allclose(raw, before, atol=1e-7)
    np.testing.assert_allclose(after, fit(before), atol=1e-7)
    assert np.abs(after - before).max() > 0.01
    threshold = platt.calibration["targets"]["malignant"]["thresholds"][0]["threshold"]
    result = open_results(folder / "calibrated").case_folder(other_exams.cases[0].id).result
    reached = result["above_thresholds"]["left_malignant"]["sensitivity 0.8"]
    assert reached == (result["scores"]["left_malignant"] >= threshold)


def test_thresholds_reach_their_sensitivity_on_the_calibration_cases(
    site: tuple[Path, Cohort, Cohort], platt: Bundle
) -> None:
    folder, labelled, _ = site
    labels, scores = breast_labels_and_scores(folder / "results", labelled)
    target = platt.calibration["targets"]["malignant"]
    (point,) = target["thresholds"]
    called = fit_from_dict(target["fit"])(scores) >= point["threshold"]
    assert called[labels].mean() == pytest.approx(point["sensitivity"])
    assert (~called[~labels]).mean() == pytest.approx(point["specificity"])
    assert point["sensitivity"] >= 0.8
    assert (target["breasts"], target["positive"]) == (28, labels.sum())


def test_mean_of_isotonic_scores_equals_share_of_positives(
    site: tuple[Path, Cohort, Cohort],
) -> None:
    """An isotonic fit preserves the mean exactly and never decreases."""
    folder, labelled, _ = site
    calibrated_bundle = calibrate(
        folder / "bundle", folder / "results", labelled, folder / "isotonic", fit="isotonic"
    )
    labels, scores = breast_labels_and_scores(folder / "results", labelled)
    fit = fit_from_dict(calibrated_bundle.calibration["targets"]["malignant"]["fit"])
    assert fit(scores).mean() == pytest.approx(labels.mean(), abs=1e-9)
    assert (np.diff(fit(np.linspace(0, 1, 99))) >= 0).all()
    assert [p["wanted"] for p in calibrated_bundle.calibration["targets"]["benign"]["thresholds"]] == [
        0.9,
        0.95,
    ]


def test_calibrated_bundle_is_new_and_cannot_be_evaluated_on_calibration_patients(
    site: tuple[Path, Cohort, Cohort], platt: Bundle
) -> None:
    folder, labelled, _ = site
    raw = read_bundle(folder / "bundle")
    assert platt.fingerprint != raw.fingerprint
    assert platt.files == raw.files
    assert set(platt.patients) == {patient_hash(case.patient) for case in labelled}
    assert isinstance(load(platt), CalibratedPredictor)
    few = Cohort(labelled.cases[:2])
    run(platt.path, few, folder / "leaking")
    with pytest.raises(Leakage):
        evaluate(folder / "leaking", few)


def test_calibrating_again_starts_from_the_raw_scores(
    site: tuple[Path, Cohort, Cohort], platt: Bundle
) -> None:
    folder, labelled, _ = site
    run(platt.path, labelled, folder / "again-results")
    with pytest.raises(Leakage):
        calibrate(platt.path, folder / "again-results", labelled, folder / "no")
    again = calibrate(
        platt.path, folder / "again-results", labelled, folder / "again", sensitivities=(0.8,),
        allow_overlap=True,
    )  # fmt: skip
    first_fit, second_fit = (bundle.calibration["targets"]["malignant"]["fit"] for bundle in (platt, again))
    assert first_fit == pytest.approx(second_fit)


def test_invalid_calibrations_are_rejected(site: tuple[Path, Cohort, Cohort], tmp_path: Path) -> None:
    folder, labelled, other_exams = site
    with pytest.raises(BundleError, match="results were produced by another bundle"):
        calibrate(bundle_of(tmp_path / "other", seed=3), folder / "results", labelled, tmp_path / "out")
    healthy = labelled.where(lambda case: not any(case.breast_labels.values()))
    one_class = Cohort(tuple(case for case in labelled if case.id == "e003"))
    assert not healthy
    with pytest.raises(UsageError, match="of one class"):
        calibrate(folder / "bundle", folder / "results", one_class, tmp_path / "out")
    with pytest.raises(UsageError, match="no score for any case"):
        calibrate(folder / "bundle", folder / "results", other_exams, tmp_path / "out")
    with pytest.raises(ConfigError, match="no fit 'linear'"):
        calibrate(folder / "bundle", folder / "results", labelled, tmp_path / "out", fit="linear")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sensitivities are invalid"):
        calibrate(folder / "bundle", folder / "results", labelled, tmp_path / "out", sensitivities=(1.5,))
    assert not (tmp_path / "out").exists()


def test_damaged_calibration_raises_bundle_error(platt: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="calibration of the bundle cannot be used"):
        calibrated({}, {"targets": {"malignant": {"scores": ["a"], "fit": {"kind": "spline"}}}})
    model_json = json.loads((platt.path / "model.json").read_text())
    assert model_json["calibration"] == platt.calibration
