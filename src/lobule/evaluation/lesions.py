"""The lesion level: Camelyon16's FROC, the JAMA variant, and sensitivity by size, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lobule.cohort import Case
from lobule.errors import LobuleError
from lobule.evaluation.options import Options
from lobule.evaluation.sources import Said
from lobule.evaluation.truth import Truth, truth_of
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
from lobule.results.result import UNSCORED


@dataclass(frozen=True, eq=False)
class Matched:
    """Slides whose lesions and detections are both known, and why the others are not here."""

    cases: tuple[Case, ...]
    matches: tuple[SlideMatch, ...]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]
    rivals: tuple[SlideMatch | None, ...] = ()
    """The same slides matched with the other source; None where it says nothing."""


def match_slides(
    told: Sequence[tuple[Case, Said, bool | None]],
    options: Options,
    rival: Mapping[str, Said] | None = None,
    classes: frozenset[str] = frozenset(),
) -> Matched:
    """Match the detections of every slide; a slide that cannot be is left out and said why."""
    cases, matches, rivals = [], [], []
    left_out: dict[str, str] = {}
    notes: dict[str, list[str]] = {}
    for case, said, positive in told:
        if said.detections is None:
            if said.done or said.status in ("failed", UNSCORED):
                left_out[case.id] = said.cause or "no findings were made"
            continue
        if case.l0_box is not None:
            left_out[case.id] = "a region, not a whole slide"
            continue
        try:
            truth = truth_of(case, said, positive, options)
            if isinstance(truth, str):
                left_out[case.id] = truth
                continue
            matches.append(_matched(case, said, truth, classes))
            other = None if rival is None else rival.get(case.id)
            rivals.append(_rival(case, other, truth, classes))
        except LobuleError as error:
            left_out[case.id] = str(error)
            continue
        cases.append(case)
        for note in truth.notes:
            notes.setdefault(note, []).append(case.id)
    told_notes = tuple(f"{_named(names)}: {note}" for note, names in notes.items())
    return Matched(tuple(cases), tuple(matches), left_out, told_notes, tuple(rivals))


def _matched(case: Case, said: Said, truth: Truth, classes: frozenset[str]) -> SlideMatch:
    assert said.detections is not None
    found = _of_classes(said.detections, said.labels, classes)
    return match(case.id, truth.on_cells(found), truth.mask)


def _rival(case: Case, said: Said | None, truth: Truth, classes: frozenset[str]) -> SlideMatch | None:
    if said is None or said.detections is None:
        return None
    try:
        return _matched(case, said, truth, classes)
    except LobuleError:
        return None


def _of_classes(found: Floats, labels: Sequence[str | None], classes: frozenset[str]) -> Floats:
    """The detections of the classes in question, where detections have several."""
    if len(set(labels)) < 2:
        return found
    keep = np.array([label in classes for label in labels], dtype=bool)
    return found[keep] if keep.any() else found


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def measure_lesions(cases: Sequence[Case], matches: Sequence[SlideMatch], options: Options) -> dict[str, Any]:
    """Everything of the lesion level for some slides."""
    patients = [case.patient for case in cases]
    official, jama = froc(matches), jama_froc(matches)
    how = options.resampling
    return {
        "slides": len(matches),
        "tumour_slides": sum(one.tumour for one in matches),
        "normal_slides": sum(not one.tumour for one in matches),
        "lesions": official.lesions,
        "isolated_tumour_cells": sum(one.lesion_classes.count("itc") for one in matches),
        "patients": len(set(patients)),
        "froc_score": bootstrap_froc(matches, patients, how).to_dict(),
        "froc": official.to_dict(),
        "jama_score": bootstrap_froc(matches, patients, how, jama=True).to_dict(),
        "jama": jama.to_dict(),
        "sensitivity_by_class": sensitivity_by_class(matches),
        "highest_confidence_auc": slide_auc(matches),
    }


def compare_lesions(matched: Matched, options: Options) -> dict[str, Any]:
    """This source less the other on the slides that both have."""
    pairs = [
        (case, mine, theirs)
        for case, mine, theirs in zip(matched.cases, matched.matches, matched.rivals, strict=True)
        if theirs is not None
    ]
    mine = [pair[1] for pair in pairs]
    theirs = [pair[2] for pair in pairs]
    patients = [pair[0].patient for pair in pairs]
    found = {
        name: compare_froc(mine, theirs, patients, options.resampling, jama=jama).to_dict()
        for name, jama in (("froc", False), ("jama_froc", True))
    }
    return {"slides": len(pairs), **found}
