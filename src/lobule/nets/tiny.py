"""A small unpadded net for machines without an accelerator, trained from scratch in minutes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from lobule.nets.vgg import he_normal

WIDTHS = (16, 32, 32, 48, 64, 64, 96, 96)
STRIDES = (2, 2, 1, 1, 1, 1, 1, 1)
POOLED_AFTER = (3, 5, 7)
"""The convolutions, counted from 1, that a 2 × 2 max-pool follows."""


def tiny(classes: int = 2, *, widths: Sequence[int] = WIDTHS, dropout: float = 0.2) -> nn.Sequential:
    """Eight 3 × 3 convolutions; window 203 px, stride 32 px, a twentieth of ResNet-18's work."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for i, (width, stride) in enumerate(zip(widths, STRIDES, strict=True), start=1):
        layers[f"conv{i}"] = nn.Conv2d(channels, width, 3, stride, bias=False)
        layers[f"norm{i}"] = nn.BatchNorm2d(width)
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
        if i in POOLED_AFTER:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        channels = width
    layers["drop"] = nn.Dropout(dropout)
    layers["head"] = nn.Conv2d(channels, classes, 1)
    net = nn.Sequential(layers)
    he_normal(net)
    return net
