"""The report on a slide: an undamaged slide has no problems, and each planted fault is located."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from lobule.errors import NotReadable
from lobule.geometry import Box
from lobule.slides import RGB, open_slide
from lobule.slides.check import CANDIDATES, _windows_with_structure, check_slide
from lobule.slides.slide import Slide
from tests.slides.sample_files import picture, pyramid, write_dicom, write_tiff

LEVELS = pyramid(picture(1024, 768), 3)


def test_undamaged_slide_has_no_problems(tmp_path: Path) -> None:
    report = check_slide(str(write_tiff(tmp_path / "a.tif", LEVELS, mpp=0.25)))
    assert (report.backend, report.problems) == ("tiff", ())
    assert (report.mpp_x, report.mpp_y) == pytest.approx((0.25, 0.25))
    assert report.mpp_source
    assert [(level.tiles, level.tried) for level in report.levels] == [(192, 64), (48, 48), (12, 12)]
    for alignment in report.alignments:
        assert alignment.places >= 1 and alignment.aligned
        assert abs(alignment.shift_x or 0) <= 0.1 and abs(alignment.shift_y or 0) <= 0.1
    assert json.loads(json.dumps(report.as_json()))["levels"][2]["width"] == 256


def test_levels_that_are_odd_ratios_still_align(tmp_path: Path) -> None:
    levels = pyramid(picture(1111, 701), 2, stride=2)
    report = check_slide(str(write_tiff(tmp_path / "a.tif", levels, mpp=0.25)))
    assert report.alignments[0].aligned and report.problems == ()


@pytest.mark.parametrize(("right", "down"), [(3, 0), (-2, 5)])
def test_shifted_level_is_reported_with_its_shift(tmp_path: Path, right: int, down: int) -> None:
    shifted = [LEVELS[0], np.roll(LEVELS[1], (down, right), axis=(0, 1))]
    report = check_slide(str(write_tiff(tmp_path / "a.tif", shifted, mpp=0.25)))
    alignment = report.alignments[0]
    assert (alignment.shift_x, alignment.shift_y) == pytest.approx((right, down), abs=0.3)
    assert alignment.aligned is False
    assert any("Level 1 is shifted" in problem for problem in report.problems)


@pytest.mark.parametrize(
    ("size", "least", "most"), [((3000, 2500), CANDIDATES / 2, CANDIDATES), ((300, 300), 4, 4)]
)
def test_alignment_reads_a_bounded_number_of_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], least: float, most: float
) -> None:
    """On a large slide, as many as are allowed; on a small one, as many as fit side by side."""
    path = write_tiff(tmp_path / "a.tif", [picture(*size)])
    boxes = []

    def noted(self: Slide, level: int, box: Box) -> RGB:
        boxes.append(box)
        return read_level(self, level, box)

    read_level = Slide.read_level
    monkeypatch.setattr(Slide, "read_level", noted)
    with open_slide(path) as slide:
        _windows_with_structure(slide, 0)
    assert least <= len(boxes) <= most


def test_damaged_and_missing_tiles_are_counted(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", LEVELS, mpp=0.25, tile=128, compression="zlib")
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[1]
        offset, length = page.dataoffsets[5], page.databytecounts[5]
    data = bytearray(path.read_bytes())
    data[offset : offset + length] = bytes(length)
    path.write_bytes(data)
    report = check_slide(str(path))
    assert [(tile.column, tile.row) for tile in report.levels[1].failed] == [(1, 1)]
    assert report.levels[0].failed == report.levels[2].failed == ()
    assert any("Level 1: 1 of 12 sampled tiles" in problem for problem in report.problems)


def test_sparse_dicom_without_mpp(tmp_path: Path) -> None:
    missing = {(0, 0), (3, 2), (7, 7)}
    path = write_dicom(tmp_path, LEVELS[:1], tile=128, coding="native", mpp=None, sparse=missing)[0]
    report = check_slide(str(path))
    assert (report.backend, report.mpp_x, report.mpp_source) == ("dicom", None, None)
    assert (report.levels[0].tried, report.levels[0].blank) == (48, 2)  # (7, 7) lies below the slide
    assert any("--slide-mpp" in problem for problem in report.problems)
    assert check_slide(str(path), mpp=0.25).problems == ()


def test_unreadable_file_raises(tmp_path: Path) -> None:
    with pytest.raises(NotReadable):
        check_slide(str(tmp_path / "missing.svs"))


def test_real_slides_have_no_problems(kit: Path) -> None:
    for name in ("CMU-1-Small-Region.svs", "idc_8863.tif", "idc_8865.tif"):
        report = check_slide(str(kit / "slides" / name), samples=16)
        assert report.problems == () and report.mpp_source
