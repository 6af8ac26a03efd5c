"""Scans a cohort on Ray. The unit of work is a case, and the results folder alone says what is finished."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lobule import __version__
from lobule.cluster.division import Division, file_bytes
from lobule.cluster.pool import Task, WorkerPool
from lobule.cluster.session import ClusterOptions, WorkerResources, ray_session, worker_resources
from lobule.cluster.worker import SHARE, CaseOutcome, CaseWorker, PredictorSource, ScanJob, WorkerState
from lobule.cohort import Case, Cohort
from lobule.errors import CaseError
from lobule.results.folder import Results, begin_results, write_summary
from lobule.results.locks import lock_folder, wait_for_workers
from lobule.results.result import FAILED
from lobule.results.runs import Run
from lobule.results.store import ResultsStore
from lobule.results.work import read_work
from lobule.scanning.case_results import write_result
from lobule.scanning.cases import MAX_STARTED_CASES
from lobule.scanning.contract import EngineSettings, ScanOptions
from lobule.scanning.engine import options_to_dict, recorded_options
from lobule.scanning.machine import Machine
from lobule.scanning.progress import Progress
from lobule.scanning.run_record import RunRecord, run_metadata
from lobule.scanning.run_repeat import require_same_run, use_engine_of, warn_about_other_inputs
from lobule.scanning.scan import ScanReport, report_of
from lobule.scanning.shards import check_cases

log = logging.getLogger("lobule.scan")


def scan_on_ray(
    source: PredictorSource,
    cohort: Cohort,
    out: str | Path,
    options: ScanOptions | None = None,
    machine: Machine | None = None,
    cluster: ClusterOptions | None = None,
    *,
    fresh: bool = False,
    retry_failed: bool = False,
    verify: str = "changed",
    progress: Progress | None = None,
    repeat: Run | None = None,
    origin: Mapping[str, Any] | None = None,
    int8_folder: Path | None = None,
    store: ResultsStore | None = None,
) -> ScanReport:
    """Scan every case of a cohort with workers on Ray. The results have the bytes of a local scan.

    Tasks carry paths, not pixels: the workers read the slides and write the results folder, which all
    machines must see under the same path. If workers, machines or the driver are lost, the same call
    continues the scan.

    Args:
        source: Loads the model in each worker.
        cohort: The cases to scan.
        out: The results folder.
        options: Options that may change the results.
        machine: Resources that each worker may use.
        cluster: The cluster and its workers.
        fresh: Delete the results of an earlier scan first.
        retry_failed: Scan failed cases and fields again.
        verify: As for `lobule.scanning.scan.scan`.
        progress: Updated while the scan runs.
        repeat: The record of an earlier run, whose engine settings are used.
        origin: Further values for the record of this run.
        int8_folder: Folder of the int8 models of a quantised bundle.
        store: The object store into which workers copy finished cases; `out` is then its scratch folder here.

    Returns:
        The status of every case.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: An argument or the cohort is invalid, or there is no such cluster.
        ResultsError: The folder contains other results, cannot be written to, or another process uses it.
    """
    options, machine, progress = options or ScanOptions(), machine or Machine(), progress or Progress()
    cluster = cluster or ClusterOptions()
    root, cases = Path(out).absolute(), check_cases(cohort)
    if repeat is not None:
        require_same_run(repeat, source.bundle, options_to_dict(options), cases)
    progress.cases, progress.began = len(cases), time.monotonic()
    with lock_folder(root):
        wait_for_workers(root)
        settings = {
            "bundle": dict(source.bundle),
            **recorded_options(options),
            "cases": [case.id for case in cases],
            "lobule": __version__,
        }
        results = begin_results(root, settings, fresh=fresh)
        if repeat is not None:
            use_engine_of(repeat, results)
        if store is not None:
            store.publish_settings()
            cluster = replace(cluster, divided_bytes=sys.maxsize)  # Shares would need a common folder.
        with ray_session(cluster) as ray:
            resources = worker_resources(ray, cluster)
            job = ScanJob(
                source,
                str(root),
                options,
                replace(machine, cores=resources.cpus),
                cohort,
                retry_failed,
                verify,
                "" if int8_folder is None else str(int8_folder.absolute()),
                store=None if store is None else store.address,
            )
            driver = _Driver(ray, job, results, cases, progress, cluster, resources, origin or {}, store)
            driver.run()
        if store is not None:
            store.pull()  # The records of cases that workers on other machines have scanned.
        rows = write_summary(results)
        if store is not None:
            store.publish_summary()
    warn_about_other_inputs(repeat, progress, None)
    return report_of(results.path, rows, cases, progress)


class _Driver:
    """Runs the workers of one scan and collects their outcomes."""

    def __init__(
        self,
        ray: Any,
        job: ScanJob,
        results: Results,
        cases: Sequence[Case],
        progress: Progress,
        cluster: ClusterOptions,
        resources: WorkerResources,
        origin: Mapping[str, Any],
        store: ResultsStore | None,
    ) -> None:
        self.job, self.results, self.cases, self.progress = job, results, cases, progress
        self.division = Division(results, resources.count, cluster.divided_bytes)
        job_reference = ray.put(job)
        actor_class = ray.remote(CaseWorker).options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_concurrency=MAX_STARTED_CASES + 1,
            max_restarts=0,
        )
        self.pool = WorkerPool(
            ray, lambda: actor_class.remote(job_reference), resources.count, cluster.attempts,
            self._worker_is_ready, self._case_is_done, self._case_is_lost,
            has_settings="engine" in results.settings,
        )  # fmt: skip
        self.engine = EngineSettings()
        self.hosts: list[str] = []
        self.counters: dict[Any, dict[str, float]] = {}
        self.work = read_work(results.path)
        metadata = run_metadata(
            results.settings, self.engine, cases, job.cohort.path, None, origin, job.machine.max_ram
        )
        metadata |= {
            "runner": "ray",
            "workers": resources.count,
            "worker_cpus": resources.cpus,
            "hosts": self.hosts,
        }
        self.metadata: dict[str, Any] = metadata
        self.store = store
        after_write = None if store is None else store.publish_run
        self.record = RunRecord(results.path, self.metadata, progress, self.work, after_write=after_write)

    def run(self) -> None:
        """Scan all cases, the largest first so that no large case is left for the end."""
        tasks = [Task(order, case) for order, case in enumerate(self.cases)]
        tasks.sort(key=lambda task: -self._size(task.case))
        with self.record:
            self.pool.run([one for task in tasks for one in self.division.tasks(task)])

    def _size(self, case: Case) -> float:
        """Return the estimated work of a case; the size of its file if the work was not estimated."""
        if self.work:
            return self.work.get(case.id, 0.0)
        return float(file_bytes(case))

    def _worker_is_ready(self, state: WorkerState) -> None:
        self.engine = EngineSettings(**state.engine)
        self.metadata["engine"] = self.engine.deciding()
        if state.host not in self.hosts:
            self.hosts.append(state.host)

    def _case_is_done(self, task: Task, outcome: CaseOutcome, worker: Any) -> None:
        if task.share is None:
            self.progress.finished[task.case.id] = outcome.status
        if outcome.inputs is not None:
            self.progress.inputs[task.case.id] = outcome.inputs
        before = self.counters.get(worker, {})
        self.progress.counters.add(
            **{name: value - before.get(name, 0) for name, value in outcome.counters.items()}
        )
        self.counters[worker] = outcome.counters
        if task.share is not None:
            self.pool.add(self.division.tasks_after(task, outcome.status == SHARE))

    def _case_is_lost(self, task: Task) -> None:
        """Record a case as failed after it lost its worker several times. A lost share is skipped."""
        if task.share is not None:
            self.pool.add(self.division.tasks_after(task, False))
            return
        error = CaseError(
            f"the worker that scanned the case died {task.losses} times",
            subject=", ".join(task.case.paths),
            remedy="The case may need more memory than the worker has; try it alone, then use --retry-failed",
        )
        folder, engine = self.results.case_folder(task.case.id), self.engine
        write_result(task.case, folder, FAILED, self.job.source.bundle, engine, {}, error=error)
        if self.store is not None:
            self.store.publish(folder, FAILED)
        self.progress.finished[task.case.id] = FAILED
