"""Measures of lesions: Camelyon16's FROC, its JAMA variant, and sensitivity by lesion size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lobule.cohort import Case
from lobule.errors import LobuleError
from lobule.evaluation.options import Options
from lobule.evaluation.sources import CaseResult
from lobule.evaluation.truth import Truth, read_truth
from lobule.measures.camelyon16 import (
    SlideMatch,
    bootstrap_froc,
    froc,
    jama_froc,
    match,
    sensitivity_by_class,
    slide_auc,
)
from lobule.measures.compare import compare_froc
from lobule.measures.estimate import Floats
from lobule.results.case_map import CaseMap, map_here
from lobule.results.result import UNSCORED


@dataclass(frozen=True, eq=False)
class MatchedSlides:
    """Slides with both lesions and detections, and the reasons why other slides were left out."""

    cases: tuple[Case, ...]
    matches: tuple[SlideMatch, ...]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]
    other_matches: tuple[SlideMatch | None, ...] = ()
    """The same slides matched with the detections of the other source; None where it has none."""


def match_slides(
    slides: Sequence[tuple[Case, CaseResult, bool | None]],
    options: Options,
    other_results: Mapping[str, CaseResult] | None = None,
    classes: frozenset[str] = frozenset(),
    map_cases: CaseMap = map_here,
) -> MatchedSlides:
    """Match the detections of slides with their lesions.

    Args:
        slides: Each case with its result and whether it is positive (None if that is not known).
        options: Where the truth comes from and how it is scaled.
        other_results: The results of another source by case.
        classes: Classes of detections that count, where detections have several classes.
        map_cases: Matches the slides, for example on several machines.

    Returns:
        The matched slides. A slide that cannot be matched is listed in `left_out` with the reason.
    """
    cases, matches, other_matches = [], [], []
    left_out: dict[str, str] = {}
    notes: dict[str, list[str]] = {}
    items: list[_Slide] = []
    for case, result, positive in slides:
        if result.detections is not None and case.l0_box is None:
            items.append((case, result, positive, (other_results or {}).get(case.id)))
        elif result.detections is not None:
            left_out[case.id] = "a region, not a whole slide"
        elif result.is_scored or result.status in ("failed", UNSCORED):
            left_out[case.id] = result.cause or "the results contain no findings"
    outcomes = map_cases(partial(_match_item, options=options, classes=classes), items)
    for (case, *_), outcome in zip(items, outcomes, strict=True):
        if isinstance(outcome, str):
            left_out[case.id] = outcome
            continue
        slide_match, other_match, slide_notes = outcome
        cases.append(case)
        matches.append(slide_match)
        other_matches.append(other_match)
        for note in slide_notes:
            notes.setdefault(note, []).append(case.id)
    all_notes = tuple(f"{_join_names(names)}: {note}" for note, names in notes.items())
    in_order = {case.id: left_out[case.id] for case, _, _ in slides if case.id in left_out}
    return MatchedSlides(tuple(cases), tuple(matches), in_order, all_notes, tuple(other_matches))


_Slide = tuple[Case, CaseResult, bool | None, CaseResult | None]
"""A case, its result, whether it is positive, and the result of the other source."""
_Match = tuple[SlideMatch, SlideMatch | None, list[str]]
"""The matches with the detections of both sources, and notes."""


def _match_item(item: _Slide, *, options: Options, classes: frozenset[str]) -> _Match | str:
    """Match the detections of a slide with its lesions, or return the reason why it is left out."""
    case, result, positive, other = item
    try:
        truth = read_truth(case, result, positive, options)
        if isinstance(truth, str):
            return truth
        slide_match = _match_slide(case, result, truth, classes)
    except LobuleError as error:
        return str(error)
    other_match, problem = _match_other(case, other, truth, classes)
    notes = [] if problem is None else [f"left out of the comparison of lesions: {problem}"]
    return slide_match, other_match, [*notes, *truth.notes]


def _match_slide(case: Case, result: CaseResult, truth: Truth, classes: frozenset[str]) -> SlideMatch:
    assert result.detections is not None
    detections = _select_classes(result.detections, result.labels, classes)
    return match(case.id, truth.on_cells(detections), truth.mask)


def _match_other(
    case: Case, result: CaseResult | None, truth: Truth, classes: frozenset[str]
) -> tuple[SlideMatch | None, str | None]:
    """The match of the other source; None without its detections, and None with the reason if it fails."""
    if result is None or result.detections is None:
        return None, None
    try:
        return _match_slide(case, result, truth, classes), None
    except LobuleError as error:
        return None, f"the findings of the other source cannot be matched: {error}"


def _select_classes(detections: Floats, labels: Sequence[str | None], classes: frozenset[str]) -> Floats:
    """The detections of some classes; all detections if there is only one class or none of these occurs."""
    if len(set(labels)) < 2:
        return detections
    keep = np.array([label in classes for label in labels], dtype=bool)
    return detections[keep] if keep.any() else detections


def _join_names(names: Sequence[str]) -> str:
    remainder = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + remainder


def measure_lesions(cases: Sequence[Case], matches: Sequence[SlideMatch], options: Options) -> dict[str, Any]:
    """All measures of lesions over some slides."""
    patients = [case.patient for case in cases]
    official, jama = froc(matches), jama_froc(matches)
    resampling = options.resampling
    return {
        "slides": len(matches),
        "tumour_slides": sum(slide_match.tumour for slide_match in matches),
        "normal_slides": sum(not slide_match.tumour for slide_match in matches),
        "lesions": official.lesions,
        "isolated_tumour_cells": sum(slide_match.lesion_classes.count("itc") for slide_match in matches),
        "patients": len(set(patients)),
        "froc_score": bootstrap_froc(matches, patients, resampling).to_dict(),
        "froc": official.to_dict(),
        "jama_score": bootstrap_froc(matches, patients, resampling, jama=True).to_dict(),
        "jama": jama.to_dict(),
        "sensitivity_by_class": sensitivity_by_class(matches),
        "highest_confidence_auc": slide_auc(matches),
    }


def compare_lesions(matched: MatchedSlides, options: Options) -> dict[str, Any]:
    """The difference, this source minus the other, on the slides of both."""
    rows = zip(matched.cases, matched.matches, matched.other_matches, strict=True)
    pairs = [(case.patient, match, other) for case, match, other in rows if other is not None]
    patients, matches, other_matches = zip(*pairs, strict=True) if pairs else ((), (), ())
    differences = {
        name: compare_froc(matches, other_matches, patients, options.resampling, jama=jama).to_dict()
        for name, jama in (("froc", False), ("jama_froc", True))
    }
    return {"slides": len(pairs), **differences}
