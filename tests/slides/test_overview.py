"""The resolution of an overview: that of a level where one is near, otherwise the requested one."""

from __future__ import annotations

from pathlib import Path

import pytest

from lobule.slides import open_slide
from lobule.slides.overview import overview_lattice
from tests.slides.sample_files import picture, pyramid, write_tiff


@pytest.mark.parametrize(
    ("requested", "expected"),
    [(0.5, 0.5), (0.9, 0.5), (1.0, 0.5), (1.5, 1.5), (1.9, 1.9), (3.0, 4.0), (7.9, 4.0)],
)
def test_level_is_used_within_a_factor_of_two(tmp_path: Path, requested: float, expected: float) -> None:
    """The levels have 0.5 and 4 µm/px, so that 1.5 and 1.9 µm/px are too far from both."""
    base, *_, smallest = pyramid(picture(640, 480), 4)
    path = write_tiff(tmp_path / "a.tif", [base, smallest])
    with open_slide(path, mpp=0.5) as slide:
        assert overview_lattice(slide, requested).mpp.mean == pytest.approx(expected)
