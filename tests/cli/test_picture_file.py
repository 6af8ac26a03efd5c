"""Invalid picture names are refused before any computation, and sizes and µm/px have limits."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import tifffile

from lobule.cli.picture_file import check_picture_path
from lobule.errors import ConfigError
from lobule.slides import open_slide
from tests.cli.conftest import Lobule


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    pixels = np.full((128, 96, 3), 220, np.uint8)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64))
    return path


def test_unknown_picture_types_are_refused(slide: Path, tmp_path: Path) -> None:
    for name in ("picture.xyz", "picture", "picture.png.txt"):
        with pytest.raises(ConfigError, match=r"picture.*ends in \.png, \.jpg"):
            check_picture_path(str(tmp_path / name), str(slide))
    for name in ("picture.png", "picture.JPG", "folder/picture.webp"):
        check_picture_path(str(tmp_path / name), str(slide))


def test_picture_onto_the_slide_is_refused(slide: Path, tmp_path: Path) -> None:
    link, hard_link = tmp_path / "link.tif", tmp_path / "hard.tif"
    link.symlink_to(slide)
    hard_link.hardlink_to(slide)
    for target in (slide, link, hard_link, tmp_path / "other" / ".." / "slide.tif"):
        (tmp_path / "other").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match="overwrite the slide"):
            check_picture_path(str(target), str(slide))
    with pytest.raises(ConfigError, match="overwrite the slide"):
        check_picture_path(str(slide), str(tmp_path))  # a folder of DICOM files that contains the target


@pytest.mark.parametrize(
    "options",
    [["--thumbnail", "SLIDE"], ["--thumbnail", "a.xyz"], ["--thumbnail", "a.png", "--size", "0"],
     *(["--slide-mpp", value] for value in ("1e-300", "0", "-1", "nan", "1e300"))],
)  # fmt: skip
def test_info_refuses_invalid_options(lobule: Lobule, slide: Path, options: list[str]) -> None:
    before = slide.read_bytes()
    done = lobule("info", str(slide), *(str(slide) if option == "SLIDE" else option for option in options))
    assert done.status == 2
    assert "broke" not in done.err and "Traceback" not in done.err
    assert slide.read_bytes() == before


@pytest.mark.parametrize("mpp", [0.0, -0.5, 1e-300, 1e300, math.inf, math.nan])
def test_absurd_mpp_is_refused(slide: Path, mpp: float) -> None:
    with pytest.raises(ConfigError, match=r"µm/px must be between 0\.001 and 10000"):
        open_slide(slide, mpp=mpp)
    with open_slide(slide, mpp=0.5) as opened, pytest.raises(ConfigError, match="µm/px must be between"):
        opened.lattice(mpp=mpp)


def test_thumbnail_needs_a_side(slide: Path) -> None:
    with open_slide(slide) as opened, pytest.raises(ConfigError, match="at least 1 px"):
        opened.thumbnail(0)
