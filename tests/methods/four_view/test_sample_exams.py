"""The published scores of the sample exams, and when they are printed beside a scan."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lobule.cohort import Case, Cohort
from lobule.methods.four_view.sample_exams import PUBLISHED, TARGETS, comparison, sample_cases


def cohort(separator: str = "_") -> Cohort:
    cases = []
    for number in (2, 0, 3, 1):
        views = {
            view: (f"/images/{number}_{view.upper().replace('_', separator)}.png",)
            for view in ("l_cc", "r_cc", "l_mlo", "r_mlo")
        }
        cases.append(Case(f"exam{number}", f"p{number}", "exam", views=views))
    return Cohort(tuple(cases))


def test_the_published_table_gives_the_area_that_others_computed_from_it() -> None:
    """The metarepository reports an AUROC of .867 for malignancy over the eight breasts."""
    # Exam 1: right malignant; exam 3: both malignant; others: none.
    labels = [0, 0, 0, 1, 0, 0, 1, 1]
    scores = np.array(PUBLISHED["image"])[:, 2:].ravel()
    assert roc_auc_score(labels, scores) == pytest.approx(13 / 15)


def test_sample_exams_are_recognised_by_the_names_of_their_images() -> None:
    assert sample_cases(cohort()) == ["exam0", "exam1", "exam2", "exam3"]
    assert sample_cases(cohort("-")) == ["exam0", "exam1", "exam2", "exam3"]
    assert sample_cases(Cohort(cohort().cases[:3])) is None


def test_published_scores_stand_beside_ours() -> None:
    scores = {
        f"exam{number}": dict(zip(TARGETS, row, strict=True))
        for number, row in enumerate(PUBLISHED["heatmaps"])
    }
    scores["exam2"]["left_malignant"] += 0.02
    lines = comparison("heatmaps", cohort(), scores)
    assert "2,left_malignant,0.2524,0.2724,+0.0200" in lines
    assert len(lines) == 1 + 16 + 1
    assert lines[-1].startswith("greatest difference: 0.0200")
    del scores["exam0"]
    assert "0,left_benign,0.0612,," in comparison("heatmaps", cohort(), scores)
    assert comparison("gmic", cohort(), scores) == ()
    assert comparison("image", Cohort(cohort().cases[:2]), scores) == ()
