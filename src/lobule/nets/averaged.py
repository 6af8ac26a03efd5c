"""Convolutional networks of timm as tile encoders, with layers that can be folded for inference."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class AveragedMaps(nn.Module):
    """A convolutional network of timm whose last map is averaged over positions."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Scaled images (N, 3, H, W) to features (N, dim)."""
        features: Tensor = self.body(x)
        return features


class SamePadding(nn.Module):
    """TensorFlow's padding "same": the output has the sides of the input over the stride, rounded up."""

    def __init__(self, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> None:
        super().__init__()
        self.kernel, self.stride, self.dilation = kernel, stride, dilation

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = self._margins(x.shape[2], 0)
        left, right = self._margins(x.shape[3], 1)
        return F.pad(x, (left, right, top, bottom))

    def _margins(self, side: int, axis: int) -> tuple[int, int]:
        reach = (self.kernel[axis] - 1) * self.dilation[axis] + 1
        total = max((-(-side // self.stride[axis]) - 1) * self.stride[axis] + reach - side, 0)
        return total // 2, total - total // 2


def plain_layers(net: nn.Module) -> nn.Module:
    """A copy in evaluation mode in which timm's combined layers are sequences of torch's layers.

    A batch norm of torch can be folded into the convolution before it; timm's contains the activation, too.
    The names of the tensors change.
    """
    from timm.layers import BatchNormAct2d, Conv2dSame

    copied = copy.deepcopy(net).eval()
    for name, module in list(copied.named_modules()):
        if isinstance(module, BatchNormAct2d):
            copied.set_submodule(name, nn.Sequential(_plain_norm(module), module.drop, module.act).eval())
        elif isinstance(module, Conv2dSame):
            padding = SamePadding(module.kernel_size, module.stride, module.dilation)
            copied.set_submodule(name, nn.Sequential(padding, _plain_convolution(module)).eval())
    return copied


def _plain_norm(norm: Any) -> nn.BatchNorm2d:
    plain = nn.BatchNorm2d(norm.num_features, eps=norm.eps)
    plain.weight, plain.bias = norm.weight, norm.bias
    plain.running_mean, plain.running_var = norm.running_mean, norm.running_var
    return plain


def _plain_convolution(convolution: Any) -> nn.Conv2d:
    plain = nn.Conv2d(
        convolution.in_channels, convolution.out_channels, convolution.kernel_size, convolution.stride,
        dilation=convolution.dilation, groups=convolution.groups, bias=convolution.bias is not None,
    )  # fmt: skip
    plain.weight, plain.bias = convolution.weight, convolution.bias
    return plain
