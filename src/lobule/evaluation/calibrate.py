"""Calibrate a bundle to a site: turn its scores into probabilities, by labelled cases of the site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lobule.bundles import Bundle, patient_hash, read_bundle, write_bundle
from lobule.cohort import Case, Cohort
from lobule.errors import BundleError, ConfigError, UsageError
from lobule.evaluation.labels import plan_targets
from lobule.evaluation.leakage import check_overlap
from lobule.evaluation.options import Options
from lobule.evaluation.sources import CaseResult, ResultsSource
from lobule.evaluation.tasks import Task, breast_tasks, case_tasks
from lobule.measures.calibration import Isotonic, Platt, fit_isotonic, fit_platt, log_loss, reliability
from lobule.measures.roc import operating_point
from lobule.results import open_results

Fit = Literal["platt", "isotonic"]
FITS = {"platt": fit_platt, "isotonic": fit_isotonic}
SENSITIVITIES = (0.9, 0.95)


def calibrate(
    bundle: str | Path,
    results: str | Path,
    cohort: Cohort,
    out: str | Path,
    *,
    fit: Fit = "platt",
    sensitivities: Sequence[float] = SENSITIVITIES,
    split: str | None = None,
    allow_overlap: bool = False,
) -> Bundle:
    """Write a copy of a bundle whose scans are calibrated to the labelled cases of a cohort.

    The patients of these cases are added to the bundle's training patients, because measures on them would
    be too good; a later evaluation rejects them. If the bundle is already calibrated, the new calibration is
    fitted to the raw scores and replaces the old one.

    Args:
        bundle: The bundle to calibrate.
        results: Results of this bundle on the labelled cases.
        cohort: The labelled cases.
        out: Folder of the new bundle.
        fit: Kind of fit, "platt" or "isotonic".
        sensitivities: For each of these a threshold is stored that reaches it on the labelled cases.
        split: Use the cases of this split only.
        allow_overlap: Accept cases of training patients.

    Returns:
        The new bundle.

    Raises:
        BundleError: The results were produced by another bundle.
        ConfigError: The fit does not exist, or a sensitivity is not between 0 and 1.
        Leakage: A patient is a training patient of the bundle and `allow_overlap` is false.
        UsageError: The cases have no labels or no scores, or they are all of one class.
    """
    if fit not in FITS:
        raise ConfigError(f"there is no fit '{fit}'", expected=" or ".join(FITS))
    if not sensitivities or not all(0 < sensitivity <= 1 for sensitivity in sensitivities):
        raise ConfigError(
            "the sensitivities are invalid",
            expected="numbers above 0 and at most 1",
            actual=str(sensitivities),
        )
    original = read_bundle(bundle)
    chosen = cohort if split is None else cohort.split(split)
    source = ResultsSource(open_results(results), Options())
    scan_fingerprint = (source.bundle or {}).get("fingerprint")
    if scan_fingerprint != original.fingerprint:
        raise BundleError(
            "the results were produced by another bundle",
            subject=results,
            expected=f"fingerprint {original.fingerprint[:16]}",
            actual=str(scan_fingerprint)[:16],
            remedy="Scan the labelled cases with this bundle first",
        )
    check_overlap(chosen, source, bundle, allow_overlap)
    case_results = [(case, _raw_result(source, case)) for case in chosen]
    tasks = _tasks(case_results, chosen)
    targets = {task.name: _target(task, scores, fit, sensitivities) for task, scores in tasks}
    # ScanNet calibrates its cells before its slide scores, so the calibration of the cells is kept.
    cells = {"cells": original.calibration["cells"]} if "cells" in original.calibration else {}
    calibration = {**cells, "targets": targets, "cohort": chosen.path, "split": split}
    used_patients = {patient_hash(case.patient) for task, _ in tasks for case in task.cases}
    patients = tuple(sorted({*original.patients, *used_patients}))
    calibrated = replace(original, calibration=calibration, patients=patients, files={}, path=None)
    return write_bundle(out, calibrated, copies={name: original.file(name) for name in original.files})


def _raw_result(source: ResultsSource, case: Case) -> CaseResult:
    result = source.case_result(case)
    if not result.is_scored:
        return result
    stored = source.results.case_folder(case.id).result or {}
    return replace(result, scores=stored.get("raw_scores", result.scores))


def _tasks(case_results: list[tuple[Case, CaseResult]], cohort: Cohort) -> list[tuple[Task, tuple[str, ...]]]:
    """The tasks that can be calibrated, each with the names of its scores."""
    scored = [(case, result) for case, result in case_results if result.is_scored]
    if not scored:
        raise UsageError("the results have no score for any case of the cohort", subject=cohort.path)
    exams = [(case, result) for case, result in scored if case.kind == "exam"]
    tasks: list[tuple[Task, tuple[str, ...]]]
    if exams:
        tasks = [(task, (f"left_{task.name}", f"right_{task.name}")) for task in breast_tasks(exams, None)]
    else:
        labels = sorted({case.label for case, _ in scored if case.label is not None})
        names = list(dict.fromkeys(name for _, result in scored for name in result.scores))
        plan = plan_targets(labels, names) if labels else None
        tasks_of_cases = case_tasks(scored, plan, None, "cases") if plan else []
        targets = plan.targets if plan else ()
        tasks = [(task, target.scores) for task, target in zip(tasks_of_cases, targets, strict=True)]
        if any(len(scores) != 1 for _, scores in tasks):
            raise UsageError("a label is predicted by the sum of several scores, which cannot be calibrated")
    if not tasks:
        raise UsageError("no case of the cohort has a label", subject=cohort.path)
    return tasks


def _target(task: Task, scores: tuple[str, ...], kind: Fit, sensitivities: Sequence[float]) -> dict[str, Any]:
    fitted: Platt | Isotonic | None = FITS[kind](task.labels, task.scores)
    if fitted is None:
        raise UsageError(
            f"all {len(task.labels)} {task.unit} with a label are of one class, so no fit is possible",
            subject=task.name,
            remedy="Add labelled cases of the other class",
        )
    after = fitted(task.scores)
    points = []
    for sensitivity in sensitivities:
        point = operating_point(task.labels, after, sensitivity=sensitivity)
        assert point is not None
        rates = {"sensitivity": point.sensitivity.value, "specificity": point.specificity.value}
        points.append({"wanted": sensitivity, "threshold": point.threshold, **rates})
    return {
        "scores": list(scores),
        "fit": fitted.to_dict(),
        "thresholds": points,
        task.unit: len(task.labels),
        "positive": int(task.labels.sum()),
        "before": _agreement(task, task.scores),
        "after": _agreement(task, after),
    }


def _agreement(task: Task, probabilities: Any) -> dict[str, float | None]:
    if len(probabilities) == 0 or probabilities.min() < 0 or probabilities.max() > 1:
        return {"expected_error": None, "brier": None, "log_loss": None}
    agreement = reliability(task.labels, probabilities)
    loss = log_loss(task.labels, probabilities)
    finite = loss if loss is not None and loss < float("inf") else None
    return {"expected_error": agreement.expected_error, "brier": agreement.brier, "log_loss": finite}
