"""The sizes of the parts of `gpu.py`, and how it measures seconds and how busy a card is."""

from __future__ import annotations

import contextlib
import copy
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

MPP, TILE = 0.5, 224
BEGAN = time.monotonic()
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Plan:
    """Sizes of the parts."""

    encoders: dict[str, str]
    widths: tuple[int, ...]
    head_widths: tuple[int, int]
    field_cells: int
    feature_side: int
    slide_side: int
    steps: int
    exam: tuple[int, int]
    rounds: int
    batches: dict[str, int]
    """A small batch, in which starting the operations may take longer than computing, and a large one."""
    latest_start_s: float
    """Seconds after which no further part or encoder begins."""


FULL = Plan(
    {
        "resnet50": "resnet50",
        "vit_l": "timm:vit_large_patch16_224",
        "vit_h": "timm:vit_huge_patch14_224",
        "vit_g": "timm:vit_giant_patch14_224",
    },
    (64, 128, 256, 512, 512), (1024, 1024), 83, 32_768, 100_000, 300, (2600, 1900), 5,
    {"small": 8, "large": 128}, 420,
)  # fmt: skip
TINY = Plan(
    {"resnet50": "resnet18", "vit_l": "timm:vit_tiny_patch16_224"},
    (4, 4, 8, 8, 8), (8, 8), 4, 3072, 8192, 6, (650, 480), 1, {"small": 1, "large": 2}, float("inf"),
)  # fmt: skip


def device_of() -> str:
    from lobule.scanning.device import choose_device

    return choose_device()


def precision_of(device: str) -> Precision:
    from lobule.scanning.device import has_bfloat16

    return "bfloat16" if device.startswith("cuda") and has_bfloat16(device) else "float32"


def is_late(plan: Plan, name: str) -> bool:
    """Whether it is too late to begin a part. If so, print that it is left out."""
    if time.monotonic() - BEGAN <= plan.latest_start_s:
        return False
    print(f"{name}: left out, because {plan.latest_start_s} s are used up")
    return True


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def best_seconds(work: Callable[[], object], device: str, rounds: int) -> float:
    """Seconds of the fastest of some rounds, after one to warm up."""
    best = float("inf")
    for round_ in range(rounds + 1):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        if round_:
            best = min(best, time.perf_counter() - began)
    return best


def bare(net: nn.Module, device: str) -> nn.Module:
    """The network as PyTorch alone would run it."""
    dtype = torch.bfloat16 if precision_of(device) == "bfloat16" else torch.float32
    plain = copy.deepcopy(net).eval().requires_grad_(False)
    placed: nn.Module = plain.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def random_input(shape: tuple[int, ...], net: nn.Module, device: str) -> torch.Tensor:
    dtype = next(net.parameters()).dtype
    x = torch.rand(shape, device=device).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def busy_share(name: str, device: str) -> Iterator[dict[str, float]]:
    """The share of time in which the card computes, as nvidia-smi reports it ten times a second."""
    shares: list[float] = []
    out: dict[str, float] = {}
    if not device.startswith("cuda") or shutil.which("nvidia-smi") is None:
        yield out
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
    with subprocess.Popen([*command, "-i", "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = process.stdout
        numbers = (line for line in lines if line.strip().isdigit())  # Some cards answer "[N/A]".
        reader = threading.Thread(target=lambda: shares.extend(float(line) / 100 for line in numbers))
        reader.start()
        try:
            yield out
        finally:
            process.terminate()
            reader.join()
    if shares:
        out[f"busy_{name}"] = float(np.mean(shares))
