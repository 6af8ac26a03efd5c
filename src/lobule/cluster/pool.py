"""A pool of Ray workers that work on cases: it replaces lost workers and repeats their cases."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from lobule.cohort import Case
from lobule.errors import LobuleError, ResultsError

if TYPE_CHECKING:
    from lobule.scanning.case_shares import Share

log = logging.getLogger("lobule.scan")

CASES_PER_WORKER, FEW_CASES_PER_WORKER = 4, 2
"""Cases that a worker has at once: while the model finishes one, the next is opened and read, and results of
earlier ones are written. When few cases are left, a worker has fewer, so that none waits for a busy one."""
MOST_FAILED_STARTS = 5
"""After so many workers in a row died while starting, the scan ends."""
WAIT_S = 1.0
"""A short wait keeps the driver responsive to Ctrl-C."""


@dataclass
class Task:
    """A case to scan, and how often its worker was lost."""

    order: int
    case: Case
    losses: int = 0
    share: Share | None = None
    """The share of the case to compute; None for the whole case."""


class PoolTask(Protocol):
    """What the pool needs to know about a task."""

    losses: int
    """How often the worker of the task was lost."""


def submit_scan(actor: Any, task: Task) -> Any:
    """Let a worker scan a case, and return the reference of the call."""
    return actor.scan.remote(task.order, task.case, task.share)


@dataclass(eq=False)
class Worker:
    """A worker and the tasks that it is working on, by their Ray reference."""

    actor: Any
    starting: Any
    """The reference of the call of `start`; None when the worker is ready."""
    tasks: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False)
class WorkerPool:
    """Runs tasks on workers until each of them has an outcome or lost its worker too often."""

    ray: Any
    create: Callable[[], Any]
    """Creates the actor of a new worker."""
    size: int
    attempts: int
    on_ready: Callable[[Any], None]
    """Called with what a worker reports when it is ready."""
    on_done: Callable[[Any, Any, Any], None]
    """Called with a task, its outcome and its worker."""
    on_lost: Callable[[Any], None]
    """Called with a task whose worker was lost `attempts` times."""
    submit: Callable[[Any, Any], Any] = submit_scan
    """Gives a task to a worker, and returns the reference of the call."""
    has_settings: bool = False
    """Whether the engine settings were chosen already. Otherwise the first worker starts alone."""
    _workers: list[Worker] = field(default_factory=list)
    _queue: deque[Any] = field(default_factory=deque)
    _failed_starts: int = 0

    def run(self, tasks: Sequence[PoolTask]) -> None:
        """Run all tasks, in this order as far as possible.

        Raises:
            ResultsError: Workers cannot write results, or die while starting.
            LobuleError: A worker cannot follow the settings of the scan.
        """
        self._queue.extend(tasks)
        try:
            while self._queue or any(worker.tasks for worker in self._workers):
                self._add_workers()
                self._assign()
                self._handle_events()
        finally:
            for worker in self._workers:
                self.ray.kill(worker.actor)

    def add(self, tasks: Sequence[PoolTask]) -> None:
        """Add tasks that follow from finished ones. They are run before all others that wait."""
        self._queue.extendleft(reversed(tasks))

    def stop_workers(self) -> None:
        """Let idle workers end in an orderly way, so that they release their locks."""
        calls = [worker.actor.stop.remote() for worker in self._workers if worker.starting is None]
        self.ray.wait(calls, num_returns=len(calls), timeout=10) if calls else None

    def _add_workers(self) -> None:
        # The first worker chooses the engine settings, which all others follow.
        size = self.size if self.has_settings else 1
        without_task = sum(not worker.tasks for worker in self._workers)
        for _ in range(min(size - len(self._workers), len(self._queue) - without_task)):
            actor = self.create()
            self._workers.append(Worker(actor, actor.start.remote()))

    def _assign(self) -> None:
        ready = [worker for worker in self._workers if worker.starting is None]
        limit = CASES_PER_WORKER if len(self._queue) > CASES_PER_WORKER * len(ready) else FEW_CASES_PER_WORKER
        if len(self._queue) <= len(ready):
            limit = 1  # At the end, no worker takes a second case while another one is idle.
        for most in range(1, limit + 1):
            for worker in ready:
                if self._queue and len(worker.tasks) < most and self._may_take(worker, self._queue[0]):
                    task = self._queue.popleft()
                    worker.tasks[self.submit(worker.actor, task)] = task

    def _may_take(self, worker: Worker, task: PoolTask) -> bool:
        """Whether a worker may take a task. A task that lost its worker is alone, so no other is blamed."""
        is_suspected = any(other.losses for other in worker.tasks.values())
        return not is_suspected and not (task.losses and worker.tasks)

    def _handle_events(self) -> None:
        waiting: dict[Any, Worker] = {}
        for worker in self._workers:
            references = [worker.starting] if worker.starting is not None else list(worker.tasks)
            waiting |= dict.fromkeys(references, worker)
        if not waiting:
            return
        finished, _ = self.ray.wait(list(waiting), num_returns=1, timeout=WAIT_S, fetch_local=False)
        for reference in finished:
            worker = waiting[reference]
            if worker not in self._workers:
                continue  # It was lost with another of its tasks.
            try:
                outcome = self.ray.get(reference)
            except self.ray.exceptions.RayTaskError as error:
                self._handle_error(worker, error)
            except self.ray.exceptions.RayError as error:
                self._lose(worker, error)
            else:
                self._finish(worker, reference, outcome)

    def _finish(self, worker: Worker, reference: Any, outcome: Any) -> None:
        if worker.starting is not None:
            worker.starting = None
            self._failed_starts, self.has_settings = 0, True
            self.on_ready(outcome)
        else:
            self.on_done(worker.tasks.pop(reference), outcome, worker.actor)

    def _handle_error(self, worker: Worker, error: Any) -> None:
        """Retire a worker that cannot write results; raise every other error."""
        cause = getattr(error, "cause", error)
        remaining = [other for other in self._workers if other is not worker]
        if isinstance(cause, ResultsError) and worker.starting is None and remaining:
            log.warning("a worker cannot write results and is no longer used: %s", cause)
            self.size -= 1
            self._remove(worker)
            return
        if isinstance(cause, LobuleError):
            raise cause from error
        raise error

    def _lose(self, worker: Worker, error: Exception) -> None:
        """Replace a worker that died, and repeat its tasks."""
        log.warning("a worker was lost (%s); its cases are repeated", type(error).__name__)
        if worker.starting is not None:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                raise ResultsError(
                    f"{MOST_FAILED_STARTS} workers in a row died while starting",
                    actual=str(error).splitlines()[0][:300],
                    remedy="Look into the logs of Ray, often /tmp/ray/session_latest/logs",
                ) from error
        for task in worker.tasks.values():
            task.losses += 1
        self._remove(worker)

    def _remove(self, worker: Worker) -> None:
        self._workers.remove(worker)
        for task in reversed(worker.tasks.values()):
            if task.losses >= self.attempts:
                self.on_lost(task)
            else:
                self._queue.appendleft(task)
        worker.tasks = {}
        self.ray.kill(worker.actor)
