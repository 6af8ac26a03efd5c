"""Camelyon16: lesion FROC exactly as the organisers' script computes it, and the variant of the JAMA paper.

The details of the script are reproduced: true positives are float32, the smallest threshold
is skipped, hits on isolated tumour cells are ignored, and false positives are divided by the number of all
slides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lobule.errors import CaseError
from lobule.findings import LesionClass
from lobule.measures.estimate import Estimate, Floats, Resampling, group_of_cases, undefined
from lobule.measures.lesion_masks import EvaluationMask
from lobule.measures.roc import auc

FALSE_POSITIVE_RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
NO_LESIONS = "no lesions in the evaluated slides"


@dataclass(frozen=True, eq=False)
class SlideMatch:
    """The detections of one slide, matched with its lesions."""

    name: str
    tumour: bool
    false_positives: Floats
    true_positives: NDArray[np.float32]
    """For each label the highest confidence of its hits; 0 if it was missed or is isolated tumour cells."""
    best_hits: Floats
    """The same, including hits on isolated tumour cells, which the official measures ignore."""
    best_detections: tuple[int | None, ...]
    """For each label the index of the first detection with the highest confidence; None if it was missed."""
    lesions: int
    lesion_classes: tuple[LesionClass, ...]
    score: float
    """The highest confidence of the slide; 0 without detections."""


def match(name: str, detections: ArrayLike, mask: EvaluationMask | None) -> SlideMatch:
    """Match the detections of a slide with its lesions.

    A hit on isolated tumour cells is neither a true nor a false positive. Further hits on the same lesion are
    ignored.

    Args:
        name: The name of the slide.
        detections: Rows of (confidence, x, y) in level-0 pixels.
        mask: The lesions; None for a normal slide.

    Raises:
        CaseError: A detection is not a number, is not in whole pixels, or is outside the slide.
    """
    rows = np.asarray(detections, dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(rows).all():
        raise CaseError("a detection is not a number", subject=name, expected="confidence, x, y")
    confidence, positions = rows[:, 0], rows[:, 1:].astype(np.int64)
    if (positions != rows[:, 1:]).any() or (positions < 0).any():
        raise CaseError(
            "a detection has impossible coordinates",
            subject=name,
            expected="x and y as whole level-0 pixels from 0",
            remedy="Round the coordinates; x is the column and y is the row",
        )
    score = float(confidence.max(initial=0.0))
    if mask is None:
        return SlideMatch(name, False, confidence, np.zeros(0, np.float32), np.zeros(0), (), 0, (), score)
    try:
        label = mask.labels_at(*positions.T)
    except CaseError as error:
        raise CaseError(error.problem, subject=name, expected=error.expected, actual=error.actual) from None
    best_hits = np.zeros(len(mask.areas))
    best_detections: list[int | None] = [None] * len(best_hits)
    for index in np.nonzero(label)[0].tolist():
        if confidence[index] > best_hits[label[index] - 1]:
            best_hits[label[index] - 1] = confidence[index]
            best_detections[label[index] - 1] = index
    official = np.where(mask.itc, 0.0, best_hits).astype(np.float32)
    return SlideMatch(
        name, True, confidence[label == 0], official, best_hits, tuple(best_detections), mask.lesions,
        tuple(mask.lesion_classes()), score,
    )  # fmt: skip


# -- the curve ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Froc:
    """A FROC curve and its score. Sensitivities are None if there are no lesions."""

    false_positives: Floats
    """Mean number per slide, from the lowest threshold to the end of the curve at (0, 0)."""
    sensitivity: Floats | None
    sensitivity_at: Mapping[float, float | None]
    score: float | None
    """The mean of the sensitivities at the six rates."""
    slides: int
    lesions: int
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "score": self.score,
            "sensitivity_at": {f"{rate:g}": value for rate, value in self.sensitivity_at.items()},
            "slides": self.slides,
            "lesions": self.lesions,
            "false_positives": self.false_positives.tolist(),
            "sensitivity": None if self.sensitivity is None else self.sensitivity.tolist(),
        } | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True, eq=False)
class _Pool:
    """The values of all slides, sorted once so that weighted slides can be counted quickly."""

    slides: int
    lesions_of_slide: Floats
    counted: Floats
    """1 for slides whose false positives count, else 0."""
    fp: Floats
    fp_slide: NDArray[np.int64]
    tp: NDArray[np.float32]
    tp_slide: NDArray[np.int64]
    thresholds: Floats
    fp_from: NDArray[np.int64]
    """For each threshold the index of the first sorted false positive that reaches it."""
    tp_from: NDArray[np.int64]
    skip_smallest: bool

    @classmethod
    def of(cls, matches: Sequence[SlideMatch], jama: bool) -> _Pool:
        counted = np.array([not (jama and match.tumour) for match in matches], dtype=np.float64)
        rows = zip(matches, counted, strict=True)
        fp, fp_slide = _pooled([m.false_positives if take else np.zeros(0) for m, take in rows], np.float64)
        tp, tp_slide = _pooled([m.true_positives for m in matches], np.float32)
        thresholds = np.unique(np.concatenate([fp, tp.astype(np.float64)]))
        if jama:
            thresholds = thresholds[thresholds > 0]
        lesions = np.array([m.lesions for m in matches], dtype=np.float64)
        # Like the script, compare false positives in float64 and true positives in float32.
        return cls(
            len(matches), lesions, counted, fp, fp_slide, tp, tp_slide,
            thresholds, np.searchsorted(fp, thresholds), np.searchsorted(tp, thresholds.astype(np.float32)),
            skip_smallest=not jama,
        )  # fmt: skip

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """False and true positives at every threshold that is used, followed by (0, 0)."""
        fp_weight, tp_weight = weights[self.fp_slide], weights[self.tp_slide]
        reach_fp = np.append(np.cumsum(fp_weight[::-1])[::-1], 0.0)[self.fp_from]
        reach_tp = np.append(np.cumsum(tp_weight[::-1])[::-1], 0.0)[self.tp_from]
        first = 0
        if self.skip_smallest and len(self.thresholds):
            # Both are sorted, so the first value with a weight is the smallest.
            weighted_scores: list[tuple[NDArray[Any], Floats]] = [(self.fp, fp_weight), (self.tp, tp_weight)]
            firsts = (
                float(values[np.argmax(weight > 0)]) for values, weight in weighted_scores if weight.any()
            )
            first = int(np.searchsorted(self.thresholds, min(firsts, default=np.inf), "right"))
        return np.append(reach_fp[first:], 0.0), np.append(reach_tp[first:], 0.0)

    def sensitivities(self, weights: Floats) -> Floats | None:
        """The sensitivities at the six false-positive rates; None if no lesion or no slide counts."""
        slides, lesions = float(weights @ self.counted), float(weights @ self.lesions_of_slide)
        if slides == 0 or lesions == 0:
            return None
        fp, tp = self.counts(weights)
        return np.interp(FALSE_POSITIVE_RATES, (fp / slides)[::-1], (tp / lesions)[::-1])


def _pooled(arrays: Sequence[NDArray[Any]], dtype: type) -> tuple[NDArray[Any], NDArray[np.int64]]:
    values: NDArray[Any] = np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)
    slide = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
    order = np.argsort(values, kind="stable")
    return values[order], slide[order]


def froc(matches: Sequence[SlideMatch]) -> Froc:
    """The official curve and score of some slides. Include slides without detections."""
    return _froc(matches, jama=False)


def jama_froc(matches: Sequence[SlideMatch]) -> Froc:
    """The curve of the 2017 paper: false positives per normal slide, in normal slides; skips no threshold."""
    return _froc(matches, jama=True)


def _froc(matches: Sequence[SlideMatch], jama: bool) -> Froc:
    pool = _Pool.of(matches, jama)
    weights = np.ones(pool.slides)
    fp, tp = pool.counts(weights)
    slides, lesions = int(pool.counted.sum()), int(pool.lesions_of_slide.sum())
    reason = NO_LESIONS if lesions == 0 else "no normal slides" if slides == 0 else None
    at = pool.sensitivities(weights)
    if at is None:
        none = dict.fromkeys(FALSE_POSITIVE_RATES)
        return Froc(fp / max(1, slides), None, none, None, slides, lesions, reason)
    named = dict(zip(FALSE_POSITIVE_RATES, at.tolist(), strict=True))
    return Froc(fp / slides, tp / lesions, named, float(at.mean()), slides, lesions)


def bootstrap_froc(
    matches: Sequence[SlideMatch],
    groups: ArrayLike | None = None,
    resampling: Resampling | None = None,
    *,
    jama: bool = False,
) -> Estimate:
    """The score with an interval from resampled patients (`groups`), or slides if there are no groups."""
    value = _froc(matches, jama).score
    if value is None:
        return undefined(NO_LESIONS)
    group, _ = group_of_cases(groups, len(matches))
    options = resampling or Resampling()
    resamples = froc_resamples(matches, group, options, jama=jama)
    return options.interval(value, resamples, "slide" if groups is None else "patient")


def froc_resamples(
    matches: Sequence[SlideMatch], groups: NDArray[Any], resampling: Resampling, *, jama: bool = False
) -> Floats:
    """The score in every resample; NaN if it is undefined."""
    pool = _Pool.of(matches, jama)
    resamples = (pool.sensitivities(weights) for block in resampling.weights(groups) for weights in block)
    return np.array([np.nan if at is None else float(at.mean()) for at in resamples])


def sensitivity_by_class(matches: Sequence[SlideMatch]) -> dict[LesionClass, Mapping[str, Any]]:
    """For each lesion class the number of lesions and their sensitivity at the official false-positive rates.

    The thresholds are those of the official curve, so the weighted mean of macro and micro is the official
    sensitivity. Isolated tumour cells are included here, although the official measures ignore them.
    """
    pool = _Pool.of(matches, jama=False)
    fp, _ = pool.counts(np.ones(pool.slides))
    thresholds = pool.thresholds[len(pool.thresholds) - len(fp) + 1 :].astype(np.float32)
    classes: dict[LesionClass, Mapping[str, Any]] = {}
    names: tuple[LesionClass, ...] = ("macro", "micro", "itc")
    for name in names:
        lesions = [pair for m in matches for pair in zip(m.best_hits, m.lesion_classes, strict=True)]
        hits = np.array([hit for hit, lesion_class in lesions if lesion_class == name], dtype=np.float32)
        at: dict[str, float | None] = dict.fromkeys(f"{rate:g}" for rate in FALSE_POSITIVE_RATES)
        if len(hits):
            reach = np.append((hits[None, :] >= thresholds[:, None]).sum(axis=1), 0) / len(hits)
            values = np.interp(FALSE_POSITIVE_RATES, fp[::-1] / pool.slides, reach[::-1])
            at = dict(zip(at, values.tolist(), strict=True))
        classes[name] = {"lesions": len(hits), "sensitivity_at": at}
    return classes


def slide_auc(matches: Sequence[SlideMatch]) -> float | None:
    """AUC of tumour against normal slides, by the highest confidence of each slide."""
    return auc([match.tumour for match in matches], [match.score for match in matches])
