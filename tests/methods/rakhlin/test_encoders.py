"""Encoders against plain loops over the nets' own layers, and Keras's conventions by their definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lobule.errors import ConfigError, ModelError
from lobule.methods.rakhlin.encoders import (
    Plan,
    build,
    load_weights,
    pretrained,
    scale_pixels,
    with_folded_norms,
)


def pixels(side: int, count: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (count, side, side, 3), np.uint8))


def test_vgg_joins_the_last_convolutions_of_four_blocks() -> None:
    from torchvision.models import vgg16

    encoder = build(Plan("vgg16"))
    with torch.device("meta"):
        net = vgg16(weights=None).features
    trunk_weights = {name.removeprefix("features."): t for name, t in encoder.trunk.state_dict().items()}
    net = net[:30]
    net.load_state_dict(trunk_weights, assign=True)
    x = scale_pixels(pixels(64), encoder.plan)
    means, maps = [], x
    with torch.inference_mode():
        for layer in net:
            if isinstance(layer, nn.MaxPool2d):
                means.append(maps.mean((2, 3)))
            maps = layer(maps)
        means.append(maps.mean((2, 3)))
        descriptor = encoder(x)
    assert descriptor.shape == (2, 1408)
    assert encoder.widths() == (128, 256, 512, 512)
    torch.testing.assert_close(descriptor, torch.cat(means[1:], dim=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet50", "inception_v3", "squeezenet1_1", "tiny", "resnet18@layer2"])
def test_the_faster_form_gives_the_same_descriptors(name: str) -> None:
    plan = Plan(name)
    encoder = build(plan)
    for module in encoder.modules():  # fresh norms do nothing, so that folding them would prove nothing
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr,operator]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr,operator]
    x = scale_pixels(pixels(224, 1), plan)
    with torch.inference_mode():
        one, other = encoder(x), with_folded_norms(encoder)(x)
    assert one.shape[1] == {"resnet50": 2048, "inception_v3": 2048, "squeezenet1_1": 512}.get(
        name, one.shape[1]
    )
    assert float((one - other).abs().max() / one.abs().max()) < 1e-4


def test_inputs_by_their_definition() -> None:
    rgb = torch.tensor([[[[200, 100, 50]]]], dtype=torch.uint8)
    caffe = scale_pixels(rgb, Plan("x", "caffe")).flatten()
    torch.testing.assert_close(caffe, torch.tensor([50 - 103.939, 100 - 116.779, 200 - 123.68]))
    tf = scale_pixels(rgb, Plan("x", "tf")).flatten()
    torch.testing.assert_close(tf, torch.tensor([200 / 127.5 - 1, 100 / 127.5 - 1, 50 / 127.5 - 1]))
    usual = scale_pixels(rgb, Plan("x")).flatten()
    torch.testing.assert_close(usual[0], torch.tensor((200 / 255 - 0.485) / 0.229))


def test_resnet_of_keras_shrinks_early_and_counts_seven_by_seven_cells() -> None:
    encoder = build(Plan("resnet50", "caffe", keras=True))
    with torch.inference_mode():
        maps = encoder._maps(torch.zeros(1, 3, 400, 400))[0]
        assert maps.shape[2:] == (13, 13)
        x = torch.randn(1, 3, 400, 400)
        (maps,) = encoder._maps(x)
        torch.testing.assert_close(encoder(x), maps[:, :, :7, :7].mean((2, 3)))
    trunk: Any = encoder.trunk
    strides = [tuple(getattr(trunk.layer2, "0").get_submodule(name).stride) for name in ("conv1", "conv2")]
    assert strides == [(2, 2), (1, 1)]
    assert trunk.bn1.eps == 1e-3


def test_a_crop_of_650_px_counts_whole_in_keras() -> None:
    encoder = build(Plan("resnet50", "caffe", keras=True)).to("meta")
    with torch.inference_mode():
        assert encoder._maps(torch.empty(1, 3, 650, 650, device="meta"))[0].shape[2:] == (21, 21)


def test_average_pools_of_keras_leave_their_borders_out() -> None:
    """Behind a pool that counts zeros, a constant image is darker at its border."""
    x = torch.ones(1, 1, 5, 5)
    assert float(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False).min()) == 1
    plain, keras = (build(Plan("inception_v3", "tf", keras=keras)) for keras in (False, True))

    def counted(encoder: Any) -> set[object]:
        nodes = [node for node in encoder.trunk.graph.nodes if node.target is F.avg_pool2d]
        assert len(nodes) == 9  # one an inception block that is not a reduction
        return {node.kwargs.get("count_include_pad", True) for node in nodes}

    assert (counted(plain), counted(keras)) == ({True}, {False})
    image = scale_pixels(pixels(128, 1), plain.plan)
    with torch.inference_mode():
        one, other = plain(image), keras(image)
    assert float((one - other).abs().max() / one.max()) > 1e-3


def test_both_conventions_of_one_net_agree(kit: Path) -> None:
    """The kit has one SqueezeNet for BGR less Caffe's means, and for torchvision's scaling."""
    descriptors = []
    for input_, name in (("torchvision", "squeezenet1_1-imagenet-rgb"), ("caffe", "squeezenet1_1-imagenet")):
        encoder = pretrained(Plan("squeezenet1_1", input_), str(kit / f"weights/{name}.safetensors"))
        with torch.inference_mode():
            descriptors.append(encoder(scale_pixels(pixels(227, 1), encoder.plan)).flatten())
    assert torch.corrcoef(torch.stack(descriptors))[0, 1] > 0.9999


def test_weights_of_another_net_are_refused() -> None:
    encoder = build(Plan("squeezenet1_1"))
    state = {f"{name}": value for name, value in encoder.trunk.state_dict().items()}
    load_weights(encoder, {**state, "classifier.1.weight": torch.zeros(3)}, "a file")
    state.pop("features.0.weight")
    with pytest.raises(ModelError, match=r"a file: these are not the weights of squeezenet1_1.*features\.0"):
        load_weights(encoder, state, "a file")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan("resnet5"), "no encoder 'resnet5'"),
        (Plan("timm:nothing"), "timm has no model"),
        (Plan("vgg16@features.99"), "does not have the layers features.99"),
        (Plan("squeezenet1_1", keras=True), "Keras conventions of squeezenet1_1 are not known"),
        (Plan("squeezenet1_1", "grey"), "no input 'grey'"),
    ],
)
def test_what_cannot_be_built_is_told(plan: Plan, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(plan)


def test_keras_nets_need_weights_from_keras() -> None:
    with pytest.raises(ConfigError, match="converted from Keras"):
        pretrained(Plan("vgg16", "caffe", keras=True), "imagenet")


def test_any_net_of_timm_is_an_encoder() -> None:
    encoder = build(Plan("timm:resnet10t"))
    with torch.inference_mode():
        assert encoder(scale_pixels(pixels(64), encoder.plan)).shape == (2, 512)
