"""Bicubic resizing against OpenCV's recorded bytes, torch's bicubic and closed forms."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lobule.resize import cubic_taps, halve, resize_cubic


@pytest.mark.parametrize("index", [0, 1])
def test_halved_bytes_are_opencvs(goldens: Path, kit: Path, index: int) -> None:
    expected = json.loads((goldens / "rakhlin/goldens.json").read_text())["images"][index]
    file = next(kit.rglob(Path(expected["file"]).name))
    rgb = np.asarray(Image.open(file).convert("RGB"))
    if hashlib.sha256(rgb.tobytes()).hexdigest() != expected["decoded_rgb"]["sha256"]:
        pytest.skip("this machine's JPEG decoder gives other bytes")
    half = halve(rgb)
    assert half.shape == tuple(expected["half_rgb"]["shape"])
    assert hashlib.sha256(half.tobytes()).hexdigest() == expected["half_rgb"]["sha256"]


def test_the_weights_of_a_half_are_the_closed_form() -> None:
    indices, weights = cubic_taps(10, 5, 2.0)
    np.testing.assert_array_equal(
        weights, np.tile(np.float32([-0.09375, 0.59375, 0.59375, -0.09375]), (5, 1))
    )
    np.testing.assert_array_equal(indices[0], [0, 0, 1, 2])
    np.testing.assert_array_equal(indices[-1], [7, 8, 9, 9])


def test_eight_bits_round_half_to_even_and_saturate() -> None:
    column = np.array([0, 0, 255, 255, 0, 0], np.uint8)[:, None].repeat(6, axis=1)
    np.testing.assert_array_equal(halve(column)[:, 0], [0, 255, 0])  # -24 and 303 before saturation
    # rows of 0 but one of 16: 16 · 0.59375 = 9.5, to even is 10; with 80: 47.5 is 48; with 112: 66.5 is 66
    for level, expected in ((16, 10), (80, 48), (112, 66)):
        rows = np.zeros((8, 8), np.uint8)
        rows[2] = level
        assert halve(rows)[1, 1] == expected


@settings(max_examples=25, deadline=None)
@given(st.integers(5, 40), st.integers(5, 40), st.integers(2, 50), st.integers(2, 50), st.integers(0, 99))
def test_float_agrees_with_torch(rows: int, columns: int, height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).normal(size=(rows, columns, 2)).astype(np.float32)
    ours = resize_cubic(image, height, width)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(batch, (height, width), mode="bicubic", align_corners=False)
    np.testing.assert_allclose(ours, theirs[0].permute(1, 2, 0).numpy(), atol=2e-4)


def test_eight_bits_agree_with_float_within_a_level() -> None:
    image = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    exact = resize_cubic(image.astype(np.float32), 50, 29)
    eight = resize_cubic(image, 50, 29)
    assert eight.dtype == np.uint8
    assert np.abs(eight - np.clip(exact, 0, 255)).max() <= 1.0


def test_odd_sides_halve_to_even_sizes_with_step_two() -> None:
    ramp = np.arange(45, dtype=np.float32)[:, None].repeat(7, axis=1)
    half = halve(ramp)
    assert half.shape == (22, 4)  # 22.5 and 3.5, both to even
    np.testing.assert_allclose(half[3:18, 0], 2 * np.arange(3, 18) + 0.5, rtol=1e-6)
