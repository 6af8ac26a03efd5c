"""Measure the scores and findings of a source on a cohort.

Every case of the cohort is measured, or listed with the reason why it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lobule import __version__
from lobule.cohort import SPLITS, Case, Cohort
from lobule.cohort.labels import is_false, polarity
from lobule.errors import UsageError
from lobule.evaluation.few_patients import FEW_PATIENTS, without_intervals
from lobule.evaluation.labels import TargetPlan, plan_targets
from lobule.evaluation.leakage import check_overlap
from lobule.evaluation.lesions import MatchedSlides, compare_lesions, match_slides, measure_lesions
from lobule.evaluation.maps import measure_maps
from lobule.evaluation.options import Options
from lobule.evaluation.patients import check_patient_options, patient_tasks
from lobule.evaluation.reviewers import ReviewSource, reader_point
from lobule.evaluation.sources import ANY_SCORE, NOT_SCANNED, CaseResult, Source, read_cases
from lobule.evaluation.tasks import (
    Task,
    breast_tasks,
    case_tasks,
    compare_task,
    measure_classes,
    measure_task,
)
from lobule.evaluation.truth import check_masks
from lobule.results.case_map import CaseMap, map_here
from lobule.results.result import RESEARCH_USE, UNSCORED

FORMAT = "lobule-evaluation/1"
BLANK = "(blank)"
"""Name of the group of cases that have no value in a column."""
UNITS = {"slide": "slides", "region": "regions", "image": "images"}
"""Kind of cohort → what its cases are called in the report."""

CaseResults = list[tuple[Case, CaseResult]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The measures of a source on a cohort."""

    data: Mapping[str, Any]
    """The content of `evaluation.json`."""

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The measures of each target: of all cases, by column and value, and against the other source."""
        tasks: Mapping[str, Any] = self.data["tasks"]
        return tasks

    @property
    def lesions(self) -> Mapping[str, Any] | None:
        """The measures of lesions, in the same layout; None if no slide has an annotation and findings."""
        lesions: Mapping[str, Any] | None = self.data["lesions"]
        return lesions

    @property
    def failed(self) -> int:
        """Number of cases that should have a result but have none."""
        cases = self.data["cases"]
        return len(cases["failed"]) + len(cases["unfinished"]) + len(cases["not_scanned"])

    def write(self, folder: str | Path, *, plots: bool = True) -> list[Path]:
        """Write `evaluation.json`, `table.csv` and the plots; return the paths of the files."""
        from lobule.evaluation.writing import write_evaluation

        return write_evaluation(self.data, folder, plots=plots)


def evaluate_source(
    source: Source,
    cohort: Cohort,
    options: Options,
    *,
    against: Source | None = None,
    bundle: str | Path | None = None,
    map_cases: CaseMap = map_here,
) -> Evaluation:
    """Measure a source on a cohort.

    Args:
        source: The scores and detections to measure.
        cohort: The cases with their labels and annotations.
        options: What to measure and how.
        against: Another source; the differences on the cases of both sources are added.
        bundle: The bundle of the source, if the source does not state its training patients.
        map_cases: Reads and matches the cases, for example on several machines.

    Returns:
        Every measure with its interval, and the status of every case.

    Raises:
        Leakage: A patient of the cohort is a training patient and `options.allow_overlap` is false.
        UsageError: An option does not fit the cohort or the source.
    """
    check_masks(options)
    check_patient_options(options)
    all_cases, cohort = cohort, _choose_cases(cohort, options)
    overlap = check_overlap(cohort, source, bundle, options.allow_overlap)
    case_results = read_cases(source, cohort, options, map_cases)
    other_overlap, other_results = None, None
    if against is not None:
        other_overlap = check_overlap(cohort, against, None, options.allow_overlap, "the other model")
        other_results = {case.id: result for case, result in read_cases(against, cohort, options, map_cases)}
    tasks, plan, classes = _build_tasks(cohort, case_results, other_results, options)
    matched = _match_lesions(case_results, other_results, plan, options, map_cases)
    notes = [*_unscored_notes(case_results, options), *_small_group_notes(tasks, options)]
    patients = _patient_report(tasks, all_cases, cohort, (source, against), plan, options)
    data = {
        "format": FORMAT,
        "research_use": RESEARCH_USE,
        "lobule": __version__,
        "source": source.name,
        "bundle": source.bundle,
        "cohort": cohort.path,
        "against": None if against is None else against.name,
        "options": options.to_dict(),
        "overlap": overlap.to_dict(),
        "overlap_against": None if other_overlap is None else other_overlap.to_dict(),
        "labels": None if plan is None else plan.rule,
        "cases": _account_for_cases(source, cohort, case_results),
        "tasks": {task.name: _task_report(task, options, against is not None) for task in tasks},
        "classes": classes,
        "patients": patients,
        "maps": _map_report((source, against), case_results, all_cases, plan, options),
        "lesions": None if matched is None else _lesion_report(matched, options, against is not None),
        "lesions_left_out": {} if matched is None else dict(matched.left_out),
        "notes": notes + list(matched.notes if matched else ()),
    }
    if isinstance(source, ReviewSource):
        data["reader"] = {"person": source.person, **reader_point(matched.matches if matched else ())}
    return Evaluation(data)


def _choose_cases(cohort: Cohort, options: Options) -> Cohort:
    """Return the cases of the split in the options. Raise `UsageError` if a column or the split is empty."""
    for column in options.by:
        if all(case.value(column) is None for case in cohort):
            raise UsageError(
                f"no case has a value in the column '{column}'",
                subject=cohort.path,
                expected=f"one of the columns with values: {_columns_with_values(cohort)}",
                remedy="Choose such a column for --by, or fill the column in",
            )
    if options.split is None:
        return cohort
    chosen = cohort.split(options.split)
    if not len(chosen):
        splits = ", ".join(name for name in SPLITS if name in cohort.splits()) or "no splits"
        raise UsageError(
            f"no case is in the split '{options.split}'",
            subject=cohort.path,
            actual=splits,
            remedy="Choose another split, or leave --split away to evaluate all cases",
        )
    return chosen


def _columns_with_values(cohort: Cohort) -> str:
    """List the columns by which cases can be grouped."""
    standard = ("split", "label", "site")
    present = [name for name in standard if any(case.value(name) is not None for case in cohort)]
    present += dict.fromkeys(name for case in cohort for name in case.attributes)
    return ", ".join(present) or "none"


def _unscored_notes(case_results: CaseResults, options: Options) -> list[str]:
    """Say in a note how many cases were not scored, and how they are counted; no note if all were."""
    count = sum(result.status == UNSCORED for _, result in case_results)
    if not count:
        return []
    cases = "1 case was" if count == 1 else f"{count} cases were"
    if options.missing_score is None:
        return [f"{cases} not scored and left out of every number below"]
    return [f"{cases} not scored and counted with the score {options.missing_score:g} of --missing-score"]


# -- scores of cases and breasts ----------------------------------------------------------------------------


def _build_tasks(
    cohort: Cohort,
    case_results: CaseResults,
    other_results: Mapping[str, CaseResult] | None,
    options: Options,
) -> tuple[list[Task], TargetPlan | None, dict[str, Any] | None]:
    """Create the tasks of a cohort: one score per breast for exams with breast labels, otherwise per case.

    Returns:
        The tasks; and, if cases are evaluated by their labels, how labels and scores correspond and the
        measures of several classes.
    """
    exams = [(case, result) for case, result in case_results if case.kind == "exam"]
    tasks = breast_tasks(exams, other_results) if exams else []
    labelled_as_whole = [
        (case, result) for case, result in case_results if case.kind != "exam" or case.label is not None
    ]
    labels = sorted({case.label for case, _ in labelled_as_whole if case.label is not None})
    names = _score_names(result for _, result in labelled_as_whole)
    if not labels or not names or (exams and tasks):
        return tasks, None, None
    plan = plan_targets(labels, names, options.positive, options.score)
    tasks += case_tasks(labelled_as_whole, plan, other_results, UNITS.get(cohort.kind or "", "cases"))
    return tasks, plan, measure_classes(labelled_as_whole, plan) if plan.classes else None


def _score_names(results: Iterable[CaseResult]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.scores if name != ANY_SCORE))


def _task_report(task: Task, options: Options, compared: bool) -> dict[str, Any]:
    """Measure a task on all its cases and on each group. If `compared`, also compare the two sources."""

    def measured(selected: Task) -> dict[str, Any]:
        return without_intervals(measure_task(selected, options), _count_patients(selected.cases))

    def compared_with_other(selected: Task) -> dict[str, Any]:
        assert selected.other_scores is not None
        shared = selected.subset(np.isfinite(selected.other_scores))
        return without_intervals(compare_task(selected, options), _count_patients(shared.cases))

    def by_column(function: Callable[[Task], dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
        groups = {column: _select_by_value(task.cases, column) for column in options.by}
        return {
            column: {value: function(task.subset(selection)) for value, selection in by_value.items()}
            for column, by_value in groups.items()
        }

    report: dict[str, Any] = {"unit": task.unit, "all": measured(task), "by": by_column(measured)}
    if compared:
        report["against"] = {"all": compared_with_other(task), "by": by_column(compared_with_other)}
    return report


def _patient_report(
    tasks: Sequence[Task],
    all_cases: Cohort,
    cohort: Cohort,
    sources: tuple[Source, Source | None],
    plan: TargetPlan | None,
    options: Options,
) -> dict[str, Any] | None:
    """Measure the scores of patients; None if the options ask for slides only or no case has a label."""
    if options.patients is None or not tasks:
        return None
    fit_tasks: list[Task] = []
    if options.patients == "learned" and plan is not None:
        fit_cohort = all_cases.split(options.patient_fit)
        results = [(case, sources[0].case_result(case)) for case in fit_cohort if case.label is not None]
        other = None if sources[1] is None else {case.id: sources[1].case_result(case) for case in fit_cohort}
        fit_tasks = case_tasks(results, plan, other, "slides")
    combined = patient_tasks(tasks, fit_tasks, cohort.cases, options)
    reports = {task.name: _task_report(task, options, sources[1] is not None) for task in combined.tasks}
    return {**combined.head(options), "tasks": reports}


def _map_report(
    sources: tuple[Source, Source | None],
    case_results: CaseResults,
    all_cases: Cohort,
    plan: TargetPlan | None,
    options: Options,
) -> dict[str, Any] | None:
    if not options.maps:
        return None
    fit_cohort = all_cases.split(options.map_fit)
    return measure_maps(sources[0], case_results, fit_cohort, plan, options, sources[1])


def _count_patients(cases: Sequence[Case]) -> int:
    return len({case.patient for case in cases})


def _small_group_notes(tasks: Sequence[Task], options: Options) -> Iterator[str]:
    """Say in a note for each group with few patients that it has no intervals."""
    small_groups: dict[str, int] = {}
    for task in tasks:
        groups = {"all": [True] * len(task.cases)} if task.cases else {}
        for column in options.by:
            groups |= {
                f"{column} = {value}": selection
                for value, selection in _select_by_value(task.cases, column).items()
            }
        for title, selection in groups.items():
            patients = len(np.unique(task.subset(selection).patients))
            if patients < FEW_PATIENTS:
                small_groups[title] = patients
    for title, patients in small_groups.items():
        yield f"{title}: {patients} patients, too few for an interval or a p-value"


def _select_by_value(cases: Sequence[Case], column: str) -> dict[str, list[bool]]:
    """For each value in a column, say of each case whether it has this value. `BLANK` is the last value."""
    values = [BLANK if (value := case.value(column)) is None else value for case in cases]
    ordered = sorted(set(values), key=lambda value: (value == BLANK, value))
    return {value: [case_value == value for case_value in values] for value in ordered}


# -- findings and lesions -----------------------------------------------------------------------------------


def _match_lesions(
    case_results: CaseResults,
    other_results: Mapping[str, CaseResult] | None,
    plan: TargetPlan | None,
    options: Options,
    map_cases: CaseMap,
) -> MatchedSlides | None:
    """Match the findings of slides with their lesions; None if no slide has both."""
    slides = [(case, result) for case, result in case_results if case.kind in ("slide", "region")]
    has_lesion_truth = bool(options.masks) or any(case.annotation is not None for case, _ in slides)
    if not has_lesion_truth or all(result.detections is None for _, result in slides):
        return None
    excluded = {
        case.id: case.attributes.get("note", "excluded from FROC")
        for case, _ in slides
        if is_false(case.attributes.get("froc", ""))
    }
    included = [
        (case, result, _is_positive(case, plan)) for case, result in slides if case.id not in excluded
    ]
    classes = frozenset(name for target in (plan.targets if plan else ()) for name in target.scores)
    matched = match_slides(included, options, other_results, classes, map_cases)
    return replace(matched, left_out={**excluded, **matched.left_out})


def _is_positive(case: Case, plan: TargetPlan | None) -> bool | None:
    """Whether the label of a case is positive; None if it has no label or one of unknown meaning."""
    if case.label is None:
        return None
    if plan is not None and len(plan.targets) == 1:
        return case.label in plan.targets[0].positive
    return polarity(case.label)


def _lesion_report(matched: MatchedSlides, options: Options, compared: bool) -> dict[str, Any]:
    """Measure the findings of all slides and of each group. If `compared`, also compare the two sources."""

    def measured(selection: Sequence[bool]) -> dict[str, Any]:
        cases = _select(matched.cases, selection)
        measures = measure_lesions(cases, _select(matched.matches, selection), options)
        return without_intervals(measures, _count_patients(cases))

    report: dict[str, Any] = {"all": measured([True] * len(matched.cases))}
    report["by"] = {
        column: {
            value: measured(selection) for value, selection in _select_by_value(matched.cases, column).items()
        }
        for column in options.by
    }
    if compared:
        shared = _select(matched.cases, [match is not None for match in matched.other_matches])
        report["against"] = {
            "all": without_intervals(compare_lesions(matched, options), _count_patients(shared))
        }
    return report


T = TypeVar("T")


def _select(items: Sequence[T], selection: Sequence[bool]) -> list[T]:
    """Return the items whose flag in `selection` is true."""
    return [item for item, is_selected in zip(items, selection, strict=True) if is_selected]


# -- the status of every case -------------------------------------------------------------------------------


def _account_for_cases(source: Source, cohort: Cohort, case_results: CaseResults) -> dict[str, Any]:
    """List the cases of the cohort by status, and the cases of the source that the cohort does not have."""

    def causes(condition: Callable[[CaseResult], bool]) -> dict[str, str]:
        return {case.id: result.cause or result.status for case, result in case_results if condition(result)}

    cohort_names = {case.id for case in cohort} | {Path(case.path).stem for case in cohort if case.path}
    without_label = [case.id for case in cohort if case.label is None and not case.breast_labels]
    return {
        "cohort": len(cohort),
        "patients": len(cohort.patients()),
        "complete": sum(result.status == "complete" for _, result in case_results),
        "partial": causes(lambda result: result.status == "partial"),
        "failed": causes(lambda result: result.status == "failed"),
        "unscored": causes(lambda result: result.status == UNSCORED),
        "unfinished": list(causes(lambda result: result.status == "unfinished")),
        "not_scanned": list(causes(lambda result: result.status == NOT_SCANNED)),
        "without_label": without_label,
        "not_in_cohort": [name for name in source.names() if name not in cohort_names],
    }
