"""Receptive field, stride and positions: against published numbers, gradients and the papers' tables."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lobule.errors import ModelError
from lobule.nets.backbones import BACKBONES
from lobule.nets.receptive import NetGeometry, geometry_of
from lobule.nets.vgg import scannet_vgg16
from tests.nets.scannet_recipe import golden_net
from tests.nets.thin_nets import thin_backbone

PUBLISHED = {
    "scannet_vgg16": (244, 32),
    "tiny": (203, 32),
    "resnet18": (435, 32),
    "resnet34": (899, 32),
    "resnet50": (427, 32),
    "vgg11": (150, 32),
    "vgg16": (212, 32),
    "vgg19": (268, 32),
    "squeezenet1_1": (207, 16),
}
"""Receptive field and stride; the ResNets' and VGGs' are in public tables of receptive fields."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_geometry_of_a_backbone(name: str) -> None:
    window, stride = PUBLISHED[name]
    assert geometry_of(BACKBONES[name](2)) == NetGeometry(window, stride, 0, window)


@pytest.mark.parametrize("name", ["scannet_vgg16", "tiny", "resnet18", "squeezenet1_1"])
def test_gradients_reach_the_window_and_nothing_else(name: str) -> None:
    """The pixels that a cell's gradient reaches are its window: none outside, and its rim is reached."""
    net = _without_dead_cells(thin_backbone(name))
    geometry = geometry_of(net)
    x = torch.rand(1, 3, geometry.in_size(2), geometry.in_size(3), dtype=torch.float64, requires_grad=True)
    y = net.double()(x)
    assert y.shape[-2:] == (2, 3)
    for row, column in ((0, 0), (1, 2)):
        (gradient,) = torch.autograd.grad(y[0, :, row, column].sum(), x, retain_graph=True)
        has_gradient = gradient[0].abs().sum(0) > 0
        for along, cell in ((has_gradient.any(1), row), (has_gradient.any(0), column)):
            positions = along.nonzero().flatten()
            first = geometry.start + cell * geometry.stride
            assert int(positions[0]) == first
            assert int(positions[-1]) == first + geometry.receptive_field - 1


def _without_dead_cells(net: nn.Module) -> nn.Module:
    """Positive weights and average pools, so that no ReLU or maximum hides a pixel from the gradient."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.weight.data /= module.weight[0].numel()
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            net.set_submodule(name, nn.Identity())
        elif isinstance(module, nn.MaxPool2d):
            net.set_submodule(name, nn.AvgPool2d(module.kernel_size, module.stride))
    return net


def test_scannet_sizes_by_the_paper() -> None:
    geometry = geometry_of(golden_net("sizes:"))
    assert [geometry.out_size(side) for side in (243, 244, 275, 276, 2867, 2868)] == [0, 1, 1, 2, 82, 83]
    assert geometry.in_size(83) == 2868
    assert geometry.first_centre == 122
    assert geometry.dense(2).in_size(2 * 83) == 2884
    assert geometry.dense(4).in_size(4 * 83) == 2892
    assert [geometry.dense(alpha).in_size(alpha * 20) for alpha in (2, 4)] == [868, 876]


def test_scannet_has_the_papers_parameters_and_sizes() -> None:
    net = scannet_vgg16().to("meta")
    assert sum(parameter.numel() for parameter in net.parameters()) == 17_864_514
    x = torch.empty(1, 3, 2868, 2868, device="meta")
    pools = []
    for name, module in net.named_children():
        x = module(x)
        if name.startswith("pool"):
            pools.append(x.shape[-1])
    assert pools == [1432, 714, 354, 174, 84]
    assert x.shape == (1, 2, 83, 83)


@given(
    st.integers(1, 400),
    st.sampled_from([1, 2, 16, 32]),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(1, 99),
)
def test_sizes_are_inverse(window: int, stride: int, start: int, rest: int, cells: int) -> None:
    geometry = NetGeometry(window, stride, start, start + window + rest)
    side = geometry.in_size(cells)
    assert geometry.out_size(side) == cells
    assert geometry.out_size(side - 1) == cells - 1
    assert geometry.out_size(side + stride - 1) == cells


def test_out_size_is_what_comes_out() -> None:
    net = golden_net("sizes:")
    geometry = geometry_of(net)
    with torch.inference_mode():
        for side in (244, 275, 276, 309):
            assert net(torch.zeros(1, 3, side, 244)).shape[-2] == geometry.out_size(side)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), "padding"),
        (nn.MaxPool2d(2, ceil_mode=True), "padding"),
        (nn.Conv2d(3, 4, (3, 5)), "same along x and y"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)), "not known"),
    ],
)
def test_nets_without_an_exact_geometry_are_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        geometry_of(nn.Sequential(net))
