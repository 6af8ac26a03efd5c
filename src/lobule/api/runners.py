"""Chooses where the cases of a command are worked on: in this process, or on Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lobule.results.case_map import CaseMap

Runner = Literal["local", "ray"]


def require_ray_options(
    runner: str, cluster: Mapping[str, Any], shard: tuple[int, int] | None = None
) -> None:
    """Raise `ConfigError` for options that the runner does not use."""
    from lobule.errors import ConfigError

    for name, value in cluster.items():
        if runner != "ray" and value is not None:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} has an effect only with --runner ray", remedy="Add --runner ray")
    if runner == "ray" and shard is not None:
        raise ConfigError(
            "--shard cannot be used with --runner ray",
            remedy="Remove --shard: Ray divides the cases among its workers",
        )


@contextmanager
def case_map(
    runner: Runner, address: str | None, workers: int | None, worker_cpus: int | None
) -> Iterator[CaseMap]:
    """Yield the function that applies others to cases.

    Raises:
        ConfigError: An option does not belong to the runner, or there is no such cluster.
        MissingExtra: Ray is not installed.
    """
    require_ray_options(runner, {"address": address, "workers": workers, "worker_cpus": worker_cpus})
    if runner == "local":
        from lobule.results.case_map import map_here

        yield map_here
        return
    from lobule.cluster.case_map import cases_on_ray
    from lobule.cluster.session import ClusterOptions

    with cases_on_ray(ClusterOptions(address, workers, worker_cpus)) as map_cases:
        yield map_cases
