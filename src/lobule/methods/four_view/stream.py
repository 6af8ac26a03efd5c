"""Batches that threads prepare ahead of the training. Each sample depends only on its index."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np

from lobule.errors import CaseError, ConfigError, LobuleError, UsageError

ATTEMPTS = 20
"""Attempts for one sample before training stops. An attempt whose file cannot be read is followed by
another."""

Sample = TypeVar("Sample")
Batch = TypeVar("Batch")


class BatchStream(Generic[Sample, Batch]):
    """Batches in order, with a bounded number of them prepared ahead.

    Sample `index` of a stage is `draw(index, rng)` with a generator seeded by (seed, stage, index, attempt).
    The stream is therefore the same for any number of workers, and can continue from any batch.
    """

    def __init__(
        self,
        draw: Callable[[int, np.random.Generator], Sample],
        collate: Callable[[Sequence[Sample]], Batch],
        batch: int,
        *,
        seed: int,
        stage: int,
        workers: int = 1,
        ahead: int = 4,
    ) -> None:
        self._draw, self._collate, self._batch = draw, collate, batch
        self._seed, self._stage, self._ahead = seed, stage, max(ahead, 2 * workers)
        self._next = 0
        self._pending: deque[Future[Batch]] = deque()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="draw")

    def __enter__(self) -> BatchStream[Sample, Batch]:
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel_pending()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __next__(self) -> Batch:
        while len(self._pending) < self._ahead:
            first = (self._next + len(self._pending)) * self._batch
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
        return {"seed": self._seed, "stage": self._stage, "batch": self._batch}

    def _cancel_pending(self) -> None:
        while self._pending:
            self._pending.pop().cancel()

    def _make_batch(self, first: int) -> Batch:
        return self._collate([self.sample(index) for index in range(first, first + self._batch)])

    def sample(self, index: int) -> Sample:
        for attempt in range(ATTEMPTS):
            try:
                return self._draw(index, np.random.default_rng([self._seed, self._stage, index, attempt]))
            except UsageError:
                raise
            except (LobuleError, OSError) as error:
                last = error
        raise CaseError(
            f"{ATTEMPTS} draws in a row could not be read",
            actual=str(last),
            remedy="Check the disk, then run the same command again to continue from the last checkpoint",
        )
