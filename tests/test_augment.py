"""Augmentation: zero strengths, geometry, colour formulas and reproducible random streams."""

from __future__ import annotations

import colorsys
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from lobule.augment import LUMA, NO_AUGMENTATION, Augmentation, AugmentConfig, augment, draw
from lobule.errors import ConfigError
from tests.reference.stains import mix_stains, separate_stains

EVERYTHING = AugmentConfig(
    hematoxylin=0.3, eosin=0.3, blur_sigma=1.5, blur_chance=0.5, jpeg_quality=40, jpeg_chance=0.5
)


def noise(rows: int = 40, columns: int = 40, seed: int = 0, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (rows, columns, 3), dtype=np.uint8)


def ramp(side: int = 64) -> np.ndarray:
    """A ramp of 1.5 levels per column and 2 per row, for which resampling has a known result."""
    y, x = np.mgrid[:side, :side]
    return np.stack([20 + 1.5 * x, 30 + 2.0 * y, 100 + 0 * x], axis=-1).round().astype(np.uint8)


@given(st.integers(0, 2**32 - 1))
def test_zero_strengths_change_nothing(seed: int) -> None:
    patch = noise(9, 9, seed % 1000)
    np.testing.assert_array_equal(augment(patch, NO_AUGMENTATION, np.random.default_rng(seed)), patch)
    same = Augmentation().apply(patch)
    np.testing.assert_array_equal(same, patch)
    assert not np.shares_memory(same, patch)
    assert same.flags.writeable


@pytest.mark.parametrize("change", [{"brightness": 1e-9}, {"hematoxylin": 1 + 1e-9}, {"contrast": 1 + 1e-9}])
def test_the_table_lookup_is_exact(change: dict[str, float]) -> None:
    every_level = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    for patch in (every_level, noise(50, 50)):
        np.testing.assert_array_equal(Augmentation(**change).apply(patch), patch)


@pytest.mark.parametrize("colour", [{}, {"brightness": 1e-9}], ids=["bytes moved", "through colour"])
def test_flips_and_rotations_equal_numpy_and_are_reversible(colour: dict[str, float]) -> None:
    patch = noise(12, 17)
    for turns in range(4):
        turned = Augmentation(turns=turns, **colour).apply(patch)
        np.testing.assert_array_equal(turned, np.rot90(patch, turns))
        np.testing.assert_array_equal(Augmentation(turns=(4 - turns) % 4, **colour).apply(turned), patch)
        flipped = Augmentation(turns=turns, flip=True, **colour)
        np.testing.assert_array_equal(flipped.apply(patch), np.rot90(patch, turns)[:, ::-1])
        if turns % 2 == 0:
            np.testing.assert_array_equal(flipped.apply(flipped.apply(patch)), patch)


def test_the_eight_orientations_are_drawn_evenly() -> None:
    rng = np.random.default_rng(0)
    draws = [draw(AugmentConfig(), rng) for _ in range(4000)]
    counts = np.bincount([a.turns + 4 * a.flip for a in draws], minlength=8)
    assert np.abs(counts - 500).max() < 110


def test_a_larger_patch_is_cut_to_its_centre() -> None:
    patch = noise(50, 50)
    np.testing.assert_array_equal(Augmentation().apply(patch, 40), patch[5:45, 5:45])


@pytest.mark.parametrize("zoom", [0.8, 0.93, 1.1, 1.25])
def test_zooming_scales_a_ramp_about_the_centre(zoom: float) -> None:
    side = 64
    wide = ramp(side + 20)
    out = Augmentation(zoom=zoom).apply(wide, side)
    offset = (np.arange(side) + 0.5 - side / 2) / zoom + (side + 20) / 2 - 0.5
    np.testing.assert_allclose(out[32, 4:-4, 0], 20 + 1.5 * offset[4:-4], atol=1.1)
    np.testing.assert_allclose(out[4:-4, 32, 1], 30 + 2.0 * offset[4:-4], atol=1.1)


def test_the_source_side_gives_real_pixels_to_the_edge() -> None:
    config = replace(NO_AUGMENTATION, scale=0.25)
    side = config.source_side(64)
    assert side == 80
    assert AugmentConfig(scale=0).source_side(244) == 244
    assert (AugmentConfig(scale=0.1).source_side(244) - 244) % 2 == 0
    out = Augmentation(zoom=1 / 1.25).apply(ramp(side), 64)
    np.testing.assert_allclose(np.diff(out[32, 1:-1, 0].astype(float)).mean(), 1.5 * 1.25, rtol=0.02)
    mirrored = Augmentation(zoom=1 / 1.25).apply(ramp(64))
    assert mirrored.shape == (64, 64, 3)
    offset = (np.arange(64) + 0.5 - 32) * 1.25 + 31.5
    np.testing.assert_allclose(mirrored[32, 10:-10, 0], 20 + 1.5 * offset[10:-10], atol=1.1)


def test_stain_changes_equal_colour_deconvolution() -> None:
    patch = noise(60, 60, low=60, high=250)
    stains = separate_stains(patch) * [1.2, 0.85, 1.0]
    expected = mix_stains(stains)
    ours = Augmentation(hematoxylin=1.2, eosin=0.85).apply(patch)
    assert np.abs(ours.astype(int) - expected).max() <= 1
    assert (ours != expected).mean() < 1e-3


def plain_colour(patch: np.ndarray, a: Augmentation) -> np.ndarray:
    """Reference in float64: saturation and hue in YIQ, brightness, then contrast around the means."""
    yiq = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    y, i, q = np.moveaxis(patch.astype(float) @ yiq.T, -1, 0)
    chroma = (i + 1j * q) * a.saturation * np.exp(2j * np.pi * a.hue)
    rgb = np.stack([y, chroma.real, chroma.imag], axis=-1) @ np.linalg.inv(yiq).T + 255 * a.brightness
    mean = rgb.mean(axis=(0, 1))
    return np.clip(np.floor(mean + a.contrast * (rgb - mean) + 0.5), 0, 255)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(-0.25, 0.25),
    st.floats(0.5, 1.5),
    st.floats(-0.1, 0.1),
    st.floats(0, 1.75),
)
def test_colour_changes_follow_the_formulas(seed: int, b: float, s: float, h: float, c: float) -> None:
    a = Augmentation(brightness=b, saturation=s, hue=h, contrast=c)
    patch = noise(24, 24, seed)
    difference = np.abs(a.apply(patch) - plain_colour(patch, a))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_invariants_of_each_colour_change() -> None:
    patch = noise(30, 30, low=60, high=190)
    grey = np.repeat(patch[..., :1], 3, axis=2)
    np.testing.assert_array_equal(Augmentation(saturation=0.6, hue=0.04).apply(grey), grey)
    unsaturated = Augmentation(saturation=0.0).apply(patch).astype(float)
    assert np.ptp(unsaturated, axis=-1).max() <= 1
    np.testing.assert_allclose(unsaturated.mean(axis=-1), patch @ LUMA, atol=1)
    contrast = Augmentation(contrast=0.5).apply(patch).astype(float)
    np.testing.assert_allclose(contrast.mean(axis=(0, 1)), patch.mean(axis=(0, 1)), atol=0.3)
    np.testing.assert_allclose(contrast.std(axis=(0, 1)), 0.5 * patch.std(axis=(0, 1)), rtol=0.01)
    flat = Augmentation(contrast=0.0).apply(patch)
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1
    np.testing.assert_array_equal(Augmentation(brightness=10 / 255).apply(patch), patch + 10)
    red = np.full((4, 4, 3), [200, 80, 80], np.uint8)
    hue, _, _ = colorsys.rgb_to_hsv(*(Augmentation(hue=-0.04).apply(red)[0, 0] / 255))
    assert 0.01 < min(hue, 1 - hue) < 0.09


def test_blur_approximates_a_gaussian() -> None:
    patch = noise(64, 64)
    for sigma in (0.8, 1.5):
        ours = Augmentation(blur_sigma=sigma).apply(patch).astype(float)
        exact = gaussian_filter(patch.astype(float), (sigma, sigma, 0), mode="nearest")
        error = np.abs(ours - exact)[6:-6, 6:-6].mean()
        assert error < 0.2 * np.abs(patch - exact).mean()
        assert error < 6


def test_lower_jpeg_quality_has_a_larger_error() -> None:
    patch = ramp(64)
    patch[::3, ::2] //= 2
    off = [np.abs(Augmentation(jpeg_quality=q).apply(patch).astype(int) - patch).mean() for q in (95, 60, 20)]
    assert 0 < off[0] < off[1] < off[2] < 40


def test_the_random_stream_does_not_depend_on_the_strengths() -> None:
    patch = noise(44, 44)

    def stream(seed: int) -> list[bytes]:
        rng = np.random.default_rng(seed)
        return [augment(patch, EVERYTHING, rng, 40).tobytes() for _ in range(8)]

    assert stream(7) == stream(7)
    assert all(a != b for a, b in zip(stream(7), stream(8), strict=True))
    strong, weak = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(5):
        a, b = (
            draw(EVERYTHING, strong),
            draw(replace(EVERYTHING, contrast=0, jpeg_quality=0, flips=False), weak),
        )
        assert (a.turns, a.zoom, a.hue) == (b.turns, b.zoom, b.hue)


def test_drawn_values_cover_their_ranges() -> None:
    rng = np.random.default_rng(1)
    draws = [draw(EVERYTHING, rng) for _ in range(3000)]
    for name, low, high in (
        ("zoom", 1 / 1.1, 1.1),
        ("hematoxylin", 0.7, 1.3),
        ("eosin", 0.7, 1.3),
        ("brightness", -64 / 255, 64 / 255),
        ("saturation", 0.75, 1.25),
        ("hue", -0.04, 0.04),
        ("contrast", 0.25, 1.75),
    ):
        values = np.array([getattr(a, name) for a in draws])
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
    sigmas = np.array([a.blur_sigma for a in draws])
    assert 0.45 < (sigmas > 0).mean() < 0.55
    qualities = np.array([a.jpeg_quality for a in draws if a.jpeg_quality])
    assert (qualities.min(), qualities.max()) == (40, 95)


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_every_augmentation_returns_uint8_of_the_right_shape(seed: int) -> None:
    patch = noise(33, 33, seed)
    before = patch.copy()
    out = augment(patch, EVERYTHING, np.random.default_rng(seed), 30)
    assert (out.shape, out.dtype) == ((30, 30, 3), np.uint8)
    assert out.flags.c_contiguous
    assert out.flags.writeable
    np.testing.assert_array_equal(patch, before)


@pytest.mark.parametrize(
    "wrong", [{"contrast": 1.5}, {"scale": -0.1}, {"jpeg_quality": 96}, {"blur_chance": 2.0}, {"eosin": -1.0}]
)
def test_strengths_out_of_range_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        AugmentConfig(**wrong)


def test_every_strength_affects_the_drawn_augmentation() -> None:
    """Fails if a strength is added to the config but not used in `draw`."""
    strengths = {f.name for f in fields(AugmentConfig)} - {"blur_chance", "jpeg_chance"}
    for name in strengths:
        value = True if name in ("flips", "quarter_turns") else 40 if name == "jpeg_quality" else 0.3
        config = replace(NO_AUGMENTATION, blur_chance=1.0, jpeg_chance=1.0, **{name: value})
        rng = np.random.default_rng(0)
        assert any(draw(config, rng) != Augmentation() for _ in range(20)), name
