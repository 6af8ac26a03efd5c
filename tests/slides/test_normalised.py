"""Slides that are read with normalised stains: two stainings of the same tissue look nearly the same."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from lobule.color import MAX_C_REF, fit_macenko
from lobule.errors import ConfigError
from lobule.geometry import Box
from lobule.slides.normalised import (
    StainNormalisedSlide,
    estimate_stains,
    normalisation_notes,
    with_normalisation,
)
from lobule.slides.overview import read_overview
from lobule.slides.slide import open_slide

SIDE = 512
HEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])


def stained(hematoxylin: float, eosin: float) -> NDArray[np.uint8]:
    """The same tissue, a disc of nuclei and stroma on glass, with other amounts of the two stains.

    The pixels follow the law of Beer and Lambert, written here without the code under test.
    """
    rng = np.random.default_rng(3)
    nuclei = rng.gamma(1.5, 0.4, (SIDE, SIDE, 1)) * hematoxylin
    stroma = rng.gamma(3.0, 0.2, (SIDE, SIDE, 1)) * eosin
    rows, columns = np.mgrid[:SIDE, :SIDE]
    inside = ((rows - SIDE / 2) ** 2 + (columns - SIDE / 2) ** 2 < (0.4 * SIDE) ** 2)[..., None]
    density = inside * (nuclei * HEMATOXYLIN + stroma * EOSIN)
    return np.clip(np.rint(240 * np.exp(-density)), 0, 255).astype(np.uint8)


def write(folder: Path, name: str, pixels: NDArray[np.uint8]) -> Path:
    path = folder / f"{name}.tif"
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb")
    return path


@pytest.fixture
def stainings(tmp_path: Path) -> list[Path]:
    return [write(tmp_path, "weak", stained(0.6, 0.9)), write(tmp_path, "strong", stained(1.3, 1.1))]


def test_two_stainings_of_one_tissue_become_alike(stainings: list[Path]) -> None:
    raw, normalised = [], []
    for path in stainings:
        slide = open_slide(path, mpp=4.0)
        box = Box(150, 150, 200, 200)
        raw.append(slide.read_lattice(slide.lattice(level=0), box).astype(float))
        with_stains = with_normalisation(slide, "macenko")
        normalised.append(with_stains.read_lattice(slide.lattice(level=0), box).astype(float))
    before = np.abs(raw[0] - raw[1]).mean()
    after = np.abs(normalised[0] - normalised[1]).mean()
    assert before > 20
    assert after < before / 4


def test_the_normalised_tissue_has_the_amounts_of_the_reference(stainings: list[Path]) -> None:
    slide = with_normalisation(open_slide(stainings[1], mpp=4.0), "macenko")
    pixels = slide.read_lattice(slide.lattice(level=0), Box(150, 150, 200, 200))
    fit = fit_macenko(pixels)
    assert fit is not None
    np.testing.assert_allclose(fit.max_c, MAX_C_REF, rtol=0.15)


def test_tissue_is_detected_on_the_colours_of_the_file(stainings: list[Path]) -> None:
    slide = open_slide(stainings[0], mpp=4.0)
    expected = read_overview(slide, 4.0).pixels
    np.testing.assert_array_equal(read_overview(with_normalisation(slide, "macenko"), 4.0).pixels, expected)


def test_a_pixel_does_not_depend_on_the_box_and_copies_agree(stainings: list[Path]) -> None:
    slide = with_normalisation(open_slide(stainings[0], mpp=4.0), "macenko")
    lattice = slide.lattice(mpp=8.0)
    box_pixels = slide.read_lattice(lattice, Box(60, 60, 120, 120))
    np.testing.assert_array_equal(slide.read_lattice(lattice, Box(100, 90, 30, 40)), box_pixels[30:70, 40:70])
    copied = pickle.loads(pickle.dumps(slide))
    assert isinstance(copied, StainNormalisedSlide)
    np.testing.assert_array_equal(copied.read_lattice(lattice, Box(60, 60, 120, 120)), box_pixels)


def test_a_slide_without_tissue_keeps_its_colours(tmp_path: Path) -> None:
    pixels = np.full((SIDE, SIDE, 3), 241, np.uint8)
    slide = open_slide(write(tmp_path, "glass", pixels), mpp=4.0)
    assert estimate_stains(slide) is None
    normalised = with_normalisation(slide, "macenko")
    np.testing.assert_array_equal(
        normalised.read_lattice(slide.lattice(level=0), Box(0, 0, 64, 64)), pixels[:64, :64]
    )


def test_a_note_says_that_the_stains_could_not_be_estimated(stainings: list[Path], tmp_path: Path) -> None:
    glass = write(tmp_path, "glass", np.full((SIDE, SIDE, 3), 240, np.uint8))
    notes = [
        normalisation_notes(with_normalisation(open_slide(path, mpp=4.0), "macenko"))
        for path in (stainings[0], glass)
    ]
    assert notes[0] == () and "not normalised" in notes[1][0]


def test_none_changes_nothing_and_an_unknown_name_is_refused(stainings: list[Path]) -> None:
    slide = open_slide(stainings[0], mpp=4.0)
    assert with_normalisation(slide, "none") is slide
    with pytest.raises(ConfigError, match="reinhard"):
        with_normalisation(slide, "reinhard")  # type: ignore[arg-type]
