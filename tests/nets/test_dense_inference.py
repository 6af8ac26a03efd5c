"""Nets rewritten for running: the same outputs; and the input scaling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lobule.errors import ModelError
from lobule.nets import scaling as scaling_module
from lobule.nets.dense import densify
from lobule.nets.inference import fold_batch_norm, for_inference
from lobule.nets.receptive import geometry_of
from lobule.nets.scaling import PLAIN_SCALING, InputScaling
from tests.nets.scannet_recipe import golden_image, golden_net
from tests.nets.thin_nets import thin_backbone
from tests.reference.dense import offset_passes


@pytest.mark.parametrize("name", ["tiny", "resnet18", "squeezenet1_1", "vgg11_bn"])
def test_the_rewritten_net_gives_the_same(name: str) -> None:
    net = thin_backbone(name)
    quick = for_inference(net)
    side = geometry_of(net).extent
    x = torch.randn(2, 3, side, side + 33)
    with torch.inference_mode():
        expected = net(x)
        assert expected.std() > 1e-3
        torch.testing.assert_close(quick(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(densify(quick, 2)(x), offset_passes(net, x, 2), rtol=1e-4, atol=1e-5)
    assert geometry_of(quick) == geometry_of(net)
    kinds = [type(module) for module in quick.modules()]
    assert nn.BatchNorm2d not in kinds
    assert nn.Dropout not in kinds


def test_relu_comes_after_the_pool_and_the_net_is_left_alone() -> None:
    net = golden_net("order:").train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    quick = for_inference(net)
    names = [str(node.target) for node in quick.graph.nodes if node.op == "call_module"]
    assert names.index("pool1") < names.index("relu1_2")
    assert names.index("relu1_1") < names.index("conv1_2")
    assert net.training
    assert not any(module.training for module in quick.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_folding_keeps_a_norm_that_no_convolution_feeds() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    folded = fold_batch_norm(net)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == 1


def test_bf16_and_channels_last_run() -> None:
    dense = densify(for_inference(golden_net("bf16:")).bfloat16(), 4)
    x = golden_image(276, 261, 3)
    with torch.inference_mode():
        rough = dense(x.bfloat16().contiguous(memory_format=torch.channels_last))
        exact = offset_passes(golden_net("bf16:"), x, 4)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, atol=0.03, rtol=0.03)


def test_scaling_by_the_formula() -> None:
    scaling = InputScaling((0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    expected = (images / 255 - np.array(scaling.mean)) / np.array(scaling.std)
    scaled = scaling.apply(torch.from_numpy(images))
    assert scaled.shape == (2, 3, 5, 7)
    assert scaled.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(scaled.permute(0, 2, 3, 1).numpy(), expected, atol=2e-6)
    assert scaling.apply(torch.from_numpy(images), torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("block", [1, 21 * 3 * 2 * 5, 1 << 20])
def test_blocks_of_rows_have_the_bits_of_scaled_pixels(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(scaling_module, "BLOCK_VALUES", block)
    images = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (2, 37, 21, 3), np.uint8))
    for scaling in (InputScaling(), PLAIN_SCALING):
        scaled = scaling.write_rows(images, torch.empty(2, 37, 21, 3))
        assert scaled.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(scaled, scaling.apply(images))
        planes = scaling.write_planes(images, torch.empty(2, 3, 37, 21))
        assert planes.is_contiguous() and torch.equal(planes, scaled)
    with pytest.raises(ModelError, match="not RGB"):
        PLAIN_SCALING.write_rows(images.float(), torch.empty(2, 37, 21, 3))


def test_scaling_is_stored_and_read_back() -> None:
    assert InputScaling.from_dict(PLAIN_SCALING.as_dict()) == PLAIN_SCALING
    assert InputScaling().as_dict() == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    with pytest.raises(ModelError, match="three numbers"):
        InputScaling.from_dict({"mean": [1, 2], "std": [1, 1, 1]})


def test_scaling_refuses_what_is_not_rgb() -> None:
    with pytest.raises(ModelError, match="uint8"):
        InputScaling().apply(torch.zeros(1, 3, 8, 8))
