"""Cases in which nothing can be scored: they have no score, a note that says why, and they did not fail."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lobule.cli.base import format_fields
from lobule.cli.running import report_lines
from lobule.cohort import Case, Cohort
from lobule.errors import NothingToScore
from lobule.evaluation.evaluate import evaluate_source
from lobule.evaluation.options import Options
from lobule.evaluation.sources import open_results_source
from lobule.results import open_results
from lobule.results.describe import describe
from lobule.results.result import Result
from lobule.scanning.contract import ImageSource, OpenCase, ScanOptions, Steps
from lobule.scanning.progress import Progress
from lobule.scanning.scan import ScanReport, scan
from tests.scanning.support import BUNDLE, SMALL, MeanPredictor, write_slide

TISSUE_COLOUR = (190, 120, 170)


def blank_pixels(width: int = 500, height: int = 400) -> np.ndarray:
    """Glass with the noise of a scanner."""
    noise = np.random.default_rng(0).normal(0, 2, (height, width, 3))
    return np.clip(244 + noise, 0, 255).astype(np.uint8)


def half_tissue() -> np.ndarray:
    """Tissue in the left half of a slide, glass in the right half."""
    pixels = blank_pixels(1600, 1200)
    pixels[100:1100, 100:800] = np.array(TISSUE_COLOUR) + np.random.default_rng(1).integers(
        -20, 20, (1000, 700, 3)
    )
    return pixels


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """A blank slide, a slide with tissue, and two regions of the latter: one of tissue, one of glass."""
    blank = str(write_slide(tmp_path / "blank.tif", blank_pixels()))
    half = str(write_slide(tmp_path / "half.tif", half_tissue()))
    slide_case = Case("half", "p1", "slide", half, mpp=2.0, label="tumour")
    inside, outside = ((200, 200, 400, 400), (1000, 200, 400, 400))
    return Cohort(
        (
            Case("blank", "p0", "slide", blank, mpp=2.0, label="normal"),
            slide_case,
            replace(slide_case, id="inside", patient="p2", kind="region", l0_box=box_of(inside)),
            replace(slide_case, id="outside", patient="p3", kind="region", l0_box=box_of(outside)),
        )
    )


def box_of(edges: tuple[int, int, int, int]):
    from lobule.geometry import Box

    return Box(*edges)


def scan_mean(cohort: Cohort, out: Path, **scan_options: object) -> ScanReport:
    predictor = scan_options.pop("predictor", None) or MeanPredictor()
    options = scan_options.pop("options", None) or ScanOptions()
    return scan(predictor, BUNDLE, cohort, out, options, SMALL, **scan_options)  # type: ignore[arg-type]


def test_case_without_tissue_has_no_score_and_says_why(cohort: Cohort, tmp_path: Path) -> None:
    report = scan_mean(cohort, tmp_path / "r")
    assert dict(report.counts) == {"complete": 2, "unscored": 2}
    assert not report.failed
    results = open_results(tmp_path / "r")
    notes = {"blank": "no tissue was found", "outside": "the region contains no tissue"}
    for name, reason in notes.items():
        result = results.case_folder(name).result
        assert result is not None
        assert result["status"] == "unscored"
        assert result["scores"] == {}
        assert result["error"] is None
        assert result["notes"] == [f"Nothing was scored: {reason}."]
        assert report.unscored[name] == result["notes"][0]
    inside = results.case_folder("inside").result
    assert inside is not None
    assert 0.4 < inside["scores"]["mean"] < 0.8


def test_tissue_smaller_than_a_cell_is_reported(tmp_path: Path) -> None:
    class NoTileFits(MeanPredictor):
        def steps(self, case: OpenCase) -> Steps[Result]:
            case.tissue()
            return Result({"mean": 0.0}, metadata={"prediction": "normal"})
            yield

    path = write_slide(tmp_path / "half.tif", half_tissue())
    case = Case("half", "p", "slide", str(path), mpp=2.0)
    report = scan_mean(Cohort((case,)), tmp_path / "r", predictor=NoTileFits())
    assert report.unscored == {
        "half": "Nothing was scored: the tissue is smaller than one cell or tile of the model."
    }
    result = open_results(tmp_path / "r").case_folder("half").result
    assert result is not None
    assert result["scores"] == {}
    assert "prediction" not in result


def test_method_can_say_that_there_is_nothing_to_score(cohort: Cohort, tmp_path: Path) -> None:
    class Refusing(MeanPredictor):
        def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
            raise NothingToScore("all views are blank", subject=case.id)

    report = scan_mean(Cohort(cohort.cases[:1]), tmp_path / "r", predictor=Refusing())
    assert dict(report.unscored) == {"blank": "Nothing was scored: all views are blank."}
    assert open_results(tmp_path / "r").case_folder("blank").status == "unscored"


def test_unscored_cases_stay_on_resume_and_retry(cohort: Cohort, tmp_path: Path) -> None:
    scan_mean(cohort, tmp_path / "r")
    file = tmp_path / "r/cases/blank/result.json"
    before = file.read_bytes(), file.stat().st_mtime_ns
    for retry in (False, True):
        progress = Progress()
        report = scan_mean(cohort, tmp_path / "r", retry_failed=retry, progress=progress)
        assert set(progress.finished.values()) == {"skipped"}
        assert report.counts["unscored"] == 2
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    report = scan_mean(cohort, tmp_path / "r", options=ScanOptions(tissue=None), fresh=True)
    assert dict(report.counts) == {"complete": 4}


def test_changed_slide_is_scanned_again(cohort: Cohort, tmp_path: Path) -> None:
    alone = Cohort(cohort.cases[:1])
    scan_mean(alone, tmp_path / "r")
    write_slide(tmp_path / "blank.tif", half_tissue())
    assert dict(scan_mean(alone, tmp_path / "r").counts) == {"complete": 1}


def test_unscored_cases_are_listed_everywhere(cohort: Cohort, tmp_path: Path) -> None:
    report = scan_mean(cohort, tmp_path / "r")
    results = open_results(tmp_path / "r")
    assert results.counts()["unscored"] == 2
    data, text = describe(tmp_path / "r")
    assert data["counts"] == {"complete": 2, "unscored": 2}
    assert "2 complete, 2 unscored" in text
    assert "the region contains no tissue" in text
    with (tmp_path / "r/results.csv").open() as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert rows["blank"]["status"] == "unscored"
    assert rows["blank"]["mean"] == rows["blank"]["error"] == ""
    assert rows["blank"]["note"] == "Nothing was scored: no tissue was found."
    text = format_fields(report_lines(report, None))
    assert "unscored blank" in text
    assert "--retry-failed" not in text


def test_evaluation_leaves_unscored_cases_out_and_counts_them(cohort: Cohort, tmp_path: Path) -> None:
    scan_mean(cohort, tmp_path / "r")
    options = Options(resamples=10, score="mean")
    evaluation = evaluate_source(open_results_source(tmp_path / "r", options), cohort, options)
    accounts = evaluation.data["cases"]
    assert accounts["complete"] == 2
    assert accounts["unscored"] == {
        "blank": "Nothing was scored: no tissue was found.",
        "outside": "Nothing was scored: the region contains no tissue.",
    }
    assert evaluation.failed == 0
    (task,) = evaluation.tasks.values()
    assert sum(task["all"][unit] for unit in ("slides", "regions", "cases") if unit in task["all"]) == 2
    assert any("2 cases were not scored and left out" in note for note in evaluation.data["notes"])
    # a user who wants them counted says with which score
    filled = replace(options, missing_score=0.0)
    evaluation = evaluate_source(open_results_source(tmp_path / "r", filled), cohort, filled)
    (task,) = evaluation.tasks.values()
    assert sum(task["all"][unit] for unit in ("slides", "regions", "cases") if unit in task["all"]) == 4
    assert any("counted with the score 0 of --missing-score" in note for note in evaluation.data["notes"])


def test_case_whose_fields_all_fail_still_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lobule.errors import DamagedTile
    from lobule.slides.slide import Slide

    def unreadable(self: Slide, lattice: object, box: object) -> object:
        raise DamagedTile(self.path, 0, (0, 0), "for a test")

    path = write_slide(tmp_path / "half.tif", half_tissue())
    case = Case("half", "p", "slide", str(path), mpp=2.0)
    monkeypatch.setattr(Slide, "read_lattice", unreadable)
    report = scan_mean(Cohort((case,)), tmp_path / "r", options=ScanOptions(tissue=None))
    assert dict(report.counts) == {"failed": 1}
