"""Applies a function to many cases with workers on Ray, for work that needs no model.

The workers are replaced like those of a scan when they are lost, and their items are repeated. What a
function writes goes to a folder that all machines see; only its small result comes back.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from lobule import __version__
from lobule.cluster.pool import WorkerPool
from lobule.cluster.session import ClusterOptions, WorkerResources, ray_session, worker_resources
from lobule.errors import CaseError, ConfigError
from lobule.results.case_map import CaseMap

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class MapJob:
    """Everything that a worker needs to know."""

    function: Callable[[Any], Any]
    folder: str = field(default_factory=os.getcwd)
    """The working folder of the driver, to which paths may be relative."""
    lobule: str = __version__


class MapWorker:
    """Applies a function to one item after the other."""

    def __init__(self, job: MapJob) -> None:
        self.job = job

    def start(self) -> None:
        """Refuse to work with another version of Lobule than that of the driver."""
        require_version(self.job.lobule)
        with suppress(OSError):  # Another machine may lack the folder; paths must then be absolute.
            os.chdir(self.job.folder)

    def run(self, item: Any) -> Any:
        return self.job.function(item)

    def stop(self) -> None: ...


def require_version(version: str) -> None:
    """Raise `ConfigError` if the driver has another version of Lobule than this worker."""
    if version != __version__:
        raise ConfigError(
            "a worker has another version of Lobule",
            subject=platform.node(),
            expected=version,
            actual=__version__,
            remedy="Install the same version on every machine",
        )


@dataclass
class ItemTask:
    """An item, its position, and how often its worker was lost."""

    position: int
    item: Any
    losses: int = 0


@contextmanager
def cases_on_ray(cluster: ClusterOptions) -> Iterator[CaseMap]:
    """Yield a `CaseMap` that works on Ray, with one process per core unless the options say otherwise.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: There is no such cluster.
    """
    one_core = replace(cluster, worker_cpus=cluster.worker_cpus or 1)
    with ray_session(one_core) as ray:
        cores = int(sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))
        workers = cluster.workers or max(1, cores // (one_core.worker_cpus or 1))
        resources = worker_resources(ray, replace(one_core, workers=workers))

        def map_cases(
            function: Callable[[T], R],
            items: Sequence[T],
            *,
            done: Callable[[T], None] | None = None,
            if_lost: Callable[[T, int], R] | None = None,
        ) -> list[R]:
            return _map_on_ray(ray, resources, cluster.attempts, function, items, done, if_lost)

        yield map_cases


def _map_on_ray(
    ray: Any,
    resources: WorkerResources,
    attempts: int,
    function: Callable[[T], R],
    items: Sequence[T],
    done: Callable[[T], None] | None,
    if_lost: Callable[[T, int], R] | None,
) -> list[R]:
    results: dict[int, R] = {}

    def finish(task: ItemTask, result: R) -> None:
        results[task.position] = result
        if done is not None:
            done(task.item)

    def give_up(task: ItemTask) -> None:
        if if_lost is None:
            raise CaseError(
                f"the worker of this case died {task.losses} times",
                subject=str(task.item)[:200],
                remedy="It may need more memory than the worker has; use --runner local",
            )
        finish(task, if_lost(task.item, task.losses))

    job = ray.put(MapJob(function))
    actor_class = ray.remote(MapWorker).options(num_cpus=resources.cpus, max_restarts=0)
    pool = WorkerPool(
        ray, lambda: actor_class.remote(job), resources.count, attempts, lambda state: None,
        lambda task, result, actor: finish(task, result), give_up,
        submit=lambda actor, task: actor.run.remote(task.item),
    )  # fmt: skip
    pool.run([ItemTask(position, item) for position, item in enumerate(items)])
    return [results[position] for position in range(len(items))]
