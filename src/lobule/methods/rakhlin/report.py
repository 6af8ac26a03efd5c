"""Report on the out-of-fold predictions: accuracy, confusion and every set, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Cohort
from lobule.files import csv_text, write_text
from lobule.measures.calibration import reliability
from lobule.measures.estimate import Estimate, Resampling, undefined
from lobule.measures.roc import wilson
from lobule.methods.rakhlin.config import Config
from lobule.methods.rakhlin.forests import Calibrator, fit_calibrator, merged
from lobule.methods.rakhlin.predictor import carcinoma_groups

FLOOR = 1e-7
"""Smallest probability inside a logarithm."""
FUSION = "fusion"


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Out-of-fold predictions: each image is predicted by models that were not trained on it."""

    cohort: Cohort
    labels: NDArray[np.intp]
    folds: NDArray[np.intp]
    of_sets: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """Set → (seeds, images, classes), the mean over augmentations."""

    def of_set(self, name: str) -> NDArray[np.float64]:
        """(images, classes): the mean over seeds."""
        mean: NDArray[np.float64] = self.of_sets[name].mean(axis=0)
        return mean

    def fused(self, without: str | None = None) -> NDArray[np.float64]:
        """(images, classes): the mean over seeds and sets."""
        set_predictions = [self.of_set(name) for name in self.of_sets if name != without]
        mean: NDArray[np.float64] = np.mean(set_predictions, axis=0)
        return mean


def report(config: Config, held_out: HeldOut) -> dict[str, Any]:
    """The whole report as plain values."""
    fused = held_out.fused()
    answers = fused.argmax(axis=1)
    right = answers == held_out.labels
    members = [_accuracies(held_out, name) for name in held_out.of_sets]
    sections: dict[str, Any] = {
        "images": len(held_out.labels),
        "patients": len(held_out.cohort.patients()),
        "accuracy": float(right.mean()),
        "accuracy_interval": _share(right, held_out).to_dict(),
        "mean_of_members": float(np.mean([member["accuracy"] for member in members])),
        "log_loss": log_loss(held_out.labels, fused),
        "fold_accuracy": _by_fold(right, held_out),
        "classes": per_class(config.classes, held_out, answers),
        "confusion": confusion(len(config.classes), held_out.labels, answers),
        "sets": dict(zip(held_out.of_sets, members, strict=True)),
    }
    if groups := carcinoma_groups(config):
        sections["carcinoma"] = two_classes(config, held_out, groups)
    return sections


def log_loss(labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> float:
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, FLOOR)).mean())


def _patients(held_out: HeldOut) -> NDArray[np.str_]:
    return np.array([case.patient for case in held_out.cohort])


def _share(hits: NDArray[np.bool_], held_out: HeldOut, among: NDArray[np.bool_] | None = None) -> Estimate:
    """The share of hits (among some images), patients resampled; Wilson's where each has one image."""
    among = np.ones(len(hits), np.bool_) if among is None else among
    if not among.any():
        return undefined("no images")
    patients = _patients(held_out)
    value = float(hits[among].mean())
    if len(np.unique(patients)) == len(patients):
        return wilson(int(hits[among].sum()), int(among.sum()))

    def share_of(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            return np.asarray((weights @ (hits & among)) / (weights @ among))

    return Resampling().estimate(value, patients, share_of, "patient")


def _by_fold(right: NDArray[np.bool_], held_out: HeldOut) -> dict[str, Any]:
    """As the paper's table: the accuracy of every fold, their mean and standard deviation."""
    shares = [float(right[held_out.folds == fold].mean()) for fold in np.unique(held_out.folds)]
    return {"folds": shares, "mean": float(np.mean(shares)), "std": float(np.std(shares))}


def _accuracies(held_out: HeldOut, name: str) -> dict[str, Any]:
    """Accuracy of one set with fused seeds and, as in the paper, of single seeds; and its contribution."""
    seeds = held_out.of_sets[name]
    right = held_out.of_set(name).argmax(axis=1) == held_out.labels
    single = [
        np.mean([(one.argmax(axis=1) == held_out.labels)[held_out.folds == fold].mean() for one in seeds])
        for fold in np.unique(held_out.folds)
    ]
    accuracies = {
        "accuracy": float(right.mean()),
        "accuracy_interval": _share(right, held_out).to_dict(),
        "log_loss": log_loss(held_out.labels, held_out.of_set(name)),
        "single_seed_folds": {"mean": float(np.mean(single)), "std": float(np.std(single))},
    }
    if len(held_out.of_sets) > 1:  # what the fusion loses where the set is left out
        without = log_loss(held_out.labels, held_out.fused(without=name))
        accuracies["log_loss_without"] = without - log_loss(held_out.labels, held_out.fused())
    return accuracies


def per_class(classes: Sequence[str], held_out: HeldOut, answers: NDArray[np.intp]) -> dict[str, Any]:
    """Recall and precision of every class."""
    return {
        name: {
            "images": int((held_out.labels == n).sum()),
            "recall": _share(answers == n, held_out, held_out.labels == n).to_dict(),
            "precision": _share(held_out.labels == n, held_out, answers == n).to_dict(),
        }
        for n, name in enumerate(classes)
    }


def confusion(classes: int, labels: NDArray[np.intp], answers: NDArray[np.intp]) -> dict[str, Any]:
    """Rows are truth, columns answers: counts, and the share of each row with its interval."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, answers), 1)
    shares = [[wilson(int(n), int(row.sum())).to_dict() for n in row] for row in counts]
    return {"counts": counts.tolist(), "shares": shares}


def two_classes(
    config: Config, held_out: HeldOut, groups: tuple[tuple[int, ...], tuple[int, ...]]
) -> dict[str, Any]:
    """The two-class result: accuracy, AUC, and sensitivity and specificity at the operating points."""
    from sklearn.metrics import roc_auc_score

    truth = np.isin(held_out.labels, groups[1])
    two = merged(held_out.fused(), groups)
    right = (two.argmax(axis=1) == 1) == truth
    points = {}
    for threshold in config.operating_points:
        called = two[:, 1] >= threshold
        points[f"{threshold:g}"] = {
            "sensitivity": _share(called, held_out, truth).to_dict(),
            "specificity": _share(~called, held_out, ~truth).to_dict(),
        }
    return {
        "positive": [config.classes[n] for n in groups[1]],
        "accuracy": _share(right, held_out).to_dict(),
        "auc": float(roc_auc_score(truth, two[:, 1])),
        "operating_points": points,
    }


def calibrated(config: Config, held_out: HeldOut) -> tuple[Calibrator | None, dict[str, Any]]:
    """The calibration of the fused probabilities, and what it does to images it was not fitted on."""
    fused = held_out.fused()
    before = {
        "log_loss": log_loss(held_out.labels, fused),
        "expected_error": expected_error(held_out.labels, fused),
    }
    if config.calibration == "none":
        return None, {"kind": "none", "before": before}
    after = np.empty_like(fused)
    for fold in np.unique(held_out.folds):
        here = held_out.folds == fold
        after[here] = fit_calibrator(config.calibration, held_out.labels[~here], fused[~here])(fused[here])
    after_metrics = {
        "log_loss": log_loss(held_out.labels, after),
        "expected_error": expected_error(held_out.labels, after),
    }
    calibrator = fit_calibrator(config.calibration, held_out.labels, fused)
    return calibrator, {"kind": config.calibration, "before": before, "after": after_metrics}


def expected_error(labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> float | None:
    """How far the probability of the answer is from the share of right answers, over ten bins."""
    answers = probabilities.argmax(axis=1)
    sure = np.clip(probabilities.max(axis=1), 0.0, 1.0)
    return reliability(answers == labels, sure).expected_error


def write_predictions(path: Path, config: Config, held_out: HeldOut) -> None:
    """One row an image and set, the fusion first: case, patient, label, fold, set, probabilities."""
    tables = {FUSION: held_out.fused(), **{name: held_out.of_set(name) for name in held_out.of_sets}}
    rows = [
        [case.id, case.patient, case.label, fold, name, *(f"{v:.6f}" for v in row)]
        for name, values in tables.items()
        for case, fold, row in zip(held_out.cohort, held_out.folds.tolist(), values.tolist(), strict=True)
    ]
    write_text(path, csv_text(["case", "patient", "label", "fold", "set", *config.classes], rows))
