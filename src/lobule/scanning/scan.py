"""Scanning: every case of a cohort through a predictor, resumable at any instant, nothing lost."""

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
from lobule.allocator import give_back, keep_freed_memory
from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, LobuleError, ResultsError
from lobule.files import LONGEST_FOLDER_NAME, fits_folder_name, read_json, write_json
from lobule.results.folder import (
    SCAN,
    Results,
    begin_results,
    hold,
    record_engine,
    settling,
    write_summary,
)
from lobule.results.result import FAILED, PARTIAL, UNSCORED
from lobule.scanning.cases import CaseRunner, Progress
from lobule.scanning.contract import EngineSettings, Predictor, ScanOptions
from lobule.scanning.decoding_memory import DecodingMemory
from lobule.scanning.device import (
    Measured,
    available_cores,
    choose_device,
    lanes_for,
    measure,
    possible_forms,
)
from lobule.scanning.form_cache import CachedForm, cache_key, cached_form, processor_model, store_form
from lobule.scanning.pipeline import Counters

log = logging.getLogger("lobule.scan")

GIB = 1 << 30
RUN = "run.json"
VERIFY = ("changed", "full")
MODEL_SHARE, CACHE_SHARE = 0.55, 0.2
"""Of the memory ceiling: for activations, and for decoded tiles or whole images; the remainder covers queued
fields."""


@dataclass(frozen=True)
class Machine:
    """What a scan may use; nothing here changes a result beyond float noise."""

    device: str = "auto"
    precision: str = "auto"
    max_ram: int = 2 * GIB
    """Bytes beyond the model that hold for any slide."""
    readers: int | None = None
    """Reading threads; None is one a core."""
    cells: int | None = None
    batch: int | None = None
    lanes: int | None = None
    channels_last: bool | None = None
    """Memory layout of the model; None takes the faster one, measured once per machine and model."""


@dataclass(frozen=True)
class ScanReport:
    """How a scan ended; every case is accounted for."""

    path: Path
    counts: Mapping[str, int]
    failed: Mapping[str, str]
    """Case → its error, for the cases that failed."""
    partial: tuple[str, ...]
    seconds: float
    counters: Counters
    unscored: Mapping[str, str]
    """Case → the note that says why, for the cases in which nothing was scored. They did not fail."""


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
) -> ScanReport:
    """Scan every case into a results folder and say how it went.

    `bundle` identifies the model (method, fingerprint); a folder made by another is refused. What is
    already there is kept; `fresh` starts over and `retry_failed` tries failed cases and fields again.
    `verify="full"` reads every input file again; `"changed"` reads those whose size or time changed.
    """
    options, machine, progress = options or ScanOptions(), machine or Machine(), progress or Progress()
    if fresh and shard is not None:
        raise ConfigError(
            "--fresh with --shard would forget what the other shards did",
            remedy="Use another results folder, or delete this one before the shards begin",
        )
    if verify not in VERIFY:
        raise ConfigError(f"verify has no choice '{verify}'", expected=" or ".join(VERIFY))
    cases = _sharded(cohort, shard)
    progress.cases, progress.began = len(cases), time.monotonic()
    with hold(out, shard):
        settings = {
            "bundle": dict(bundle),
            "options": options_to_dict(options),
            "cases": [case.id for case in cohort],
            "lobule": __version__,
        }
        with settling(Path(out), shard):  # `scan.json` is read and written by one shard at a time
            results = begin_results(out, settings, fresh=fresh)
            engine = _settle(predictor, results, options, machine, progress)
        give_back()  # the forms of the model that were tried and not chosen
        readers = machine.readers or available_cores()
        runner = CaseRunner(
            predictor, results, options, engine, bundle, cohort, progress, retry_failed, verify
        )
        try:
            cache_bytes = int(machine.max_ram * CACHE_SHARE)
            runner.run(cases, readers, cache_bytes, DecodingMemory(cache_bytes, machine.max_ram))
        finally:
            give_back()
        write_summary(results)
    return _report(results, cases, progress)


def options_to_dict(options: ScanOptions) -> dict[str, Any]:
    """The options that decide a result, as `scan.json` keeps them."""
    facts = asdict(options)
    facts.pop("budget")
    return facts


def _sharded(cohort: Cohort, shard: tuple[int, int] | None) -> list[Case]:
    cases = list(cohort)
    twice = [name for name, count in Counter(case.id for case in cases).items() if count > 1]
    if twice:  # they would write into one folder
        raise ConfigError("cases of one name", subject=cohort.path, actual=", ".join(twice[:5]))
    if too_long := [case.id for case in cases if not fits_folder_name(case.id)]:
        raise ConfigError(
            "case names that are too long for a folder name",
            subject=cohort.path,
            expected=f"at most {LONGEST_FOLDER_NAME} bytes, escaped characters counted as three",
            actual=", ".join(name[:60] for name in too_long[:3]),
            remedy="Use shorter names",
        )
    if shard is None:
        return cases
    index, count = shard
    if not 1 <= index <= count:
        raise ConfigError(f"no shard {index} of {count}", expected="i/n with i from 1 to n")
    return cases[index - 1 :: count]


def _settle(
    predictor: Predictor, results: Results, options: ScanOptions, machine: Machine, progress: Progress
) -> EngineSettings:
    """Engine settings: those in `scan.json` where a scan goes on, else chosen now and written there.

    Where the model runs and how many batches at once is the machine's affair, and changes no result.
    """
    device = choose_device(machine.device)
    if device == "cpu":
        keep_freed_memory()
    lanes, threads = lanes_for(device, available_cores())
    lanes = machine.lanes or lanes
    engine = _recorded_engine(results)
    if engine is not None:
        engine = replace(engine, device=device, lanes=lanes)
        _say_what_stays(engine, machine, results.path)
        _say_what_no_longer_fits(machine, results.path)
        predictor.move_to_device(engine, options)
        progress.precision = engine.precision
        return engine
    engine = EngineSettings(device=device, lanes=lanes, lane_threads=threads)
    engine = predictor.choose_batch(engine, int(machine.max_ram * MODEL_SHARE) // lanes, options)
    if machine.cells is not None:
        engine = replace(engine, cells=machine.cells)
    if machine.batch is not None:
        engine = replace(engine, batch=machine.batch)
    engine, measured = _choose_form(predictor, engine, results.settings["bundle"], options, machine)
    log.info("precision %s", measured.sentence())
    progress.precision = measured.sentence()
    run = {
        "measured": asdict(measured),
        "host": platform.node(),
        "processor": processor_model(),
        "cores": available_cores(),
        "device": device,
        "lanes": lanes,
        "max_ram": machine.max_ram,
        "began": time.time(),
    }
    write_json(results.path / RUN, run)
    record_engine(results, engine.deciding())
    return engine


def _recorded_engine(results: Results) -> EngineSettings | None:
    """The engine settings in `scan.json`, or None where nothing was scanned yet."""
    recorded = results.settings.get("engine")
    path = results.path / SCAN
    if recorded is None:
        if next(results.cases(), None) is None:
            return None
        raise ResultsError(
            "the results were created by an older version of Lobule",
            subject=path,
            expected="the engine settings that every case was scanned with",
            remedy="Use another results folder, or start over with --fresh",
        )
    try:
        return EngineSettings(**recorded)
    except TypeError as error:
        raise ResultsError(
            "not the engine settings of a scan", subject=path, actual=str(error), remedy="Use --fresh"
        ) from error


def _choose_form(
    predictor: Predictor,
    engine: EngineSettings,
    bundle: Mapping[str, Any],
    options: ScanOptions,
    machine: Machine,
) -> tuple[EngineSettings, Measured]:
    """Place the model in its precision and layout: those in the cache, or measured now and then cached."""
    precision, layout = machine.precision, machine.channels_last
    if len(possible_forms(engine, precision, layout)) == 1:
        return measure(predictor, engine, options, precision, layout)
    key = cache_key(bundle, engine, options_to_dict(options), precision, layout)
    form, placed = cached_form(key), None
    if form is None:
        placed, measured = measure(predictor, engine, options, precision, layout)
        form = store_form(key, CachedForm(placed.precision, placed.channels_last, asdict(measured)))
    engine = replace(engine, precision=form.precision, channels_last=form.channels_last)
    if engine != placed:
        predictor.move_to_device(engine, options)
    return engine, Measured(**form.measurement)


def _say_what_no_longer_fits(machine: Machine, path: Path) -> None:
    """The size of fields and batches stays, and was chosen for the ceiling that the scan began under."""
    try:
        began = int(read_json(path / RUN)["max_ram"])
    except (LobuleError, KeyError, TypeError, ValueError):  # not known, and only to be told
        return
    if machine.max_ram < began:
        log.warning(
            "%s: fields and batches keep the size that was chosen for %.2g GiB; a ceiling of %.2g GiB may "
            "not hold (--fresh starts over)", path, began / GIB, machine.max_ram / GIB,
        )  # fmt: skip


def _say_what_stays(engine: EngineSettings, machine: Machine, path: Path) -> None:
    """A scan that goes on keeps what it began with; what is now asked otherwise is not silently dropped."""
    asked = {
        "precision": machine.precision,
        "batch": machine.batch,
        "cells": machine.cells,
        "channels_last": machine.channels_last,
    }
    for name, wanted in asked.items():
        kept = getattr(engine, name)
        if wanted not in (None, "auto", kept):
            log.warning(
                "%s: this scan began with %s %s and goes on with it, not with %s (--fresh starts over)",
                path, name, kept, wanted,
            )  # fmt: skip


def _report(results: Results, cases: Sequence[Case], progress: Progress) -> ScanReport:
    failed, partial, unscored = {}, [], {}
    counts: dict[str, int] = {}
    for case in cases:
        folder = results.case_folder(case.id)
        status = folder.status
        counts[status] = counts.get(status, 0) + 1
        if status == FAILED:
            failed[case.id] = ((folder.result or {}).get("error") or {}).get("message", "")
        elif status == PARTIAL:
            partial.append(case.id)
        elif status == UNSCORED:
            unscored[case.id] = "; ".join((folder.result or {}).get("notes", []))
    seconds = time.monotonic() - progress.began
    return ScanReport(results.path, counts, failed, tuple(partial), seconds, progress.counters, unscored)
