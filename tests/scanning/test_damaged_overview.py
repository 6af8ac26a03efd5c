"""Tissue detection on slides with damaged tiles: it never costs more than the tiles that are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from lobule.cohort import Case, Cohort
from lobule.results import open_results
from lobule.results.folder import CaseFolder
from lobule.scanning.contract import ScanOptions
from lobule.scanning.open_case import tissue_of
from lobule.scanning.scan import scan
from lobule.slides.overview import read_overview
from lobule.slides.slide import open_slide
from lobule.stitch import State
from lobule.tissue import TissueConfig
from tests.scanning.support import BUNDLE, SMALL, MeanPredictor

TILE = 64


def halved(pixels: np.ndarray) -> np.ndarray:
    """Means of squares of two pixels, rounded half up as the resampler rounds."""
    height, width = (side // 2 for side in pixels.shape[:2])
    blocks = pixels.reshape(height, 2, width, 2, 3)
    return np.floor(blocks.mean(axis=(1, 3)) + 0.5).astype(np.uint8)


@pytest.fixture(scope="module")
def levels() -> list[np.ndarray]:
    """Four levels: 1024 px at 2 µm/px with tissue in the middle, down to 128 px at 16 µm/px."""
    rng = np.random.default_rng(0)
    pixels = np.full((1024, 1024, 3), 244, np.uint8)
    pixels[200:800, 150:850] = np.array((190, 120, 170)) + rng.integers(-20, 20, (600, 700, 3))
    return [pixels, halved(pixels), halved(halved(pixels)), halved(halved(halved(pixels)))]


def write_damaged(path: Path, levels: list[np.ndarray], damage: dict[int, list[int]]) -> Path:
    """A tiled TIFF; `damage` names the tiles of each level whose bytes are overwritten."""
    with tifffile.TiffWriter(path) as out:
        for number, pixels in enumerate(levels):
            out.write(
                pixels, tile=(TILE, TILE), compression="zlib", photometric="rgb", metadata=None,
                subfiletype=int(number > 0), resolution=(5000, 5000), resolutionunit="CENTIMETER",
            )  # fmt: skip
    with tifffile.TiffFile(path) as file:
        spans = [
            (page.dataoffsets[index], page.databytecounts[index])
            for number, page in enumerate(file.pages)
            for index in damage.get(number, [])
        ]
    data = bytearray(path.read_bytes())
    for offset, length in spans:
        data[offset : offset + length] = b"\xff" * length
    path.write_bytes(data)
    return path


def scanned(path: Path, out: Path) -> tuple[dict[str, int], CaseFolder]:
    case = Case("one", "p", "slide", str(path), mpp=2.0)
    report = scan(MeanPredictor(), BUNDLE, Cohort((case,)), out, ScanOptions(), SMALL)
    return dict(report.counts), open_results(out).case_folder("one")


def test_damaged_coarsest_level_does_not_change_the_scan(levels: list[np.ndarray], tmp_path: Path) -> None:
    sound = write_damaged(tmp_path / "sound.tif", levels, {})
    damaged = write_damaged(tmp_path / "damaged.tif", levels, {3: [0, 3]})
    assert scanned(sound, tmp_path / "a")[0] == {"complete": 1}
    counts, folder = scanned(damaged, tmp_path / "b")
    assert counts == {"complete": 1}
    before = open_results(tmp_path / "a").case_folder("one")
    np.testing.assert_array_equal(folder.maps["mean"].read()[0], before.maps["mean"].read()[0])
    np.testing.assert_array_equal(folder.maps["mean"].read()[1], before.maps["mean"].read()[1])
    assert folder.result["scores"] == before.result["scores"]
    assert before.result["notes"] == []
    assert folder.result["notes"] == [
        "Tissue detection met damaged tiles on level 3; it read the same areas from a finer level."
    ]


def test_two_damaged_levels_are_replaced_by_the_third(levels: list[np.ndarray], tmp_path: Path) -> None:
    path = write_damaged(tmp_path / "damaged.tif", levels, {3: [0], 2: [0, 1, 4, 5]})
    with open_slide(path, mpp=2.0) as slide:
        overview = read_overview(slide, 16.0)
    # Level 3 was rounded on every level in between, the replacement once.
    np.testing.assert_allclose(overview.pixels.astype(int), levels[3].astype(int), atol=1)
    assert not overview.unreadable.any()
    assert overview.damaged_levels == (2, 3)


def test_area_that_no_level_supplies_counts_as_tissue(levels: list[np.ndarray], tmp_path: Path) -> None:
    """One tile of glass of the only level: its cells fail, all others are as in the sound slide."""
    sound = write_damaged(tmp_path / "sound.tif", levels[:1], {})
    path = write_damaged(tmp_path / "damaged.tif", levels[:1], {0: [15]})
    with open_slide(path, mpp=2.0) as slide:
        overview = read_overview(slide, 16.0)
        tissue = tissue_of(slide, TissueConfig())
    corner = overview.unreadable[:8, -8:]
    assert corner.all()
    assert overview.unreadable.sum() <= 16 * 16
    assert tissue.mask[:8, -8:].all()
    scanned(sound, tmp_path / "a")
    counts, folder = scanned(path, tmp_path / "b")
    assert counts == {"partial": 1}
    before = open_results(tmp_path / "a").case_folder("one")
    scores, states = folder.maps["mean"].read()
    expected, expected_states = before.maps["mean"].read()
    scored = expected_states == State.SCORED
    assert (states[scored] == State.SCORED).all()
    np.testing.assert_array_equal(scores[:, scored], expected[:, scored])
    assert (states == State.FAILED).any()
    assert "level 0; 0.39% of the slide could not be read" in folder.result["notes"][0]


def test_repair_reads_a_bounded_number_of_pixels(
    levels: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_damaged(tmp_path / "damaged.tif", levels, {3: [0, 1, 2, 3]})
    monkeypatch.setattr("lobule.slides.overview.MAX_REPAIR_PIXELS", 64 * 64 * 4 + 100)
    with open_slide(path, mpp=2.0) as slide:
        overview = read_overview(slide, 16.0)
    assert 0.7 < overview.unreadable.mean() < 0.8
