"""Published scores of the four sample exams of NYU's classifier, to compare a scan with.

They belong to the view-wise models with 10 windows per view and one random stream for all exams
(`reading.compat=nyu`), in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lobule.cohort import Cohort

TARGETS = ("left_benign", "right_benign", "left_malignant", "right_malignant")
"""The columns of the published tables, in their order."""
PUBLISHED: Mapping[str, tuple[tuple[float, float, float, float], ...]] = {
    "image": (
        (0.0580, 0.0754, 0.0091, 0.0179), (0.0646, 0.9536, 0.0012, 0.7258),
        (0.4388, 0.3526, 0.2325, 0.1061), (0.3765, 0.6483, 0.0909, 0.2579),
    ),
    "heatmaps": (
        (0.0612, 0.0555, 0.0099, 0.0063), (0.0507, 0.8025, 0.0009, 0.9000),
        (0.2877, 0.2286, 0.2524, 0.0461), (0.4181, 0.3172, 0.3174, 0.0485),
    ),
}  # fmt: skip
"""Scores of exams 0 to 3 by the classifier that reads images, and by the one that reads heatmaps too."""


def sample_cases(cohort: Cohort) -> list[str] | None:
    """Return the names of the cases of the sample exams in their order; None if they are not all there."""
    cases: dict[str, str] = {}
    for case in cohort:
        stems = [Path(path).stem.replace("-", "_") for path in case.views.get("l_cc", ())]
        cases.update(dict.fromkeys(stems, case.id))
    names = [f"{number}_L_CC" for number in range(4)]
    return [cases[name] for name in names] if all(name in cases for name in names) else None


def comparison(model: str, cohort: Cohort, scores: Mapping[str, Mapping[str, float]]) -> Sequence[str]:
    """Return the published scores beside those of a scan, as lines of text; none for other exams.

    Args:
        model: "image" or "heatmaps".
        cohort: The exams that were scanned.
        scores: The scores of each case by target.
    """
    names = sample_cases(cohort)
    if names is None or model not in PUBLISHED:
        return ()
    lines = ["exam,target,published,here,difference"]
    greatest = 0.0
    for number, (name, published) in enumerate(zip(names, PUBLISHED[model], strict=True)):
        for target, value in zip(TARGETS, published, strict=True):
            ours = scores.get(name, {}).get(target)
            if ours is None:
                lines.append(f"{number},{target},{value:.4f},,")
                continue
            greatest = max(greatest, abs(ours - value))
            lines.append(f"{number},{target},{value:.4f},{ours:.4f},{ours - value:+.4f}")
    lines.append(f"greatest difference: {greatest:.4f} (published with four decimals)")
    return lines
