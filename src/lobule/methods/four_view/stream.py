"""Batches that threads prepare ahead of the training. Each sample depends only on its index."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from lobule.errors import CaseError, ConfigError, LobuleError, UsageError

ATTEMPTS = 20
"""Attempts for one sample before training stops. An attempt whose file cannot be read is followed by
another."""

Sample = TypeVar("Sample")
Batch = TypeVar("Batch")


@dataclass(eq=False)
class BatchStream(Generic[Sample, Batch]):
    """Batches in order, with a bounded number of them prepared ahead.

    Sample `index` of a stage is `draw(index, rng)` with a generator seeded by (seed, stage, index, attempt).
    The stream is therefore the same for any number of workers, and can continue from any batch.
    """

    draw: Callable[[int, np.random.Generator], Sample]
    collate: Callable[[Sequence[Sample]], Batch]
    batch: int
    seed: int
    stage: int
    workers: int = 1
    _next: int = field(default=0, init=False)
    _pending: deque[Future[Batch]] = field(default_factory=deque, init=False)

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="draw")

    def __enter__(self) -> BatchStream[Sample, Batch]:
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel_pending()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __next__(self) -> Batch:
        while len(self._pending) < max(4, 2 * self.workers):
            first = (self._next + len(self._pending)) * self.batch
            self._pending.append(self._threads.submit(self._make_batch, first))
        batch = self._pending.popleft().result()
        self._next += 1
        return batch

    def state(self) -> dict[str, Any]:
        return {**self._identity(), "next": self._next}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where another stream was when it returned `state`."""
        identity = self._identity()
        if (saved := {name: state[name] for name in identity}) != identity:
            raise ConfigError(
                "the state belongs to the samples of another training",
                expected=str(identity),
                actual=str(saved),
            )
        self._cancel_pending()
        self._next = int(state["next"])

    def _identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "stage": self.stage, "batch": self.batch}

    def _cancel_pending(self) -> None:
        while self._pending:
            self._pending.pop().cancel()

    def _make_batch(self, first: int) -> Batch:
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
