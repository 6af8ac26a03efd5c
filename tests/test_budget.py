"""The label-budget curve: one training per budget, continuing a curve, its plot, and invalid input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lobule.budget import budget_curve
from lobule.cli.budget import parse_counts
from lobule.cohort import Cohort
from lobule.errors import ConfigError, ResultsError, UsageError
from tests.methods.reverse_distillation.support import SMALL, painted

SETTINGS = {**SMALL, "epochs": 1, "val_slides": 0, "tumour_patches": 10, "normal_patches": 20}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("budget")
    return Cohort(
        (
            painted(folder, "a", (200, 200, 300), 1, "train"),
            painted(folder, "b", (500, 300, 260), 2, "train"),
            painted(folder, "d", (300, 150, 280), 4, "val"),
            painted(folder, "f", (400, 220, 300), 6, "test"),
            painted(folder, "g", None, 7, "test"),
        )
    )


def test_curve_has_one_point_per_budget_and_can_be_continued(cohort: Cohort, tmp_path: Path) -> None:
    machine: dict[str, Any] = {"device": "cpu", "workers": 1}
    points = budget_curve("reverse-distillation", cohort, tmp_path, [2, 1], settings=SETTINGS, **machine)
    assert [(point.asked, point.slides, point.patches) for point in points] == [(1, 1, 10), (2, 2, 10)]
    assert all(point.auc is not None and 0 <= point.auc <= 1 for point in points)
    assert json.loads((tmp_path / "budget.json").read_text())[1]["slides"] == 2
    with (tmp_path / "budget.csv").open() as lines:
        assert [row["asked"] for row in csv.DictReader(lines)] == ["1", "2"]
    assert "outlined slides learned from" in (tmp_path / "budget.svg").read_text()
    one_slide, two_slides = ((tmp_path / f"slides-{n}/bundle/places.csv").read_text() for n in (1, 2))
    assert {line.split(",")[0] for line in one_slide.splitlines()} < {
        line.split(",")[0] for line in two_slides.splitlines()
    }
    modified = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/bundle/model.json")}
    again = budget_curve("reverse-distillation", cohort, tmp_path, [1, 2], settings=SETTINGS, **machine)
    assert again == points
    assert {path: path.stat().st_mtime_ns for path in modified} == modified
    for change, setting_name in (
        ({"settings": {**SETTINGS, "epochs": 2}}, "settings"),
        ({"seed": 3}, "seed"),
    ):
        arguments: dict[str, Any] = {"settings": SETTINGS, **machine, "seed": 0} | change
        with pytest.raises(ResultsError, match=f"trained with another {setting_name}"):
            budget_curve("reverse_distillation", cohort, tmp_path, [1], **arguments)


def test_invalid_budgets_are_rejected(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no label budget"):
        budget_curve("scannet", cohort, tmp_path, [1])
    with pytest.raises(UsageError, match="at least one slide"):
        budget_curve("reverse-distillation", cohort, tmp_path, [])
    with pytest.raises(UsageError, match="no case is in the split"):
        budget_curve("reverse-distillation", cohort.split("train"), tmp_path, [1])
    with pytest.raises(UsageError, match="not a list of positive numbers"):
        parse_counts("1,none")
    assert parse_counts("1,20") == [1, 20]
