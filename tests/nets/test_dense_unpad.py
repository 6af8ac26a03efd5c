"""Unpadding: inside, where padding cannot be seen, the net is the padded one to the last branch."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from lobule.errors import ModelError
from lobule.nets.receptive import Crop, geometry_of
from lobule.nets.unpad import unpad
from tests.nets.thin_nets import thinned

SHIFT = {
    "resnet18": 3 + 2 + 4 * 4 + (4 + 3 * 8) + (8 + 3 * 16) + (16 + 3 * 32),
    "resnet50": 3 + 2 + 3 * 4 + (4 + 3 * 8) + (8 + 5 * 16) + (16 + 2 * 32),
    "squeezenet1_1": 2 * 4 + 2 * 8 + 4 * 16,
    "vgg11_bn": 1 + 2 + 2 * 4 + 2 * 8 + 2 * 16,
}
"""Where each padded net's first cell is anchored: the padding on one side in pixels, counted by hand."""


def padded(name: str) -> nn.Module:
    """The net as torchvision builds it, thin, and without the linear layers at its end."""
    with torch.device("meta"):
        net = torchvision.models.get_model(name, weights=None)
    if hasattr(net, "fc"):
        net.fc = nn.Identity()
    elif hasattr(net, "avgpool"):
        net.classifier = nn.Identity()
    return thinned(net)


def trunk_output(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The padded net's last map, caught on its way into what follows the trunk."""
    caught: list[torch.Tensor] = []
    head = net.avgpool if hasattr(net, "avgpool") else net.classifier
    head.register_forward_pre_hook(lambda module, args: caught.append(args[0].clone()))
    net(x)
    return caught[0]


@pytest.mark.parametrize("name", SHIFT)
def test_inside_it_equals_the_padded_net(name: str) -> None:
    net = padded(name)
    trunk = unpad(net)
    geometry = geometry_of(trunk)
    x = torch.randn(1, 3, geometry.in_size(3) + 5, geometry.in_size(2) + 9)
    cells, offset = divmod(SHIFT[name], geometry.stride)
    with torch.inference_mode():
        ours = trunk(x)
        theirs = trunk_output(net, x[..., offset:, offset:])
    assert ours.shape[-2:] == (3, 2)
    theirs = theirs[..., cells : cells + 3, cells : cells + 2]
    # the offset cuts into the first windows, so the first row and column do not count
    inner = (..., slice(1, None), slice(1, None)) if offset else (...,)
    assert ours[inner].std() > 1e-3
    torch.testing.assert_close(ours[inner], theirs[inner], rtol=1e-4, atol=1e-5)


def test_the_net_itself_is_left_alone() -> None:
    net = padded("resnet18")
    before = str(net)
    unpad(net)
    assert str(net) == before


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11", "vgg16_bn"])
def test_checkpoints_of_torchvision_and_timm_load_strictly(name: str) -> None:
    with torch.device("meta"):
        theirs = [torchvision.models.get_model(name), timm.create_model(name, pretrained=False)]
        trunks = [unpad(net) for net in theirs]
    for trunk in trunks:
        for net in theirs:
            state = {
                key: value
                for key, value in net.state_dict().items()
                if not key.startswith(("fc.", "classifier.", "head.", "pre_logits."))
            }
            trunk.load_state_dict(state, strict=True, assign=True)


def test_timm_nets_have_the_same_geometry() -> None:
    with torch.device("meta"):
        pairs = [
            (timm.create_model(name, pretrained=False), torchvision.models.get_model(name))
            for name in ("resnet18", "resnet34", "resnet50", "vgg13_bn")
        ]
        for timms, torchvisions in pairs:
            assert geometry_of(unpad(timms)) == geometry_of(unpad(torchvisions))


def test_fire_modules_are_cropped_by_one() -> None:
    trunk = unpad(padded("squeezenet1_1"))
    crops = [(module.before, module.after) for module in trunk.modules() if isinstance(module, Crop)]
    assert crops == [(1, 1)] * 8


def test_residual_blocks_are_cropped_where_the_skip_leaves() -> None:
    trunk = unpad(padded("resnet18"))
    crops = [(module.before, module.after) for module in trunk.modules() if isinstance(module, Crop)]
    # two 3 × 3 convolutions take 2 off; with a stride of 2 in the first they reach 3 px of the finer map
    assert crops == [(2, 2), (2, 2), (3, 3), (2, 2), (3, 3), (2, 2), (3, 3), (2, 2)]


class _LookingEverywhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return y * y.mean((2, 3), keepdim=True)


class _Asking(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.shape[-1] > 7 else x + 1


@pytest.mark.parametrize("net", [_LookingEverywhere(), _Asking()])
def test_nets_that_cannot_be_unpadded_are_refused(net: nn.Module) -> None:
    with pytest.raises(ModelError, match="geometry"):
        unpad(net)
