"""A small dense bundle for tests: the `tiny` net with seeded weights."""

from __future__ import annotations

from pathlib import Path

import torch

from lobule.methods.scannet import Config, save
from lobule.nets.backbones import BACKBONES
from lobule.nets.scaling import PLAIN_SCALING


def write_tiny_bundle(path: Path, mpp: float, trunk: str = "tiny", **settings: object) -> Path:
    """Write an untrained bundle whose scores vary between 0 and 1."""
    torch.manual_seed(7)
    config = Config(trunk=trunk, mpp=mpp, **settings)  # type: ignore[arg-type]
    net = BACKBONES[trunk](len(config.classes)).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
    save(path, config, net, PLAIN_SCALING)
    return path
