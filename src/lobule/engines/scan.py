"""Scanning: every case of a cohort through a predictor, resumable at any instant, nothing lost."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lobule import __version__
from lobule.cohort import Case, Cohort
from lobule.engines.opened import Opened
from lobule.engines.passes import EngineSettings, ImageSource, Predictor, ScanOptions
from lobule.engines.pipeline import Counters, Pipeline, Stopped
from lobule.engines.placement import available_cores, choose_device, lanes_for, measure
from lobule.engines.sinks import failed_in, open_sink
from lobule.errors import CaseError, ConfigError, DamagedResults, LobuleError, ResultsError
from lobule.files import read_json, results_error, write_json
from lobule.results.folder import (
    ENGINE,
    PLAN,
    RESULT,
    CaseFolder,
    Results,
    begin_results,
    hold,
    settling,
    write_summary,
)
from lobule.results.plan import fingerprints, plan_of, same_plan
from lobule.results.result import (
    COMPLETE,
    FAILED,
    FORMAT,
    PARTIAL,
    RESEARCH_USE,
    FailedField,
    Result,
    error_to_dict,
)
from lobule.results.writing import map_facts, write_findings
from lobule.slides.slide import Slide

log = logging.getLogger("lobule.scan")

GIB = 1 << 30
MODEL_SHARE, CACHE_SHARE = 0.55, 0.2
"""Of the memory ceiling: for activations, and for decoded tiles; the rest is for fields on their way."""

AHEAD = 2
"""Cases open at once: while one ends in the model, the next finds its tissue and begins to read."""


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
    """Memory layout of the model; None takes the faster."""


@dataclass
class Progress:
    """What a display may show while a scan runs; the scan never waits for it."""

    cases: int = 0
    finished: dict[str, str] = field(default_factory=dict)
    """Case → complete, partial, failed or skipped."""
    counters: Counters = field(default_factory=Counters)
    active: dict[str, str] = field(default_factory=dict)
    """Case → the pass it is in."""
    precision: str = ""
    began: float = field(default_factory=time.monotonic)


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
    progress: Progress | None = None,
) -> ScanReport:
    """Scan every case into a results folder and say how it went.

    `bundle` identifies the model (method, fingerprint); a folder made by another is refused. What is
    already there is kept; `fresh` starts over and `retry_failed` tries failed cases and fields again.
    """
    options, machine, progress = options or ScanOptions(), machine or Machine(), progress or Progress()
    if fresh and shard is not None:
        raise ConfigError(
            "--fresh with --shard would forget what the other shards did",
            remedy="Use another results folder, or delete this one before the shards begin",
        )
    cases = _sharded(cohort, shard)
    progress.cases, progress.began = len(cases), time.monotonic()
    with hold(out, shard):
        settings = {
            "bundle": dict(bundle),
            "options": options_to_dict(options),
            "cases": [case.id for case in cohort],
            "lobule": __version__,
        }
        results = begin_results(out, settings, fresh=fresh)
        with settling(results.path, shard):
            engine = _settle(predictor, results, options, machine, progress)
        begin_results(out, settings)  # a shard that began together with this one may have asked otherwise
        runner = _Runner(predictor, results, options, engine, bundle, retry_failed, progress, machine, cohort)
        runner.run(cases)
        write_summary(results)
    return _report(results, cases, progress)


def options_to_dict(options: ScanOptions) -> dict[str, Any]:
    """The options that decide a result, as `scan.json` keeps them."""
    facts = asdict(options)
    facts.pop("budget")
    return facts


def _sharded(cohort: Cohort, shard: tuple[int, int] | None) -> list[Case]:
    cases = list(cohort)
    if shard is None:
        return cases
    index, count = shard
    if not 1 <= index <= count:
        raise ConfigError(f"no shard {index} of {count}", expected="i/n with i from 1 to n")
    return cases[index - 1 :: count]


def _settle(
    predictor: Predictor, results: Results, options: ScanOptions, machine: Machine, progress: Progress
) -> EngineSettings:
    """Engine settings: those on disk where a scan goes on, else chosen now and written down.

    Where the model runs and how many batches at once is the machine's affair, and changes no result.
    """
    device = choose_device(machine.device)
    lanes, threads = lanes_for(device, available_cores())
    lanes = machine.lanes or lanes
    place = results.path / ENGINE
    if place.exists():
        try:
            engine = replace(EngineSettings(**read_json(place)), device=device, lanes=lanes)
        except TypeError as error:
            raise ResultsError(
                "not the engine settings of a scan", subject=place, found=str(error), remedy="Use --fresh"
            ) from error
        predictor.place(engine, options)
        progress.precision = engine.precision
        return engine
    engine = EngineSettings(device=device, lanes=lanes, lane_threads=threads)
    engine = predictor.settle(engine, int(machine.max_ram * MODEL_SHARE) // lanes, options)
    if machine.cells is not None:
        engine = replace(engine, cells=machine.cells)
    if machine.batch is not None:
        engine = replace(engine, batch=machine.batch)
    engine, measured = measure(predictor, engine, options, machine.precision, machine.channels_last)
    log.info("precision %s", measured.sentence())
    progress.precision = measured.sentence()
    write_json(place, engine.deciding())
    write_json(results.path / "run.json", {"measured": asdict(measured), "machine": platform.processor()})
    return engine


class _Runner:
    """One scan: case threads over one pipeline."""

    def __init__(
        self,
        predictor: Predictor,
        results: Results,
        options: ScanOptions,
        engine: EngineSettings,
        bundle: Mapping[str, Any],
        retry_failed: bool,
        progress: Progress,
        machine: Machine,
        cohort: Cohort,
    ) -> None:
        self.cohort = cohort
        self.predictor, self.results, self.options, self.engine = predictor, results, options, engine
        self.bundle, self.retry_failed, self.progress = bundle, retry_failed, progress
        self.cache_bytes = int(machine.max_ram * CACHE_SHARE) // AHEAD
        self.pipeline = Pipeline(predictor, engine, machine.readers or available_cores())
        self.pipeline.counters = progress.counters

    def run(self, cases: Sequence[Case]) -> None:
        with self.pipeline, ThreadPoolExecutor(AHEAD, thread_name_prefix="case") as pool:
            waiting: set[Future[None]] = set()
            try:
                for order, case in enumerate(cases):
                    while len(waiting) >= AHEAD:
                        waiting = self._settle_some(waiting)
                    waiting.add(pool.submit(self._case, order, case))
                while waiting:
                    waiting = self._settle_some(waiting)
            except BaseException:
                self.pipeline.stop()
                raise

    def _settle_some(self, waiting: set[Future[None]]) -> set[Future[None]]:
        # short waits, so that Ctrl-C is heard
        done, left = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        return left

    def _case(self, order: int, case: Case) -> None:
        folder = self.results.case_folder(case.id)
        began = time.monotonic()
        self.progress.active[case.id] = "opening"
        try:
            try:
                status = self._scan_case(order, case, folder)
            except DamagedResults as error:  # what lies there cannot be gone on with: once from the start
                log.warning("case %s is made again: %s", case.id, error)
                folder.clear()
                status = self._scan_case(order, case, folder)
        except (Stopped, ResultsError):
            raise
        except Exception as error:  # a failure belongs to its case: recorded, and the next goes on
            if self.pipeline.stopping:
                raise Stopped from error
            log.debug("case %s failed", case.id, exc_info=True)
            status = FAILED
            self._write(case, folder, FAILED, {}, error=error)
        finally:
            self.progress.active.pop(case.id, None)
        self.progress.finished[case.id] = status
        if status != "skipped":
            _write_run(folder, time.monotonic() - began)

    def _scan_case(self, order: int, case: Case, folder: CaseFolder) -> str:
        try:
            prints = fingerprints(case)
        except LobuleError:
            if _finished(folder):  # a disk that is not mounted now takes nothing back
                log.warning("case %s: its files cannot be read now; its result is kept", case.id)
                return "skipped"
            raise
        if self._already(case, folder, prints):
            return "skipped"
        # what is unfinished, or finished and now retried, is taken up where it stands
        (folder.path / RESULT).unlink(missing_ok=True)
        self._begin(case, folder, prints)
        images = self.predictor.images(case, self.options)
        opened = Opened(case, images, self.options, self.engine, self.cohort)
        try:
            for image in images.values():
                if isinstance(image, Slide):
                    image.use_cache(self.cache_bytes)
            failed: list[FailedField] = []
            result = self._passes(order, opened, folder, failed)
            scored = _scored(folder)
            status = COMPLETE if not failed else PARTIAL if scored else FAILED
            facts = self._facts(opened, images, failed, result)
        finally:
            opened.close()
        error = None
        if status == FAILED:
            cause = f"none of its fields could be scored: {failed[0].cause}"
            error = CaseError(cause, subject=", ".join(case.paths))
        if result.findings or folder.maps:
            write_findings(folder.path, result.findings)
        self._write(case, folder, status, {"input": prints, **facts}, result=result, error=error)
        return status

    def _passes(self, order: int, opened: Opened, folder: CaseFolder, failed: list[FailedField]) -> Result:
        steps = self.predictor.steps(opened)
        store = None
        seen: list[str] = []
        while True:
            try:
                pass_ = next(steps) if store is None else steps.send(store)
            except StopIteration as end:
                result: Result = end.value
                return result
            self.progress.active[opened.case.id] = pass_.name
            seen.append(pass_.name)
            if self.retry_failed and failed_in(pass_, folder):
                folder.clear_stores(seen)  # what follows was chosen by what is now computed again
            sink = open_sink(pass_, folder, self.retry_failed)
            images: dict[str, ImageSource] = {**opened.images, **pass_.sources}
            self.pipeline.run_pass(order, pass_, images, sink)
            store = sink.finish()
            failed += sink.failures()

    def _already(self, case: Case, folder: CaseFolder, prints: Mapping[str, str]) -> bool:
        """Whether the case is done with this very input; what belongs to another input is cleared."""
        plan = folder.path / PLAN
        if plan.exists() and not same_plan(plan, plan_of(case, prints)):
            folder.clear()
        try:
            result = folder.result
        except ResultsError:
            return False  # damaged: the maps say what is done, and the result is written again
        if result is None:
            return False
        if not plan.exists():
            return (
                result["status"] == FAILED and not self.retry_failed and result.get("input") == dict(prints)
            )
        if result["status"] == COMPLETE:
            return True
        return not self.retry_failed

    def _begin(self, case: Case, folder: CaseFolder, prints: Mapping[str, str]) -> None:
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise results_error(error, folder.path) from error
        for leftover in folder.path.glob(".*.part*"):
            leftover.unlink(missing_ok=True)
        write_json(folder.path / PLAN, plan_of(case, prints))

    def _facts(
        self, opened: Opened, images: Mapping[str, ImageSource], failed: list[FailedField], result: Result
    ) -> dict[str, Any]:
        slides = {name: image for name, image in images.items() if isinstance(image, Slide)}
        decoded = sum(slide.tiles_decoded for slide in slides.values())
        self.progress.counters.add(tiles_decoded=decoded)
        return {
            "images": {name: _image_facts(slide) for name, slide in slides.items()},
            "failed": [entry.to_dict() for entry in failed],
            **result.facts,
        }

    def _write(
        self,
        case: Case,
        folder: CaseFolder,
        status: str,
        facts: Mapping[str, Any],
        result: Result | None = None,
        error: BaseException | None = None,
    ) -> None:
        body: dict[str, Any] = {
            "format": FORMAT,
            "case": case.id,
            "patient": case.patient,
            "status": status,
            "scores": {name: float(value) for name, value in (result.scores if result else {}).items()},
            "maps": map_facts(folder),
            "tables": sorted(folder.tables),
            "findings": {"count": len(result.findings) if result else 0},
            "notes": list(result.notes) if result else [],
            "error": None if error is None else error_to_dict(error),
            "bundle": dict(self.bundle),
            "engine": self.engine.deciding(),
            "lobule": __version__,
            "research_use": RESEARCH_USE,
            **facts,
        }
        if "input" not in body:
            body["input"] = fingerprints(case, careful=True)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise results_error(problem, folder.path) from problem
        write_json(folder.path / RESULT, body)


def _finished(folder: CaseFolder) -> bool:
    try:
        return folder.status in (COMPLETE, PARTIAL)
    except ResultsError:
        return False


def _image_facts(slide: Slide) -> dict[str, Any]:
    found = slide.found_mpp
    return {
        "path": slide.path,
        "format": slide.format,
        "size": list(slide.size),
        "mpp": None if found is None else [found.mpp.x, found.mpp.y],
        "mpp_source": None if found is None else found.source,
        "bounds": [slide.bounds.x, slide.bounds.y, slide.bounds.width, slide.bounds.height],
    }


def _scored(folder: CaseFolder) -> bool:
    return any(reader.counts()["scored"] for reader in folder.maps.values()) or any(
        reader.written() for reader in folder.tables.values()
    )


def _write_run(folder: CaseFolder, seconds: float) -> None:
    if folder.path.is_dir():
        write_json(folder.path / "run.json", {"seconds": round(seconds, 3), "ended": time.time()})


def _report(results: Results, cases: Sequence[Case], progress: Progress) -> ScanReport:
    failed, partial = {}, []
    counts: dict[str, int] = {}
    for case in cases:
        folder = results.case_folder(case.id)
        status = folder.status
        counts[status] = counts.get(status, 0) + 1
        if status == FAILED:
            failed[case.id] = ((folder.result or {}).get("error") or {}).get("message", "")
        elif status == PARTIAL:
            partial.append(case.id)
    seconds = time.monotonic() - progress.began
    return ScanReport(results.path, counts, failed, tuple(partial), seconds, progress.counters)
