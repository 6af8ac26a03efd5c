"""Refinement: the cells that are computed again, the size of their fields, and the preliminary scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lobule.bundles import read_bundle
from lobule.cli.scan import show_preliminary_scores
from lobule.errors import ResultsError
from lobule.geometry import Lattice, Size
from lobule.grid import MapGrid
from lobule.measures.calibration import Platt
from lobule.methods.scannet import Config, load
from lobule.methods.scannet.calibration import CellCalibration
from lobule.methods.scannet.predictor import DenseMap
from lobule.methods.scannet.refinement import calibrated, refining_grid
from lobule.results import CaseFolder, describe, open_results
from lobule.results.preliminary import PRELIMINARY, preliminary_scores, remove_preliminary_scores
from lobule.scanning.contract import Batch, ScanOptions
from lobule.scanning.engine import REFINEMENT
from lobule.scanning.progress import Progress
from lobule.scanning.scan import Machine, ScanReport, scan
from lobule.stitch import State
from tests.methods.scannet.support import write_tiny_bundle
from tests.scanning.support import cohort_of, pixels_of, write_slide

LATTICE = Lattice(Fraction(1), Fraction(1), Size(7168, 7168), None, 0)
COARSE, FINE = MapGrid(LATTICE, 32, 203, 56), MapGrid(LATTICE, 8, 203, 224)

METADATA = {"method": "scannet", "fingerprint": "f", "classes": ["normal", "tumour"]}
MACHINE = Machine(device="cpu", precision="float32", cells=8, replicas=1, channels_last=True)


def refined(*cells: tuple[int, int]) -> np.ndarray:
    hot = np.zeros((COARSE.rows, COARSE.columns), np.bool_)
    for row, column in cells:
        hot[row, column] = True
    return hot


@pytest.mark.parametrize(
    ("hot", "cells"),
    [
        (np.ones((224, 224), np.bool_), 224),
        (refined(*[(30 + 56 * row, 30 + 56 * column) for row in range(4) for column in range(4)]), 56),
        (refined((70, 70), (80, 80)), 56),
        (refined(*[(row, column) for row in range(28) for column in range(28)]), 112),
        (refined(), 224),
    ],
)
def test_fields_have_the_size_that_needs_the_fewest_pixels(hot: np.ndarray, cells: int) -> None:
    grid = refining_grid(FINE, hot.repeat(4, 0).repeat(4, 1), 4)
    assert (grid.cells, grid.stride) == (cells, 8)


def test_small_fields_stay_as_they_are() -> None:
    fine = MapGrid(LATTICE, 8, 203, 48)
    assert refining_grid(fine, refined((70, 70)).repeat(4, 0).repeat(4, 1), 4).cells == 48


@pytest.mark.parametrize(("threshold", "above"), [(0.5, 0.1), (0.9, 0.5), (1.0, 1.0), (0.0, 0.0)])
def test_the_odds_of_refined_cells_follow_the_calibrated_threshold(threshold: float, above: float) -> None:
    # However steep the calibration is, not nearly all cells are refined.
    config = calibrated(Config(), CellCalibration(Platt(2.5, -3.0), threshold))
    assert config.threshold == threshold
    assert config.refine_above == pytest.approx(above, abs=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("above", [-1.0, 0.0])
def test_all_cells_are_refined_above_0_also_with_a_calibration(threshold: float, above: float) -> None:
    config = calibrated(Config(refine_above=above), CellCalibration(Platt(2.5, -3.0), threshold))
    assert config.refine_above == 0


def test_cells_of_findings_are_always_refined() -> None:
    config = calibrated(Config(refine_above=0.7), CellCalibration(Platt(1.0, 0.0), 0.3))
    assert config.refine_above == 0.3


def test_the_score_of_the_coarse_map_is_known_while_it_is_refined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", mpp=0.5)
    slide = write_slide(tmp_path / "one.tif", pixels_of(420, 300))
    folder = CaseFolder(tmp_path / "r" / "cases" / "one")
    announcements: list[tuple[str, Mapping[str, float], dict[str, float], str]] = []

    def on_preliminary(case: str, scores: Mapping[str, float]) -> None:
        announcements.append((case, scores, preliminary_scores(folder), describe(tmp_path / "r")[1]))
        show_preliminary_scores(case, scores)

    scan(
        load(read_bundle(bundle)), METADATA, cohort_of(slide), tmp_path / "r",
        ScanOptions(tissue=None, refine=True), MACHINE, progress=Progress(on_preliminary=on_preliminary),
    )  # fmt: skip
    ((case, scores, on_disk, description),) = announcements
    coarse = float(open_results(tmp_path / "r").case_folder("one").maps["map-s32"].scores().max())
    assert case == "one" and scores == {"tumour": coarse} == on_disk
    assert f"preliminary tumour {coarse:.3f}" in description
    assert f"one: the coarse map is complete (tumour {coarse:.3f}); refining it" in capsys.readouterr().err
    assert not (folder.path / PRELIMINARY).exists(), "the result takes its place"
    assert preliminary_scores(folder) == {}


class Refining:
    """Scans of one slide with `--refine`, and the preliminary scores that it announces."""

    def __init__(self, folder: Path, pixels: np.ndarray) -> None:
        self.bundle = write_tiny_bundle(folder / "bundle", mpp=0.5)
        self.slide, self.out = write_slide(folder / "one.tif", pixels), folder / "r"
        self.announced_scores: list[Mapping[str, float]] = []

    def scan(
        self,
        *,
        tell: Callable[[str, Mapping[str, float]], None] | None = None,
        break_coarse_map: bool = False,
        machine: Machine = MACHINE,
        **options: Any,
    ) -> ScanReport:
        predictor = load(read_bundle(self.bundle))
        if break_coarse_map:
            forward = predictor.model.forward

            def broken(key: DenseMap, batch: Batch) -> dict[str, torch.Tensor]:
                factor = float("nan") if key.stride == 32 else 1.0
                return {name: values * factor for name, values in forward(key, batch).items()}

            predictor.model.forward = broken  # type: ignore[method-assign]
        progress = Progress(
            on_preliminary=tell or (lambda case, scores: self.announced_scores.append(scores))
        )
        return scan(
            predictor, METADATA, cohort_of(self.slide), self.out, ScanOptions(**options), machine,
            progress=progress,
        )  # fmt: skip


def test_a_slide_without_tissue_has_no_preliminary_score(tmp_path: Path) -> None:
    refining = Refining(tmp_path, np.full((600, 600, 3), 245, np.uint8))
    assert refining.scan(refine=True).counts == {"unscored": 1}
    assert refining.announced_scores == []


def test_a_coarse_map_with_failed_fields_has_no_preliminary_score(tmp_path: Path) -> None:
    refining = Refining(tmp_path, pixels_of(420, 300))
    assert refining.scan(refine=True, tissue=None, break_coarse_map=True).counts == {"failed": 1}
    assert refining.announced_scores == []


def test_nothing_is_told_if_no_cell_is_refined(tmp_path: Path) -> None:
    refining = Refining(tmp_path, pixels_of(420, 300))
    report = refining.scan(refine=True, tissue=None, settings={"refine_above": 2.0})
    assert report.counts == {"complete": 1} and refining.announced_scores == []


def test_a_display_that_fails_does_not_end_the_case(tmp_path: Path) -> None:
    def closed(case: str, scores: Mapping[str, float]) -> None:
        raise RuntimeError("the display is closed")

    refining = Refining(tmp_path, pixels_of(420, 300))
    assert refining.scan(refine=True, tissue=None, tell=closed).counts == {"complete": 1}


def test_all_cells_refined_are_all_cells_of_a_full_scan(tmp_path: Path) -> None:
    slide = np.full((640, 900, 3), 245, np.uint8)
    slide[96:500, 130:777] = pixels_of(647, 404) // 2 + np.uint8(40)
    refining = Refining(tmp_path, slide)
    assert refining.scan(refine=True, settings={"refine_above": 0.0}).counts == {"complete": 1}
    fine = open_results(refining.out).case_folder("one").maps["map-s8"].states()
    refining.out = tmp_path / "full"
    refining.scan(stride=8)
    full = open_results(refining.out).case_folder("one").maps["map-s8"].states()
    assert (full == State.SCORED).any() and ((full == State.SCORED) == (fine == State.SCORED)).all()


def test_cells_refined_by_another_rule_are_not_mixed_with_others(tmp_path: Path) -> None:
    refining = Refining(tmp_path, pixels_of(420, 300))
    refining.scan(refine=True, tissue=None)
    settings = json.loads((refining.out / "scan.json").read_text())
    assert settings.pop("refinement") == REFINEMENT
    (refining.out / "scan.json").write_text(json.dumps(settings))
    result = refining.out / "cases" / "one" / "result.json"
    before = result.read_bytes()
    with pytest.raises(ResultsError, match=r"refined these results by another rule.*Expected rule 2.*rule 1"):
        refining.scan(refine=True, tissue=None)
    assert result.read_bytes() == before


def test_preliminary_scores_that_cannot_be_removed_are_an_error_of_the_results(tmp_path: Path) -> None:
    refining = Refining(tmp_path, pixels_of(420, 300))
    (refining.out / "cases" / "one" / PRELIMINARY).mkdir(parents=True)
    with pytest.raises(ResultsError, match=PRELIMINARY):
        remove_preliminary_scores(CaseFolder(refining.out / "cases" / "one"))
