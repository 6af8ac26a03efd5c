"""Refinement: which cells are computed again, in fields of which size, and what is known before they are."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lobule.bundles import read_bundle
from lobule.cli.scan import show_preliminary_scores
from lobule.geometry import Lattice, Size
from lobule.grid import MapGrid
from lobule.measures.calibration import Platt
from lobule.methods.scannet import Config, load
from lobule.methods.scannet.calibration import CellCalibration
from lobule.methods.scannet.refinement import calibrated, refining_grid
from lobule.results import CaseFolder, describe, open_results
from lobule.results.preliminary import PRELIMINARY, preliminary_scores
from lobule.scanning.cases import Progress
from lobule.scanning.contract import ScanOptions
from lobule.scanning.scan import Machine, scan
from tests.methods.scannet.support import write_tiny_bundle
from tests.scanning.support import cohort_of, pixels_of, write_slide

LATTICE = Lattice(Fraction(1), Fraction(1), Size(7168, 7168), None, 0)
COARSE, FINE = MapGrid(LATTICE, 32, 203, 56), MapGrid(LATTICE, 8, 203, 224)


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
    grid = refining_grid(FINE, COARSE, hot)
    assert (grid.cells, grid.stride) == (cells, 8)


def test_small_fields_stay_as_they_are() -> None:
    coarse, fine = MapGrid(LATTICE, 32, 203, 12), MapGrid(LATTICE, 8, 203, 48)
    assert refining_grid(fine, coarse, refined((70, 70))).cells == 48


@pytest.mark.parametrize(("threshold", "above"), [(0.5, 0.1), (0.9, 0.5), (1.0, 1.0), (0.0, 0.0)])
def test_the_odds_of_refined_cells_follow_the_calibrated_threshold(threshold: float, above: float) -> None:
    # However steep the calibration is, not nearly all cells are refined.
    config = calibrated(Config(), CellCalibration(Platt(2.5, -3.0), threshold))
    assert config.threshold == threshold
    assert config.refine_above == pytest.approx(above)


def test_cells_of_findings_are_always_refined() -> None:
    config = calibrated(Config(refine_above=0.7), CellCalibration(Platt(1.0, 0.0), 0.3))
    assert config.refine_above == 0.3


def test_the_score_of_the_coarse_map_is_known_while_it_is_refined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", mpp=0.5)
    slide = write_slide(tmp_path / "one.tif", pixels_of(420, 300))
    machine = Machine(device="cpu", precision="float32", cells=8, replicas=1, channels_last=True)
    folder = CaseFolder(tmp_path / "r" / "cases" / "one")
    seen: list[tuple[str, Mapping[str, float], dict[str, float], str]] = []

    def on_preliminary(case: str, scores: Mapping[str, float]) -> None:
        seen.append((case, scores, preliminary_scores(folder), describe(tmp_path / "r")[1]))
        show_preliminary_scores(case, scores)

    metadata = {"method": "scannet", "fingerprint": "f", "classes": ["normal", "tumour"]}
    scan(
        load(read_bundle(bundle)), metadata, cohort_of(slide), tmp_path / "r",
        ScanOptions(tissue=None, refine=True), machine, progress=Progress(on_preliminary=on_preliminary),
    )  # fmt: skip
    ((case, scores, on_disk, description),) = seen
    coarse = float(open_results(tmp_path / "r").case_folder("one").maps["map-s32"].scores().max())
    assert case == "one" and scores == {"tumour": coarse} == on_disk
    assert f"preliminary tumour {coarse:.3f}" in description
    assert f"one: tumour {coarse:.3f} in the coarse map" in capsys.readouterr().err
    assert not (folder.path / PRELIMINARY).exists(), "the result takes its place"
    assert preliminary_scores(folder) == {}
