"""Crops, pooling and draws against the recorded numbers and by properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lobule.errors import CaseError
from lobule.methods.rakhlin import crops
from tests.reference.rakhlin import augmented_crops


@pytest.fixture(scope="module")
def expected(goldens: Path) -> dict[str, Any]:
    return json.loads((goldens / "rakhlin/goldens.json").read_text())


def test_crops_turn_and_flip_in_the_published_order(expected: Any) -> None:
    row, column, channel = np.ogrid[:12, :10, :3]
    pattern = ((37 * row + 11 * column + 5 * channel + 3) % 256).astype(np.uint8)
    for case in expected["crops"]["cases"]:
        crop = crops.Crop(case["top"], case["left"], 7, case["rot90"], case["flipud"], case["fliplr"])
        np.testing.assert_array_equal(crop.of(pattern)[..., 0], case["channel0"])


def golden_features() -> np.ndarray:
    i, d = np.ogrid[:20, :16]
    return np.abs(np.sin(0.7 * i + 1.3 * d + 3)) * (1 + 0.1 * d)


def test_pooling(expected: Any) -> None:
    features = golden_features()
    np.testing.assert_allclose(crops.p_norm(features, 3), expected["pooling"]["p3"], rtol=1e-12)
    np.testing.assert_allclose(crops.p_norm(features, 1), expected["pooling"]["p1"], rtol=1e-12)


def test_worked_pooling_and_negative_means() -> None:
    features = golden_features()
    np.testing.assert_allclose(crops.p_norm(features)[:3], [0.730452, 0.852000, 0.879420], atol=1e-6)
    features[:, 3] *= -1
    published = crops.p_norm(features, signed=False)
    assert np.isnan(published).tolist() == [column == 3 for column in range(16)]
    np.testing.assert_allclose(crops.p_norm(features)[3], -crops.p_norm(golden_features())[3])


def test_draws_of_stains_replay_the_original(expected: Any) -> None:
    for case in expected["randomstate_draws"]:
        draws = crops.draw_stains(np.random.RandomState(case["seed"]))
        np.testing.assert_allclose(draws, case["h_e"], rtol=0, atol=1e-15)


def test_drawn_crops_cover_their_range_evenly() -> None:
    rng = np.random.default_rng(0)
    random_params = [crops.draw_crop(rng, 13, 12, 10) for _ in range(4000)]
    for values, kinds in (
        ([c.top for c in random_params], 4),
        ([c.left for c in random_params], 3),
        ([c.quarter_turns for c in random_params], 4),
        ([c.flip_vertical for c in random_params], 2),
        ([c.flip_horizontal for c in random_params], 2),
    ):
        counts = np.bincount(values)
        assert len(counts) == kinds
        assert np.abs(counts - 4000 / kinds).max() < 5 * (4000 / kinds) ** 0.5


def test_an_image_not_larger_than_the_crop_is_refused() -> None:
    with pytest.raises(CaseError, match=r"slide_7\.tif: too small for crops of 400 px.*448 × 384 px"):
        crops.draw_crop(np.random.default_rng(0), 384, 448, 400, "slide_7.tif")
    with pytest.raises(CaseError):
        crops.draw_crop(np.random.default_rng(0), 400, 500, 400)


def test_augmented_crops_are_a_function_of_image_set_and_augmentation() -> None:
    image = np.random.default_rng(9).integers(0, 256, (60, 50, 3), dtype=np.uint8)

    def crop_bytes(*key: Any) -> bytes:
        made_crops = augmented_crops(image, 40, crops.generator_of(*key), count=3)
        assert made_crops.shape == (3, 40, 40, 3)
        return made_crops.tobytes()

    reference = crop_bytes(1, "a.tif", "resnet-400", 0)
    assert crop_bytes(1, "a.tif", "resnet-400", 0) == reference
    other_keys = [(2, "a.tif", "resnet-400", 0), (1, "b.tif", "resnet-400", 0), (1, "a.tif", "vgg-400", 0)]
    assert all(crop_bytes(*other) != reference for other in [*other_keys, (1, "a.tif", "resnet-400", 1)])


def test_preparing_halves_then_normalises() -> None:
    glass = np.full((40, 60, 3), 255, np.uint8)
    result = crops.resize_and_normalise(glass)
    assert result.degenerate
    np.testing.assert_array_equal(result.rgb, np.full((20, 30, 3), 255, np.uint8))
