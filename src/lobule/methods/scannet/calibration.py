"""Calibration of map cells on the validation slides, and the threshold above which cells become findings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from lobule.errors import BundleError
from lobule.measures.calibration import Platt, fit_platt, reliability
from lobule.results.maps import MapReader
from lobule.stitch import State
from lobule.training.patch_sampling import NEITHER, TUMOUR, SlidePositions
from lobule.training.training_scan import ScannedMaps, TrainingScan

Floats = NDArray[np.float64]

CELLS = "cells"
"""Key of the cell calibration in a bundle's `calibration`. The calibration of a site has other keys."""
RECORD = "calibration.json"
MAX_NORMAL_ABOVE = 0.05
"""The largest share of normal cells above the threshold, in each validation slide by itself.

Stains differ between patients and shift the scores of a whole slide. The validation slide with the highest
normal scores therefore decides, not the average slide.
"""
MIN_NORMAL = 20
"""Slides with fewer normal cells do not limit the threshold: 5 % of them is less than one cell."""
MAX_CELLS = 20_000
"""Maximum number of cells of one slide that are used in the fit, evenly spaced over the map."""
FEW_TUMOUR_ABOVE = 0.1
"""A note warns if a smaller share of the validation tumour cells is above the threshold."""
UNCALIBRATED = Platt(1.0, 0.0)
"""The fit that leaves scores as they are."""
FOLDS = 5
EXTREME = 1e-7
"""Softmax in float32 reaches 0 and 1; logits are computed from scores clipped to this distance."""


@dataclass(frozen=True)
class CellCalibration:
    """How the scores of cells become probabilities, and the threshold for findings on that scale."""

    fit: Platt
    """Fit that turns the output for tumour minus the output for normal tissue into a probability."""
    threshold: float
    report: Mapping[str, Any] = field(default_factory=dict)
    """Calibration errors and counts of the validation cells, for the record."""

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """The calibrated score map (n, 1, rows, columns) of the net's two outputs."""
        margin = logits[:, 1:] - logits[:, :1]
        return torch.sigmoid(margin * self.fit.slope + self.fit.intercept)

    def from_uncalibrated(self, scores: ArrayLike) -> Floats:
        """Convert uncalibrated scores to calibrated ones."""
        return self.fit(_logits(scores))

    def to_uncalibrated(self, scores: ArrayLike) -> Floats:
        """The inverse of `from_uncalibrated`."""
        return np.asarray(expit((_logits(scores) - self.fit.intercept) / self.fit.slope))

    def to_dict(self) -> dict[str, Any]:
        return {"fit": self.fit.to_dict(), "threshold": self.threshold, **self.report}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CellCalibration:
        """The calibration that `to_dict` wrote; values that cannot be used raise `BundleError`."""
        try:
            fit = Platt(float(values["fit"]["slope"]), float(values["fit"]["intercept"]))
            threshold = float(values["threshold"])
            usable = values["fit"]["kind"] == "platt" and 0 < fit.slope < math.inf
            usable = usable and math.isfinite(fit.intercept) and 0 <= threshold <= 1
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError("the cell calibration of the bundle is damaged", actual=repr(error)) from error
        if not usable:
            raise BundleError(
                "the cell calibration of the bundle is damaged",
                expected="a Platt fit with a positive slope, and a threshold from 0 to 1",
                actual=str({name: values[name] for name in ("fit", "threshold")}),
            )
        report = {name: value for name, value in values.items() if name not in ("fit", "threshold")}
        return cls(fit, threshold, report)


@dataclass(frozen=True, eq=False)
class ValidationCells:
    """Uncalibrated scores of the labelled cells of validation slides."""

    scores: Floats
    tumour: NDArray[np.bool_]
    slides: NDArray[np.int64]
    """The index of each cell's slide."""
    patients: tuple[str, ...]
    """The patient of each slide."""


def calibrate_cells(
    validation_scan: TrainingScan[Any],
    slides: Sequence[SlidePositions],
    *,
    threshold: float = 0.5,
    stride: int | None = None,
) -> tuple[CellCalibration | None, list[str]]:
    """Scan the validation slides with the trained net, and calibrate its scores on their cells.

    An interrupted calibration is continued; a finished one is read, unless a slide could not be scanned: the
    next training tries that slide again.

    Returns:
        The calibration, or None where the slides do not allow one, and notes for the user.
    """

    def fit(scanned: ScannedMaps) -> dict[str, Any]:
        maps = [(slide, scanned.maps[slide.case.id]) for slide in slides if slide.case.id in scanned.maps]
        calibration, reasons = fit_cells(validation_cells(maps), threshold)
        values = None if calibration is None else calibration.to_dict()
        return {"calibration": values, "notes": scanned.notes("not used for the calibration") + reasons}

    cases = [slide.case for slide in slides]
    stored = validation_scan.recorded(RECORD, cases, fit, require_all=True, stride=stride)
    values = stored["calibration"]
    return (None if values is None else CellCalibration.from_dict(values)), stored["notes"]


def validation_cells(maps: Sequence[tuple[SlidePositions, MapReader]]) -> ValidationCells:
    """The cells whose class is certain: normal or tumour, and not at an outline."""
    scores: list[Floats] = []
    labels: list[NDArray[np.int8]] = []
    for slide, reader in maps:
        layers, states = reader.read()
        rows, columns = np.nonzero(states == State.SCORED)
        step_x, step_y = reader.info.l0_stride
        centres = np.stack([(columns + 0.5) * step_x, (rows + 0.5) * step_y], axis=1)
        classes = slide.certain_classes(centres)
        labelled = np.flatnonzero(classes != NEITHER)
        labelled = labelled[:: max(1, -(-len(labelled) // MAX_CELLS))]
        scores.append(layers[0][rows, columns][labelled].astype(np.float64))
        labels.append(classes[labelled])
    sizes = [len(of_slide) for of_slide in scores]
    return ValidationCells(
        np.concatenate([*scores, np.empty(0)]),
        np.concatenate([*labels, np.empty(0, np.int8)]) == TUMOUR,
        np.repeat(np.arange(len(sizes)), sizes),
        tuple(slide.case.patient for slide, _ in maps),
    )


def fit_cells(cells: ValidationCells, threshold: float = 0.5) -> tuple[CellCalibration | None, list[str]]:
    """Fit the cells by Platt's method and choose the threshold for findings.

    Validation slides without tumour do not allow a fit: the scores stay as they are, and the threshold is
    the one that few of their normal cells exceed, and not less than `threshold`. A `threshold` other than
    the default, 0.5, was set by the user and is not changed.
    """
    without = f"so the scores are not calibrated, and the threshold for findings stays {threshold}"
    if not len(cells.scores):
        return None, [f"no cell of the validation slides was scored, {without}"]
    if cells.tumour.all():
        return None, [f"the validation slides lack cells of normal tissue, {without}"]
    fit = fit_platt(cells.tumour, _logits(cells.scores)) or UNCALIBRATED
    if fit.slope <= 0:
        reason = "tumour does not score higher than normal tissue on the validation slides"
        return None, [f"{reason}, {without}"]
    calibrated = fit(_logits(cells.scores))
    chosen, notes = threshold, []
    if threshold != 0.5:
        notes.append(f"the threshold for findings was set to {threshold}, so none was chosen")
    elif cells.tumour.any():
        chosen = choose_threshold(calibrated, cells)
    else:
        chosen = max(threshold, lowest_threshold(calibrated, cells))
        notes.append(
            "the validation slides lack cells of tumour, so the scores are not calibrated; the threshold for "
            f"findings is {chosen:.3g}, which at most {MAX_NORMAL_ABOVE:.0%} of their normal cells exceed"
        )
    report = _report(cells, calibrated, chosen)
    if report["tumour_above"] is not None and report["tumour_above"] < FEW_TUMOUR_ABOVE:
        notes.append(
            f"only {report['tumour_above']:.0%} of the tumour cells of the validation slides are above the "
            f"threshold for findings, {chosen:.3g}, so scans will miss tumours: train longer or on more "
            "patients, or lower it with --set threshold=…"
        )
    return CellCalibration(fit, chosen, report), notes


def _report(cells: ValidationCells, calibrated: Floats, threshold: float) -> dict[str, Any]:
    """Calibration errors, shares of the cells above the threshold, and counts; None without tumour."""
    above, has_tumour = calibrated > threshold, bool(cells.tumour.any())
    errors = {
        "before": reliability(cells.tumour, cells.scores).expected_error,
        "after": reliability(cells.tumour, calibrated).expected_error,
        "other_patients": _error_on_other_patients(cells),
    }
    return {
        "expected_error": errors if has_tumour else None,
        "normal_above": float(above[~cells.tumour].mean()),
        "tumour_above": float(above[cells.tumour].mean()) if has_tumour else None,
        "cells": len(cells.scores),
        "tumour_cells": int(cells.tumour.sum()),
        "slides": len(cells.patients),
    }


def choose_threshold(calibrated: Floats, cells: ValidationCells) -> float:
    """The threshold with the best Dice coefficient among those that few normal cells exceed.

    At most `MAX_NORMAL_ABOVE` of the normal cells of each validation slide may be above it.
    """
    lowest = lowest_threshold(calibrated, cells)
    order = np.argsort(-calibrated, kind="stable")
    ranked, hits = calibrated[order], np.cumsum(cells.tumour[order])
    count = np.arange(1, len(ranked))
    between = (ranked[:-1] + ranked[1:]) / 2
    allowed = (ranked[:-1] > ranked[1:]) & (between >= lowest)
    if not allowed.any():
        return lowest
    dice = np.where(allowed, 2 * hits[:-1] / (count + hits[-1]), -1.0)
    return float(between[int(dice.argmax())])


def lowest_threshold(calibrated: Floats, cells: ValidationCells) -> float:
    """The lowest threshold that at most `MAX_NORMAL_ABOVE` of the normal cells of each slide exceed."""
    normal = [calibrated[(cells.slides == n) & ~cells.tumour] for n in range(len(cells.patients))]
    large = [of_slide for of_slide in normal if len(of_slide) >= MIN_NORMAL] or [calibrated[~cells.tumour]]
    return max(float(np.quantile(scores, 1 - MAX_NORMAL_ABOVE, method="higher")) for scores in large)


def _error_on_other_patients(cells: ValidationCells) -> float | None:
    """Calibration error of fits without the patient of a cell; None if a fit is not possible."""
    names = sorted(set(cells.patients))
    fold_of_slide = np.array([names.index(patient) % FOLDS for patient in cells.patients])
    folds = fold_of_slide[cells.slides]
    logits, calibrated = _logits(cells.scores), np.full(len(cells.scores), np.nan)
    for fold in np.unique(folds):
        fit = fit_platt(cells.tumour[folds != fold], logits[folds != fold])
        if fit is None:
            return None
        calibrated[folds == fold] = fit(logits[folds == fold])
    return reliability(cells.tumour, calibrated).expected_error


def _logits(scores: ArrayLike) -> Floats:
    return np.asarray(logit(np.clip(np.asarray(scores, np.float64), EXTREME, 1 - EXTREME)))
