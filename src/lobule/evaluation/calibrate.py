"""Calibration of a bundle to a site: from results on labelled cases to a bundle whose scores are shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lobule.bundles import Bundle, patient_hash, read_bundle, write_bundle
from lobule.cohort import Case, Cohort
from lobule.errors import BundleError, ConfigError, UsageError
from lobule.evaluation.labels import plan
from lobule.evaluation.leakage import check_overlap
from lobule.evaluation.options import Options
from lobule.evaluation.sources import FromResults, Said
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

    `results` are what the bundle said of them. The patients join those that an evaluation refuses, since
    figures on them would be too good. What was calibrated before is calibrated anew from the raw scores.
    """
    if fit not in FITS:
        raise ConfigError(f"no fit '{fit}'", expected=" or ".join(FITS))
    if not sensitivities or not all(0 < wanted <= 1 for wanted in sensitivities):
        raise ConfigError(
            "a sensitivity is a share", expected="above 0, at most 1", actual=str(sensitivities)
        )
    opened = read_bundle(bundle)
    chosen = cohort if split is None else cohort.split(split)
    source = FromResults(open_results(results), Options())
    made_by = (source.bundle or {}).get("fingerprint")
    if made_by != opened.fingerprint:
        raise BundleError(
            "the results are of another bundle",
            subject=results,
            expected=f"fingerprint {opened.fingerprint[:16]}",
            actual=str(made_by)[:16],
            remedy="Scan the labelled cases with this bundle first",
        )
    check_overlap(chosen, source, bundle, allow_overlap)
    told = [(case, _raw(source, case)) for case in chosen]
    tasks = _tasks(told, chosen)
    targets = {task.name: _target(task, scores, fit, sensitivities) for task, scores in tasks}
    # The calibration of ScanNet's cells precedes that of its slide scores, and stays.
    cells = {"cells": opened.calibration["cells"]} if "cells" in opened.calibration else {}
    facts = {**cells, "targets": targets, "cohort": chosen.path, "split": split}
    used = {patient_hash(case.patient) for task, _ in tasks for case in task.cases}
    made = replace(
        opened, calibration=facts, patients=tuple(sorted({*opened.patients, *used})), files={}, path=None
    )
    return write_bundle(out, made, copies={name: opened.file(name) for name in opened.files})


def _raw(source: FromResults, case: Case) -> Said:
    said = source.said(case)
    if not said.done:
        return said
    result = source.results.case_folder(case.id).result or {}
    return replace(said, scores=result.get("raw_scores", said.scores))


def _tasks(told: list[tuple[Case, Said]], cohort: Cohort) -> list[tuple[Task, tuple[str, ...]]]:
    """The questions that can be calibrated, each with the scores that answer it."""
    done = [(case, said) for case, said in told if said.done]
    if not done:
        raise UsageError("the results have no score for any case of the cohort", subject=cohort.path)
    exams = [(case, said) for case, said in done if case.kind == "exam"]
    found: list[tuple[Task, tuple[str, ...]]]
    if exams:
        found = [(task, (f"left_{task.name}", f"right_{task.name}")) for task in breast_tasks(exams, None)]
    else:
        labels = sorted({case.label for case, _ in done if case.label is not None})
        names = list(dict.fromkeys(name for _, said in done for name in said.scores))
        how = plan(labels, names) if labels else None
        made = case_tasks(done, how, None, "cases") if how else []
        found = [(task, target.scores) for task, target in zip(made, how.targets if how else (), strict=True)]
        if any(len(scores) != 1 for _, scores in found):
            raise UsageError(
                "a question is answered by the sum of several scores, which cannot be calibrated"
            )
    if not found:
        raise UsageError("no case of the cohort has a label", subject=cohort.path)
    return found


def _target(task: Task, scores: tuple[str, ...], kind: Fit, sensitivities: Sequence[float]) -> dict[str, Any]:
    fitted: Platt | Isotonic | None = FITS[kind](task.labels, task.scores)
    if fitted is None:
        raise UsageError(
            f"all {len(task.labels)} {task.unit} with a label are of one class, so nothing can be fitted",
            subject=task.name,
            remedy="Label more cases",
        )
    after = fitted(task.scores)
    points = []
    for wanted in sensitivities:
        point = operating_point(task.labels, after, sensitivity=wanted)
        assert point is not None
        facts = point.to_dict()
        points.append(
            {
                "wanted": wanted,
                "threshold": point.threshold,
                "sensitivity": facts["sensitivity"]["value"],
                "specificity": facts["specificity"]["value"],
            }
        )
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
    how = reliability(task.labels, probabilities)
    loss = log_loss(task.labels, probabilities)
    finite = loss if loss is not None and loss < float("inf") else None
    return {"expected_error": how.expected_error, "brier": how.brier, "log_loss": finite}
