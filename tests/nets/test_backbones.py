"""The backbones: each builds, trains and takes pretrained weights."""

from __future__ import annotations

import pytest
import torch
import torchvision
from timm import create_model
from torch import nn
from torch.nn import functional as F

from lobule.errors import ModelError
from lobule.nets.backbones import BACKBONES, PatchNet, load_trunk, unpadded_trunk
from lobule.nets.receptive import geometry_of
from lobule.nets.tiny import tiny
from lobule.nets.unpad import unpad
from lobule.nets.vgg import scannet_vgg16


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_gives_one_logit_a_class(name: str) -> None:
    net = BACKBONES[name](5)
    geometry = geometry_of(net)
    assert all(bool(value.isfinite().all()) for value in net.state_dict().values())
    x = torch.empty(2, 3, geometry.in_size(2), geometry.extent, device="meta")
    assert net.to("meta")(x).shape == (2, 5, 2, 1)


def test_fresh_weights_keep_the_scale_of_what_passes() -> None:
    torch.manual_seed(0)
    for name in ("scannet_vgg16", "resnet18", "tiny"):
        net = BACKBONES[name](2)
        weights = next(module for module in net.modules() if isinstance(module, nn.Conv2d)).weight
        fan_in = weights[0].numel()
        assert float(weights.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
    assert all(bool((module.bias == 0).all()) for module in scannet_vgg16(widths=[4] * 5).children()
               if isinstance(module, nn.Conv2d))  # fmt: skip


def test_dropout_is_where_the_paper_has_it() -> None:
    net = scannet_vgg16(widths=[4] * 5, head_widths=(8, 8), dropout=0.5)
    names = [name for name, _ in net.named_children()]
    assert names[-7:] == ["fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8"]
    assert net.drop6.p == net.drop7.p == 0.5


def test_vgg16_weights_go_into_scannet() -> None:
    net = scannet_vgg16(head_widths=(8, 8))
    with torch.device("meta"):
        theirs = torchvision.models.vgg16()
    features = theirs.features.to_empty(device="cpu")
    for i, parameter in enumerate(features.parameters()):
        nn.init.constant_(parameter, i + 1)
    head_before = net.fc6.weight.clone()
    load_trunk(net, {f"features.{key}": value for key, value in features.state_dict().items()})
    convolutions = [module for name, module in net.named_children() if name.startswith("conv")]
    for i, conv in enumerate(convolutions):
        assert bool((conv.weight == 2 * i + 1).all())
        assert bool((conv.bias == 2 * i + 2).all())
    assert torch.equal(net.fc6.weight, head_before)


def test_loaded_trunk_computes_what_the_checkpoint_does() -> None:
    torch.manual_seed(1)
    theirs = torchvision.models.squeezenet1_1(weights=None).eval()
    net = BACKBONES["squeezenet1_1"](3).eval()
    load_trunk(net, theirs.state_dict())
    x = torch.randn(1, 3, 207, 207)
    with torch.inference_mode():
        torch.testing.assert_close(net.trunk(x), unpad(theirs)(x))


def test_weights_of_another_backbone_are_refused() -> None:
    with pytest.raises(ModelError, match="another backbone"):
        load_trunk(BACKBONES["squeezenet1_1"](2), {"conv1.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match="not VGG-16"):
        load_trunk(scannet_vgg16(widths=[4] * 5, head_widths=(8, 8)), {})
    with pytest.raises(ModelError, match="no pretrained weights"):
        load_trunk(tiny(), {})


def test_any_plain_timm_net_is_a_backbone() -> None:
    net = PatchNet(unpadded_trunk(lambda: create_model("resnet26", pretrained=False, num_classes=0)), 4)
    assert geometry_of(net).stride == 32
    assert net.head.weight.shape == (4, 2048, 1, 1)


def test_tiny_learns_a_texture_in_a_few_steps() -> None:
    """Stripes of one direction against the other: told apart in unseen images after 12 steps."""
    torch.manual_seed(0)
    net = tiny()
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(12):
        x, labels = _stripes(12)
        loss = F.cross_entropy(net(x)[..., 0, 0], labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for _ in range(4):  # the running statistics of batch norm settle
        net(_stripes(12)[0])
    x, labels = _stripes(24)
    with torch.inference_mode():
        predicted = net.eval()(x)[..., 0, 0].argmax(1)
    assert float((predicted == labels).float().mean()) >= 0.9


def _stripes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(0, 2, (count,))
    wave = torch.sin(torch.arange(203) / 3 + 6 * torch.rand(count, 1))
    across = wave[:, None, None, :].expand(count, 3, 203, 203)
    x = torch.where(labels[:, None, None, None] == 1, across, across.mT)
    return x + 0.5 * torch.randn(count, 3, 203, 203), labels
