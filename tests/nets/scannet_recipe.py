"""The weights and images of ScanNet's golden network, made by formula (no file holds them)."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor, nn

from lobule.nets.vgg import scannet_vgg16


def weight_by_formula(salt: str, key: str, shape: tuple[int, ...]) -> Tensor:
    seed = zlib.crc32((salt + key).encode())
    u = np.random.Generator(np.random.PCG64(seed)).random(int(np.prod(shape))).reshape(shape)
    scale = np.sqrt(6 / np.prod(shape[1:])) if key.endswith("weight") else 0.2
    return torch.from_numpy(((2 * u - 1) * scale).astype(np.float32))


def golden_net(salt: str) -> nn.Sequential:
    """ScanNet's network at 1/16 width."""
    net = scannet_vgg16(widths=(4, 8, 16, 32, 32), head_widths=(64, 64)).eval()
    state = {k: weight_by_formula(salt, k, tuple(v.shape)) for k, v in net.state_dict().items()}
    net.load_state_dict(state)
    return net


def golden_image(height: int, width: int, shift: int) -> Tensor:
    """(1, 3, height, width) float32."""
    c, y, x = np.ogrid[:3, :height, :width]
    values = (7 * c + 13 * y + 17 * x + x * y // 5 + x * x // 11 + shift) % 256
    return torch.from_numpy((values / 255 - 0.5).astype(np.float32))[None]
