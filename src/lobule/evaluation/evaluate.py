"""A source and a cohort in, every measure with its interval out, and nobody dropped in silence."""

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
from lobule.evaluation.labels import Plan, plan
from lobule.evaluation.leakage import check_overlap
from lobule.evaluation.lesions import Matched, compare_lesions, match_slides, measure_lesions
from lobule.evaluation.options import Options
from lobule.evaluation.sources import ANY_SCORE, NOT_THERE, Said, Source
from lobule.evaluation.tasks import (
    Task,
    breast_tasks,
    case_tasks,
    compare_task,
    measure_classes,
    measure_task,
)
from lobule.evaluation.truth import check_masks
from lobule.results.result import RESEARCH_USE, UNSCORED

FORMAT = "lobule-evaluation/1"
BLANK = "(blank)"
UNITS = {"slide": "slides", "region": "regions", "image": "images"}

Told = list[tuple[Case, Said]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured, as plain values; `data` is what `evaluation.json` holds."""

    data: Mapping[str, Any]

    @property
    def tasks(self) -> Mapping[str, Any]:
        """By target: `all`, `by` column and value, and `against`."""
        found: Mapping[str, Any] = self.data["tasks"]
        return found

    @property
    def lesions(self) -> Mapping[str, Any] | None:
        """The lesion level, laid out alike; None where no slide has known lesions and findings."""
        found: Mapping[str, Any] | None = self.data["lesions"]
        return found

    @property
    def failed(self) -> int:
        """Cases that should have a result and have none."""
        cases = self.data["cases"]
        return len(cases["failed"]) + len(cases["unfinished"]) + len(cases["not_scanned"])

    def write(self, folder: str | Path, *, plots: bool = True) -> list[Path]:
        """Write `evaluation.json`, `table.csv` and the plots; gives the files."""
        from lobule.evaluation.writing import write_evaluation

        return write_evaluation(self.data, folder, plots=plots)


def evaluate_source(
    source: Source,
    cohort: Cohort,
    options: Options,
    *,
    against: Source | None = None,
    bundle: str | Path | None = None,
) -> Evaluation:
    """Measure a source on a cohort, and where another is given, the difference on what both have."""
    check_masks(options)
    cohort = _chosen(cohort, options)
    overlap = check_overlap(cohort, source, bundle, options.allow_overlap)
    other = (
        None
        if against is None
        else check_overlap(cohort, against, None, options.allow_overlap, "the other model")
    )
    told = [(case, _filled(source.said(case), options)) for case in cohort]
    rival = None if against is None else {case.id: _filled(against.said(case), options) for case in cohort}
    tasks, how, classes = _tasks(cohort, told, rival, options)
    matched = _matched(told, rival, how, options)
    notes = [
        *_unscored_note(told, options),
        *_small_groups(tasks, options),
        *(matched.notes if matched else ()),
    ]
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
        "overlap_against": None if other is None else other.to_dict(),
        "labels": None if how is None else how.rule,
        "cases": _accounts(source, cohort, told),
        "tasks": {task.name: _task_report(task, options, against is not None) for task in tasks},
        "classes": classes,
        "lesions": None if matched is None else _lesion_report(matched, options, against is not None),
        "lesions_left_out": {} if matched is None else dict(matched.left_out),
        "notes": notes,
    }
    return Evaluation(data)


def _chosen(cohort: Cohort, options: Options) -> Cohort:
    for column in options.by:
        if all(case.value(column) is None for case in cohort):
            raise UsageError(
                f"no case has anything in the column '{column}'", subject=cohort.path, actual=_columns(cohort)
            )
    if options.split is None:
        return cohort
    chosen = cohort.split(options.split)
    if not len(chosen):
        has = ", ".join(name for name in SPLITS if name in cohort.splits()) or "no splits"
        raise UsageError(f"no case is in the split '{options.split}'", subject=cohort.path, actual=has)
    return chosen


def _columns(cohort: Cohort) -> str:
    known = [
        name for name in ("split", "label", "site") if any(case.value(name) is not None for case in cohort)
    ]
    return ", ".join([*known, *dict.fromkeys(name for case in cohort for name in case.attributes)]) or "none"


def _filled(said: Said, options: Options) -> Said:
    """A case without a result takes the score that the caller gives such cases, and no findings."""
    if said.done or options.missing_score is None:
        return said
    nothing = np.zeros((0, 3))
    return replace(said, scores={ANY_SCORE: options.missing_score}, detections=nothing)


def _unscored_note(told: Told, options: Options) -> list[str]:
    """A sentence that says how many cases have a result without a score, and what is done with them."""
    count = sum(said.status == UNSCORED for _, said in told)
    if not count:
        return []
    cases = "1 case was" if count == 1 else f"{count} cases were"
    if options.missing_score is None:
        return [f"{cases} not scored and left out of every number below"]
    return [f"{cases} not scored and counted with the score {options.missing_score:g} of --missing-score"]


# -- the slide level ----------------------------------------------------------------------------------------


def _tasks(
    cohort: Cohort, told: Told, rival: Mapping[str, Said] | None, options: Options
) -> tuple[list[Task], Plan | None, dict[str, Any] | None]:
    """What is asked of cases: of exams their breasts, else the label."""
    exams = [(case, said) for case, said in told if case.kind == "exam"]
    tasks = breast_tasks(exams, rival) if exams else []
    others = [(case, said) for case, said in told if case.kind != "exam" or case.label is not None]
    labels = sorted({case.label for case, _ in others if case.label is not None})
    names = _score_names(said for _, said in others)
    if not labels or not names or (exams and tasks):
        return tasks, None, None
    how = plan(labels, names, options.positive, options.score)
    tasks += case_tasks(others, how, rival, UNITS.get(cohort.kind or "", "cases"))
    return tasks, how, measure_classes(others, how) if how.classes else None


def _score_names(said: Iterable[Said]) -> list[str]:
    return list(dict.fromkeys(name for one in said for name in one.scores if name != ANY_SCORE))


def _task_report(task: Task, options: Options, compared: bool) -> dict[str, Any]:
    def measured(some: Task) -> dict[str, Any]:
        return without_intervals(measure_task(some, options), _patients(some.cases))

    def compared_with_rival(some: Task) -> dict[str, Any]:
        assert some.rivals is not None
        shared = some.part(np.isfinite(some.rivals))
        return without_intervals(compare_task(some, options), _patients(shared.cases))

    def by_column(function: Callable[[Task], dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
        return {
            column: {value: function(task.part(keep)) for value, keep in _groups(task.cases, column).items()}
            for column in options.by
        }

    report: dict[str, Any] = {"unit": task.unit, "all": measured(task), "by": by_column(measured)}
    if compared:
        report["against"] = {"all": compared_with_rival(task), "by": by_column(compared_with_rival)}
    return report


def _patients(cases: Sequence[Case]) -> int:
    return len({case.patient for case in cases})


def _small_groups(tasks: Sequence[Task], options: Options) -> Iterator[str]:
    """Groups of so few patients that resampling them says little."""
    found: dict[str, int] = {}
    for task in tasks:
        groups = {"all": [True] * len(task.cases)} if task.cases else {}
        for column in options.by:
            groups |= {f"{column} = {value}": keep for value, keep in _groups(task.cases, column).items()}
        for title, keep in groups.items():
            patients = len(np.unique(task.part(keep).patients))
            if patients < FEW_PATIENTS:
                found[title] = patients
    for title, patients in found.items():
        yield f"{title}: of {patients} patients, too few for an interval or a p-value"


def _groups(cases: Sequence[Case], column: str) -> dict[str, list[bool]]:
    values = [BLANK if (value := case.value(column)) is None else value for case in cases]
    return {value: [own == value for own in values] for value in sorted(set(values), key=_in_order)}


def _in_order(value: str) -> tuple[bool, str]:
    return value == BLANK, value


# -- the lesion level ---------------------------------------------------------------------------------------


def _matched(
    told: Told, rival: Mapping[str, Said] | None, how: Plan | None, options: Options
) -> Matched | None:
    """The slides of the lesion level; None where none of the cohort has known lesions and findings."""
    slides = [(case, said) for case, said in told if case.kind in ("slide", "region")]
    known = [case for case, _ in slides if case.annotation is not None] or options.masks
    if not known or all(said.detections is None for _, said in slides):
        return None
    excluded = {
        case.id: case.attributes.get("note", "excluded from FROC")
        for case, _ in slides
        if is_false(case.attributes.get("froc", ""))
    }
    asked = [(case, said, _positive(case, how)) for case, said in slides if case.id not in excluded]
    classes = frozenset(name for target in (how.targets if how else ()) for name in target.scores)
    matched = match_slides(asked, options, rival, classes)
    return Matched(
        matched.cases, matched.matches, {**excluded, **matched.left_out}, matched.notes, matched.rivals
    )


def _positive(case: Case, how: Plan | None) -> bool | None:
    if case.label is None:
        return None
    if how is not None and len(how.targets) == 1:
        return case.label in how.targets[0].positive
    return polarity(case.label)


def _lesion_report(matched: Matched, options: Options, compared: bool) -> dict[str, Any]:
    def measured(keep: Sequence[bool]) -> dict[str, Any]:
        cases = _kept(matched.cases, keep)
        block = measure_lesions(cases, _kept(matched.matches, keep), options)
        return without_intervals(block, _patients(cases))

    report: dict[str, Any] = {"all": measured([True] * len(matched.cases))}
    report["by"] = {
        column: {value: measured(keep) for value, keep in _groups(matched.cases, column).items()}
        for column in options.by
    }
    if compared:
        shared = [
            case for case, rival in zip(matched.cases, matched.rivals, strict=True) if rival is not None
        ]
        report["against"] = {"all": without_intervals(compare_lesions(matched, options), _patients(shared))}
    return report


T = TypeVar("T")


def _kept(items: Sequence[T], keep: Sequence[bool]) -> list[T]:
    return [item for item, kept in zip(items, keep, strict=True) if kept]


# -- accounts -----------------------------------------------------------------------------------------------


def _accounts(source: Source, cohort: Cohort, told: Told) -> dict[str, Any]:
    """Every case of the cohort once by its status, and what else there is."""

    def of(wanted: Callable[[Said], bool]) -> dict[str, str]:
        return {case.id: said.cause or said.status for case, said in told if wanted(said)}

    known = {case.id for case in cohort} | {Path(case.path).stem for case in cohort if case.path}
    blank = [case.id for case in cohort if case.label is None and not case.breast_labels]
    return {
        "cohort": len(cohort),
        "patients": len(cohort.patients()),
        "complete": sum(said.status == "complete" for _, said in told),
        "partial": of(lambda said: said.status == "partial"),
        "failed": of(lambda said: said.status == "failed"),
        "unscored": of(lambda said: said.status == UNSCORED),
        "unfinished": list(of(lambda said: said.status == "unfinished")),
        "not_scanned": list(of(lambda said: said.status == NOT_THERE)),
        "without_label": blank,
        "not_in_cohort": [name for name in source.names() if name not in known],
    }
