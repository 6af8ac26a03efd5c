"""The kind of label that each method learns from, what labels cost, and cohorts with fewer labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lobule.cohort import Case, Cohort
from lobule.cohort.labels import polarity
from lobule.errors import UsageError

OUTLINES, SLIDE, IMAGE, BREAST = "outlines", "slide", "image", "breast"

LEARNS_FROM: dict[str, str] = {
    "scannet": OUTLINES,
    "reverse_distillation": OUTLINES,
    "colour": OUTLINES,
    "probe": OUTLINES,
    "chowder": SLIDE,
    "rakhlin": IMAGE,
    "four_view": BREAST,
}
"""The kind of label of each method; a preset has that of its method."""

MINUTES: dict[str, float] = {OUTLINES: 30.0, SLIDE: 2.0, IMAGE: 1.0, BREAST: 1.0}
"""Minutes that an expert needs for a label, by kind: all tumour outlines of a slide; the label of a slide,
also of a slide without tumour in a cohort with outlines; the label of an image or region; the label of a
breast. They are assumptions, not measurements; replace them with those of your own annotators."""


@dataclass(frozen=True)
class Cost:
    """The labels of some cases, and the minutes that they took."""

    labels: Mapping[str, int]
    """Number of labels by kind."""
    minutes: float


def check_minutes(minutes: Mapping[str, float]) -> dict[str, float]:
    """The minutes of every kind of label, some of them changed.

    Raises:
        UsageError: A kind does not exist, or a value is negative.
    """
    for kind, value in minutes.items():
        if kind not in MINUTES or not 0 <= value < float("inf"):
            raise UsageError(
                f"'{kind}={value:g}' are not the minutes of a label",
                expected=f"one of {', '.join(MINUTES)}, with minutes >= 0",
            )
    return {**MINUTES, **minutes}


def annotation_cost(cases: Iterable[Case], kind: str, minutes: Mapping[str, float]) -> Cost:
    """What the labels cost that a method with this kind of label learns from."""
    labels: dict[str, int] = {}
    for case in cases:
        used = kind
        if kind == OUTLINES and case.annotation is None:
            used = SLIDE
        count = len(case.breast_labels) if kind == BREAST else 1
        labels[used] = labels.get(used, 0) + count
    return Cost(labels, sum(minutes[name] * count for name, count in labels.items()))


def why_unusable(cohort: Cohort, kind: str | None, kinds: Sequence[str]) -> str | None:
    """The reason why a method cannot learn from the training cases of a cohort; None if it can.

    Args:
        cohort: The training cases.
        kind: The kind of label that it learns from; None if it is not known.
        kinds: The kinds of cases that it learns from.
    """
    if not len(cohort):
        return "no case is in the split 'train'"
    if other := next((case for case in cohort if case.kind not in kinds), None):
        return f"it learns from cases of kind {' or '.join(kinds)}, and '{other.id}' is of kind {other.kind}"
    if kind == OUTLINES:
        if all(case.annotation is None for case in cohort):
            return "it learns from outlines, and no training case has an annotation"
    elif kind in (SLIDE, IMAGE):
        labels = {case.label for case in cohort if case.label is not None}
        if len(labels) < 2:
            return f"it learns from one label per {kind}, and the training cases have {len(labels)} labels"
    elif kind == BREAST and not any(case.breast_labels for case in cohort):
        return "it learns from labels of breasts, and no training case has them"
    return None


def cases_to_learn(cohort: Cohort, kind: str | None, split: str) -> Cohort:
    """Leave out the cases that a method with another kind of label learns from.

    If the training split has slides and also labelled images or regions without outlines, methods that learn
    from labels of images use the latter, and all other methods do not. Otherwise all cases are used.

    Args:
        cohort: All cases.
        kind: The kind of label that the method learns from.
        split: The split on which methods are compared, which stays as it is.
    """
    training = cohort.split("train")
    pictures = {case.id for case in training if _is_labelled_picture(case)}
    if not 0 < len(pictures) < len(training):
        return cohort
    for_images = kind == IMAGE
    return cohort.where(lambda case: case.split == split or _is_labelled_picture(case) == for_images)


def _is_labelled_picture(case: Case) -> bool:
    return case.kind in ("image", "region") and case.label is not None and case.annotation is None


def with_budget(cohort: Cohort, budget: int, seed: int) -> Cohort:
    """Keep at most `budget` training cases, about half of them positive; other splits stay as they are.

    Cases are chosen in a random order of the seed, positive and negative in turn, so the cases of a smaller
    budget are among those of a larger one.
    """
    training = list(cohort.split("train"))
    rng = np.random.default_rng([seed, 0xB06E7])
    order = [training[number] for number in rng.permutation(len(training))]
    positive = [case for case in order if is_positive(case)]
    negative = [case for case in order if not is_positive(case)]
    chosen: set[str] = set()
    while len(chosen) < budget and (positive or negative):
        source = positive if positive and (len(chosen) % 2 == 0 or not negative) else negative
        chosen.add(source.pop(0).id)
    return cohort.where(lambda case: case.split != "train" or case.id in chosen)


def is_positive(case: Case) -> bool:
    """Whether a case has tumour: by its breasts, its label, or else whether it has an annotation."""
    if case.breast_labels:
        return any(case.breast_labels.values())
    meaning = None if case.label is None else polarity(case.label)
    return case.annotation is not None if meaning is None else meaning
