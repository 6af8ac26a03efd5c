"""The pipeline of a scan: reading threads, model replicas and a writing thread, connected by bounded queues.

Each replica computes a separate batch with a few cores, so that cores do not wait for each other. All open
cases share the pipeline. The fields of the earliest case are read first, so that cases finish in order.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lobule.errors import LobuleError, ModelError
from lobule.scanning.contract import Batch, EngineSettings, Model, Pass, PixelSource
from lobule.scanning.loader import LoadedBatch, batches_of, load_batch
from lobule.scanning.stores import Sink

log = logging.getLogger("lobule.scan")


class Stopped(Exception):
    """The scan was stopped. Everything that was already written stays on disk."""


@dataclass
class Counters:
    """Counts and times of the pipeline, for the progress display. The computation never reads them."""

    fields_done: int = 0
    tiles_decoded: int = 0
    fields_planned: int = 0
    pixels_done: int = 0
    rows_done: int = 0
    """Fields of a single pixel, such as the stored features of a tile; `pixels_done` does not include
    them."""
    reading_s: float = 0.0
    """CPU seconds of the reading threads."""
    model_s: float = 0.0
    """Wall seconds inside `forward`, summed over replicas."""
    writing_s: float = 0.0
    starved_s: float = 0.0
    """Seconds that replicas waited for pixels."""
    blocked_s: float = 0.0
    """Seconds that readers waited for the model."""
    batch_halvings: int = 0
    """How often batches were halved because the memory of the device was exhausted."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **amounts: float) -> None:
        with self.lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    @property
    def bottleneck(self) -> str:
        """The slower of reading and the model."""
        if self.starved_s > 1.5 * self.blocked_s:
            return "reading"
        return "the model"


class PassRun:
    """The state of one pass of one case in the pipeline."""

    def __init__(
        self, order: int, pass_: Pass, images: Mapping[str, PixelSource], sink: Sink, size: int
    ) -> None:
        self.order, self.pass_, self.images, self.sink, self.size = order, pass_, images, sink, size
        jobs = [rows for rows in batches_of(pass_.fields, size) if sink.needed[rows].any()]
        self.jobs: deque[NDArray[np.int64]] = deque(jobs)
        self.left = len(jobs)
        self.error: BaseException | None = None
        self.done = threading.Event()
        if not jobs:
            self.done.set()

    def skip_rest(self) -> None:
        """Leave fields that were not yet read pending. Fields that are in the queues are completed."""
        self.left -= len(self.jobs)
        self.jobs.clear()
        if self.left == 0:
            self.done.set()

    def fail(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
        self.jobs.clear()
        self.done.set()


class Pipeline:
    """Runs passes. Several threads may call `run_pass` at the same time."""

    def __init__(self, model: Model, engine: EngineSettings, readers: int) -> None:
        self.model, self.engine = model, engine
        self.counters = Counters()
        self._runs: list[PassRun] = []
        self._work = threading.Condition()
        self._stop = threading.Event()
        self._ready: queue.Queue[tuple[PassRun, LoadedBatch] | None] = queue.Queue(engine.replicas + 1)
        self._computed: queue.Queue[tuple[PassRun, LoadedBatch, Mapping[str, Any]] | None] = queue.Queue(
            2 * engine.replicas + 2
        )
        self._chunks = 1
        """Number of pieces in which a batch is computed; it doubles when memory is exhausted."""
        self._threads = [
            threading.Thread(target=self._read, name=f"read-{i}", daemon=True) for i in range(readers)
        ]
        self._threads += [
            threading.Thread(target=self._compute, name=f"replica-{i}", daemon=True)
            for i in range(engine.replicas)
        ]
        self._threads.append(threading.Thread(target=self._write, name="write", daemon=True))

    def __enter__(self) -> Pipeline:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for thread in self._threads:
            thread.join(timeout=60)

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def stop(self) -> None:
        """End every thread after its current batch. Passes that are still running raise `Stopped`."""
        self._stop.set()
        with self._work:
            for run in self._runs:
                run.fail(Stopped())
            self._work.notify_all()

    def run_pass(self, order: int, pass_: Pass, images: Mapping[str, PixelSource], sink: Sink) -> None:
        """Compute the fields that a pass still needs, and return when their outputs are on disk."""
        run = PassRun(order, pass_, images, sink, pass_.batch or self.engine.batch)
        self.counters.add(fields_planned=sum(len(rows) for rows in run.jobs))
        with self._work:
            if self._stop.is_set():
                raise Stopped
            self._runs.append(run)
            self._runs.sort(key=lambda other: other.order)
            self._work.notify_all()
        run.done.wait()
        with self._work:
            self._runs.remove(run)
        if run.error is not None:
            raise run.error

    # -- the threads --------------------------------------------------------------------------------------

    def _next_job(self) -> tuple[PassRun, NDArray[np.int64]] | None:
        with self._work:
            while not self._stop.is_set():
                for run in self._runs:
                    try:
                        if run.jobs and run.pass_.go_on is not None and not run.pass_.go_on():
                            run.skip_rest()
                    except Exception as error:  # An error in code of the method must not end this thread.
                        run.fail(error)
                    if run.jobs:
                        return run, run.jobs.popleft()
                self._work.wait()
        return None

    def _fail(self, run: PassRun, error: BaseException) -> None:
        with self._work:  # A reading thread may be about to take one of the jobs that `fail` removes.
            run.fail(error)

    def _read(self) -> None:
        # Images that torch resizes have the same bits only with the same number of threads.
        torch.set_num_threads(self.engine.replica_threads)
        while (job := self._next_job()) is not None:
            run, rows = job
            began = time.thread_time()
            try:
                batch = load_batch(run.pass_, run.images, rows, run.size)
            except BaseException as error:
                self._fail(run, error)
                continue
            waited = time.perf_counter()
            self.counters.add(reading_s=time.thread_time() - began)
            if not self._hand(self._ready, (run, batch)):
                return
            self.counters.add(blocked_s=time.perf_counter() - waited)

    def _compute(self) -> None:
        torch.set_num_threads(self.engine.replica_threads)
        stream: Any = None
        if self.engine.device.startswith("cuda"):
            stream = torch.cuda.Stream(self.engine.device)
            torch.cuda.synchronize(self.engine.device)  # Another stream moved the weights to the device.
        while True:
            waited = time.perf_counter()
            item = self._take(self._ready)
            if item is None:
                return
            run, batch = item
            began = time.perf_counter()
            self.counters.add(starved_s=began - waited)
            try:
                outputs = self._forward(run, batch, stream)
            except LobuleError as error:
                self._fail(run, error)
                continue
            except Exception as error:  # Any error of the model fails only its case.
                problem = f"the model failed in pass '{run.pass_.name}'"
                self._fail(run, ModelError(problem, actual=f"{type(error).__name__}: {error}"))
                continue
            self.counters.add(model_s=time.perf_counter() - began)
            if not self._hand(self._computed, (run, batch, outputs)):
                return

    def _forward(self, run: PassRun, batch: LoadedBatch, stream: Any) -> Mapping[str, Any]:
        """Compute a batch, in smaller pieces if the memory of the device does not suffice."""
        if run.error is not None or len(batch.pixels) == 0:
            return {}
        while True:
            chunks = min(self._chunks, len(batch.pixels))
            try:
                outputs = [self._forward_chunk(run, chunk, stream) for chunk in batch.split(chunks)]
                break
            except torch.OutOfMemoryError as error:
                if chunks == len(batch.pixels):
                    raise ModelError(
                        "the memory of the device is exhausted by a single field",
                        actual=str(error).splitlines()[0],
                        remedy="Close other programs that use the device, or use --device cpu",
                    ) from error
                self._halve_batches(chunks)
        if len(outputs) == 1:
            return outputs[0]
        return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}

    def _halve_batches(self, chunks: int) -> None:
        with self._work:
            if self._chunks > chunks:  # Another replica has already halved them.
                return
            self._chunks = 2 * chunks
        self.counters.add(batch_halvings=1)
        if self.engine.device.startswith("cuda"):
            torch.cuda.empty_cache()
        log.warning(
            "The memory of %s is exhausted: batches are computed in %d pieces", self.engine.device, 2 * chunks
        )

    def _forward_chunk(self, run: PassRun, batch: LoadedBatch, stream: Any) -> Mapping[str, Any]:
        with torch.inference_mode():
            if stream is None:
                outputs = self.model.forward(run.pass_.key, to_device(batch, self.engine.device))
                return {name: _stored(tensor).cpu().numpy() for name, tensor in outputs.items()}
            with torch.cuda.stream(stream):
                outputs = self.model.forward(run.pass_.key, to_device(batch, self.engine.device))
                host = {
                    name: _stored(tensor).to("cpu", non_blocking=True) for name, tensor in outputs.items()
                }
                stream.synchronize()
                return {name: tensor.numpy() for name, tensor in host.items()}

    def _write(self) -> None:
        while (item := self._take(self._computed)) is not None:
            run, batch, outputs = item
            if run.error is not None:
                continue
            began = time.perf_counter()
            try:
                self._deliver(run, batch, outputs)
            except BaseException as error:
                self._fail(run, error)
                continue
            height, width = batch.pixels.shape[1:3]
            self.counters.add(
                writing_s=time.perf_counter() - began,
                fields_done=len(batch.rows),
                **{"pixels_done" if height * width > 1 else "rows_done": len(batch.rows) * height * width},
            )
            with self._work:
                run.left -= 1
                if run.left == 0:
                    run.done.set()

    def _deliver(self, run: PassRun, batch: LoadedBatch, outputs: Mapping[str, Any]) -> None:
        for slot, row in enumerate(int(row) for row in batch.rows):
            if row in batch.failures:
                run.sink.fail(row, batch.failures[row])
            else:
                run.sink.deliver(row, {name: values[slot] for name, values in outputs.items()})

    # -- queue operations that end when the pipeline stops ------------------------------------------------

    def _hand(self, line: queue.Queue[Any], item: Any) -> bool:
        while not self._stop.is_set():
            try:
                line.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def _take(self, line: queue.Queue[Any]) -> Any:
        while not self._stop.is_set():
            try:
                return line.get(timeout=0.2)
            except queue.Empty:
                continue
        return None


COMPACT = (torch.int8, torch.float16)
"""Formats in which a model may return columns of a table to store them in less space than float32."""


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in COMPACT else tensor.float()


def to_device(batch: LoadedBatch, device: str) -> Batch:
    """Return a batch as tensors on the device. On a GPU, pinned memory lets the copy overlap computation."""

    def move(array: NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if device.startswith("cuda"):
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor.to(device)

    return Batch(move(batch.pixels), {name: move(values) for name, values in batch.params.items()})
