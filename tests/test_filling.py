"""Exact filling of outlines: every cell by its centre, for every box."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import points_in_poly

from lobule.annotations import (
    Annotation,
    Polygon,
    fill,
    in_tumour,
    inside,
    rasterise,
)
from lobule.geometry import Box
from tests.shapes import SQUARE, STAR, mask_of


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-50, 150, width=16), st.floats(-50, 150, width=16)), min_size=3, max_size=9),
    st.integers(1, 9),
)
def test_filling_agrees_with_a_point_test_at_every_centre(points: list, step: int) -> None:
    box = Box(-3, -2, 40, 30)
    assert np.array_equal(fill([Polygon(points)], step, box), mask_of(points, step, box))


def test_points_off_the_outline_agree_with_scikit_image() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        points, queries = rng.uniform(0, 100, (9, 2)), rng.uniform(-5, 105, (200, 2))
        assert np.array_equal(inside([Polygon(points)], queries), points_in_poly(queries, points))
        centres = np.floor(queries) + 0.5
        mask = fill([Polygon(points)], 1, Box(-5, -5, 110, 110))
        columns, rows = np.floor(queries).astype(int).T + 5
        assert np.array_equal(inside([Polygon(points)], centres), mask[rows, columns])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.fractions(Fraction(1, 3), 7, max_denominator=12))
def test_a_cell_does_not_depend_on_its_box(seed: int, step: Fraction) -> None:
    polygon = Polygon(np.random.default_rng(seed).uniform(0, 100, (40, 2)))
    full_mask = fill([polygon], (step, Fraction(2)), Box(0, 0, 60, 50))
    window = fill([polygon], (step, Fraction(2)), Box(13, 7, 20, 31))
    assert np.array_equal(window, full_mask[7:38, 13:33])


def test_bands_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    full_mask = fill([Polygon(STAR)], 1, Box(0, 0, 100, 100))
    monkeypatch.setattr("lobule.annotations.raster.BAND_CELLS", 700)
    assert np.array_equal(fill([Polygon(STAR)], 1, Box(0, 0, 100, 100)), full_mask)


def test_neighbours_neither_share_nor_miss_cells() -> None:
    corner = [50.5, 50.5]
    triangles = [[corner, a, b] for a, b in zip(SQUARE, [*SQUARE[1:], SQUARE[0]], strict=True)]
    masks = [fill([Polygon(triangle)], 1, Box(0, 0, 100, 100)) for triangle in triangles]
    assert (np.sum(masks, axis=0) == 1).all()


def test_crossing_ring_follows_the_even_odd_rule() -> None:
    star = Annotation((Polygon(STAR),))
    assert in_tumour(star, [[50, 10], [50, 50], [50, 99]]).tolist() == [True, False, False]
    cells = int(rasterise(star, Fraction(1, 8), Box(0, 0, 800, 800)).sum())
    area = shapely.make_valid(shapely.Polygon(STAR)).area
    assert cells / 64 == pytest.approx(area, rel=2e-3)


def test_exclusions_are_cut_out_of_the_union() -> None:
    shifted = [[x + 50, y] for x, y in SQUARE]
    cut = [[x / 10 + 60, y / 10 + 20] for x, y in SQUARE]
    annotation = Annotation(
        (Polygon(SQUARE), Polygon(shifted), Polygon(cut, "exclusion"), Polygon(STAR, "other"))
    )
    assert rasterise(annotation, 1, Box(-10, -10, 300, 300)).sum() == 150 * 100 - 100
    assert in_tumour(annotation, [[65, 25], [120, 50], [151, 50]]).tolist() == [False, True, False]
