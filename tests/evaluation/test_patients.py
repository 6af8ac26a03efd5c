"""Scores of patients: combined from several slides, judged by patient, and refused if labels contradict."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import lobule
from lobule.cli import ABOUT, COMMANDS
from lobule.cli.base import LazyGroup, run
from lobule.errors import ConfigError, UsageError
from lobule.evaluation.patients import patient_features
from tests.evaluation.support import begin, put, write_csv

SLIDES = 3


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], np.ndarray]:
    """Sixty patients with three slides each, half of them for the fit; slides have the patient's label."""
    rng = np.random.default_rng(5)
    rows: list[dict[str, Any]] = []
    for patient in range(60):
        label = "tumor" if patient % 2 == 0 else "normal"
        for slide in range(SLIDES):
            name = f"p{patient}s{slide}"
            rows.append(
                {
                    "case": name, "patient": f"p{patient}", "slide": f"{name}.tif", "label": label,
                    "site": f"site{patient % 3}", "split": "val" if patient >= 30 else "test",
                }
            )  # fmt: skip
    tumour = np.array([row["label"] == "tumor" for row in rows])
    scores = 1 / (1 + np.exp(-rng.normal(np.where(tumour, 0.7, -0.7), 1.5)))
    return write_results(tmp_path_factory.mktemp("results"), rows, scores), rows, scores


def write_results(folder: Path, rows: list[dict[str, Any]], scores: np.ndarray) -> Path:
    results = begin(folder, [row["case"] for row in rows])
    for row, score in zip(rows, scores, strict=True):
        put(results, row["case"], {"normal": 1 - score, "tumour": score})
    return results


@pytest.fixture
def written(
    scanned: tuple[Path, list[dict[str, Any]], np.ndarray], tmp_path: Path
) -> tuple[Path, Path, list[dict[str, Any]], np.ndarray]:
    """The results, a cohort that the test may change, its rows, and the scores of the slides."""
    results, rows, scores = scanned
    return results, write_csv(tmp_path / "cohort.csv", rows), rows, scores


def by_patient(rows: list[dict[str, Any]], scores: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Slide scores (patients, slides) and labels of a split."""
    chosen = np.array([row["split"] == split for row in rows])
    labels = np.array([row["label"] == "tumor" for row in rows])
    return scores[chosen].reshape(-1, SLIDES), labels[chosen].reshape(-1, SLIDES)[:, 0]


@pytest.mark.parametrize("rule", ["max", "mean"])
def test_area_of_patients_agrees_with_scikit_learn(written: Any, rule: Any) -> None:
    results, cohort, rows, scores = written
    evaluation = lobule.evaluate(results, cohort, split="test", patients=rule, by=("site",), resamples=100)
    of_patients, labels = by_patient(rows, scores, "test")
    combined = of_patients.max(axis=1) if rule == "max" else of_patients.mean(axis=1)
    report = evaluation.data["patients"]["tasks"]["tumor"]
    block = report["all"]
    assert (block["patients"], block["positive"]) == (30, 15)
    assert block["auroc"]["value"] == pytest.approx(roc_auc_score(labels, combined), abs=1e-12)
    assert block["auroc"]["low"] < block["auroc"]["value"]
    site = np.arange(30) % 3 == 1
    assert report["by"]["site"]["site1"]["auroc"]["value"] == pytest.approx(
        roc_auc_score(labels[site], combined[site]), abs=1e-12
    )
    # The slides are still evaluated as without the option.
    plain = lobule.evaluate(results, cohort, split="test", by=("site",), resamples=100)
    assert plain.tasks == evaluation.tasks and plain.data["patients"] is None


def test_learned_combination_is_fitted_on_another_split(written: Any) -> None:
    results, cohort, rows, scores = written
    options: Any = {"patients": "learned", "resamples": 20}
    evaluation = lobule.evaluate(results, cohort, split="test", **options)
    fit_scores, fit_labels = by_patient(rows, scores, "val")
    fit_rows = np.stack([patient_features(values) for values in fit_scores])
    mean, spread = fit_rows.mean(axis=0), fit_rows.std(axis=0)
    model = LogisticRegression(max_iter=1000).fit((fit_rows - mean) / spread, fit_labels)
    test_scores, labels = by_patient(rows, scores, "test")
    test_rows = np.stack([patient_features(values) for values in test_scores])
    probabilities = model.predict_proba((test_rows - mean) / spread)[:, 1]
    patients = evaluation.data["patients"]
    block = patients["tasks"]["tumor"]["all"]
    assert block["auroc"]["value"] == pytest.approx(roc_auc_score(labels, probabilities), abs=1e-12)
    assert block["calibration"]["brier"] == pytest.approx(np.mean((probabilities - labels) ** 2), abs=1e-9)
    assert (patients["fitted_on"], patients["fits"]["tumor"]["patients"]) == ("val", 30)
    fit = patients["fits"]["tumor"]
    logits = test_rows @ np.array(list(fit["coefficients"].values())) + fit["intercept"]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), probabilities, atol=1e-9)
    for split in (None, "val"):
        with pytest.raises(UsageError, match="another split"):
            lobule.evaluate(results, cohort, split=split, **options)


def test_patient_features_do_not_depend_on_the_order_of_slides() -> None:
    np.testing.assert_allclose(patient_features(np.array([0.2, 0.9, 0.4])), [0.9, 0.4, 0.5])
    np.testing.assert_allclose(patient_features(np.array([0.3])), [0.3, 0.3, 0.3])


def rewrite(cohort: Path, rows: list[dict[str, Any]], changes: dict[str, dict[str, Any]]) -> Path:
    return write_csv(cohort, [row | changes.get(row["case"], {}) for row in rows])


def test_contradictory_labels_name_the_patient(written: Any) -> None:
    results, cohort, rows, scores = written
    rewrite(cohort, rows, {"p4s1": {"label": "normal"}})
    with pytest.raises(UsageError, match="slides of patient 'p4' have contradictory labels") as error:
        lobule.evaluate(results, cohort, split="test", patients="max", resamples=5)
    assert "p4s1: normal" in str(error.value.actual) and "--patient-label" in str(error.value.remedy)
    evaluation = lobule.evaluate(
        results, cohort, split="test", patients="max", patient_label="any", resamples=5
    )
    of_patients, labels = by_patient(rows, scores, "test")
    value = evaluation.data["patients"]["tasks"]["tumor"]["all"]["auroc"]["value"]
    assert value == pytest.approx(roc_auc_score(labels, of_patients.max(axis=1)), abs=1e-12)


def test_a_column_states_the_label_of_the_patient(written: Any) -> None:
    results, cohort, rows, scores = written
    stage = {f"p{i}": "positive" if i % 3 == 0 else "negative" for i in range(60)}
    rows = [row | {"stage": stage[row["patient"]]} for row in rows]
    write_csv(cohort, rows)
    options: Any = {"split": "test", "patients": "mean", "patient_label": "stage", "resamples": 5}
    block = lobule.evaluate(results, cohort, **options).data["patients"]["tasks"]["tumor"]["all"]
    of_patients, _ = by_patient(rows, scores, "test")
    labels = np.arange(30) % 3 == 0
    assert block["auroc"]["value"] == pytest.approx(
        roc_auc_score(labels, of_patients.mean(axis=1)), abs=1e-12
    )
    rewrite(cohort, rows, {"p6s2": {"stage": "negative"}})
    with pytest.raises(UsageError, match="'stage' has contradictory labels of patient 'p6'"):
        lobule.evaluate(results, cohort, **options)
    rewrite(cohort, rows, {f"p6s{slide}": {"stage": "unclear"} for slide in range(SLIDES)})
    with pytest.raises(UsageError, match="does not say whether patient 'p6' is positive"):
        lobule.evaluate(results, cohort, **options)


def test_slides_without_a_score_are_counted(written: Any, tmp_path: Path) -> None:
    scanned_results, cohort, _, _ = written
    results = shutil.copytree(scanned_results, tmp_path / "copy")
    put(results, "p0s0", {}, status="failed", error="unreadable")
    for slide in range(SLIDES):
        put(results, f"p1s{slide}", {}, status="failed", error="unreadable")
    patients = lobule.evaluate(results, cohort, split="test", patients="max", resamples=5).data["patients"]
    assert (patients["incomplete"], patients["tasks"]["tumor"]["all"]["patients"]) == (1, 29)


def test_too_few_patients_for_a_fit_and_an_unknown_rule(written: Any) -> None:
    results, cohort, rows, _ = written
    moved = {
        row["case"]: {"split": "train"} for row in rows if row["split"] == "val" and row["label"] == "tumor"
    }
    rewrite(cohort, rows, moved)
    with pytest.raises(UsageError, match="too few patients"):
        lobule.evaluate(results, cohort, split="test", patients="learned", resamples=5)
    with pytest.raises(UsageError, match="no case of the split"):
        lobule.evaluate(
            results, rewrite(cohort, rows, {row["case"]: {"split": "test"} for row in rows}),
            split="test", patients="learned", resamples=5,
        )  # fmt: skip
    with pytest.raises(ConfigError, match="patients"):
        lobule.evaluate(results, cohort, patients="median", resamples=5)  # type: ignore[arg-type]


def test_two_models_are_compared_by_patient_and_written(
    written: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, cohort, rows, scores = written
    noisy = np.clip(scores + np.random.default_rng(1).normal(0, 0.3, len(scores)), 0, 1)
    # The other model has scanned only the evaluated patients and ten patients of the split of the fit.
    chosen = [row["split"] == "test" or row["patient"].startswith("p5") for row in rows]
    fewer = [row for row, is_chosen in zip(rows, chosen, strict=True) if is_chosen]
    other = write_results(tmp_path / "other", fewer, noisy[chosen])
    arguments = ["evaluate", str(results), str(cohort), "--split", "test", "--patients", "learned"]
    arguments += ["--against", str(other), "--resamples", "50", "--no-plots", "--out", str(tmp_path / "out")]
    assert run(LazyGroup("lobule", COMMANDS, help=ABOUT), arguments) == 0
    shown = capsys.readouterr().out
    assert "tumor, patients" in shown and "30 patients of the split 'val'" in shown
    with (tmp_path / "out" / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    difference = [row for row in lines if row["level"] == "difference" and row["measure"] == "auroc"]
    assert [row["cases"] for row in difference] == ["90", "30"]
    assert {row["level"] for row in lines} == {"slide", "patient", "difference"}
