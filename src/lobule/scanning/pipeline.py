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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lobule.allocator import return_free_pages
from lobule.errors import DeviceLost, LobuleError, ModelError
from lobule.scanning.cards import Card, is_device_error, is_out_of_memory, new_stream, responds
from lobule.scanning.contract import EngineSettings, Pass, PixelSource
from lobule.scanning.loader import ComputedBatch, LoadedBatch, batches_of, load_batch
from lobule.scanning.stores import Sink

log = logging.getLogger("lobule.scan")


class Stopped(Exception):
    """The scan was stopped. Everything that was already written stays on disk."""


class NotStarted(Exception):
    """The last device was lost before the images of a case were opened: the case is left for the next run."""


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
    lost_devices: int = 0
    """How many devices failed and were left out."""
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

    def __init__(
        self,
        cards: Sequence[Card],
        engine: EngineSettings,
        readers: int,
        on_halved: Callable[[int], None] | None = None,
    ) -> None:
        """
        Args:
            cards: The devices, each with its model. All of them compute batches of the same size.
            engine: The engine settings.
            readers: Number of reading threads.
            on_halved: Called with the number of pieces of a batch when it has doubled.
        """
        self.cards, self.engine, self.readers = list(cards), engine, readers
        self.counters = Counters()
        self.device_lost: DeviceLost | None = None
        """The error of every pass after the last device was lost."""
        self._runs: list[PassRun] = []
        self._work = threading.Condition()
        self._stop = threading.Event()
        replicas = engine.replicas * len(self.cards)
        # A reading thread that is blocked also holds a batch: together at least `replicas + 1` wait.
        self._ready: queue.Queue[tuple[PassRun, LoadedBatch]] = queue.Queue(max(1, replicas + 1 - readers))
        self._repeated: deque[tuple[PassRun, LoadedBatch]] = deque()
        """Batches of devices that failed. They are computed before those in `_ready`."""
        self._first_batches = replicas if any(card.frees_originals for card in self.cards) else 0
        """Batches to compute until the memory that the models free is returned: one for each replica."""
        self._computed: queue.Queue[tuple[PassRun, ComputedBatch]] = queue.Queue(2 * replicas + 2)
        self._chunks, self._on_halved, self._halving = engine.pieces, on_halved, threading.Lock()
        """Number of pieces in which a batch is computed; it doubles when memory is exhausted."""
        self._threads = [
            threading.Thread(target=self._read, name=f"read-{i}", daemon=True) for i in range(readers)
        ]
        self._threads += [
            threading.Thread(
                target=self._compute,
                args=(card, new_stream(card.device)),
                name=f"replica-{number}-{i}",
                daemon=True,
            )
            for number, card in enumerate(self.cards)
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
            if self.device_lost is not None:
                raise self.device_lost
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
            self._read_batch(*job)

    def _read_batch(self, run: PassRun, rows: NDArray[np.int64]) -> None:
        """Read one batch. When this function returns, its thread does not hold the batch any more."""
        began = time.thread_time()
        try:
            batch = load_batch(run.pass_, run.images, rows, run.size)
        except BaseException as error:
            self._fail(run, error)
            return
        waited = time.perf_counter()
        self.counters.add(reading_s=time.thread_time() - began)
        if self._hand(self._ready, (run, batch)):
            self.counters.add(blocked_s=time.perf_counter() - waited)

    def _compute(self, card: Card, stream: Any) -> None:
        torch.set_num_threads(self.engine.replica_threads)
        while True:
            waited = time.perf_counter()
            item = self._next_batch(card)
            if item is None:
                return
            self.counters.add(starved_s=time.perf_counter() - waited)
            self._compute_batch(card, *item, stream)
            del item

    def _compute_batch(self, card: Card, run: PassRun, batch: LoadedBatch, stream: Any) -> None:
        began = time.perf_counter()
        try:
            outputs = self._forward(card, run, batch, stream)
        except LobuleError as error:
            self._fail(run, error)
            return
        except Exception as error:  # Any error of the model fails only its case.
            if not (is_device_error(error) and self._repeat(card, run, batch, error)):
                problem = f"the model failed in pass '{run.pass_.name}'"
                self._fail(run, ModelError(problem, actual=f"{type(error).__name__}: {error}"))
            return
        self.counters.add(model_s=time.perf_counter() - began)
        self._hand(self._computed, (run, batch.computed(outputs)))
        self._return_memory_once()

    def _return_memory_once(self) -> None:
        """Return the memory that models freed in their first batches to the system, in one call."""
        if self._first_batches > 0:
            with self._work:
                self._first_batches -= 1
                is_last = self._first_batches == 0
            if is_last:
                return_free_pages()

    def _next_batch(self, card: Card) -> tuple[PassRun, LoadedBatch] | None:
        """Wait for a batch. Return None when the pipeline stops or the card was lost."""
        while not self._stop.is_set() and not card.is_lost():
            with suppress(IndexError):
                return self._repeated.popleft()
            try:
                item = self._ready.get(timeout=0.2)
            except queue.Empty:
                continue
            if not card.is_lost():
                return item
            self._repeated.append(item)  # The card was lost while this replica of it waited.
        return None

    def _repeat(self, card: Card, run: PassRun, batch: LoadedBatch, error: Exception) -> bool:
        """Let a batch be computed once more after its device failed; leave out a device that is lost.

        Returns:
            Whether the batch is computed once more. A batch that fails twice may itself be the cause.
        """
        if not card.is_lost() and not responds(card.device):
            self._leave_out(card, error)
        if batch.repeated or self.device_lost is not None:
            return False
        self._repeated.append((run, replace(batch, repeated=True)))
        return True

    def _leave_out(self, card: Card, error: Exception) -> None:
        """Compute without a card that was lost. Without any card left, every case fails."""
        with self._work:
            if card.is_lost():  # Its other replica was faster.
                return
            card.error = str(error).splitlines()[0]
            for other in self.cards:
                other.pins_memory = False  # The driver may still use pinned memory for the lost card.
            left = sum(not other.is_lost() for other in self.cards)
            if left == 0:
                self.device_lost = DeviceLost(
                    "no device of the scan computes any more",
                    subject=card.name,
                    actual=card.error,
                    remedy="Run the same command again; it continues the scan",
                )
                for run in self._runs:
                    run.fail(self.device_lost)
        self.counters.add(lost_devices=1)
        log.warning("%s is lost and left out (%s); devices left: %d", card.name, card.error, left)

    def _forward(self, card: Card, run: PassRun, batch: LoadedBatch, stream: Any) -> Mapping[str, Any]:
        """Compute a batch, in smaller pieces if the memory of the device does not suffice."""
        if run.error is not None or len(batch.pixels) == 0:
            return {}
        while True:
            chunks = min(self._chunks, len(batch.pixels))
            try:
                outputs = [card.compute(run.pass_.key, chunk, stream) for chunk in batch.split(chunks)]
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if chunks == len(batch.pixels):
                    raise ModelError(
                        "the memory of the device is exhausted by a single field",
                        actual=str(error).splitlines()[0],
                        remedy="Close other programs that use the device, or use --device cpu",
                    ) from error
                self._halve_batches(card, chunks)
        if len(outputs) == 1:
            return outputs[0]
        return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}

    def _halve_batches(self, card: Card, chunks: int) -> None:
        """Double the pieces of a batch, on every card: no result may depend on the card of a field."""
        with self._halving:
            if self._chunks > chunks:  # Another replica has already halved them.
                return
            self._chunks = 2 * chunks
            if self._on_halved is not None:
                self._on_halved(self._chunks)
        self.counters.add(batch_halvings=1)
        if card.device.startswith("cuda"):
            with suppress(RuntimeError):  # It also frees memory of cards that may be lost.
                torch.cuda.empty_cache()
        log.warning("The memory of %s is exhausted: batches are computed in %d pieces", card.name, 2 * chunks)

    def _write(self) -> None:
        while (item := self._take(self._computed)) is not None:
            run, batch = item
            if run.error is not None:
                continue
            began = time.perf_counter()
            try:
                self._deliver(run, batch)
            except BaseException as error:
                self._fail(run, error)
                continue
            amount = {"pixels_done" if batch.area > 1 else "rows_done": len(batch.rows) * batch.area}
            self.counters.add(writing_s=time.perf_counter() - began, fields_done=len(batch.rows), **amount)
            with self._work:
                run.left -= 1
                if run.left == 0:
                    run.done.set()

    def _deliver(self, run: PassRun, batch: ComputedBatch) -> None:
        for slot, row in enumerate(int(row) for row in batch.rows):
            if row in batch.failures:
                run.sink.fail(row, batch.failures[row])
            else:
                run.sink.deliver(row, {name: values[slot] for name, values in batch.outputs.items()})

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
