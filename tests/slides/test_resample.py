"""Resampling equals exact area averages, and a pixel does not depend on the box it is read in."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import lobule.slides.resample as resample
from lobule.geometry import Box, Lattice
from lobule.slides import RGB, Slide, open_slide
from lobule.slides.resample import choose_source, read_resampled, taps_of
from tests.slides.sample_files import picture, pyramid, write_tiff
from tests.slides.test_tiff import write_jpeg

STEPS = st.one_of(
    st.fractions(Fraction(1, 4), 12, max_denominator=1000),
    st.floats(0.25, 12).map(lambda value: Fraction(value).limit_denominator(10**6)),
)


@pytest.fixture(scope="module")
def lossless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slide]:
    """One level, so that everything is resampled from level 0."""
    path = write_tiff(tmp_path_factory.mktemp("re") / "a.tif", [picture(233, 181)], mpp=0.25)
    with open_slide(path, backend="tiff") as slide:
        yield slide


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slide]:
    path = write_jpeg(tmp_path_factory.mktemp("re") / "a.tif", pyramid(picture(423, 381), 2, stride=2))
    with open_slide(path, backend="tiff") as slide:
        yield slide


def lattice_of(slide: Slide, step: Fraction, step_y: Fraction | None = None) -> Lattice:
    return Lattice(step, step_y or step, slide.size, None)


def area_means(pixels: RGB, step: Fraction, box: Box) -> NDArray[Any]:
    """Reference implementation: means over the exact areas, white outside, in float64."""

    def shares(start: int, count: int, length: int) -> NDArray[Any]:
        out = np.zeros((count, length))
        for j in range(count):
            left, right = (start + j) * step, (start + j + 1) * step
            for k in range(max(0, int(left) - 1), min(length, int(right) + 2)):
                out[j, k] = max(Fraction(0), min(right, k + 1) - max(left, k)) / step
        return out

    across, down = shares(box.x, box.width, pixels.shape[1]), shares(box.y, box.height, pixels.shape[0])
    inside = np.einsum("ik,kjc,lj->ilc", down, pixels.astype(float) - 255, across, optimize=True)
    return inside + 255


@given(step=st.fractions(1, 40, max_denominator=10**4), x=st.integers(-3, 60), y=st.integers(-3, 60))
@settings(max_examples=40, deadline=None)
def test_areas_are_exact(lossless: Slide, step: Fraction, x: int, y: int) -> None:
    pixels = lossless.read_level(0, Box(0, 0, *lossless.size))
    box = Box(x, y, 17, 11)
    got = read_resampled(lossless, lattice_of(lossless, step), box)
    assert (
        np.abs(got - area_means(pixels, step, box)).max() <= 0.8
    )  # half a grey level of rounding, and the error of the weights


@given(step=STEPS, data=st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", ["lossless", "jpeg"])
def test_a_pixel_does_not_depend_on_its_box(
    request: pytest.FixtureRequest, name: str, step: Fraction, data: st.DataObject
) -> None:
    slide: Slide = request.getfixturevalue(name)
    lattice = lattice_of(slide, step, data.draw(st.sampled_from([step, step * Fraction(9, 10)])))
    box = Box(data.draw(st.integers(-5, 70)), data.draw(st.integers(-5, 70)), 41, 37)
    together = slide.read_lattice(lattice, box)
    cut_x, cut_y = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 36))
    rows = []
    for top, bottom in ((0, cut_y), (cut_y, 37)):
        tiles = [
            slide.read_lattice(lattice, Box(box.x + left, box.y + top, right - left, bottom - top))
            for left, right in ((0, cut_x), (cut_x, 41))
        ]
        rows.append(np.concatenate(tiles, axis=1))
    assert np.array_equal(np.concatenate(rows), together)


@pytest.mark.parametrize("step", [Fraction(5, 4), Fraction(37, 3), Fraction(3, 4)])
def test_blocks_leave_no_seam(jpeg: Slide, step: Fraction, monkeypatch: pytest.MonkeyPatch) -> None:
    lattice = lattice_of(jpeg, step)
    box = Box(-3, -2, lattice.size.width + 5, lattice.size.height + 4)
    at_once = read_resampled(jpeg, lattice, box)
    monkeypatch.setattr(resample, "SOURCE_SIDE", 50)
    monkeypatch.setattr(resample, "BAND", 7)
    assert np.array_equal(read_resampled(jpeg, lattice, box), at_once)


def test_a_box_far_out_is_white_and_a_flat_picture_stays_flat(lossless: Slide, tmp_path: Path) -> None:
    lattice = lattice_of(lossless, Fraction(1234567, 1000003))
    assert (read_resampled(lossless, lattice, Box(10**6, 10**6, 9, 9)) == 255).all()
    flat = np.full((100, 120, 3), (3, 130, 254), np.uint8)
    with open_slide(write_tiff(tmp_path / "flat.tif", [flat]), backend="tiff") as slide:
        for step in (Fraction(1, 3), Fraction(7, 8), Fraction(9, 7), Fraction(19, 3)):
            got = read_resampled(slide, lattice_of(slide, step), Box(4, 4, 7, 7))
            assert (got == flat[0, 0]).all()


def test_enlarging_passes_through_the_pixels(lossless: Slide) -> None:
    """At a third of a pixel, every third lattice pixel has its centre on a pixel of the slide."""
    pixels = lossless.read_level(0, Box(30, 20, 40, 30))
    lattice = lattice_of(lossless, Fraction(1, 3))
    got = read_resampled(lossless, lattice, Box(90, 60, 120, 90))
    assert np.array_equal(got[1::3, 1::3], pixels)


def test_enlarging_keeps_a_ramp_straight(tmp_path: Path) -> None:
    """Catmull-Rom weights reproduce linear functions (and so have no shift)."""
    ramp = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    with open_slide(write_tiff(tmp_path / "a.tif", [ramp]), backend="tiff") as slide:
        step = Fraction(3, 8)
        got = read_resampled(slide, lattice_of(slide, step), Box(20, 20, 250, 5))
        expected = 2 * ((np.arange(20, 270) + 0.5) * float(step) - 0.5)
        assert np.abs(got[..., 0] - expected).max() <= 0.6


@given(
    st.fractions(Fraction(1, 9), 900, max_denominator=10**5),
    st.integers(-(10**6), 10**6),
    st.sampled_from([1 << 11, 1 << 20]),
)
def test_weights_add_up(ratio: Fraction, start: int, one: int) -> None:
    taps = taps_of(ratio, start, 9, one)
    assert (taps.weights.sum(axis=1) == one).all()
    if ratio >= 1:
        assert (taps.weights >= 0).all()
        assert taps.first.tolist() == [(start + j) * ratio // 1 for j in range(9)]


def test_weights_are_exact_where_int64_would_overflow() -> None:
    ratio = Fraction(10**15 + 37, 10**15 - 11)
    taps = taps_of(ratio, 10**6, 4, 1 << 11)
    assert (taps.weights.sum(axis=1) == 1 << 11).all()
    assert taps.first.tolist() == [(10**6 + j) * ratio // 1 for j in range(4)]


def test_the_source_is_the_coarsest_that_is_fine_enough(jpeg: Slide, lossless: Slide) -> None:
    """Levels at 1 and 4, each also decoded at 1/2, 1/4 and 1/8."""
    chosen = {
        Fraction(3, 4): (0, 1), Fraction(1): (0, 1), Fraction(3, 2): (0, 1), Fraction(2): (0, 2),
        Fraction(39, 10): (0, 2), Fraction(17, 4): (1, 1), Fraction(9): (1, 2), Fraction(100): (1, 8),
    }  # fmt: skip
    for step, expected in chosen.items():
        source = choose_source(jpeg, lattice_of(jpeg, step))
        assert (source.level, source.reduce) == expected or step == 4
        assert choose_source(lossless, lattice_of(lossless, step)).level == 0


def test_resampled_jpeg_is_near_the_true_mean(jpeg: Slide) -> None:
    pixels = jpeg.read_level(0, Box(0, 0, *jpeg.size))
    for step in (Fraction(5, 2), Fraction(3), Fraction(7, 2)):
        box = Box(5, 5, 90, 80)
        got = read_resampled(jpeg, lattice_of(jpeg, step), box)
        difference = got - area_means(pixels, step, box)
        assert np.abs(difference).mean() < 3 and abs(difference.mean()) < 0.3


def test_a_thumbnail_is_the_mean_of_the_slide(lossless: Slide) -> None:
    pixels = lossless.read_level(0, Box(0, 0, *lossless.size))
    thumbnail = lossless.thumbnail(64)
    assert max(thumbnail.shape) == 64
    step = Fraction(233, 64)
    expected = area_means(pixels, step, Box(0, 0, thumbnail.shape[1], thumbnail.shape[0]))
    assert np.abs(thumbnail - expected).max() <= 0.8
