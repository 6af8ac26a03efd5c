"""Teachers of reverse distillation: their maps, standardised channels, and the students that fit them."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from lobule.errors import ConfigError, ModelError
from lobule.nets.reverse_distillation import (
    STUDENT_BLOCKS,
    Student,
    StudentShape,
)
from lobule.nets.scaling import InputScaling
from lobule.nets.teachers import (
    ChannelStatistics,
    SqueezeNetStages,
    Teacher,
    load_teacher_weights,
    teacher,
)
from tests.reference.anomaly import patch_scores


def test_a_resnet_teacher_is_torchvisions_first_three_layers() -> None:
    net = torchvision.models.resnet18(weights=None).eval()
    frozen = teacher("resnet18")
    load_teacher_weights(frozen, net.state_dict())
    assert not any("layer4" in key for key in frozen.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(images)))))
        expected = (x, net.layer2(x), net.layer3(net.layer2(x)))
    for ours, theirs in zip(frozen(images), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert [tuple(m.shape[1:]) for m in expected] == [(64, 16, 16), (128, 8, 8), (256, 4, 4)]
    assert frozen.student_shape() == StudentShape((64, 128, 256), **STUDENT_BLOCKS["resnet18"])
    identity = frozen.identity()
    net.bn1.running_mean += 0.1
    load_teacher_weights(frozen, net.state_dict())
    assert frozen.identity()["weights_sha256"] != identity["weights_sha256"]
    with pytest.raises(ModelError, match="another backbone"):
        load_teacher_weights(frozen, {"conv1.weight": torch.zeros(1)})
    deeper = torchvision.models.resnet34(weights=None).state_dict()
    with pytest.raises(ModelError, match="surplus"):  # more blocks than ResNet-18
        load_teacher_weights(frozen, deeper)


def test_a_teacher_never_trains() -> None:
    frozen = teacher("resnet18")
    nn.ModuleList([frozen]).train()
    before = frozen.identity()
    maps = frozen(torch.randn(2, 3, 64, 64))
    assert frozen.identity() == before
    assert not any(m.requires_grad for m in maps)
    assert not any(module.training for module in frozen.modules())


def test_standardised_maps_have_mean_0_and_spread_1_in_every_channel() -> None:
    """Statistics of two batches of different sizes, compared with NumPy over both."""
    torch.manual_seed(0)
    frozen = teacher("resnet18")
    published = frozen.identity()
    batches = [torch.randn(3, 3, 64, 64), 2 * torch.randn(5, 3, 64, 64)]
    raw = [frozen(images) for images in batches]
    statistics = ChannelStatistics()
    for maps in raw:
        statistics.add(maps)
    frozen.standardise(*statistics.result())
    standard = [frozen(images) for images in batches]
    for stage in range(3):
        before, after = (
            np.concatenate([np.moveaxis(m[stage].double().numpy(), 1, 0).reshape(m[stage].shape[1], -1)
                            for m in both], axis=1)
            for both in (raw, standard)
        )  # fmt: skip
        floor = 0.01 * before.std(axis=1).mean()
        spread = np.maximum(before.std(axis=1, keepdims=True), floor)
        np.testing.assert_allclose(after, (before - before.mean(axis=1, keepdims=True)) / spread, atol=2e-3)
    assert frozen.identity() != published
    assert {"mean1", "spread3"} <= set(frozen.state_dict())
    assert frozen.student_shape().signed


def test_a_constant_channel_is_divided_by_a_share_of_the_mean_spread() -> None:
    maps = torch.stack([torch.full((2, 4, 4), 7.0), torch.arange(32.0).reshape(2, 4, 4)], dim=1)
    statistics = ChannelStatistics()
    statistics.add((maps, maps, maps))
    means, spreads = statistics.result()
    expected = np.arange(32.0).std()
    np.testing.assert_allclose(means[0], [7, 15.5])
    np.testing.assert_allclose(spreads[0], [0.01 * expected / 2, expected], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "multiple", "signed"),
    [
        ("resnet18", 32, False),
        ("squeezenet1_1", 32, False),
        ("tiny", 32, False),
        ("timm:regnetx_002", 32, False),
        ("timm:mobilenetv3_small_100", 32, True),
        ("timm:convnext_atto", 32, True),
        ("timm:vit_tiny_patch16_224", 128, True),
        pytest.param("timm:swin_tiny_patch4_window7_224", 32, True, marks=pytest.mark.campaign),
        pytest.param("timm:efficientnet_b0", 32, True, marks=pytest.mark.campaign),
        pytest.param("wide_resnet50_2", 32, False, marks=pytest.mark.campaign),
    ],
)
def test_every_backbone_has_a_matching_student_even_for_odd_sides(
    name: str, multiple: int, signed: bool
) -> None:
    frozen = teacher(name)
    assert frozen.multiple == multiple
    shape = frozen.student_shape()
    assert shape.signed == signed
    student = Student(shape).eval()
    rows, columns = multiple + 7, multiple
    assert frozen.padded_size(rows, columns) == (2 * multiple, multiple)
    with torch.no_grad():
        maps = frozen(torch.randn(1, 3, rows, columns))
        rebuilt = student(maps)
    assert [m.shape for m in maps] == [m.shape for m in rebuilt]
    if signed:
        assert any(bool((m < 0).any()) for m in rebuilt)
    scores = patch_scores(maps, rebuilt, (rows, columns), frozen.padded_size(rows, columns))
    assert scores["anomaly"].shape == (1, rows, columns)
    assert scores["mean"].isfinite().all()


def test_unsuitable_backbones_are_rejected() -> None:
    with pytest.raises(ConfigError, match="no such teacher"):
        teacher("convnext_tiny")
    with pytest.raises(ConfigError, match=r"cannot be a teacher.*strides \[4, 4, 8\]"):
        Teacher("odd", nn.Conv2d(3, 3, 1), (4, 4, 8), InputScaling())


def test_squeezenet_is_torchvisions_features_of_an_image_with_its_edge_repeated() -> None:
    net = torchvision.models.squeezenet1_1(weights=None).eval()
    frozen = teacher("squeezenet1_1")
    load_teacher_weights(frozen, net.state_dict())
    images = torch.randn(1, 3, 64, 96)
    wide = nn.functional.pad(images, (0, 1, 0, 1), mode="replicate")
    with torch.no_grad():
        for ours, end in zip(frozen(images), (5, 8, 13), strict=True):
            np.testing.assert_allclose(ours, net.features[:end](wide), rtol=1e-5, atol=1e-6)
    assert [m.shape[1:] for m in frozen(images)] == [(128, 16, 24), (256, 8, 12), (512, 4, 6)]
    with pytest.raises(ConfigError, match="no published weights"):
        teacher("tiny", pretrained=True)


def test_weights_with_other_shapes_are_rejected() -> None:
    into = teacher("tiny")
    state = {name: value.clone() for name, value in into.stages.state_dict().items()}
    state["stem.0.weight"] = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ModelError, match=r"to another backbone.*stem\.0\.weight"):
        load_teacher_weights(into, state)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "wide_resnet50_2"])
def test_the_decoder_mirrors_the_stages_of_the_teacher(name: str) -> None:
    with torch.device("meta"):
        resnet = torchvision.models.get_model(name, weights=None)
    assert STUDENT_BLOCKS[name]["decoder_blocks"] == tuple(
        len(resnet.get_submodule(f"layer{k}")) for k in (1, 2, 3)
    )


def test_squeezenet_repeats_one_column_and_one_row() -> None:
    """On a square image of odd side, each map is square, too."""
    torch.manual_seed(0)
    stages = SqueezeNetStages(torchvision.models.squeezenet1_1(weights=None)).eval()
    with torch.inference_mode():
        maps = stages(torch.rand(1, 3, 67, 67))
        square = [tuple(stage.shape[-2:]) for stage in maps]
    assert square == [(16, 16), (8, 8), (4, 4)]


@pytest.mark.parametrize(("every_depth", "blocks"), [(True, [1, 3, 5]), (False, [0, 1, 2])])
def test_maps_of_transformers_come_from_thirds_of_their_depth(every_depth: bool, blocks: list[int]) -> None:
    """Compared with timm's own intermediate outputs; test_vit has six blocks."""
    frozen = teacher("timm:test_vit", every_depth=every_depth)
    body = timm.create_model("test_vit", pretrained=False, dynamic_img_size=True).eval()
    prefix = "backbone.model."
    stored = {name.removeprefix(prefix): tensor for name, tensor in frozen.stages.state_dict().items()}
    assert not body.load_state_dict(stored, strict=False).unexpected_keys
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        maps = body.forward_intermediates(images, indices=blocks, intermediates_only=True, norm=False)
    expected = [nn.functional.avg_pool2d(m, pool) for m, pool in zip(maps, (1, 2, 4), strict=True)]
    torch.testing.assert_close(list(frozen(images)), expected)
    assert frozen.identity().get("every_depth", False) == every_depth


def test_depth_does_not_change_convolutional_teachers() -> None:
    deep, shallow = (teacher("timm:resnet10t", every_depth=every_depth) for every_depth in (True, False))
    assert deep.strides == shallow.strides
    assert set(deep.state_dict()) == set(shallow.state_dict())
    assert "every_depth" not in deep.identity()
