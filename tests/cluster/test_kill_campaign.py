"""A thousand small slides on Ray: workers, drivers and a node are killed repeatedly, and nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from lobule.cluster.session import PRIVATE
from lobule.cohort import Cohort
from lobule.results import open_results
from lobule.scanning.scan import scan
from tests.cluster.driver import ONE_THREAD, Job, driver, outcome_of
from tests.cluster.support import SlowPredictor
from tests.scanning.support import BUNDLE, EVERYWHERE, cohort_of, pixels_of, tree, write_slide

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (extra 'ray')"),
]

CASES = int(os.environ.get("LOBULE_CAMPAIGN_CASES", "1000"))
WORKER_KILLS, DRIVER_KILLS = 20, 3
ATTEMPTS = 10
"""Losses after which a case fails: the kills hit the same few cases more often than accidents do."""


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("slides")
    return cohort_of(
        *(write_slide(folder / f"s{i:04d}.tif", pixels_of(96 + i % 64, 80, i)) for i in range(CASES))
    )


@pytest.fixture(scope="module")
def undisturbed(slides: Cohort, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local") / "r"
    began = time.monotonic()
    scan(SlowPredictor(0), BUNDLE, slides, out, EVERYWHERE, ONE_THREAD)
    print(f"undisturbed local scan: {time.monotonic() - began:.0f} s")
    return results_in(out)


def results_in(out: Path) -> dict[str, bytes]:
    """The files of a results folder without locks, and without what a killed process was writing."""
    return {name: data for name, data in tree(out).items() if not Path(name).name.startswith(".")}


def finished(out: Path) -> int:
    return sum(1 for _ in out.glob("cases/*/result.json"))


def alive(processes: Path) -> list[int]:
    """The worker processes that still run."""
    numbers = [int(path.name) for path in processes.iterdir()]
    return [number for number in numbers if _is_worker(number)]


def _is_worker(number: int) -> bool:
    try:
        return b"ray" in Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return False


def kill_one(processes: Path) -> bool:
    workers = alive(processes)
    if workers:
        os.kill(random.choice(workers), signal.SIGKILL)
    return bool(workers)


def test_kills_of_workers_and_drivers_lose_nothing(
    slides: Cohort, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    random.seed(22)
    out, processes = tmp_path / "r", tmp_path / "processes"
    processes.mkdir()
    job = Job(slides, str(out), 0.0, str(processes), attempts=ATTEMPTS)
    marks = [round(CASES * (kill + 1) / (WORKER_KILLS + 2)) for kill in range(WORKER_KILLS)]
    driver_marks = [marks[len(marks) * (kill + 1) // (DRIVER_KILLS + 1)] for kill in range(DRIVER_KILLS)]
    killed = drivers_killed = 0
    began = time.monotonic()
    while True:
        with driver(job) as process:
            while process.poll() is None:
                done = finished(out)
                if killed < WORKER_KILLS and done >= marks[killed] and kill_one(processes):
                    killed += 1
                if drivers_killed < DRIVER_KILLS and done >= driver_marks[drivers_killed]:
                    drivers_killed += 1
                    process.kill()
                time.sleep(0.1)
            if process.returncode == 0:
                outcome = outcome_of(process)
                break
    print(f"{killed} workers and {drivers_killed} drivers killed; {time.monotonic() - began:.0f} s")
    assert (killed, drivers_killed) == (WORKER_KILLS, DRIVER_KILLS)
    assert open_results(out).counts()["complete"] == CASES and outcome["failed"] == {}
    assert results_in(out) == undisturbed


@contextmanager
def two_nodes() -> Iterator[tuple[str, object, object]]:
    """A cluster of two raylets on this machine: its address, the cluster and the second node."""
    os.environ.update(PRIVATE)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield cluster.address, cluster, cluster.add_node(num_cpus=1)
    finally:
        cluster.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_a_node_that_is_killed_loses_nothing(
    slides: Cohort, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out, processes = tmp_path / "r", tmp_path / "processes"
    processes.mkdir()
    with two_nodes() as (address, cluster, node):
        job = Job(slides, str(out), 0.0, str(processes), attempts=ATTEMPTS, address=address)
        with driver(job) as process:
            # There is one worker on each node; the second one starts when the first one is ready.
            while finished(out) < CASES // 3 or len(alive(processes)) < 2:
                assert process.poll() is None, "the driver ended too early"
                time.sleep(0.1)
            cluster.remove_node(node, allow_graceful=False)  # type: ignore[attr-defined]
            outcome = outcome_of(process)
    assert outcome["failed"] == {} and open_results(out).counts()["complete"] == CASES
    assert results_in(out) == undisturbed
