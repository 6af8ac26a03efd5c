"""Scans every case of a cohort with a predictor. A scan that is stopped at any time can be resumed."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lobule import __version__
from lobule.allocator import return_freed_memory
from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError
from lobule.results.folder import begin_results, write_summary
from lobule.results.locks import lock_folder, lock_settings, wait_for_workers
from lobule.results.result import FAILED, PARTIAL, UNSCORED
from lobule.results.runs import Run
from lobule.results.store import ResultsStore
from lobule.scanning.cards import Cards
from lobule.scanning.cases import MAX_OPEN_CASES, CaseRunner
from lobule.scanning.contract import Predictor, ScanOptions
from lobule.scanning.decoding_memory import DecodingMemory
from lobule.scanning.engine import choose_engine, options_to_dict, recorded_options
from lobule.scanning.machine import Machine
from lobule.scanning.pipeline import Counters
from lobule.scanning.progress import Progress
from lobule.scanning.run_record import RunRecord, cases_digest, run_metadata
from lobule.scanning.run_repeat import require_same_run, use_engine_of, warn_about_other_inputs
from lobule.scanning.shards import check_cases, check_shard, shard_of, work_of
from lobule.scanning.tissue_fields import first_fields

__all__ = ["Machine", "ScanReport", "scan"]

log = logging.getLogger("lobule.scan")

VERIFY = ("changed", "full")
CACHE_SHARE = 0.2
"""Share of the memory limit for decoded tiles or whole images. Activations have `engine.MODEL_SHARE`, and the
remainder covers queued fields."""


@dataclass(frozen=True)
class ScanReport:
    """The outcome of a scan. It covers every case."""

    path: Path
    """The results folder; the scratch folder if the results are in an object store."""
    counts: Mapping[str, int]
    failed: Mapping[str, str]
    """The error of each case that failed."""
    partial: tuple[str, ...]
    seconds: float
    counters: Counters
    unscored: Mapping[str, str]
    """The reason for each case in which nothing was scored. These cases did not fail."""


def scan(
    predictor: Predictor,
    bundle: Mapping[str, Any],
    cohort: Cohort,
    out: str | Path,
    options: ScanOptions | None = None,
    machine: Machine | None = None,
    *,
    shard: tuple[int, int] | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    verify: str = "changed",
    progress: Progress | None = None,
    repeat: Run | None = None,
    origin: Mapping[str, Any] | None = None,
    int8_folder: Path | None = None,
    store: ResultsStore | None = None,
) -> ScanReport:
    """Scan every case of a cohort into a results folder.

    If the folder contains results of an earlier scan with the same model and options, the scan continues it.

    Args:
        predictor: The model.
        bundle: Identifies the model (method and fingerprint).
        cohort: The cases to scan.
        out: The results folder.
        options: Options that may change the results.
        machine: Resources that the scan may use.
        shard: (i, n) scans only shard i of n, counted from 1. Shards have about the same estimated work.
        fresh: Delete the results of an earlier scan first.
        retry_failed: Scan failed cases and fields again.
        verify: "changed" reads input files again if their size or modification time changed; "full" reads
            all of them again.
        progress: Updated while the scan runs.
        repeat: The record of an earlier run, whose engine settings are used so that the bytes are the same.
        origin: Further values for the record of this run, such as the path of the bundle.
        int8_folder: Folder of the int8 models of a quantised bundle.
        store: The object store into which finished cases are copied; `out` is then its scratch folder.

    Returns:
        The status of every case.

    Raises:
        ConfigError: An argument or the cohort is invalid.
        ResultsError: The folder contains other results, cannot be written to, or another process uses it.
    """
    options, machine, progress = options or ScanOptions(), machine or Machine(), progress or Progress()
    if fresh and shard is not None:
        raise ConfigError(
            "--fresh with --shard would delete the results of the other shards",
            remedy="Use another results folder, or delete this one before starting the shards",
        )
    if verify not in VERIFY:
        raise ConfigError(f"unknown value '{verify}' of verify", expected=" or ".join(VERIFY))
    all_cases = check_cases(cohort)
    if shard is not None:
        check_shard(shard)
    if repeat is not None:
        require_same_run(repeat, bundle, options_to_dict(options), all_cases)
    progress.cases, progress.began = len(all_cases), time.monotonic()
    with lock_folder(out, shard, cases_digest(all_cases)):
        wait_for_workers(Path(out))
        settings = {
            "bundle": dict(bundle),
            **recorded_options(options),
            "cases": [case.id for case in cohort],
            "lobule": __version__,
        }
        with lock_settings(Path(out), shard):  # Only one shard at a time reads and writes `scan.json`.
            results = begin_results(out, settings, fresh=fresh)
            if repeat is not None:
                use_engine_of(repeat, results)
            cards = Cards(predictor.model)
            engine = choose_engine(
                cards, results, options, machine, progress, str(int8_folder or ""),
                lambda engine: first_fields(predictor, all_cases, options, engine),
            )  # fmt: skip
            if store is not None:
                store.publish_settings()
            work = {} if shard is None else work_of(all_cases, results.path, options, machine.usable_cores)
        cases = all_cases if shard is None else shard_of(all_cases, work, shard)
        progress.cases = len(cases)
        readers = machine.readers or machine.usable_cores
        cache_bytes = int(machine.max_ram * CACHE_SHARE)
        runner = CaseRunner(
            predictor, cards, results, options, engine, bundle, cohort, progress, retry_failed, verify,
            cache_bytes // MAX_OPEN_CASES, DecodingMemory(cache_bytes, machine.max_ram), shard, store,
        )  # fmt: skip
        metadata = run_metadata(
            results.settings, engine, all_cases, cohort.path, shard, origin or {}, machine.max_ram
        )
        try:
            after_write = None if store is None else store.publish_run
            with RunRecord(results.path, metadata, progress, work, after_write=after_write):
                runner.run(cases, readers)
                rows = write_summary(results, runner.summarised)
                if store is not None:
                    store.publish_summary()
        finally:
            return_freed_memory()
    warn_about_other_inputs(repeat, progress, shard)
    return report_of(results.path, rows, cases, progress)


def report_of(
    path: Path, rows: Mapping[str, Mapping[str, Any]], cases: Sequence[Case], progress: Progress
) -> ScanReport:
    """Return the report of a scan from the rows of its summary."""
    failed, partial, unscored = {}, [], {}
    counts: Counter[str] = Counter()
    for case in cases:
        row = rows.get(case.id, {"status": "unfinished"})
        counts[row["status"]] += 1
        if row["status"] == FAILED:
            failed[case.id] = row["error"]
        elif row["status"] == PARTIAL:
            partial.append(case.id)
        elif row["status"] == UNSCORED:
            unscored[case.id] = row["note"]
    seconds = time.monotonic() - progress.began
    return ScanReport(path, counts, failed, tuple(partial), seconds, progress.counters, unscored)
