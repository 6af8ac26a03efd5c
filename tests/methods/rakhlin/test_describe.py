"""Descriptors against the plain reading of the paper: augment, crop, encode one at a time, pool."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lobule.color import augment_stains
from lobule.errors import CaseError, ConfigError
from lobule.methods.rakhlin import crops
from lobule.methods.rakhlin.config import Config
from lobule.methods.rakhlin.describe import (
    Describer,
    augment_stains_by_tables,
    crop_tensor,
    p_norm_tensor,
    random_params,
)
from lobule.methods.rakhlin.encoders import Plan, build, scale_pixels
from lobule.scanning.contract import Batch, EngineSettings, ScanOptions
from lobule.scanning.device import max_bytes_on
from tests.reference.rakhlin import augmented_crops

CONFIG = Config(
    encoders=("squeezenet1_1@features.3", "resnet18@layer1"), inputs=("torchvision", "caffe"), sizes=(40, 56),
    augmentations=2, crops=3,
)  # fmt: skip
IMAGE = np.random.default_rng(2).integers(0, 256, (70, 90, 3), np.uint8)
SEED = 7


def describer() -> Describer:
    new_describer = Describer(CONFIG, {n: build(Plan.of(CONFIG, n)) for n in range(2)})
    new_describer.move_to_device(replace(EngineSettings(), batch=2), ScanOptions())
    return new_describer


def batch_of(image_describer: Describer, images: list[Any], keys: list[tuple[str, int]]) -> Batch:
    params = random_params(CONFIG, image_describer.sets, keys, np.array([[70, 90]]), SEED, "x.png")
    flat = torch.from_numpy(np.stack(images).reshape(len(images), 1, -1, 3))
    return Batch(flat, {name: torch.from_numpy(values) for name, values in params.items()})


def plain(key: str, augmentation: int, set_: Any, encoder: Any) -> np.ndarray:
    """One set's descriptor of one augmentation, as the paper reads."""
    rng = crops.generator_of(SEED, key, set_.name, augmentation)
    cut = augmented_crops(IMAGE, set_.size, rng, count=CONFIG.crops)
    with torch.inference_mode():
        one_by_one = [
            encoder(scale_pixels(torch.from_numpy(crop.copy())[None], encoder.plan)) for crop in cut
        ]
    return crops.p_norm(torch.cat(one_by_one).numpy())


def test_descriptors_are_those_of_the_plain_reading() -> None:
    image_describer = describer()
    with torch.inference_mode():
        actual = image_describer.describe(batch_of(image_describer, [IMAGE, IMAGE], [("a", 0), ("a", 1)]))
    assert list(actual) == [set_.name for set_ in CONFIG.sets]
    for set_ in CONFIG.sets:
        for augmentation in (0, 1):
            expected = plain("a", augmentation, set_, image_describer.encoders[set_.encoder])
            got = actual[set_.name][augmentation].numpy()
            assert np.abs(got - expected).max() / np.abs(expected).max() < 1e-5
    assert not np.allclose(actual[CONFIG.sets[0].name][0], actual[CONFIG.sets[0].name][1])


def test_a_batch_gives_what_its_fields_give_alone() -> None:
    image_describer = describer()
    other = IMAGE[::-1].copy()
    with torch.inference_mode():
        both = image_describer.describe(batch_of(image_describer, [IMAGE, other], [("a", 0), ("b", 0)]))
        alone = image_describer.describe(batch_of(image_describer, [other], [("b", 0)]))
    for name, rows in alone.items():
        torch.testing.assert_close(both[name][1], rows[0], rtol=1e-4, atol=1e-6)


@given(st.integers(0, 2**32), st.floats(0.7, 1.3), st.floats(0.7, 1.3))
def test_stains_by_tensors_are_the_same_bytes(seed: int, hematoxylin: float, eosin: float) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)
    actual = augment_stains_by_tables(torch.from_numpy(image), hematoxylin, eosin).numpy()
    np.testing.assert_array_equal(actual, augment_stains(image, hematoxylin, eosin))


@given(st.integers(0, 3), st.booleans(), st.booleans(), st.integers(0, 5), st.integers(0, 7))
def test_crops_of_tensors_are_crops(turns: int, down: bool, across: bool, top: int, left: int) -> None:
    image = np.arange(12 * 14 * 3, dtype=np.int32).reshape(12, 14, 3)
    expected = crops.Crop(top, left, 6, turns, down, across).of(image)
    actual = crop_tensor(torch.from_numpy(image), 6, top, left, turns, int(down), int(across))
    np.testing.assert_array_equal(actual.numpy(), expected)


def test_pooling_of_tensors_is_pooling() -> None:
    features = np.random.default_rng(1).normal(0, 1, (20, 30))
    np.testing.assert_allclose(
        p_norm_tensor(torch.from_numpy(features), 3).numpy(), crops.p_norm(features, 3)
    )


def test_crops_at_twice_the_scale_come_of_the_larger_image() -> None:
    config = replace(CONFIG, encoders=("squeezenet1_1@features.3",), inputs=(), full_scale=True, sizes=(40,))
    image_describer = Describer(config, {0: build(Plan.of(config, 0))})
    image_describer.move_to_device(EngineSettings(), ScanOptions())
    small, large = np.full((50, 60, 3), 40, np.uint8), np.full((100, 120, 3), 210, np.uint8)
    params = random_params(config, image_describer.sets, [("k", 0)], np.array([[50, 60], [100, 120]]), 0, "x")
    row = np.concatenate([small.reshape(-1, 3), large.reshape(-1, 3)])[None, None]
    tensors = {name: torch.from_numpy(values) for name, values in params.items()}
    with torch.inference_mode():
        actual = image_describer.describe(Batch(torch.from_numpy(row), tensors))
        for (name, rows), grey, side in zip(actual.items(), (40, 210), (40, 80), strict=True):
            flat = augment_stains(np.full((side, side, 3), grey, np.uint8), *params["stains"][0, side // 80])
            encoder = image_describer.encoders[0]
            expected = encoder(scale_pixels(torch.from_numpy(flat)[None], encoder.plan))[0]
            assert name.endswith("full") == (side == 80)
            torch.testing.assert_close(rows[0], expected, rtol=1e-4, atol=1e-6)


def test_stains_may_be_left_alone() -> None:
    config = replace(CONFIG, stain_range=(1.0, 1.0), encoders=("tiny",), inputs=())
    image_describer = Describer(config, {0: build(Plan("tiny"))})
    image = torch.from_numpy(IMAGE)
    assert image_describer.augment(image, (1.0, 1.0)) is image


def test_crops_are_batched_by_the_memory_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG-16 needs about 0.2 GB for the first maps of a crop of 650 px, twice that with headroom."""
    config = replace(CONFIG, encoders=("vgg16",), inputs=(), sizes=(400, 650))
    image_describer = Describer(config, {0: build(Plan.of(config, 0))})
    on_cpu = image_describer.choose_batch(EngineSettings(), 1 << 30, ScanOptions())
    assert on_cpu.batch == 2
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (32 << 30, 40 << 30))
    free_bytes = max_bytes_on("cuda:0", 1 << 30)
    on_gpu = image_describer.choose_batch(EngineSettings(device="cuda:0"), free_bytes, ScanOptions())
    map_bytes = 2 * 64 * 650 * 650 * 4  # input and output of the second convolution
    assert on_gpu.batch == min(int(0.6 * (32 << 30) / (2 * map_bytes)), (1 << 24) // 650**2)
    assert on_gpu.batch > 30


def test_crops_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CaseError, match=r"x\.png: too small for crops of 56 px"):
        random_params(CONFIG, describer().sets, [("a", 0)], np.array([[56, 90]]), 0, "x.png")
    config = replace(CONFIG, encoders=("tiny",), inputs=(), sizes=(100,))
    with pytest.raises(ConfigError, match="tiny cannot take crops of 100 px"):
        Describer(config, {0: build(Plan("tiny"))}).choose_batch(EngineSettings(), 1 << 30, ScanOptions())
