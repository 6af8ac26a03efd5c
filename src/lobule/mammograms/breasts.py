"""Scores of each breast from the scores of its views."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from lobule.mammograms.views import VIEWS

GRADES = ("benign", "malignant")
"""The classes of a finding, in the order of scores, heatmaps and results."""
SIDES = {"left": "L", "right": "R"}


def breast_scores(views: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Average the scores of the available views of each breast.

    Args:
        views: Benign and malignant score of each view.

    Returns:
        Scores by name: `left_benign`, `right_benign`, `left_malignant`, `right_malignant`. Breasts without a
        view have none.
    """
    scores = {}
    for index, grade in enumerate(GRADES):
        for side, letter in SIDES.items():
            side_scores = [scored[index] for view, scored in views.items() if view.startswith(letter)]
            if side_scores:
                scores[f"{side}_{grade}"] = float(np.mean(side_scores))
    return scores


def views_note(model: str, views: Collection[str]) -> str:
    """Return a sentence for the result that names the views that were scored and those that are missing."""
    missing = [view for view in VIEWS if view not in views]
    suffix = f", without {', '.join(missing)}" if missing else ""
    return f"Scored view by view by {model} from {', '.join(views)}{suffix}."
