"""The review of one person as a source of scores and detections, so that readers are measured like models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lobule.cohort import Case
from lobule.cohort.labels import polarity
from lobule.errors import NotReadable, ResultsError, UsageError
from lobule.evaluation.options import Options
from lobule.evaluation.sources import CaseResult, ResultsSource
from lobule.measures.camelyon16 import SlideMatch
from lobule.results import Results, open_results
from lobule.results.result import UNSCORED
from lobule.reviews import Review, in_force, read_reviews, reviewed_cases, reviewed_findings


@dataclass(frozen=True)
class ReviewSource:
    """What one person says about the cases of a results folder.

    Accepted and drawn findings are detections with the confidence 1. The score of a case is 1 if the person
    accepted or drew a finding, and 0 otherwise. Cases that the person did not review have no score.
    """

    results: Results
    person: str
    options: Options

    @property
    def name(self) -> str:
        return f"{self.results.path} as reviewed by {self.person}"

    @property
    def bundle(self) -> Mapping[str, Any] | None:
        return None

    def names(self) -> Sequence[str]:
        return [name for name in reviewed_cases(self.results.path) if self._entries(name)]

    def case_result(self, case: Case) -> CaseResult:
        try:
            entries = self._entries(case.id)
            model = ResultsSource(self.results, self.options).case_result(case)
            if not entries:
                cause = f"not reviewed by {self.person}"
                return CaseResult(UNSCORED, size=model.size, mpp=model.mpp, cause=cause)
            columns = self.results.case_folder(case.id).findings()
        except (ResultsError, NotReadable) as error:
            return CaseResult("failed", cause=str(error))
        accepted = [
            (1.0, finding.l0_x, finding.l0_y)
            for finding in reviewed_findings(entries, columns, self.options.positive)
            if finding.is_tumour
        ]
        detections = np.array(accepted, np.float64).reshape(-1, 3)
        scores = dict.fromkeys(self._score_names(model), float(len(accepted) > 0))
        return CaseResult("complete", scores, detections, model.size, model.mpp)

    def _entries(self, name: str) -> list[Review]:
        return in_force(read_reviews(self.results.path, name).get(self.person, []))

    def _score_names(self, model: CaseResult) -> list[str]:
        """Return the scores of the model that a verdict can replace: those that stand for tumour."""
        if self.options.score is not None:
            return [self.options.score]
        names = list(model.scores)
        positive = [name for name in names if polarity(name) or name in self.options.positive]
        return positive or names[:1] or ["slide"]


def reader_point(matches: Sequence[SlideMatch]) -> dict[str, Any]:
    """Return the operating point of a reader: the lesions that were marked, and the false marks per slide.

    Isolated tumour cells count as neither, as in the official measures.
    """
    lesions = sum(match.lesions for match in matches)
    marked = sum(int((match.true_positives > 0).sum()) for match in matches)
    false_marks = sum(len(match.false_positives) for match in matches)
    return {
        "slides": len(matches),
        "lesions": lesions,
        "marked": marked,
        "sensitivity": marked / lesions if lesions else None,
        "false_positives_per_slide": false_marks / len(matches) if matches else None,
    }


def open_review_source(path: str, person: str, options: Options) -> ReviewSource:
    """Open the reviews of one person. Raises `UsageError` if the person has reviewed no case."""
    results = open_results(path)
    source = ReviewSource(results, person, options)
    if not source.names():
        reviewed = reviewed_cases(results.path)
        people = sorted({name for case in reviewed for name in read_reviews(results.path, case)})
        raise UsageError(
            f"there are no reviews by '{person}'",
            subject=path,
            actual="reviews by " + ", ".join(people) if people else "no reviews",
            remedy="Review cases with `lobule view`, or name another reviewer",
        )
    return source
