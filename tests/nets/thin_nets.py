"""Nets of full depth and small width, with weights and norms that are not trivial, for quick tests."""

from __future__ import annotations

import torch
from torch import nn

from lobule.nets.backbones import BACKBONES


def thinned(net: nn.Module, seed: int = 0) -> nn.Module:
    """The net at 1/16 width, in place, in evaluation mode, with random weights and batch-norm statistics."""
    torch.manual_seed(seed)
    for name, module in list(net.named_modules()):
        thin_module: nn.Module
        if isinstance(module, nn.Conv2d):
            thin_module = nn.Conv2d(
                _thin(module.in_channels),
                _thin(module.out_channels),
                module.kernel_size,
                module.stride,
                module.padding,
                module.dilation,
                bias=module.bias is not None,
            )
            nn.init.kaiming_normal_(thin_module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            thin_module = nn.BatchNorm2d(_thin(module.num_features))
            for values, low, high in (
                (thin_module.weight.data, 0.6, 1.2),
                (thin_module.bias.data, -0.2, 0.4),
                (thin_module.running_mean, -0.3, 0.3),
                (thin_module.running_var, 0.7, 1.5),
            ):
                nn.init.uniform_(values, low, high)
        else:
            continue
        net.set_submodule(name, thin_module)
    return net.eval()


def thin_backbone(name: str) -> nn.Module:
    return thinned(BACKBONES[name](2))


def _thin(channels: int) -> int:
    return channels if channels <= 4 else channels // 16
