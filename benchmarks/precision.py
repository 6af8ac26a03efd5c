"""What bfloat16 can give on this machine: bare products and a bare ResNet-18, against float32.

Nothing of Lobule's is in it. A bar that asks bfloat16 for twice the speed of a float32 loop cannot be met
where these ratios are below one: the processor has no units for it (AMX, or AVX-512 BF16) and emulates it.

    product      float32 seconds of a product of two 1,024 x 1,024 matrices over bfloat16 seconds
    convolution  the same of a 3 x 3 convolution of 128 channels, channels last
    resnet18     the same of torchvision's ResNet-18 on eight tiles of 224 px, channels last

    python benchmarks/precision.py [--quick]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision

from measure import arguments, report, side_by_side


def repeated(work: Callable[[], Any], times: int) -> Callable[[int], None]:
    def task(_: int) -> None:
        for _ in range(times):
            work()

    return task


def ratio(in_float32: Callable[[], Any], in_bfloat16: Callable[[], Any], times: int, rounds: int) -> float:
    in_float32()
    in_bfloat16()
    tasks = {"float32": repeated(in_float32, times), "bfloat16": repeated(in_bfloat16, times)}
    seconds = side_by_side(tasks, 1, rounds)
    return seconds["float32"] / seconds["bfloat16"]


def main() -> None:
    rounds = 3 if arguments(__doc__ or "").quick else 9
    torch.manual_seed(0)
    one, other = torch.randn(1024, 1024), torch.randn(1024, 1024)
    half_one, half_other = one.bfloat16(), other.bfloat16()
    layer = torch.nn.Conv2d(128, 128, 3, padding=1).to(memory_format=torch.channels_last)
    image = torch.randn(8, 128, 56, 56).to(memory_format=torch.channels_last)
    net = torchvision.models.resnet18().eval().to(memory_format=torch.channels_last)
    tiles = torch.randn(8, 3, 224, 224).to(memory_format=torch.channels_last)

    def autocast(module: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: torch.Tensor = module(batch)
        return out

    with torch.inference_mode():
        report(
            "precision",
            {
                "product": ratio(lambda: one @ other, lambda: half_one @ half_other, 10, rounds),
                "convolution": ratio(lambda: layer(image), lambda: autocast(layer, image), 2, rounds),
                "resnet18": ratio(lambda: net(tiles), lambda: autocast(net, tiles), 1, rounds),
            },
        )


if __name__ == "__main__":
    main()
