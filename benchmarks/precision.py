"""What bfloat16 can give on this machine: bare products and a bare ResNet-18, against float32.

No code of Lobule is measured. Where these ratios are below one, the processor has no units for bfloat16 (AMX,
or AVX-512 BF16) and emulates it; a target of twice the speed of float32 cannot be reached there.

    product      float32 seconds of a product of two 1,024 x 1,024 matrices over bfloat16 seconds
    convolution  the same of a 3 x 3 convolution of 128 channels, channels last
    resnet18     the same of torchvision's ResNet-18 on eight tiles of 224 px, channels last

`--quick` takes two images in place of eight. What takes more than a second is measured once.

    python benchmarks/precision.py [--quick]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision

from measure import arguments, report, side_by_side

SLOW_S = 1.0
"""What takes so long in bfloat16 is measured once."""


def ratio(in_float32: Callable[[], Any], in_bfloat16: Callable[[], Any], rounds: int) -> float:
    """Seconds in float32 over those in bfloat16, each the best of the rounds."""
    in_float32()
    tasks = {"float32": lambda _: in_float32(), "bfloat16": lambda _: in_bfloat16()}
    seconds = side_by_side(tasks, 1, 1)
    if seconds["bfloat16"] < SLOW_S:
        seconds = side_by_side(tasks, 1, rounds)
    return seconds["float32"] / seconds["bfloat16"]


def main() -> None:
    quick = arguments(__doc__ or "").quick
    rounds, batch = (5, 2) if quick else (20, 8)
    torch.manual_seed(0)
    one, other = torch.randn(1024, 1024), torch.randn(1024, 1024)
    half_one, half_other = one.bfloat16(), other.bfloat16()
    layer = torch.nn.Conv2d(128, 128, 3, padding=1).to(memory_format=torch.channels_last)
    image = torch.randn(batch, 128, 56, 56).to(memory_format=torch.channels_last)
    net = torchvision.models.resnet18().eval().to(memory_format=torch.channels_last)
    tiles = torch.randn(batch, 3, 224, 224).to(memory_format=torch.channels_last)

    def autocast(module: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: torch.Tensor = module(batch)
        return out

    with torch.inference_mode():
        report(
            "precision",
            {
                "product": ratio(lambda: one @ other, lambda: half_one @ half_other, rounds),
                "convolution": ratio(lambda: layer(image), lambda: autocast(layer, image), rounds),
                "resnet18": ratio(lambda: net(tiles), lambda: autocast(net, tiles), rounds),
            },
        )


if __name__ == "__main__":
    main()
