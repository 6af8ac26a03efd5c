"""Whether CUDA graphs and `torch.compile` would make a network faster on this card; a part of `gpu.py`.

Neither is used in a scan. These ratios show on a given card whether using them would pay.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gpu_measure import TILE, Plan, bare, best_seconds, random_input


def forms_part(plan: Plan, device: str, folder: Path) -> dict[str, float]:
    """Seconds of a bare network over those of its CUDA graph and of its compiled form.

    Without a card there are no graphs, and the compiled form is only traced (backend `eager`), because
    compiling for a processor needs a C++ compiler.
    """
    from lobule.nets.encoders import encoder

    on_card = device.startswith("cuda")
    plain = bare(encoder(plan.encoders["resnet50"], "random").net, device)
    compiled = torch.compile(plain, backend="inductor" if on_card else "eager", dynamic=False)
    ratios: dict[str, float] = {}
    for size, batch in plan.batches.items():
        x = random_input((batch, 3, TILE, TILE), plain, device)
        with torch.inference_mode():
            seconds = best_seconds(lambda: plain(x), device, plan.rounds)  # noqa: B023
            ratios[f"compiled_{size}"] = seconds / best_seconds(lambda: compiled(x), device, plan.rounds)  # noqa: B023
            if on_card:
                graph = captured(plain, x)
                ratios[f"graph_{size}"] = seconds / best_seconds(graph.replay, device, plan.rounds)
    return ratios


def captured(net: nn.Module, x: torch.Tensor) -> torch.cuda.CUDAGraph:
    """The CUDA graph of a network on this input, which is computed again by `replay`."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # Libraries choose their algorithms in the first runs, which cannot be captured.
            net(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        net(x)
    return graph
