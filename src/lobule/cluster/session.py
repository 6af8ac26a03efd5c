"""Starts a local Ray or joins a cluster. Usage statistics are switched off before Ray is imported."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lobule.errors import ConfigError, MissingExtra

OBJECT_STORE_BYTES = 128 << 20
"""Memory of a local Ray for objects. Tasks carry paths instead of pixels, so little is needed."""

ANSWER_S = 10.0
"""Time in which a cluster must accept a connection."""

PRIVATE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",  # No program listens on this port.
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # Otherwise every other process of the machine goes first.
}
"""Environment of Ray and of all processes that it starts."""


@dataclass(frozen=True)
class ClusterOptions:
    """The workers of a scan on Ray."""

    address: str | None = None
    """The cluster, as `HOST:PORT`, `ray://HOST:PORT` or "auto"; None starts Ray on this machine."""
    workers: int | None = None
    """Number of workers; by default one per GPU of the cluster, or one per node without GPUs."""
    worker_cpus: int | None = None
    """CPU cores of a worker; by default the cores of the cluster divided by the number of workers."""
    attempts: int = 4
    """How often a case may lose its worker before it is recorded as failed."""
    divided_bytes: int = 4 << 30
    """Cases with a larger file are divided among all workers, because one worker would finish last."""


@dataclass(frozen=True)
class WorkerResources:
    """How many workers there are, and what each of them uses."""

    count: int
    cpus: int
    gpus: int


@contextmanager
def ray_session(options: ClusterOptions) -> Iterator[Any]:
    """Connect to Ray and yield its module.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: There is no cluster at the address.
    """
    if find_spec("ray") is None:
        raise MissingExtra("ray", "--runner ray")
    os.environ.update(PRIVATE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray warns about later versions of itself.
        import ray
    if ray.is_initialized():
        yield ray
        return
    with _without_cloud_requests(ray):
        _connect(ray, options)
        try:
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, options: ClusterOptions) -> None:
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if options.address is None:
        settings |= {
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "num_cpus": local_cpus(options),
            # Without it, Ray looks for the address of this machine in the network.
            "_node_ip_address": "127.0.0.1",
        }
    try:
        require_answer(options.address or "")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address=options.address or "local", **settings)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            "cannot connect to Ray",
            subject=options.address or "this machine",
            actual=str(error).splitlines()[0] if str(error) else type(error).__name__,
            remedy="Start one with `ray start --head --disable-usage-stats`, or leave --address out",
        ) from error


def require_answer(address: str) -> None:
    """Raise `OSError` if no program listens at HOST:PORT. Ray itself would wait for several minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_S):
            return


@contextmanager
def _without_cloud_requests(ray: Any) -> Iterator[None]:
    """Start Ray such that it does not ask the network in which cloud this machine is.

    Ray's process for usage statistics runs also when these are switched off. Some time after its start it
    sends requests to the metadata services of clouds, unless it finds the configuration of a cluster in its
    home folder. It is given a home folder with an empty configuration, which has to exist while Ray runs.
    """
    services = ray._private.services
    start_process = services.start_ray_process
    with TemporaryDirectory(prefix="lobule-ray-") as home:
        Path(home, "ray_bootstrap_config.yaml").write_text("{}\n")

        def start(command: Any, process_type: str, *arguments: Any, **settings: Any) -> Any:
            if process_type == "dashboard":
                settings["env_updates"] = {**(settings.get("env_updates") or {}), "HOME": home}
            return start_process(command, process_type, *arguments, **settings)

        services.start_ray_process = start
        try:
            yield
        finally:
            services.start_ray_process = start_process


def local_cpus(options: ClusterOptions) -> int:
    """Return the cores that a local Ray may give to workers: at least one worker has its cores."""
    from lobule.scanning.device import available_cores

    cores, worker_cpus = available_cores(), options.worker_cpus or 1
    if worker_cpus > cores:
        return cores  # `worker_resources` refuses such a worker.
    return max(cores, (options.workers or 1) * worker_cpus)


def worker_resources(ray: Any, options: ClusterOptions) -> WorkerResources:
    """Divide the resources of the cluster among workers.

    Raises:
        ConfigError: The cluster has fewer resources than one worker needs.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    total_cpus = int(sum(node["Resources"].get("CPU", 0) for node in nodes))
    gpus = int(sum(node["Resources"].get("GPU", 0) for node in nodes))
    count = options.workers or gpus or len([node for node in nodes if node["Resources"].get("CPU", 0) >= 1])
    largest_node = max((int(node["Resources"].get("CPU", 0)) for node in nodes), default=0)
    if count < 1 or largest_node < 1:
        raise ConfigError("the cluster has no CPU cores for a worker", actual=f"{len(nodes)} nodes")
    cpus = options.worker_cpus or max(1, min(total_cpus // count, largest_node))
    if cpus > largest_node:
        raise ConfigError(
            "no node has enough cores for a worker",
            expected=f"{cpus} cores",
            actual=f"at most {largest_node}",
            remedy="Use fewer --worker-cpus",
        )
    return WorkerResources(count, cpus, 1 if gpus >= count else 0)
