"""Encoders of the table in `rakhlin` and `reverse_distillation`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lobule.encoders import ENCODERS, licences_of
from lobule.encoders.load import open_encoder
from lobule.errors import ConfigError, ModelError
from lobule.methods.rakhlin.config import Config as RakhlinConfig
from lobule.methods.rakhlin.encoders import (
    Plan,
    build,
    load_weights,
    pretrained,
    scale_pixels,
    with_folded_norms,
)
from lobule.methods.reverse_distillation.encoder_teachers import find_teacher, load_encoder_weights
from tests.encoders.published import LAYOUTS, checkpoint, features, random_weights, small_entry


@pytest.fixture
def small_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace transformers of the table by small ones with the same layout."""
    for name in ("kaiko-vits16", "hibou-l", "gpfm"):
        monkeypatch.setitem(ENCODERS, name, small_entry(name))


def weights_file(name: str, folder: Path) -> Path:
    path = folder / f"{name}.safetensors"
    tensors = checkpoint(random_weights(LAYOUTS[name]))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path


# -- rakhlin ------------------------------------------------------------------------------------------------


def plan_of(name: str) -> Plan:
    return Plan.of(RakhlinConfig(encoders=(name,), weights=("random",)), 0)


def test_crops_are_resized_to_the_input_of_a_transformer(small_table: None, tmp_path: Path) -> None:
    """The reference resizes with Pillow and computes the published network in plain operations."""
    plan = plan_of("kaiko-vits16")
    assert plan.input == "encoder"
    encoder = pretrained(plan, str(weights_file("kaiko-vits16", tmp_path)))
    crop = np.random.default_rng(0).integers(0, 256, (25, 25, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    with torch.no_grad():
        actual = with_folded_norms(encoder)(scale_pixels(torch.from_numpy(crop)[None], plan))
    resized = np.asarray(Image.fromarray(crop).resize((224, 224), Image.Resampling.BICUBIC))
    images = (torch.from_numpy(resized.copy()).float() / 255 - 0.5) / 0.5
    expected = features(random_weights(LAYOUTS["kaiko-vits16"]), images.permute(2, 0, 1)[None])
    assert encoder.widths() == (LAYOUTS["kaiko-vits16"].width,)
    assert float((actual - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_middle_stages_of_a_convolutional_encoder_are_pooled() -> None:
    plan = plan_of("efficientnet-lite0@blocks.2+blocks.4")
    encoder = build(plan)
    weights = open_encoder("efficientnet-lite0", "random")
    load_weights(encoder, weights.weights, "random")
    crops = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8)
    images = scale_pixels(crops, plan)
    torch.testing.assert_close(images, (crops.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5)
    body: Any = weights.net.get_submodule("body")
    with torch.no_grad():
        x = body.bn1(body.conv_stem(images))
        means = []
        for number, stage in enumerate(body.blocks):
            x = stage(x)
            if number in (2, 4):
                means.append(x.mean(dim=(2, 3)))
        torch.testing.assert_close(encoder(images), torch.cat(means, dim=1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(with_folded_norms(encoder)(images), encoder(images), atol=1e-4, rtol=1e-3)
    assert encoder.widths() == (40, 112)


def test_whole_convolutional_encoder_gives_its_features() -> None:
    plan = plan_of("efficientnet-lite0")
    encoder, weights = build(plan), open_encoder("efficientnet-lite0", "random")
    load_weights(encoder, weights.weights, "random")
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), weights.net(images))
    assert plan.input_side(400) == 400
    assert plan_of("kaiko-vits16").input_side(400) == 224


def test_layers_of_a_transformer_and_other_files_are_refused(small_table: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="layers of kaiko-vits16 cannot be pooled"):
        build(plan_of("kaiko-vits16@blocks.3"))
    with pytest.raises(ModelError, match="'kaiko-vits16'"):
        pretrained(plan_of("kaiko-vits16"), str(weights_file("gpfm", tmp_path)))


# -- reverse distillation -----------------------------------------------------------------------------------


def test_convolutional_encoder_is_a_teacher() -> None:
    frozen = find_teacher("efficientnet-lite0", 96)
    assert (frozen.name, frozen.strides) == ("efficientnet-lite0", (4, 8, 16))
    assert frozen.scaling.mean == (0.5, 0.5, 0.5)
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert [tuple(features.shape[1:]) for features in frozen(images)] == [
        (24, 24, 24), (40, 12, 12), (112, 6, 6),
    ]  # fmt: skip


def test_published_weights_reach_the_teacher(small_table: None, tmp_path: Path) -> None:
    """The last map of a transformer is that of its tokens, averaged in blocks of 4 × 4."""
    frozen = find_teacher("gpfm", 224)
    load_encoder_weights(frozen, ENCODERS["gpfm"], str(weights_file("gpfm", tmp_path)))
    assert frozen.strides == (14, 28, 56)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    weights = random_weights(LAYOUTS["gpfm"])
    encoder = open_encoder("gpfm", str(weights_file("gpfm", tmp_path)))
    body: Any = encoder.net.get_submodule("body")
    with torch.no_grad():
        maps = frozen(images)
        _, (last,) = body.forward_intermediates(images, indices=[LAYOUTS["gpfm"].depth - 1])
        expected = torch.nn.functional.avg_pool2d(last, 4)
    assert [tuple(features.shape[2:]) for features in maps] == [(16, 16), (8, 8), (4, 4)]
    torch.testing.assert_close(maps[2], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoder.net(images), features(weights, images), atol=1e-4, rtol=1e-4)


def test_transformers_that_need_another_grid_are_refused(small_table: None) -> None:
    with pytest.raises(ConfigError, match=r"'kaiko-vits16' cannot be a teacher.*patches of 14 px"):
        find_teacher("kaiko-vits16", 224)
    with pytest.raises(ConfigError, match=r"'hibou-l' sees images of 224 px only.*--set input=224"):
        find_teacher("hibou-l", 256)
    with pytest.raises(ConfigError, match="no such teacher"):
        find_teacher("nonsense", 224)


def test_licences_of_encoders_are_recorded() -> None:
    (stored,) = licences_of("hibou-l", "uni@x", "resnet18")["encoder_licence"][1:]
    assert stored["weights"] == "uni"
    assert stored["commercial"] is False
    assert licences_of("resnet18", "timm:resnet10t") == {}
