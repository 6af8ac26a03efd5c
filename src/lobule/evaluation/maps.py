"""How well maps locate outlined tumour: the area under the ROC curve of cells, Dice, and the orientation.

Methods that learn from one label per slide are judged like those that learn from outlines: on the cells of
their stored maps. The threshold of the Dice coefficient is chosen on another split than the evaluated one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Case, Cohort
from lobule.errors import LobuleError
from lobule.evaluation.few_patients import without_intervals
from lobule.evaluation.labels import TargetPlan
from lobule.evaluation.options import Options
from lobule.evaluation.sources import CaseResult, ResultsSource, Source, densest_map, tumour_class
from lobule.evaluation.truth import rasterise_truth
from lobule.measures.compare import Comparison, compare_means
from lobule.measures.estimate import Estimate, Floats, undefined
from lobule.measures.roc import auc, bootstrap_measure
from lobule.stitch import State, smooth_map

LEAST_ORIENTATION = 0.6
"""Maps whose highest cells separate positive slides from others with a smaller area fail the check."""
TOP_CELLS = 10
"""The evidence of a slide is the mean of this many highest cells."""
THRESHOLDS = 101
MOST_SAMPLES = 20_000
"""Cells of a slide from which candidate thresholds are taken."""


@dataclass(frozen=True, eq=False)
class SlideCells:
    """The scored cells of a slide: their scores, and which of them are tumour."""

    case: Case
    scores: NDArray[np.float32]
    tumour: NDArray[np.bool_] | None
    """None if the truth of the slide is not known."""
    positive: bool | None

    @property
    def evidence(self) -> float:
        return float(np.sort(self.scores)[::-1][:TOP_CELLS].mean())

    def counts(self, threshold: float) -> tuple[int, int, int]:
        """True positive, false positive and missed cells."""
        assert self.tumour is not None
        above = self.scores > threshold
        hits = int((above & self.tumour).sum())
        return hits, int(above.sum()) - hits, int(self.tumour.sum()) - hits


def measure_maps(
    source: Source,
    results: Sequence[tuple[Case, CaseResult]],
    fit_cohort: Cohort,
    plan: TargetPlan | None,
    options: Options,
    against: Source | None = None,
) -> dict[str, Any] | None:
    """Measure the maps of a results folder; None if it has none or the source is not a results folder.

    Args:
        source: The results.
        results: The evaluated cases with their results.
        fit_cohort: The cases on which the threshold is chosen.
        plan: How labels and scores correspond.
        options: `map_smooth` smooths the maps before they are judged.
        against: Another results folder; the difference of the area of cells is added.
    """
    if not isinstance(source, ResultsSource):
        return None
    left_out: dict[str, str] = {}
    slides = list(_cells_of_slides(source, results, plan, options, left_out))
    if not slides:
        return None
    threshold, reason = _choose_threshold(source, fit_cohort, plan, options)
    truth_known = [slide for slide in slides if slide.tumour is not None]
    areas = _areas(truth_known)
    measures: dict[str, Any] = {
        "slides": len(slides),
        "patients": len({slide.case.patient for slide in slides}),
        "outlined": sum(slide.tumour is not None and bool(slide.tumour.any()) for slide in slides),
        "cell_auc": _cell_auc(areas, options).to_dict(),
        "dice": _dice(truth_known, threshold, reason, options).to_dict(),
        "orientation": _orientation(slides, options).to_dict(),
    }
    if isinstance(against, ResultsSource):
        other_results = [(case, against.case_result(case)) for case, _ in results]
        other_slides = _cells_of_slides(against, other_results, plan, options, {})
        other_areas = _areas([slide for slide in other_slides if slide.tumour is not None])
        measures["against"] = {"cell_auc": _compare_areas(areas, other_areas, options).to_dict()}
    measures = without_intervals(measures, measures["patients"])
    return {
        **measures,
        "smooth": options.map_smooth,
        "threshold": threshold,
        "fitted_on": None if threshold is None else options.map_fit,
        "orientation_passed": _passes(measures["orientation"]["value"]),
        "left_out": left_out,
    }


def _passes(orientation: float | None) -> bool | None:
    return None if orientation is None else orientation >= LEAST_ORIENTATION


def _cells_of_slides(
    source: ResultsSource,
    results: Sequence[tuple[Case, CaseResult]],
    plan: TargetPlan | None,
    options: Options,
    left_out: dict[str, str],
) -> Iterator[SlideCells]:
    """The map of each slide that has one; a slide whose map or truth cannot be read is left out."""
    for case, result in results:
        if case.kind != "slide" or not result.is_scored:
            continue
        try:
            cells = _cells_of(source, case, result, plan, options)
        except LobuleError as error:
            left_out[case.id] = str(error)
            continue
        if cells is None:
            left_out[case.id] = "the results contain no map of it"
        else:
            yield cells


def _cells_of(
    source: ResultsSource, case: Case, result: CaseResult, plan: TargetPlan | None, options: Options
) -> SlideCells | None:
    reader = densest_map(source.results.case_folder(case.id), options)
    if reader is None:
        return None
    scores, states = reader.read()
    scored = states == State.SCORED
    if not scored.any():
        return None
    layer = smooth_map(scores[tumour_class(reader, options)], scored, options.map_smooth)
    positive = _is_positive(case, plan)
    tumour: NDArray[np.bool_] | None = None
    if positive is False:
        tumour = np.zeros(int(scored.sum()), np.bool_)
    elif case.annotation is not None:
        x, y = (Fraction(side).limit_denominator(10**6) for side in reader.info.l0_stride)
        truth, _ = rasterise_truth(case, case.annotation, result.size, (x, y), options)
        tumour = _fitted(np.asarray(truth, np.bool_), scored.shape)[scored]
    return SlideCells(case, layer[scored], tumour, positive)


def _is_positive(case: Case, plan: TargetPlan | None) -> bool | None:
    if case.label is None or plan is None or len(plan.targets) != 1:
        return None
    return case.label in plan.targets[0].positive


def _fitted(truth: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The truth on the cells of a map, whose last row or column may lie beyond the slide."""
    cells = np.zeros(shape, np.bool_)
    rows, columns = (min(pair) for pair in zip(truth.shape, shape, strict=True))
    cells[:rows, :columns] = truth[:rows, :columns]
    return cells


# -- measures -----------------------------------------------------------------------------------------------


Areas = dict[str, tuple[str, float]]
"""The patient and the area under the ROC curve of the cells of each slide that has both kinds."""


def _areas(slides: Sequence[SlideCells]) -> Areas:
    areas: Areas = {}
    for slide in slides:
        assert slide.tumour is not None
        value = auc(slide.tumour, slide.scores)
        if value is not None:
            areas[slide.case.id] = (slide.case.patient, value)
    return areas


def _cell_auc(areas: Areas, options: Options) -> Estimate:
    """The mean over slides with tumour of the area under the ROC curve of their cells."""
    if not areas:
        return undefined("no slide has cells inside and outside of outlines")
    patients = [patient for patient, _ in areas.values()]
    values = np.array([value for _, value in areas.values()])

    def mean(weights: Floats) -> Floats:
        return np.asarray(
            (weights * values).sum(axis=1) / np.where(weights.any(axis=1), weights.sum(axis=1), np.nan)
        )

    return options.resampling.estimate(float(values.mean()), patients, mean, "patient")


def _compare_areas(areas: Areas, other_areas: Areas, options: Options) -> Comparison:
    """The difference of the mean area of cells on the slides with maps of both models."""
    common = [name for name in areas if name in other_areas]
    a, b = ([some[name][1] for name in common] for some in (areas, other_areas))
    return compare_means(a, b, [areas[name][0] for name in common], "cell_auc", options.resampling)


def _dice(
    slides: Sequence[SlideCells], threshold: float | None, reason: str | None, options: Options
) -> Estimate:
    """The Dice coefficient of all cells of all slides, at a threshold that was chosen elsewhere."""
    if threshold is None or not slides:
        return undefined(reason or "no slide has outlines or a negative label")
    counts = np.array([slide.counts(threshold) for slide in slides], np.float64)
    value = _dice_of(counts.sum(axis=0))
    if value is None:
        return undefined("no cell is tumour or above the threshold")

    def resampled(weights: Floats) -> Floats:
        hits, alarms, missed = (weights @ counts).T
        total = 2 * hits + alarms + missed
        return np.asarray(np.where(total > 0, 2 * hits / np.maximum(total, 1), np.nan))

    patients = [slide.case.patient for slide in slides]
    return options.resampling.estimate(value, patients, resampled, "patient")


def _dice_of(counts: Floats) -> float | None:
    hits, alarms, missed = counts
    total = 2 * hits + alarms + missed
    return float(2 * hits / total) if total else None


def _orientation(slides: Sequence[SlideCells], options: Options) -> Estimate:
    """How well the highest cells separate positive slides from negative ones."""
    labelled = [slide for slide in slides if slide.positive is not None]
    labels = np.array([bool(slide.positive) for slide in labelled], np.bool_)
    evidence = np.array([slide.evidence for slide in labelled], np.float64)
    patients = [slide.case.patient for slide in labelled]
    return bootstrap_measure(labels, evidence, patients, "auroc", options.resampling)


def _choose_threshold(
    source: ResultsSource, fit_cohort: Cohort, plan: TargetPlan | None, options: Options
) -> tuple[float | None, str | None]:
    """The threshold with the highest Dice coefficient on the split of the fit, or the reason for none."""
    if options.split == options.map_fit or options.split is None:
        return None, f"no threshold: the evaluated split must be another one than '{options.map_fit}'"
    results = [(case, source.case_result(case)) for case in fit_cohort]
    slides = [
        slide for slide in _cells_of_slides(source, results, plan, options, {}) if slide.tumour is not None
    ]
    if not any(slide.tumour is not None and slide.tumour.any() for slide in slides):
        return None, f"no threshold: the results contain no outlined slide of the split '{options.map_fit}'"
    samples = [slide.scores[:: max(1, len(slide.scores) // MOST_SAMPLES)] for slide in slides]
    candidates = np.unique(np.quantile(np.concatenate(samples), np.linspace(0, 1, THRESHOLDS)))
    dice = []
    for candidate in candidates:
        counts = np.array([slide.counts(float(candidate)) for slide in slides], np.float64).sum(axis=0)
        dice.append(_dice_of(counts) or 0.0)
    return float(candidates[int(np.argmax(dice))]), None


def map_sentence(maps: Mapping[str, Any]) -> str:
    """The outcome of the orientation check, and the threshold, in words."""
    passed = maps["orientation_passed"]
    check = {
        None: "orientation not checked: slides of one label",
        True: "orientation check passed",
        False: "orientation check FAILED: the highest cells do not separate positive slides",
    }[passed]
    if maps["threshold"] is None:
        return f"{check}; {maps['dice']['reason']}"
    return f"{check}; threshold {maps['threshold']:.4g} chosen on the split '{maps['fitted_on']}'"
