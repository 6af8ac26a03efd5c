"""The cases of a scan: each opened, run through its method's passes, and written down with its result.

A failure belongs to its case: recorded with its cause, while the next goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from lobule import __version__
from lobule.allocator import return_free_pages
from lobule.cohort import Case, Cohort
from lobule.errors import CaseError, DamagedResults, LobuleError, NothingToScore, ResultsError
from lobule.files import flush_all, results_error, write_json
from lobule.results.folder import PLAN, RESULT, CaseFolder, Results
from lobule.results.plan import fingerprints, plan_of, same_plan
from lobule.results.result import (
    COMPLETE,
    FAILED,
    FORMAT,
    PARTIAL,
    RESEARCH_USE,
    UNSCORED,
    FailedField,
    Result,
    error_to_dict,
)
from lobule.results.writing import FINDINGS, map_facts, write_findings
from lobule.scanning.contract import EngineSettings, ImageSource, MapSpec, Pass, Predictor, ScanOptions
from lobule.scanning.decoding_memory import DecodingMemory
from lobule.scanning.open_case import OpenedCase
from lobule.scanning.pipeline import Counters, Pipeline, Stopped
from lobule.scanning.stores import failed_in, open_sink
from lobule.slides.slide import Slide
from lobule.stitch import State

log = logging.getLogger("lobule.scan")

NOTHING = "Nothing was scored: {}."
CASES_PER_TRIM = 20
"""Cases after which free memory goes back to the system; the next layers must then take it anew."""

AHEAD = 2
"""Cases open at once: while one ends in the model, the next finds its tissue and begins to read."""


@dataclass
class Progress:
    """What a display may show while a scan runs; the scan never waits for it."""

    cases: int = 0
    finished: dict[str, str] = field(default_factory=dict)
    """Case → complete, partial, failed, unscored or skipped."""
    counters: Counters = field(default_factory=Counters)
    active: dict[str, str] = field(default_factory=dict)
    """Case → the pass it is in."""
    precision: str = ""
    began: float = field(default_factory=time.monotonic)


class CaseRunner:
    """Case threads over one pipeline."""

    def __init__(
        self,
        predictor: Predictor,
        results: Results,
        options: ScanOptions,
        engine: EngineSettings,
        bundle: Mapping[str, Any],
        cohort: Cohort,
        progress: Progress,
        retry_failed: bool,
        verify: str = "changed",
    ) -> None:
        self.predictor, self.results, self.options, self.engine = predictor, results, options, engine
        self.bundle, self.cohort, self.progress = bundle, cohort, progress
        self.retry_failed = retry_failed
        self.verify = verify

    def run(self, cases: Sequence[Case], readers: int, cache_bytes: int, memory: DecodingMemory) -> None:
        """Scan the cases with so many reading threads and bytes of decoded tiles.

        `memory` is for slides that are decoded whole or in very large tiles.
        """
        self.cache_bytes = cache_bytes // AHEAD
        self.memory = memory
        self.pipeline = Pipeline(self.predictor, self.engine, readers)
        self.pipeline.counters = self.progress.counters
        with self.pipeline, self._case_threads() as pool:
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

    def _case_threads(self) -> ThreadPoolExecutor:
        """Threads for `steps`. Their own sums use the recorded thread count, on which last bits depend."""
        return ThreadPoolExecutor(
            AHEAD, "case", initializer=torch.set_num_threads, initargs=(self.engine.lane_threads,)
        )

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
        if len(self.progress.finished) % CASES_PER_TRIM == 0:
            return_free_pages()
        if status != "skipped":
            _write_run(folder, time.monotonic() - began)

    def _scan_case(self, order: int, case: Case, folder: CaseFolder) -> str:
        try:
            prints = fingerprints(case, full=self.verify == "full")
        except LobuleError:
            if _finished(folder):  # a disk that is not mounted now takes nothing back
                log.warning("case %s: its files cannot be read now; its result is kept", case.id)
                return "skipped"
            raise
        if self._already(case, folder, prints):
            _correct_patient(case, folder)
            return "skipped"
        # what is unfinished, or finished and now retried, is taken up where it stands
        for name in (RESULT, *FINDINGS):
            (folder.path / name).unlink(missing_ok=True)
        self._begin(case, folder, prints)
        try:
            return self._scan_images(order, case, folder, prints)
        except NothingToScore as error:
            result = Result({}, notes=(NOTHING.format(error.problem),))
            self._write(case, folder, UNSCORED, {"input": prints}, result=result)
            return UNSCORED

    def _scan_images(self, order: int, case: Case, folder: CaseFolder, prints: Mapping[str, str]) -> str:
        """Open the images of a case, run its passes and write its result; returns the status."""
        images = self.predictor.images(case, self.options)
        opened = OpenedCase(case, images, self.options, self.engine, self.cohort)
        with self._memory_for(opened):
            failed: list[FailedField] = []
            result = self._passes(order, opened, folder, failed)
            scored = _scored(folder) if result.scored is None else result.scored
            if not failed:
                status = COMPLETE if scored else UNSCORED
            else:
                status = PARTIAL if scored else FAILED
            if status == UNSCORED:
                result = _without_scores(result, opened)
            result = replace(result, notes=(*result.notes, *opened.notes))
            facts = self._facts(opened, images, failed, result)
        error = None
        if status == FAILED:
            cause = f"none of its fields could be scored: {failed[0].cause}"
            error = CaseError(cause, subject=", ".join(case.paths))
            result = Result({}, notes=result.notes)  # a 0 of nothing scored would read as no tumour
        if status != UNSCORED and (result.findings or folder.maps):
            write_findings(folder.path, result.findings)
        self._write(case, folder, status, {"input": prints, **facts}, result=result, error=error)
        return status

    @contextmanager
    def _memory_for(self, opened: OpenedCase) -> Iterator[None]:
        """Hold the memory that decoding the images of a case takes; close them before it is given back."""
        slides = {id(image): image for image in opened.images.values() if isinstance(image, Slide)}
        nbytes = sum(slide.decoding_bytes for slide in slides.values())
        try:
            with self.memory.reserve(nbytes, ", ".join(opened.case.paths), self._raise_if_stopped):
                try:
                    yield
                finally:
                    opened.close()
        finally:
            opened.close()

    def _raise_if_stopped(self) -> None:
        if self.pipeline.stopping:
            raise Stopped

    def _passes(
        self, order: int, opened: OpenedCase, folder: CaseFolder, failed: list[FailedField]
    ) -> Result:
        steps = self.predictor.steps(opened)
        store = None
        seen: list[str] = []
        while True:
            try:
                pass_ = next(steps) if store is None else steps.send(store)
            except StopIteration as end:
                result: Result = end.value
                return result
            pass_ = _within_region(pass_, opened.case)
            self.progress.active[opened.case.id] = pass_.name
            seen.append(pass_.name)
            if self.retry_failed and failed_in(pass_, folder):
                folder.clear_stores(seen)  # what follows was chosen by what is now computed again
            sink = open_sink(pass_, folder, self.retry_failed)
            images: dict[str, ImageSource] = {**opened.images, **pass_.sources}
            self._fit_caches(pass_, images)
            self.pipeline.run_pass(order, pass_, images, sink)
            store = sink.finish()
            failed += sink.failures()

    def _fit_caches(self, pass_: Pass, images: Mapping[str, ImageSource]) -> None:
        """What a row of fields needs, under the ceiling: tiles further back are not asked for again."""
        fields = pass_.fields
        for index, name in enumerate(fields.images):
            image, heights = images[name], fields.boxes[fields.image == index, 3]
            if isinstance(image, Slide) and len(heights):
                wanted = image.row_bytes(fields.lattices[index], int(heights.max()))
                image.use_cache(min(wanted, self.cache_bytes))

    def _already(self, case: Case, folder: CaseFolder, prints: Mapping[str, str]) -> bool:
        """Whether the case is done with this very input; what belongs to another input is cleared."""
        plan = folder.path / PLAN
        if plan.exists() and not same_plan(plan, plan_of(case, prints)):
            if _finished(folder):
                log.warning(
                    "case %s: its files, its µm/px or its region are not those that its result is of; "
                    "it is scanned anew", case.id,
                )  # fmt: skip
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
        if result["status"] in (COMPLETE, UNSCORED):
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
        self, opened: OpenedCase, images: Mapping[str, ImageSource], failed: list[FailedField], result: Result
    ) -> dict[str, Any]:
        slides = {name: image for name, image in images.items() if isinstance(image, Slide)}
        decoded = sum(slide.tiles_decoded for slide in slides.values())
        self.progress.counters.add(tiles_decoded=decoded)
        return {
            "images": {name: _image_facts(slide) for name, slide in slides.items()},
            "failed": [entry.to_dict() for entry in failed],
            **result.metadata,
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
        flush_all(folder.path / "maps")  # a result that is there after a power failure is there whole
        write_json(folder.path / RESULT, body)


def _within_region(pass_: Pass, case: Case) -> Pass:
    """Outside a case's region nothing is looked at: what lies there is not known to be glass."""
    spec, box = pass_.store, case.l0_box
    if box is None or not isinstance(spec, MapSpec):
        return pass_
    step_x, step_y = spec.grid.l0_cell
    x, y = (np.arange(spec.grid.columns) + 0.5) * step_x, (np.arange(spec.grid.rows) + 0.5) * step_y
    inside = ((y >= box.y) & (y < box.bottom))[:, None] & ((x >= box.x) & (x < box.right))[None, :]
    return replace(pass_, store=replace(spec, glass=spec.glass & inside))


def _correct_patient(case: Case, folder: CaseFolder) -> None:
    """Take over the patient of the cohort, where it was corrected after the case was scanned."""
    result = folder.result
    if result is not None and result.get("patient") != case.patient:
        write_json(folder.path / RESULT, {**result, "patient": case.patient})


def _finished(folder: CaseFolder) -> bool:
    try:
        return folder.status in (COMPLETE, PARTIAL, UNSCORED)
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
    """Whether any place was; a part of a table is written also where all its rows failed."""
    return any(reader.counts()["scored"] for reader in folder.maps.values()) or any(
        (part["state"] == State.SCORED).any()
        for reader in folder.tables.values()
        for part in reader.iterate(["state"])
    )


def _without_scores(result: Result, opened: OpenedCase) -> Result:
    """The result of a case in which nothing was scored: a note that says why, and no score."""
    reason = opened.why_nothing_scored
    notes = result.notes if reason is None else (NOTHING.format(reason), *result.notes)
    # Facts that come with default scores describe nothing. A method that says itself that nothing was
    # scored returns facts that hold.
    facts = result.metadata if result.scored is False else {}
    return Result({}, notes=notes or (NOTHING.format("no cell or row was computed"),), metadata=facts)


def _write_run(folder: CaseFolder, seconds: float) -> None:
    if folder.path.is_dir():
        write_json(folder.path / "run.json", {"seconds": round(seconds, 3), "ended": time.time()})
