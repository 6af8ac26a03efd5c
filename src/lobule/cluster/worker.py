"""The worker of a scan on Ray: one process with one warm model, which scans the cases that it receives."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lobule import __version__
from lobule.cluster.case_map import require_version
from lobule.cohort import Case, Cohort
from lobule.results.folder import Results
from lobule.results.locks import lock_worker
from lobule.results.result import FAILED
from lobule.results.store import StoreAddress
from lobule.scanning.cards import Cards
from lobule.scanning.case_shares import Share
from lobule.scanning.cases import MAX_OPEN_CASES, CaseRunner
from lobule.scanning.contract import Predictor, ScanOptions
from lobule.scanning.decoding_memory import DecodingMemory
from lobule.scanning.engine import choose_engine
from lobule.scanning.machine import Machine
from lobule.scanning.progress import Progress
from lobule.scanning.scan import CACHE_SHARE
from lobule.scanning.tissue_fields import first_fields

COUNTS = (
    "fields_done", "fields_planned", "pixels_done", "rows_done", "tiles_decoded",
    "reading_s", "model_s", "writing_s", "starved_s", "blocked_s", "batch_halvings", "lost_devices",
)  # fmt: skip
"""The counters that a worker reports."""
SHARE, NO_SHARE = "share", "no share"
"""Outcomes of a share of a case: it was computed, or no pass of the case was incomplete."""


class PredictorSource(Protocol):
    """Loads the model in a worker. It is pickled, so it contains paths and settings instead of weights."""

    def load(self) -> Predictor: ...

    @property
    def bundle(self) -> Mapping[str, Any]:
        """The method and the fingerprint of the model."""
        ...


@dataclass(frozen=True)
class ScanJob:
    """Everything that a worker needs to know about a scan."""

    source: PredictorSource
    out: str
    options: ScanOptions
    machine: Machine
    cohort: Cohort
    retry_failed: bool
    verify: str
    int8_folder: str = ""
    """Folder of the int8 models of a quantised bundle; empty for other bundles."""
    folder: str = field(default_factory=os.getcwd)
    """The working folder of the driver, to which paths may be relative."""
    lobule: str = __version__
    store: StoreAddress | None = None
    """The object store of the results, whose scratch folder on the machine of the driver is `out`."""


@dataclass(frozen=True)
class WorkerState:
    """What a worker reports when it is ready."""

    host: str
    process: int
    engine: dict[str, Any]


@dataclass(frozen=True)
class CaseOutcome:
    """What a worker reports about a case."""

    status: str
    inputs: str | None
    counters: dict[str, float]
    """The counters of the worker since it started."""


class CaseWorker:
    """Scans cases. Several threads of Ray call `scan` at the same time."""

    def __init__(self, job: ScanJob) -> None:
        self.job = job
        self._stack = ExitStack()

    def start(self) -> WorkerState:
        """Load the model and start the pipeline, with the engine settings of the scan.

        Raises:
            ConfigError: The worker has another version of Lobule than the driver.
            BundleError: The worker has another bundle than the driver.
        """
        job = self.job
        require_version(job.lobule)
        with suppress(OSError):  # Another machine may lack the folder; its cases then need absolute paths.
            os.chdir(job.folder)
        self.store = None if job.store is None else job.store.open()
        root = Path(job.out) if self.store is None else self.store.results
        self._stack.enter_context(lock_worker(root))
        if self.store is not None:
            self.store.pull_settings()
        predictor, results, self.progress = job.source.load(), Results(root), Progress()
        machine = job.machine
        cards = Cards(predictor.model)
        engine = choose_engine(
            cards, results, job.options, machine, self.progress, job.int8_folder,
            lambda engine: first_fields(predictor, job.cohort, job.options, engine),
        )  # fmt: skip
        if self.store is not None:
            self.store.publish_settings()
        cache_bytes = int(machine.max_ram * CACHE_SHARE)
        runner = CaseRunner(
            predictor, cards, results, job.options, engine, job.source.bundle, job.cohort, self.progress,
            job.retry_failed, job.verify, cache_bytes // MAX_OPEN_CASES,
            DecodingMemory(cache_bytes, machine.max_ram),
            shard=(1, 1),  # Other workers write into the folder, as other shards do.
            store=self.store,
        )  # fmt: skip
        self._runner = runner
        self._submit = self._stack.enter_context(runner.session(machine.readers or machine.usable_cores))
        return WorkerState(platform.node(), os.getpid(), dict(engine.__dict__))

    def scan(self, order: int, case: Case, share: Share | None = None) -> CaseOutcome:
        """Scan a case, or a share of it, and return the outcome. Errors of the case are in its result."""
        if self.store is not None:
            self.store.refresh(self._runner.results.case_folder(case.id))
        if share is None:
            self._submit(order, case).result()
            status = self.progress.finished.pop(case.id, FAILED)
        else:
            status = SHARE if self._runner.submit_share(order, case, share).result() else NO_SHARE
        if self._runner.pipeline.device_lost is not None:
            os._exit(1)  # Only a new process can use the card again. The driver starts one for the case.
        counters = {name: getattr(self.progress.counters, name) for name in COUNTS}
        return CaseOutcome(status, self.progress.inputs.pop(case.id, None), counters)

    def stop(self) -> None:
        """End the pipeline and release the lock."""
        self._stack.close()
