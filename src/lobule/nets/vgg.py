"""ScanNet's network: VGG-16 without padding, convolutions for its fully connected layers (arXiv 1707.09597).

Window 244 px, stride 32 px, 17,864,514 parameters at full width for two classes. ReLU follows every
convolution but the last; dropout 0.5 while training follows fc6 and fc7.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from lobule.errors import ModelError

CONVOLUTIONS = (2, 2, 3, 3, 3)
"""Number of convolutions in each of the five blocks of VGG-16."""
WIDTHS = (64, 128, 256, 512, 512)
HEAD_WIDTHS = (1024, 1024)
TORCHVISION_INDEX = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Indices of VGG-16's convolutions in the `features` of torchvision and timm."""


def scannet_vgg16(
    classes: int = 2,
    *,
    widths: Sequence[int] = WIDTHS,
    head_widths: Sequence[int] = HEAD_WIDTHS,
    dropout: float = 0.5,
) -> nn.Sequential:
    """ScanNet's network with fresh weights: He-normal, zero biases."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for block, (count, width) in enumerate(zip(CONVOLUTIONS, widths, strict=True), start=1):
        for i in range(1, count + 1):
            layers[f"conv{block}_{i}"] = nn.Conv2d(channels, width, 3)
            layers[f"relu{block}_{i}"] = nn.ReLU(inplace=True)
            channels = width
        layers[f"pool{block}"] = nn.MaxPool2d(2)
    wide6, wide7 = head_widths
    layers["fc6"] = nn.Conv2d(channels, wide6, 2)
    layers["relu6"] = nn.ReLU(inplace=True)
    layers["drop6"] = nn.Dropout(dropout)
    layers["fc7"] = nn.Conv2d(wide6, wide7, 1)
    layers["relu7"] = nn.ReLU(inplace=True)
    layers["drop7"] = nn.Dropout(dropout)
    layers["fc8"] = nn.Conv2d(wide7, classes, 1)
    net = nn.Sequential(layers)
    he_normal(net)
    return net


def he_normal(net: nn.Module) -> None:
    """He-normal weights and zero biases in every convolution."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def load_vgg16_trunk(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the VGG-16 convolutions of torchvision or timm into ScanNet's network; the head is unchanged."""
    names = [f"conv{b}_{i}" for b, count in enumerate(CONVOLUTIONS, start=1) for i in range(1, count + 1)]
    network_state = net.state_dict()
    for name, index in zip(names, TORCHVISION_INDEX, strict=True):
        for kind in ("weight", "bias"):
            key = f"features.{index}.{kind}"
            target = network_state[f"{name}.{kind}"]
            if key not in weights or weights[key].shape != target.shape:
                actual_shape = tuple(weights[key].shape) if key in weights else "nothing"
                raise ModelError(
                    "these are not VGG-16's weights",
                    expected=f"{key} of shape {tuple(target.shape)}",
                    actual=str(actual_shape),
                    remedy="Give the state dict of torchvision's vgg16 (without batch normalisation)",
                )
            target.copy_(weights[key])
