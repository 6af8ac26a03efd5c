"""Shapes by arithmetic, against those of torch's device "meta"."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lobule.nets import shapes
from lobule.nets.backbones import BACKBONES
from lobule.nets.dense import densify
from lobule.nets.encoders import encoder
from lobule.nets.inference import for_inference
from lobule.nets.receptive import geometry_of
from lobule.nets.resnet import BLOCKS, resnet


def on_meta(module: nn.Module, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """The output shape and the peak of the leaf modules' inputs and outputs, by torch's own arithmetic."""
    shadow = copy.deepcopy(module).to("meta").eval()
    peak = 0

    def count(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal peak
        peak = max(peak, sum(t.numel() * t.element_size() for t in (*inputs, output)))

    for leaf in shadow.modules():
        if not list(leaf.children()):
            leaf.register_forward_hook(count)
    return tuple(shadow(torch.empty(*shape, device="meta")).shape), peak


@pytest.fixture
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a network with an operation that has no rule fail, in place of using the device "meta"."""
    monkeypatch.setattr(shapes, "_on_meta", None)


@pytest.mark.parametrize("name", ["scannet_vgg16", "tiny", "resnet18", "squeezenet1_1"])
@pytest.mark.parametrize("alpha", [1, 4])
def test_dense_nets_have_the_shapes_of_torch(name: str, alpha: int, no_fallback: None) -> None:
    net = BACKBONES[name](2).eval()
    side = geometry_of(net).in_size(2) + 5
    dense = densify(for_inference(net), alpha)
    expected = on_meta(dense, (1, 3, side, side))
    assert shapes.output_shape(dense, (1, 3, side, side)) == expected[0]
    assert shapes.activation_bytes(dense, (1, 3, side, side)) == expected[1]


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_resnets_have_the_shapes_of_torch(name: str, no_fallback: None) -> None:
    net = resnet(name, 7).eval()
    assert (shapes.output_shape(net, (2, 3, 97, 80)), shapes.activation_bytes(net, (2, 3, 97, 80))) == (
        on_meta(net, (2, 3, 97, 80))
    )


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v2", "vit_b_16", "timm:convnext_atto"])
def test_other_encoders_have_the_shapes_of_torch(name: str) -> None:
    """Their operations may have no rule; then the device "meta" answers."""
    net = encoder(name, "random").net
    assert (shapes.output_shape(net, (1, 3, 224, 224)), shapes.activation_bytes(net, (1, 3, 224, 224))) == (
        on_meta(net, (1, 3, 224, 224))
    )


class Pooled(nn.Module):
    """Pools that round up, padding, slices and views."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.pad(self.pool(x), (0, 3, 1, 0))
        y = torch.cat([y[..., 1:, :-1], y[..., :-1, 1:]], dim=1) * 2.0
        return (y.permute(0, 2, 3, 1).reshape(x.shape[0], -1) + 1.0).mean(dim=1, keepdim=True)


@pytest.mark.parametrize("side", range(9, 15))
@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(2, 3, ceil_mode=True), nn.MaxPool2d(4, 3)]
)
def test_pools_and_views_have_the_shapes_of_torch(side: int, pool: nn.Module, no_fallback: None) -> None:
    shape = (2, 3, side, side + 1)
    sizes: list[tuple[int, ...]] = []
    net = Pooled(pool).eval()
    net.pool.register_forward_hook(lambda _, inputs, output: sizes.append(tuple(output.shape)))
    assert shapes.output_shape(net, shape) == tuple(net(torch.zeros(shape)).shape)
    assert sizes[0] == sizes[1]


def test_a_network_in_training_mode_is_not_changed() -> None:
    net = BACKBONES["tiny"](2).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    shapes.activation_bytes(net, (1, 3, 300, 300))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_input_that_is_too_small_is_an_error_of_torch() -> None:
    with pytest.raises(RuntimeError):
        shapes.activation_bytes(nn.Conv2d(3, 4, 7).eval(), (1, 3, 5, 5))
