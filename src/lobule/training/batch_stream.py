"""Batches in order, prepared in advance by threads or processes. Nothing here imports torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

import numpy as np

from lobule.errors import CaseError, ConfigError, LobuleError, UsageError

ATTEMPTS = 20
"""Attempts for one sample before training stops. An attempt whose file cannot be read is followed by
another."""

Sample = TypeVar("Sample")
Batch = TypeVar("Batch")


@dataclass(eq=False)
class BatchStream(ABC, Generic[Batch]):
    """Batches in order, with a bounded number of them prepared ahead.

    A batch depends only on its number, so the stream is the same for any number of workers, and can continue
    from any batch.
    """

    _next: int = field(default=0, init=False)
    _waiting: deque[Future[Batch]] = field(default_factory=deque, init=False)
    _executor: Executor | None = field(default=None, init=False)
    _ahead: int = field(default=1, init=False)
    """Number of batches that are prepared in advance."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return the values that determine the batches."""

    @abstractmethod
    def start_workers(self) -> tuple[Executor, int]:
        """Start the workers, and return how many batches they prepare in advance."""

    @abstractmethod
    def begin_batch(self, executor: Executor, number: int) -> Future[Batch] | None:
        """Let a worker prepare a batch; None after the last one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._executor is None:
            self._executor, ahead = self.start_workers()
            self._ahead = max(1, ahead)
        while len(self._waiting) < self._ahead:
            future = self.begin_batch(self._executor, self._next + len(self._waiting))
            if future is None:
                break
            self._waiting.append(future)
        if not self._waiting:
            raise StopIteration
        batch = self._waiting.popleft().result()
        self._next += 1
        return batch

    def state(self) -> dict[str, Any]:
        """Return the position of the stream after the last batch, for `restore`."""
        return {**self.identity(), "next": self._next}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state` returned."""
        expected = self.identity()
        if (stored := {name: state[name] for name in expected}) != expected:
            raise ConfigError(
                "the state belongs to the samples of another training",
                expected=str(expected),
                actual=str(stored),
            )
        self.close()
        self._next = int(state["next"])

    def close(self) -> None:
        """Stop the workers. Batches prepared in advance are discarded; they can be computed again."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()
        self._executor = None


@dataclass(eq=False)
class DrawnBatches(BatchStream[Batch], Generic[Sample, Batch]):
    """Batches of samples that threads draw.

    Sample `index` of a stage is `draw(index, rng)` with a generator seeded by (seed, stage, index, attempt).
    """

    draw: Callable[[int, np.random.Generator], Sample]
    collate: Callable[[Sequence[Sample]], Batch]
    batch: int
    seed: int
    stage: int
    workers: int = 1

    def identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "stage": self.stage, "batch": self.batch}

    def start_workers(self) -> tuple[Executor, int]:
        return ThreadPoolExecutor(self.workers, thread_name_prefix="draw"), max(4, 2 * self.workers)

    def begin_batch(self, executor: Executor, number: int) -> Future[Batch]:
        return executor.submit(self._draw_batch, number * self.batch)

    def _draw_batch(self, first: int) -> Batch:
        return self.collate([self.sample(index) for index in range(first, first + self.batch)])

    def sample(self, index: int) -> Sample:
        for attempt in range(ATTEMPTS):
            try:
                return self.draw(index, np.random.default_rng([self.seed, self.stage, index, attempt]))
            except UsageError:
                raise
            except (LobuleError, OSError) as error:
                last = error
        raise CaseError(
            f"{ATTEMPTS} draws in a row could not be read",
            actual=str(last),
            remedy="Check the disk, then run the same command again to continue from the last checkpoint",
        )
