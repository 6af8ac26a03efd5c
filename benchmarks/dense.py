"""How much cheaper the dense map is than ScanNet's offset passes and than patch by patch.

ScanNet's full-width VGG-16 on fields of 20 × 20 strides, everything in the same inference form (ReLU after
pools, channels last, all cores). One offset pass is timed and counts alpha² times; patches are timed in
batches of 1, 8 and 32, and the best counts once for each cell of the dense map. Rounds alternate between all
of them and each keeps its best. That the maps are equal is what tests/nets/test_dense.py checks.

`--quick` takes half the width, α of 2 and 4, patches in batches of 1 and 8, and two rounds.

    python benchmarks/dense.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lobule.nets.dense import densify
from lobule.nets.inference import for_inference
from lobule.nets.receptive import geometry_of
from lobule.nets.vgg import HEAD_WIDTHS, WIDTHS, scannet_vgg16

CELLS = 20
"""Strides along a side of a field."""
ALPHAS, QUICK_ALPHAS = (2, 4, 8), (2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="half the width, α of 2 and 4")
    quick = parser.parse_args().quick
    torch.set_num_threads(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    narrower, rounds, batches, alphas = (2, 2, (1, 8), QUICK_ALPHAS) if quick else (1, 3, (1, 8, 32), ALPHAS)
    if quick:
        print("Quick: half the width, α of 2 and 4, patches in batches of 1 and 8.")
    net = for_inference(
        scannet_vgg16(
            widths=[width // narrower for width in WIDTHS],
            head_widths=[width // narrower for width in HEAD_WIDTHS],
        )
    )
    with torch.inference_mode():
        seconds = best_of(rounds, contestants(net, batches, alphas))
    ratios = ratios_of(seconds, batches, alphas)
    for name, ratio in ratios.items():
        print(f"{name:18s} {ratio:7.1f} times the time of the dense map")
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(json.dumps({"name": "dense", "ratios": ratios, "machine": machine}))


def contestants(
    net: nn.Module, batches: tuple[int, ...], alphas: tuple[int, ...]
) -> dict[str, Callable[[], Tensor]]:
    """What is timed, by name: one offset pass, the dense maps, batches of patches."""
    geometry = geometry_of(net)
    calls = {"offset_pass": _call(net, 1, geometry.in_size(CELLS))}
    for alpha in alphas:
        side = geometry.dense(alpha).in_size(alpha * CELLS)
        calls[f"dense_alpha{alpha}"] = _call(densify(net, alpha), 1, side)
    for batch in batches:
        calls[f"patches_{batch}"] = _call(net, batch, geometry.extent)
    return calls


def _call(net: nn.Module, batch: int, side: int) -> Callable[[], Tensor]:
    def call() -> Tensor:
        output: Tensor = net(x)
        return output

    x = torch.rand(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    return call


def best_of(rounds: int, calls: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """The shortest wall time of each call over alternating rounds."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def ratios_of(
    seconds: dict[str, float], batches: tuple[int, ...], alphas: tuple[int, ...]
) -> dict[str, float]:
    """Times of offset passes and of patches, each over the dense map's."""
    ratios = {
        f"offsets_alpha{alpha}": alpha**2 * seconds["offset_pass"] / seconds[f"dense_alpha{alpha}"]
        for alpha in alphas
    }
    patch = min(seconds[f"patches_{batch}"] / batch for batch in batches)
    ratios["patchwise_alpha4"] = (4 * CELLS) ** 2 * patch / seconds["dense_alpha4"]
    return {name: round(ratio, 2) for name, ratio in ratios.items()}


if __name__ == "__main__":
    main()
