"""Networks for dense maps, by name. Each is unpadded and gives one logit per class and output cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lobule.errors import ModelError
from lobule.nets.receptive import geometry_of
from lobule.nets.resnet import torchvision_model
from lobule.nets.shapes import output_shape
from lobule.nets.tiny import tiny
from lobule.nets.unpad import HEADS, unpad
from lobule.nets.vgg import he_normal, load_vgg16_trunk, scannet_vgg16


class PatchNet(nn.Module):
    """An unpadded trunk and a convolution that classifies each of its cells."""

    def __init__(self, trunk: nn.Module, classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Conv2d(channels_of(trunk), classes, 1)
        he_normal(self.head)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, classes, rows, columns)."""
        logits: Tensor = self.head(self.dropout(self.trunk(x)))
        return logits


def channels_of(trunk: nn.Module) -> int:
    """Number of output channels of a trunk, derived from the shapes of its steps."""
    side = geometry_of(trunk).extent
    return output_shape(trunk, (1, 3, side, side))[1]


def unpadded_trunk(build: Callable[[], nn.Module]) -> nn.Module:
    """The unpadded trunk of a net, with fresh weights: He-normal convolutions, zero biases, neutral norms."""
    with torch.device("meta"):  # most weights of a VGG belong to the classifier, which is removed
        trunk = unpad(build())
    trunk.to_empty(device="cpu")
    for module in trunk.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_parameters()
    he_normal(trunk)
    return trunk


def from_torchvision(name: str, classes: int = 2) -> PatchNet:
    """Any of torchvision's plain convolutional nets, without padding."""
    return PatchNet(unpadded_trunk(lambda: torchvision_model(name)), classes)


BACKBONES: dict[str, Callable[[int], nn.Module]] = {
    "scannet_vgg16": scannet_vgg16,
    "tiny": tiny,
    "resnet18": partial(from_torchvision, "resnet18"),
    "resnet34": partial(from_torchvision, "resnet34"),
    "resnet50": partial(from_torchvision, "resnet50"),
    "squeezenet1_1": partial(from_torchvision, "squeezenet1_1"),
    "vgg11": partial(from_torchvision, "vgg11"),
    "vgg11_bn": partial(from_torchvision, "vgg11_bn"),
    "vgg13": partial(from_torchvision, "vgg13"),
    "vgg13_bn": partial(from_torchvision, "vgg13_bn"),
    "vgg16": partial(from_torchvision, "vgg16"),
    "vgg16_bn": partial(from_torchvision, "vgg16_bn"),
    "vgg19": partial(from_torchvision, "vgg19"),
    "vgg19_bn": partial(from_torchvision, "vgg19_bn"),
}
"""Builders by name; `BACKBONES[name](classes)` gives a network with fresh weights."""


def load_trunk(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a torchvision or timm checkpoint of the same backbone into the trunk of a net, strictly."""
    trunk = getattr(net, "trunk", None)
    if isinstance(trunk, nn.Module):
        trunk_weights = {key: value for key, value in weights.items() if key.split(".")[0] not in HEADS}
        try:
            trunk.load_state_dict(trunk_weights, strict=True)
        except RuntimeError as error:
            raise ModelError(
                "these weights belong to another backbone",
                expected="the keys and shapes of the trunk",
                actual=str(error),
            ) from error
    elif hasattr(net, "conv1_1"):
        load_vgg16_trunk(net, weights)
    else:
        raise ModelError("this backbone has no pretrained weights", remedy="Train it from scratch")
