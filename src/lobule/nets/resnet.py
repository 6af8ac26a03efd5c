"""ResNet-18 to ResNet-152 with the names, weights and outputs of torchvision, without importing torchvision.

He, Zhang, Ren and Sun: Deep Residual Learning for Image Recognition. CVPR 2016, arXiv 1512.03385. As in
torchvision, the stride of a bottleneck is in its 3 × 3 convolution. Importing torchvision takes as long as a
third of `import torch`, and a scan with one of these networks needs nothing else of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

BLOCKS: dict[str, tuple[bool, tuple[int, int, int, int]]] = {
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}
"""Whether the blocks are bottlenecks, and the number of blocks of each stage, by name."""


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        activated: Tensor = self.relu(out)
        return activated


class Bottleneck(nn.Module):
    """A 1 × 1, a 3 × 3 and a 1 × 1 convolution beside a shortcut."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        activated: Tensor = self.relu(out)
        return activated


class ResNet(nn.Module):
    """The network; its modules have the names that torchvision gives them."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, block: type[BasicBlock | Bottleneck], counts: Sequence[int], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        channels = 64
        for stage, count in enumerate(counts):
            blocks = _stage(block, channels, 64 << stage, count, 1 if stage == 0 else 2)
            setattr(self, f"layer{stage + 1}", blocks)
            channels = (64 << stage) * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _convolution(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)


def _stage(
    block: type[BasicBlock | Bottleneck], channels: int, width: int, count: int, stride: int
) -> nn.Sequential:
    """The blocks of one stage; the first has the stride, and a convolution in its shortcut if needed."""
    downsample: nn.Module | None = None
    out = width * block.expansion
    if stride != 1 or channels != out:
        # Built before the block, as in torchvision, so that a seed gives the same weights.
        downsample = nn.Sequential(_convolution(channels, out, 1, stride), nn.BatchNorm2d(out))
    blocks = [block(channels, width, stride, downsample)]
    blocks += [block(out, width, 1, None) for _ in range(1, count)]
    return nn.Sequential(*blocks)


def resnet(name: str, classes: int = 1000) -> ResNet:
    """Build a network by its name in `BLOCKS`; with the same seed it has the weights of torchvision's."""
    has_bottlenecks, counts = BLOCKS[name]
    return ResNet(Bottleneck if has_bottlenecks else BasicBlock, counts, classes)


def torchvision_model(name: str, classes: int = 1000) -> nn.Module:
    """Build a network of torchvision with fresh weights. A ResNet is built without importing torchvision.

    Raises:
        ValueError: torchvision has no such network.
    """
    if name in BLOCKS:
        return resnet(name, classes)
    from torchvision.models import get_model

    model: nn.Module = get_model(name, weights=None, num_classes=classes)
    return model
