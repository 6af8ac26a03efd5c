"""Published checkpoints of the four-view networks: whole, in old names, and none that is not one."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from lobule.errors import BundleError
from lobule.nets.four_view import (
    ViewWise,
    _projection,
    patch_densenet,
)
from lobule.nets.four_view_weights import GENUINE, canonical, git_blob_id, load_published, resolved


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def published_form(net: nn.Module) -> dict[str, torch.Tensor]:
    """A checkpoint as the published files have it: each trunk under three names."""
    state = {}
    for key, tensor in net.state_dict().items():
        state[key] = tensor
        for alias, trunk in (("l_cc", "cc"), ("r_cc", "cc"), ("l_mlo", "mlo"), ("r_mlo", "mlo")):
            if key.startswith(f"four_view_resnet.{trunk}."):
                state[key.replace(f".{trunk}.", f".{alias}.", 1)] = tensor.clone()
    return state


def test_published_checkpoints_load_whole_and_only_whole():
    net, widths = ViewWise(1, widths=(2, 2, 2, 2, 2)), (2, 2, 2, 2, 2)
    for parameter in net.parameters():
        parameter.fill_(random.random())
    state = published_form(net)
    other = ViewWise(1, widths=widths)
    load_published(other, {"model": state})
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))

    without_counters = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    load_published(other, without_counters)
    load_published(other, without_counters | {"shared_rep_filter.weight": torch.zeros(1)})

    with pytest.raises(BundleError, match=r"different tensors.*four_view_resnet\.cc\.first_conv"):
        resolved(state | {"four_view_resnet.r_cc.first_conv.weight": torch.zeros(2, 1, 7, 7)})
    with pytest.raises(BundleError, match=r"missing: fc1_cc\.bias; not of the network: fc2\.bias"):
        load_published(other, {k.replace("fc1_cc.bias", "fc2.bias"): v for k, v in state.items()})
    with pytest.raises(BundleError, match=r"another shape: fc1_cc\.bias"):
        load_published(other, state | {"fc1_cc.bias": torch.zeros(7)})


def test_old_names_of_the_patch_network():
    assert canonical("features.denseblock1.denselayer2.norm.1.weight") == (
        "features.denseblock1.denselayer2.norm1.weight"
    )
    assert canonical("features.denseblock1.denselayer2.conv.2.weight") == (
        "features.denseblock1.denselayer2.conv2.weight"
    )
    assert canonical("features.transition1.norm.weight") == "features.transition1.norm.weight"
    names = patch_densenet(growth=4, blocks=(1, 1, 1, 1), first_width=8).state_dict()
    assert all(canonical(name) == name for name in names)


def test_git_blob_ids():
    """The id of the empty blob and of git's own example are known."""
    assert git_blob_id(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert git_blob_id(b"what is up, doc?") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
    assert len(GENUINE) == 10


@torch.inference_mode(False)
@torch.enable_grad()
def test_a_strided_projection_of_few_channels_is_a_convolution() -> None:
    thinned, plain = _projection(8, 12, 2), nn.Conv2d(8, 12, 1, 2, bias=False)
    assert type(_projection(16, 32, 2)) is nn.Conv2d
    plain.load_state_dict(thinned.state_dict())
    x = torch.randn(2, 8, 9, 14)
    weight = torch.randn(2, 12, 5, 7)
    for conv in (thinned, plain):  # the plain one's channels do not lie last: oneDNN is right there
        (conv(x) * weight).sum().backward()
    assert torch.allclose(thinned(x), plain(x), atol=1e-6)
    assert thinned.weight.grad is not None
    assert plain.weight.grad is not None
    assert torch.allclose(thinned.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-5)
