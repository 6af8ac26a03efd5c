"""OpenVINO against torch on ResNet-18, float32, 224 px, batches of 32, in one process and in turns.

Torch runs as Lobule runs it: norms folded, channels last, one batch a core. OpenVINO runs one stream a core.
The last line gives how many times faster OpenVINO is on one core and on all.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from torchvision.models import resnet18

from lobule.nets.inference import for_inference


def main() -> None:
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    batch, batches, rounds = job["batch"], job["batches"], job["rounds"]
    torch.manual_seed(1)
    net = resnet18(num_classes=2).eval()
    pixels = torch.rand(batch, 3, 224, 224)
    converted = ov.convert_model(net, example_input=pixels)
    fast = for_inference(net)
    rate_by_precision: dict[str, float] = {}
    for cores in sorted({1, len(os.sched_getaffinity(0))}):
        tasks = {
            "torch": in_torch(fast, pixels, cores),
            "openvino": in_openvino(converted, pixels.numpy(), cores),
        }
        with torch.inference_mode():
            expected = fast(pixels.contiguous(memory_format=torch.channels_last)).numpy()
        best = dict.fromkeys(tasks, float("inf"))
        difference = 0.0
        for _ in range(rounds):
            for name, task in tasks.items():
                start = time.perf_counter()
                outputs = task(batches)
                best[name] = min(best[name], time.perf_counter() - start)
                difference = max(difference, float(np.abs(outputs - expected).max()))
        rates = ", ".join(f"{name} {batch * batches / seconds:.1f} tiles/s" for name, seconds in best.items())
        print(f"{cores} core(s): {rates}; largest difference of a logit {difference:.1e}")
        rate_by_precision[str(cores)] = best["torch"] / best["openvino"]
    print(json.dumps({"faster": rate_by_precision, "openvino": ov.__version__, "torch": torch.__version__}))


def in_torch(net: Any, pixels: torch.Tensor, lanes: int) -> Callable[[int], Any]:
    x = pixels.contiguous(memory_format=torch.channels_last)
    pool = ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(1,))

    def once(_: int) -> Any:
        with torch.inference_mode():
            return net(x).numpy()

    return lambda batches: list(pool.map(once, range(batches)))[-1]


def in_openvino(model: Any, pixels: Any, lanes: int) -> Callable[[int], Any]:
    settings = {"INFERENCE_NUM_THREADS": lanes, "NUM_STREAMS": lanes, "INFERENCE_PRECISION_HINT": "f32"}
    line = ov.AsyncInferQueue(ov.Core().compile_model(model, "CPU", settings), lanes)
    last: list[Any] = [None]

    def keep(request: Any, _: Any) -> None:
        last[0] = request.get_output_tensor().data.copy()

    line.set_callback(keep)

    def run(batches: int) -> Any:
        for _ in range(batches):
            line.start_async({0: pixels})
        line.wait_all()
        return last[0]

    return run


if __name__ == "__main__":
    main()
