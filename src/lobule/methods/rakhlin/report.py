"""What the out-of-fold predictions say: accuracy, confusion and every set, each with its interval."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Cohort
from lobule.files import write_text
from lobule.measures.calibration import reliability
from lobule.measures.estimate import Estimate, Resampling, undefined
from lobule.measures.roc import wilson
from lobule.methods.rakhlin.config import Config
from lobule.methods.rakhlin.forests import Calibrator, fit_calibrator
from lobule.methods.rakhlin.fusion import merged
from lobule.methods.rakhlin.predictor import carcinoma_groups

FLOOR = 1e-7
"""Least probability in a logarithm."""
FUSION = "fusion"


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Out-of-fold predictions: each image by the models that never saw it."""

    cohort: Cohort
    labels: NDArray[np.intp]
    folds: NDArray[np.intp]
    of_sets: Mapping[str, NDArray[np.float64]]
    """Set → (seeds, images, classes), the mean over augmentations."""

    def of_set(self, name: str) -> NDArray[np.float64]:
        """(images, classes): the mean over seeds."""
        mean: NDArray[np.float64] = self.of_sets[name].mean(axis=0)
        return mean

    def fused(self, without: str | None = None) -> NDArray[np.float64]:
        """(images, classes): the mean over seeds and sets."""
        kept = [self.of_set(name) for name in self.of_sets if name != without]
        mean: NDArray[np.float64] = np.mean(kept, axis=0)
        return mean


def report(config: Config, held: HeldOut) -> dict[str, Any]:
    """All of it as plain values."""
    fused = held.fused()
    answers = fused.argmax(axis=1)
    right = answers == held.labels
    members = [_accuracies(held, name) for name in held.of_sets]
    found: dict[str, Any] = {
        "images": len(held.labels),
        "patients": len(held.cohort.patients()),
        "accuracy": float(right.mean()),
        "accuracy_interval": _share(right, held).to_dict(),
        "mean_of_members": float(np.mean([member["accuracy"] for member in members])),
        "log_loss": log_loss(held.labels, fused),
        "fold_accuracy": _by_fold(right, held),
        "classes": per_class(config.classes, held, answers),
        "confusion": confusion(len(config.classes), held.labels, answers),
        "sets": dict(zip(held.of_sets, members, strict=True)),
    }
    if groups := carcinoma_groups(config):
        found["carcinoma"] = two_classes(config, held, groups)
    return found


def log_loss(labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> float:
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, FLOOR)).mean())


def _patients(held: HeldOut) -> NDArray[np.str_]:
    return np.array([case.patient for case in held.cohort])


def _share(hits: NDArray[np.bool_], held: HeldOut, among: NDArray[np.bool_] | None = None) -> Estimate:
    """The share of hits (among some images), patients resampled; Wilson's where each has one image."""
    among = np.ones(len(hits), np.bool_) if among is None else among
    if not among.any():
        return undefined("no images")
    patients = _patients(held)
    value = float(hits[among].mean())
    if len(np.unique(patients)) == len(patients):
        return wilson(int(hits[among].sum()), int(among.sum()))

    def drawn(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            return np.asarray((weights @ (hits & among)) / (weights @ among))

    return Resampling().estimate(value, patients, drawn, "patient")


def _by_fold(right: NDArray[np.bool_], held: HeldOut) -> dict[str, Any]:
    """As the paper's table: the accuracy of every fold, their mean and standard deviation."""
    shares = [float(right[held.folds == fold].mean()) for fold in np.unique(held.folds)]
    return {"folds": shares, "mean": float(np.mean(shares)), "std": float(np.std(shares))}


def _accuracies(held: HeldOut, name: str) -> dict[str, Any]:
    """One set: its accuracy with seeds fused and, as in the paper's table, of single seeds; its worth."""
    seeds = held.of_sets[name]
    right = held.of_set(name).argmax(axis=1) == held.labels
    single = [
        np.mean([(one.argmax(axis=1) == held.labels)[held.folds == fold].mean() for one in seeds])
        for fold in np.unique(held.folds)
    ]
    found = {
        "accuracy": float(right.mean()),
        "accuracy_interval": _share(right, held).to_dict(),
        "log_loss": log_loss(held.labels, held.of_set(name)),
        "single_seed_folds": {"mean": float(np.mean(single)), "std": float(np.std(single))},
    }
    if len(held.of_sets) > 1:  # what the fusion loses where the set is left out
        without = log_loss(held.labels, held.fused(without=name))
        found["log_loss_without"] = without - log_loss(held.labels, held.fused())
    return found


def per_class(classes: Sequence[str], held: HeldOut, answers: NDArray[np.intp]) -> dict[str, Any]:
    """Recall and precision of every class."""
    return {
        name: {
            "images": int((held.labels == n).sum()),
            "recall": _share(answers == n, held, held.labels == n).to_dict(),
            "precision": _share(held.labels == n, held, answers == n).to_dict(),
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
    config: Config, held: HeldOut, groups: tuple[tuple[int, ...], tuple[int, ...]]
) -> dict[str, Any]:
    """The two-class reading: accuracy, AUC, and sensitivity and specificity at the operating points."""
    from sklearn.metrics import roc_auc_score

    truth = np.isin(held.labels, groups[1])
    two = merged(held.fused(), groups)
    right = (two.argmax(axis=1) == 1) == truth
    points = {}
    for threshold in config.operating_points:
        called = two[:, 1] >= threshold
        points[f"{threshold:g}"] = {
            "sensitivity": _share(called, held, truth).to_dict(),
            "specificity": _share(~called, held, ~truth).to_dict(),
        }
    return {
        "positive": [config.classes[n] for n in groups[1]],
        "accuracy": _share(right, held).to_dict(),
        "auc": float(roc_auc_score(truth, two[:, 1])),
        "operating_points": points,
    }


def calibrated(config: Config, held: HeldOut) -> tuple[Calibrator | None, dict[str, Any]]:
    """The calibration of the fused probabilities, and what it does to images it was not fitted on."""
    fused = held.fused()
    before = {"log_loss": log_loss(held.labels, fused), "expected_error": expected_error(held.labels, fused)}
    if config.calibration == "none":
        return None, {"kind": "none", "before": before}
    after = np.empty_like(fused)
    for fold in np.unique(held.folds):
        here = held.folds == fold
        after[here] = fit_calibrator(config.calibration, held.labels[~here], fused[~here])(fused[here])
    facts = {"log_loss": log_loss(held.labels, after), "expected_error": expected_error(held.labels, after)}
    whole = fit_calibrator(config.calibration, held.labels, fused)
    return whole, {"kind": config.calibration, "before": before, "after": facts}


def expected_error(labels: NDArray[np.intp], probabilities: NDArray[np.float64]) -> float | None:
    """How far the probability of the answer is from the share of right answers, over ten bins."""
    answers = probabilities.argmax(axis=1)
    sure = np.clip(probabilities.max(axis=1), 0.0, 1.0)
    return reliability(answers == labels, sure).expected_error


def write_predictions(path: Path, config: Config, held: HeldOut) -> None:
    """One row an image and set, the fusion first: case, patient, label, fold, set, probabilities."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["case", "patient", "label", "fold", "set", *config.classes])
    tables = {FUSION: held.fused(), **{name: held.of_set(name) for name in held.of_sets}}
    for name, values in tables.items():
        for case, fold, row in zip(held.cohort, held.folds.tolist(), values.tolist(), strict=True):
            writer.writerow([case.id, case.patient, case.label, fold, name, *(f"{v:.6f}" for v in row)])
    write_text(path, out.getvalue())
