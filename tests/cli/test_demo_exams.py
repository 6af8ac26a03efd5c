"""The demo of exams: its measure of heatmaps, checked by counting, and its page."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lobule.cli.demo_exams_page import describe_lesions
from lobule.cli.demo_lesions import GRADES, LesionRank, breast_cells, lesion_summary, rank_map
from lobule.cohort import read_cohort
from tests.cli.conftest import Lobule


def test_rank_counts_hotter_cells_and_half_of_those_as_hot() -> None:
    heat = np.random.default_rng(5).integers(0, 6, (7, 9)).astype(np.float32)
    ranks = rank_map(heat)
    for (row, column), value in np.ndenumerate(heat):
        by_hand = sum(0.5 if other == value else float(other > value) for other in heat.ravel()) / heat.size
        assert ranks[row, column] == pytest.approx(by_hand)


def test_a_flat_heatmap_points_at_nothing() -> None:
    assert (rank_map(np.full((10, 10), 0.7, np.float32)) == 0.5).all()


def test_breast_cells_are_those_mostly_covered() -> None:
    pixels = np.zeros((10, 12), np.uint16)
    pixels[:7, :6] = 900
    inside = breast_cells(pixels, (3, 3), 4)
    assert inside.tolist() == [[True, False, False], [True, False, False], [False, False, False]]


def test_summary_counts_the_lesions_of_its_grade() -> None:
    ranks = [LesionRank("e", "L-CC", "malignant", rank, 0.06) for rank in (0.001, 0.02, 0.021, 0.4)]
    ranks.append(LesionRank("e", "L-CC", "benign", 0.3, 0.05))
    assert lesion_summary(ranks, "malignant") == {
        "lesions": 4, "pointed_at": 2, "share": 0.5, "chance": pytest.approx(0.06),
    }  # fmt: skip
    assert lesion_summary([], "benign")["share"] is None


def test_lesions_are_described_by_breast() -> None:
    labels = {"left_malignant": True, "right_malignant": False, "left_benign": True, "right_benign": True}
    assert describe_lesions(labels) == "a malignant lesion in the left breast, benign lesions in both breasts"
    assert describe_lesions(dict.fromkeys(labels, False)) == "no lesion"


def test_the_exam_demo_trains_scans_evaluates_and_writes_its_page(lobule: Lobule, workspace: Path) -> None:
    answer = lobule("demo", "exams", "--side", "1024", "--seed", "4", "--out", "exam-demo", "--json")
    assert (answer.status, answer.err) == (0, "")
    data = json.loads(answer.out)
    folder = workspace / "exam-demo" / "exams"
    cohort = read_cohort(data["cohort"])
    trained_on = json.loads((folder / "bundle" / "model.json").read_text())["provenance"]["train_cases"]
    assert sorted(trained_on) == sorted(case.id for case in cohort.split("train"))
    evaluation = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    outlines = json.loads((folder / "images" / "truth.json").read_text())
    unseen = {case.id for case in cohort.split("test")}
    assert evaluation["cases"]["complete"] == len(unseen) == data["exams"]["test"]
    for grade in GRADES:
        assert data["auc"][grade] == evaluation["tasks"][grade]["all"]["auroc"]
        expected = sum(
            lesion["malignant"] == (grade == "malignant")
            for case in unseen
            for lesion in outlines[case]["lesions"]
        )
        assert data["lesions"][grade]["lesions"] == expected
    page = Path(data["page"]).read_text()
    assert not re.findall(r"(?:src|href)='(?!data:)", page)
    pictures = re.findall(r"data:image/jpeg;base64,([^']+)' alt='([^']+)'", page)
    assert len(pictures) % 8 == 0
    assert len(pictures) == page.count("<img ")
    for text, _ in pictures:
        with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
            assert picture.width == 300
    assert "Research use only" in page
    assert "prefers-color-scheme: dark" in page
