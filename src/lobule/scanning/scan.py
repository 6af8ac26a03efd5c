"""Scans every case of a cohort with a predictor. A scan that is stopped at any time can be resumed."""

from __future__ import annotations

import logging
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lobule import __version__
from lobule.allocator import keep_freed_memory, return_freed_memory
from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, LobuleError, ResultsError
from lobule.files import read_json, write_json
from lobule.results.folder import SCAN, Results, begin_results, record_engine, write_summary
from lobule.results.locks import lock_folder, lock_settings, wait_for_workers
from lobule.results.result import FAILED, PARTIAL, UNSCORED
from lobule.results.runs import Run
from lobule.scanning.cases import CaseRunner, Progress
from lobule.scanning.contract import EngineSettings, Model, Predictor, ScanOptions
from lobule.scanning.decoding_memory import DecodingMemory
from lobule.scanning.device import (
    Measured,
    available_cores,
    choose_device,
    measure,
    possible_forms,
    replicas_for,
)
from lobule.scanning.form_cache import CachedForm, cache_key, cached_form, processor_model, store_form
from lobule.scanning.pipeline import Counters
from lobule.scanning.run_record import RunRecord, cases_digest, inputs_digest, require_same_run, run_metadata
from lobule.scanning.shards import check_cases, check_shard, shard_of, work_of

log = logging.getLogger("lobule.scan")

GIB = 1 << 30
RUN = "run.json"
VERIFY = ("changed", "full")
MODEL_SHARE, CACHE_SHARE = 0.55, 0.2
"""Shares of the memory limit for activations, and for decoded tiles or whole images. The remainder covers
queued fields."""


@dataclass(frozen=True)
class Machine:
    """The resources that a scan may use. They change results at most by rounding errors."""

    device: str = "auto"
    precision: str = "auto"
    max_ram: int = 2 * GIB
    """Limit of the memory besides the model, in bytes; it holds for slides of any size."""
    readers: int | None = None
    """Reading threads; None uses one per core."""
    cells: int | None = None
    batch: int | None = None
    replicas: int | None = None
    channels_last: bool | None = None
    """Memory layout of the model; None uses the faster one, measured once per machine and model."""
    cores: int | None = None
    """Cores to use; None uses all cores that this process may use."""

    @property
    def usable_cores(self) -> int:
        """The number of cores to use."""
        return self.cores or available_cores()

    @classmethod
    def with_layout(
        cls, layout: str, device: str, precision: str, max_ram: int, readers: int | None, batch: int | None
    ) -> Machine:
        """Return the resources with a memory layout by name: auto, channels-last or contiguous."""
        if layout not in CHANNELS_LAST:
            raise ConfigError(f"unknown memory layout '{layout}'", expected=", ".join(CHANNELS_LAST))
        channels_last = CHANNELS_LAST[layout]
        return cls(device, precision, max_ram, readers, batch=batch, channels_last=channels_last)


CHANNELS_LAST = {"auto": None, "channels-last": True, "contiguous": False}
"""The value of `Machine.channels_last` for each memory layout."""


@dataclass(frozen=True)
class ScanReport:
    """The outcome of a scan. It covers every case."""

    path: Path
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
            "options": options_to_dict(options),
            "cases": [case.id for case in cohort],
            "lobule": __version__,
        }
        with lock_settings(Path(out), shard):  # Only one shard at a time reads and writes `scan.json`.
            results = begin_results(out, settings, fresh=fresh)
            if repeat is not None and "engine" not in results.settings:
                record_engine(results, repeat.data.get("engine") or {})
            engine = choose_engine(predictor.model, results, options, machine, progress)
            work = {} if shard is None else work_of(all_cases, results.path, options, machine.usable_cores)
        cases = all_cases if shard is None else shard_of(all_cases, work, shard)
        progress.cases = len(cases)
        return_freed_memory()  # Memory of the forms of the model that were measured but not chosen.
        readers = machine.readers or machine.usable_cores
        cache_bytes = int(machine.max_ram * CACHE_SHARE)
        runner = CaseRunner(
            predictor, results, options, engine, bundle, cohort, progress, retry_failed, verify,
            cache_bytes, DecodingMemory(cache_bytes, machine.max_ram),
        )  # fmt: skip
        metadata = run_metadata(
            results.settings, engine, all_cases, cohort.path, shard, origin or {}, machine.max_ram
        )
        try:
            with RunRecord(results.path, metadata, progress, work):
                runner.run(cases, readers)
                rows = write_summary(results)
        finally:
            return_freed_memory()
    warn_about_other_inputs(repeat, progress)
    return report_of(results.path, rows, cases, progress)


def options_to_dict(options: ScanOptions) -> dict[str, Any]:
    """Return the options that influence results, as stored in `scan.json`."""
    values = asdict(options)
    values.pop("budget")
    return values


def choose_engine(
    model: Model, results: Results, options: ScanOptions, machine: Machine, progress: Progress
) -> EngineSettings:
    """Return the engine settings and move the model to the device.

    A resumed scan uses the settings in `scan.json`, except for the device and the number of replicas, which
    do not change results. A new scan chooses settings and writes them to `scan.json`.
    """
    device = choose_device(machine.device)
    if device == "cpu":
        keep_freed_memory()
    replicas, threads = replicas_for(device, machine.usable_cores)
    replicas = machine.replicas or replicas
    engine = _recorded_engine(results)
    if engine is not None:
        engine = replace(engine, device=device, replicas=replicas)
        _warn_about_fixed_settings(engine, machine, results.path)
        _warn_about_lower_memory(machine, results.path)
        model.move_to_device(engine, options)
        progress.precision = engine.precision
        return engine
    engine = EngineSettings(device=device, replicas=replicas, replica_threads=threads)
    engine = model.choose_batch(engine, int(machine.max_ram * MODEL_SHARE) // replicas, options)
    engine = replace(engine, cells=machine.cells or engine.cells, batch=machine.batch or engine.batch)
    engine, measured = _choose_form(model, engine, results.settings["bundle"], options, machine)
    log.info("precision %s", measured.sentence())
    progress.precision = measured.sentence()
    run = {
        "measured": asdict(measured),
        "host": platform.node(),
        "processor": processor_model(),
        "cores": machine.usable_cores,
        "device": device,
        "replicas": replicas,
        "max_ram": machine.max_ram,
        "began": time.time(),
    }
    write_json(results.path / RUN, run)
    record_engine(results, engine.deciding())
    return engine


def _recorded_engine(results: Results) -> EngineSettings | None:
    """Return the engine settings in `scan.json`, or None if nothing was scanned yet."""
    recorded = results.settings.get("engine")
    path = results.path / SCAN
    if recorded is None:
        if next(results.cases(), None) is None:
            return None
        raise ResultsError(
            "the results were created by an older version of Lobule",
            subject=path,
            expected="the engine settings in scan.json",
            remedy="Use another results folder, or start over with --fresh",
        )
    try:
        return EngineSettings(**recorded)
    except TypeError as error:
        raise ResultsError(
            "the engine settings are invalid", subject=path, actual=str(error), remedy="Use --fresh"
        ) from error


def _choose_form(
    model: Model, engine: EngineSettings, bundle: Mapping[str, Any], options: ScanOptions, machine: Machine
) -> tuple[EngineSettings, Measured]:
    """Move the model to the device in the cached precision and layout, or measure and cache them first."""
    precision, layout = machine.precision, machine.channels_last
    if len(possible_forms(engine, precision, layout)) == 1:
        return measure(model, engine, options, precision, layout)
    key = cache_key(bundle, engine, options_to_dict(options), precision, layout)
    form, placed = cached_form(key), None
    if form is None:
        placed, measured = measure(model, engine, options, precision, layout)
        form = store_form(key, CachedForm(placed.precision, placed.channels_last, asdict(measured)))
    engine = replace(engine, precision=form.precision, channels_last=form.channels_last)
    if engine != placed:
        model.move_to_device(engine, options)
    return engine, Measured(**form.measurement)


def warn_about_other_inputs(repeat: Run | None, progress: Progress) -> None:
    """Warn if the input files of a repeated run are no longer the same."""
    recorded = None if repeat is None else repeat.data.get("inputs_sha256")
    if recorded is not None and recorded != inputs_digest(progress.inputs):
        log.warning("The input files differ from those of the run to repeat, so results may differ")


def _warn_about_lower_memory(machine: Machine, path: Path) -> None:
    """Warn if the memory limit is now lower: fields and batches keep the size chosen for the first limit."""
    try:
        first_max_ram = int(read_json(path / RUN)["max_ram"])
    except (LobuleError, KeyError, TypeError, ValueError):  # The limit is only needed for this warning.
        return
    if machine.max_ram < first_max_ram:
        log.warning(
            "%s: fields and batches keep the size that was chosen for %.2g GiB, so the scan may exceed the "
            "limit of %.2g GiB (--fresh starts over)", path, first_max_ram / GIB, machine.max_ram / GIB,
        )  # fmt: skip


def _warn_about_fixed_settings(engine: EngineSettings, machine: Machine, path: Path) -> None:
    """Warn if the user requests settings other than those that the scan began with and still uses."""
    for name in ("precision", "batch", "cells", "channels_last"):
        requested, recorded = getattr(machine, name), getattr(engine, name)
        if requested not in (None, "auto", recorded):
            log.warning(
                "%s: this scan began with %s %s and continues with it; %s is ignored (--fresh starts over)",
                path, name, recorded, requested,
            )  # fmt: skip


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
