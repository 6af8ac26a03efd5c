"""The parts of a scan alone: reading without a model, and the model without reading."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

BATCHES_IN_MEMORY = 16


@dataclass(frozen=True)
class TimeSpent:
    """Seconds that something took."""

    wall: float
    cpu: float


def time_spent_by(work: Callable[[], object]) -> TimeSpent:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return TimeSpent(time.perf_counter() - wall, time.process_time() - cpu)


def read_all(pass_: Any, images: Any, size: int, readers: int) -> None:
    """Every batch of a pass through the scanner's own loader, on as many threads, and away with it."""
    from lobule.scanning.loader import batches_of, load_batch

    jobs = deque(batches_of(pass_.fields, size))

    def work() -> None:
        with contextlib.suppress(IndexError):
            while True:
                load_batch(pass_, images, jobs.popleft(), size)

    in_threads(readers, work)


def compute_all(model: Any, engine: Any, key: Any, in_memory: Sequence[Any], batches: int) -> None:
    """The model on as many batches, in the replicas and threads of the pipeline, pixels in memory."""
    import torch

    from lobule.scanning.cards import to_device

    numbers = count()
    on_gpu = engine.device.startswith("cuda")

    def replica() -> None:
        torch.set_num_threads(engine.replica_threads)
        stream = torch.cuda.stream(torch.cuda.Stream(engine.device)) if on_gpu else contextlib.nullcontext()
        with torch.inference_mode(), stream:
            while (number := next(numbers)) < batches:
                batch = in_memory[number % len(in_memory)]
                outputs = model.forward(key, to_device(batch, engine.device))
                for tensor in outputs.values():
                    tensor.float().cpu().numpy()

    in_threads(engine.replicas, replica)


def in_threads(number: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def opened(
    predictor: Any, case: Any, engine: Any, options: Any, machine: Any
) -> Iterator[tuple[Any, Any, int]]:
    """The images of a case, its first pass, and how many tiles were decoded to find its tissue."""
    from lobule.scanning.cases import MAX_OPEN_CASES
    from lobule.scanning.device import available_cores
    from lobule.scanning.open_case import OpenedCase, size_caches
    from lobule.scanning.scan import CACHE_SHARE

    open_case = OpenedCase(case, predictor.images(case, options), options, engine)
    try:
        pass_ = next(predictor.steps(open_case))
        largest_bytes = int(machine.max_ram * CACHE_SHARE) // MAX_OPEN_CASES
        readers = machine.readers or available_cores()
        size_caches(pass_, open_case.images, largest_bytes, readers, engine.batch)
        yield open_case.images, pass_, open_case.images["slide"].tiles_decoded  # type: ignore[attr-defined]
    finally:
        open_case.close()


def sample_batches(pass_: Any, images: Any, size: int) -> tuple[list[Any], int]:
    """Up to `BATCHES_IN_MEMORY` batches spread over a pass, and the number of all its batches.

    A single batch would stay in the caches of the processor, unlike those of a scan.
    """
    from lobule.scanning.loader import batches_of, load_batch

    batches = batches_of(pass_.fields, size)
    chosen = batches[:: -(-len(batches) // BATCHES_IN_MEMORY)]
    return [load_batch(pass_, images, rows, size) for rows in chosen], len(batches)


def tiles_under(slide: Any, pass_: Any) -> int:
    """Distinct compressed tiles under the fields of a pass."""
    from lobule.geometry import Box, tiles_over

    lattice = pass_.fields.lattices[0]
    if lattice.level is None:
        raise RuntimeError("this benchmark scans a level of the slide, and the fields are resampled")
    level = slide.levels[lattice.level]
    level_box = Box(0, 0, *level.size)
    tiles: set[tuple[int, int]] = set()
    for index in range(len(pass_.fields)):
        tiles.update(tiles_over(pass_.fields.box(index).intersect(level_box), level.tile))
    return len(tiles)
