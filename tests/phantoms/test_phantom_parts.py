"""The parts of generated slides against second implementations: filling, reducing, resampling, hashing."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from scipy import interpolate

from lobule.annotations import Polygon, fill
from lobule.findings import lesion_class, longest_extent
from lobule.geometry import Box
from lobule.phantoms.noise import band_noise, generator, upsampled, window
from lobule.phantoms.nuclei import Bank, bank, jittered, stamp
from lobule.phantoms.outlines import area, blob
from lobule.phantoms.pyramid import reduced
from lobule.phantoms.stains import colour_table, look_of


@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 3.0]))
def test_filling_agrees_with_shapely(seed: int, step: float) -> None:
    rng = generator(seed)
    points = blob(rng, vertices=60, roughness=0.2) * 40 + rng.uniform(-10, 60, 2)
    left, top = rng.uniform(-5, 5, 2)
    ours = fill([Polygon(points - [left, top])], Fraction(step), Box(0, 0, 33, 27))
    x, y = np.meshgrid(left + (np.arange(33) + 0.5) * step, top + (np.arange(27) + 0.5) * step)
    np.testing.assert_array_equal(ours, shapely.contains_xy(shapely.Polygon(points), x, y))


@given(st.integers(0, 10_000))
def test_a_part_of_a_filling_is_the_filling_of_the_part(seed: int) -> None:
    points = blob(generator(seed), vertices=80, roughness=0.15) * 50 + 40
    full_mask = fill([Polygon(points)], 1, Box(0, 0, 90, 90))
    for x, y in ((0, 0), (30, 30), (60, 0), (35, 60)):
        chunk = fill([Polygon(points)], 1, Box(x, y, 30, 30))
        np.testing.assert_array_equal(chunk, full_mask[y : y + 30, x : x + 30])


def test_extent_and_area_of_a_known_shape() -> None:
    box = np.array([[0, 0], [30, 0], [30, 40], [0, 40]], float)
    assert longest_extent(box) == pytest.approx(50)
    assert area(box) == pytest.approx(1200)
    assert area(blob(generator(5), vertices=500, roughness=0.1)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("size_um", "name"), [(2000.5, "macro"), (2000.0, "micro"), (200.0, "micro"), (199.9, "itc")]
)
def test_classes_of_lesions(size_um: float, name: str) -> None:
    assert lesion_class(size_um) == name


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_reduced_is_the_rounded_mean_of_each_box(factor: int) -> None:
    rgbx = np.random.default_rng(factor).integers(0, 256, (64, 96, 4), np.uint8)
    small = reduced(np.ascontiguousarray(rgbx).view(np.uint32)[..., 0], factor)
    mean = rgbx.reshape(64 // factor, factor, 96 // factor, factor, 4).mean((1, 3))
    np.testing.assert_array_equal(
        np.ascontiguousarray(small)[..., None].view(np.uint8), np.floor(mean + 0.5).astype(np.uint8)
    )


@pytest.mark.parametrize("step", [1, 2, 4, 8, 16])
def test_upsampled_is_linear_between_corners(step: int) -> None:
    field = np.random.default_rng(step).integers(-480, 481, (6, 9)).astype(np.int16)
    exact = interpolate.RegularGridInterpolator((np.arange(6), np.arange(9)), field.astype(float))
    y, x = np.mgrid[0 : 5 * step, 0 : 8 * step]
    expected = exact(np.stack([(y + 0.5) / step, (x + 0.5) / step], -1))
    assert np.abs(upsampled(field, step) - expected).max() <= 2.1  # two roundings down


def test_noise_is_periodic_and_has_its_wavelength() -> None:
    noise = band_noise(256, 1.0, 16.0, 3)
    assert abs(float(noise.mean())) < 1e-3
    assert float(noise.std()) == pytest.approx(1, abs=1e-3)
    np.testing.assert_array_equal(window(noise, 250, 250, 12, 12), np.roll(noise, (6, 6), (0, 1))[:12, :12])
    power = np.abs(np.fft.fft2(noise)) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    assert 1 / 24 < float((power * frequency).sum() / power.sum()) < 1 / 11


def test_candidates_depend_on_their_cell_alone() -> None:
    large_box = jittered(0, 0, 200, 200, 7.0, 0.6, 5)
    small_box = jittered(70, 70, 120, 120, 7.0, 0.6, 5)
    at = {(round(float(x), 3), round(float(y), 3), int(c)) for x, y, c in zip(*large_box, strict=True)}
    assert {
        (round(float(x), 3), round(float(y), 3), int(c)) for x, y, c in zip(*small_box, strict=True)
    } <= at


def test_stamping_is_the_same_in_any_order_and_for_a_part() -> None:
    kind = bank("lymphocyte", 1.0, 0.35)
    rng = np.random.default_rng(0)
    x, y = rng.integers(20, 80, (2, 60))
    pick = rng.integers(0, 2**32, 60).astype(np.uint32)
    canvas, other = np.zeros((100, 100), np.uint8), np.zeros((100, 100), np.uint8)
    stamp(canvas, kind, x, y, pick, None)
    for i in rng.permutation(60):
        stamp(other, kind, x[i : i + 1], y[i : i + 1], pick[i : i + 1], None)
    assert canvas.max() > 60
    np.testing.assert_array_equal(canvas, other)


@pytest.mark.parametrize(("kind", "low", "high"), [("lymphocyte", 24, 46), ("tumour", 50, 150)])
def test_nuclei_have_their_size(kind: str, low: float, high: float) -> None:
    def areas(nuclei: Bank, mpp: float) -> float:
        threshold = 0.5 * float(np.median(nuclei.density))
        return float((nuclei.density > threshold).sum() / nuclei.count.size * mpp**2)

    fine, coarse = areas(bank(kind, 0.5, 0.35), 0.5), areas(bank(kind, 1.0, 0.35), 1.0)
    assert low < fine < high
    assert coarse == pytest.approx(fine, rel=0.2)


def test_stains_have_the_colours_of_hematoxylin_and_eosin() -> None:
    for site in range(8):
        table = colour_table(look_of(site)).reshape(256, 256)
        glass, nucleus, stroma = (int(table[h, e]) for h, e in ((0, 0), (80, 20), (5, 42)))
        (gr, gg, gb), (nr, ng, nb), (sr, sg, sb) = (
            (word & 255, word >> 8 & 255, word >> 16 & 255) for word in (glass, nucleus, stroma)
        )
        assert min(gr, gg, gb) > 220
        assert nb > nr - 6 > ng  # blue-purple
        assert sr > sb > sg  # pink
        assert nr + ng + nb < sr + sg + sb < gr + gg + gb
    assert look_of(1) != look_of(2)
    assert look_of("here") == look_of("here")
