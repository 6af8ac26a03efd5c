"""Runs the cases of a scan: opens each case, runs the passes of the method and writes the result.

An error in one case is recorded in the result of that case and does not stop the other cases.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from threading import BoundedSemaphore
from typing import Any

import torch

from lobule.allocator import old_objects_ignored, return_free_pages
from lobule.cohort import Case, Cohort
from lobule.errors import CaseError, DamagedResults, DeviceLost, LobuleError, NothingToScore, ResultsError
from lobule.files import make_folder, write_json
from lobule.fingerprints import is_quickly_hashed
from lobule.results.folder import PLAN, RESULT, SUMMARISED, CaseFolder, Results, record_pieces
from lobule.results.locks import lock_settings
from lobule.results.maps import MapReader
from lobule.results.plan import fingerprints, plan_of, same_plan
from lobule.results.preliminary import write_preliminary_scores
from lobule.results.result import COMPLETE, FAILED, PARTIAL, UNSCORED, FailedField, Result
from lobule.results.store import ResultsStore
from lobule.results.writing import FINDINGS, map_summaries, write_findings
from lobule.scanning.cards import Cards
from lobule.scanning.case_results import (
    DEVICE_LOST,
    NOTHING_SCORED,
    any_scored,
    correct_patient,
    is_finished,
    result_if_done,
    result_metadata,
    without_scores,
    write_plan,
    write_result,
    write_run,
)
from lobule.scanning.case_shares import SCOUT, Share, complete_store, merge_shares
from lobule.scanning.contract import (
    EngineSettings,
    PixelSource,
    Predictor,
    ScanOptions,
)
from lobule.scanning.decoding_memory import DecodingMemory
from lobule.scanning.open_case import OpenedCase, size_caches
from lobule.scanning.pipeline import NotStarted, Pipeline, Stopped
from lobule.scanning.progress import Progress
from lobule.scanning.remote import plan_reads
from lobule.scanning.stores import failed_in, open_sink, within_region
from lobule.slides.jpeg_on_gpu import decoding_by
from lobule.slides.slide import Slide

log = logging.getLogger("lobule.scan")

CASES_PER_TRIM = 20
"""Freed memory is returned to the system after this many cases. More often would cost time, because the
following computations have to allocate it again."""

MAX_OPEN_CASES = 2
"""Cases whose images are open at once: while the model finishes one, tissue detection and reading start on
the next."""
MAX_STARTED_CASES = 6
"""Cases in work at once. Those whose images are not open wait for the disk: the results of small cases are
written while the next ones are scanned."""


@dataclass(eq=False)
class CaseRunner:
    """Runs cases in threads that share one pipeline."""

    predictor: Predictor
    cards: Cards
    results: Results
    options: ScanOptions
    engine: EngineSettings
    bundle: Mapping[str, Any]
    cohort: Cohort
    progress: Progress
    retry_failed: bool
    verify: str
    cache_bytes: int
    """Bytes of decoded tiles that each open case may cache."""
    memory: DecodingMemory
    """Memory for slides that are decoded whole or in very large tiles."""
    shard: tuple[int, int] | None = None
    """The shard of this process, if other processes write into the same folder."""
    store: ResultsStore | None = None
    """The object store into which each finished case is copied."""
    summarised: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The results on disk of the cases of this run, with the fields that the summary needs."""

    def run(self, cases: Sequence[Case], readers: int) -> None:
        """Scan the cases in this order. Without a device left, the remaining cases wait for the next run."""
        with self.session(readers) as submit:
            running: set[Future[None]] = set()
            for order, case in enumerate(cases):
                while len(running) >= MAX_STARTED_CASES:
                    running = self._wait_for_any_case(running)
                if self.pipeline.device_lost is not None:
                    break
                if not self._skip_quickly(case):
                    running.add(submit(order, case))
            while running:
                running = self._wait_for_any_case(running)

    @contextmanager
    def session(self, readers: int) -> Iterator[Callable[[int, Case], Future[None]]]:
        """Start the pipeline, and yield a function that submits a case with its position in the cohort.

        At most `MAX_STARTED_CASES` are in work at once; further submitted cases wait.
        """
        self.cards.free_originals()
        self.pipeline = Pipeline(self.cards.all, self.engine, readers, self._record_pieces)
        self.pipeline.counters = self.progress.counters
        # `steps` runs with the recorded number of torch threads: the last bits of a sum depend on it.
        threads = (self.engine.replica_threads,)
        case_threads = ThreadPoolExecutor(MAX_STARTED_CASES, "case", torch.set_num_threads, threads)
        self._open_cases = BoundedSemaphore(MAX_OPEN_CASES)
        decoding = decoding_by(self.engine.jpeg_decoder, self.engine.device)
        with old_objects_ignored(), decoding, self.pipeline, case_threads as pool:
            try:
                self._case_threads = pool
                yield lambda order, case: pool.submit(self._run_case, order, case)
            except BaseException:
                self.pipeline.stop()
                raise

    def _record_pieces(self, pieces: int) -> None:
        """Record that batches are halved, so that results and later runs say so and compute the same."""
        self.engine = replace(self.engine, pieces=pieces)
        try:
            with lock_settings(self.results.path, self.shard):
                record_pieces(self.results, pieces)
        except (LobuleError, OSError) as error:
            log.warning("The halved batches cannot be recorded: %s", error)

    def submit_share(self, order: int, case: Case, share: Share) -> Future[bool]:
        """Submit a share of the first pass of a case that is not complete, within a session.

        The future returns whether there was such a pass. Errors are left to the scan of the whole case.
        """
        return self._case_threads.submit(self._run_share, order, case, share)

    def _wait_for_any_case(self, running: set[Future[None]]) -> set[Future[None]]:
        """Wait until a case finishes, raise its error if it failed, and return the cases still running."""
        # A short timeout keeps the main thread responsive to Ctrl-C.
        finished, still_running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
        for case_future in finished:
            case_future.result()
        return still_running

    def _run_case(self, order: int, case: Case) -> None:
        folder = self.results.case_folder(case.id)
        began = time.monotonic()
        self.progress.active[case.id] = "opening"
        try:
            try:
                status = self._scan_case(order, case, folder)
            except DamagedResults as error:
                log.warning(
                    "Case %s: the existing results are damaged; scanning it again from the start (%s)",
                    case.id, error,
                )  # fmt: skip
                folder.clear()
                status = self._scan_case(order, case, folder)
        except (Stopped, ResultsError):
            raise
        except NotStarted:
            return
        except Exception as error:  # The error is recorded in the case's result; the other cases continue.
            if self.pipeline.stopping:
                raise Stopped from error
            log.debug("case %s failed", case.id, exc_info=True)
            status = FAILED
            fields = {DEVICE_LOST: True} if isinstance(error, DeviceLost) else {}
            self._write_result(case, folder, FAILED, fields, error=error)
        finally:
            self.progress.active.pop(case.id, None)
        self.progress.finished[case.id] = status
        if len(self.progress.finished) % CASES_PER_TRIM == 0:
            return_free_pages()
        if status != "skipped":
            write_run(folder, time.monotonic() - began)
        if self.store is not None:
            self.store.publish(folder, status)

    def _skip_quickly(self, case: Case) -> bool:
        """Skip a finished case in this thread, unless its files have to be hashed for long.

        Threads that skip cases wait for each other, which takes three times as long with six threads.
        """
        folder = self.results.case_folder(case.id)
        is_quick = self.store is None and self.verify == "changed" and (folder.path / RESULT).exists()
        if not is_quick or not all(is_quickly_hashed(path) for path in case.paths):
            return False
        try:
            if not self._skip_if_done(case, folder, fingerprints(case)):
                return False
        except LobuleError:
            return False  # The thread that scans the case meets the same error.
        self.progress.finished[case.id] = "skipped"
        return True

    def _skip_if_done(self, case: Case, folder: CaseFolder, prints: Mapping[str, str]) -> bool:
        self.progress.inputs[case.id] = ", ".join(prints.values())
        done = result_if_done(case, folder, prints, self.retry_failed)
        if done is None:
            return False
        correct_patient(case, folder, done)
        self._keep_for_summary(case, done)
        return True

    def _scan_case(self, order: int, case: Case, folder: CaseFolder) -> str:
        try:
            prints = fingerprints(case, full=self.verify == "full")
        except LobuleError:
            if is_finished(folder):  # The disk with the slides may not be mounted at the moment.
                log.warning("Case %s: its files cannot be read now; keeping the existing result", case.id)
                return "skipped"
            raise
        if self._skip_if_done(case, folder, prints):
            return "skipped"
        self.summarised.pop(case.id, None)
        # An unfinished or retried case continues from the maps and tables that it already has.
        for name in (RESULT, *FINDINGS):
            (folder.path / name).unlink(missing_ok=True)
        write_plan(case, folder, prints)
        merge_shares(folder)
        try:
            return self._scan_images(order, case, folder, prints)
        except NothingToScore as error:
            result = Result({}, notes=(NOTHING_SCORED.format(error.problem),))
            self._write_result(case, folder, UNSCORED, {"input": prints}, result=result)
            return UNSCORED

    def _scan_images(self, order: int, case: Case, folder: CaseFolder, prints: Mapping[str, str]) -> str:
        """Open the images of a case, run its passes, write its result and return the status."""
        with self._opened(case) as opened:
            failed: list[FailedField] = []
            open_maps: dict[str, MapReader] = {}
            result = self._run_passes(order, opened, folder, failed, open_maps)
            maps = map_summaries(folder, open_maps)
            scored = any_scored(folder, maps) if result.scored is None else result.scored
            if not failed:
                status = COMPLETE if scored else UNSCORED
            else:
                status = PARTIAL if scored else FAILED
            if status == UNSCORED:
                result = without_scores(result, opened)
            result = replace(result, notes=(*result.notes, *opened.notes))
            metadata = result_metadata(opened, failed, result)
            self.progress.counters.add(tiles_decoded=opened.tiles_decoded)
        if len(self.progress.finished) == self.progress.cases - 1:
            return_free_pages()  # The last case is computed: its tables are written next.
        error = None
        if status == FAILED:
            cause = f"none of its fields could be scored: {failed[0].cause}"
            error = CaseError(cause, subject=", ".join(case.paths))
            result = Result({}, notes=result.notes)  # A score of 0 would read as "no tumour".
        if status != UNSCORED and (result.findings or maps):
            write_findings(folder.path, result.findings)
        fields = {"input": prints, **metadata}
        self._write_result(case, folder, status, fields, result=result, error=error, maps=maps)
        return status

    @contextmanager
    def _opened(self, case: Case) -> Iterator[OpenedCase]:
        """Open a case when no more than `MAX_OPEN_CASES` are open, with the memory for decoding its images.

        The images are closed before the memory is released.
        """
        while not self._open_cases.acquire(timeout=0.2):
            self._raise_if_stopped()
        try:
            if self.pipeline.device_lost is not None:
                raise NotStarted
            images = self.predictor.images(case, self.options)
            opened = OpenedCase(case, images, self.options, self.engine, self.cohort)
            with self._memory_for(opened):
                yield opened
        finally:
            self._open_cases.release()

    @contextmanager
    def _memory_for(self, opened: OpenedCase) -> Iterator[None]:
        slides = {id(image): image for image in opened.images.values() if isinstance(image, Slide)}
        nbytes = sum(slide.decoding_bytes for slide in slides.values())
        reserved = self.memory.reserve(nbytes, ", ".join(opened.case.paths), self._raise_if_stopped)
        with closing(opened), reserved, closing(opened):
            yield

    def _raise_if_stopped(self) -> None:
        if self.pipeline.stopping:
            raise Stopped

    def _run_passes(
        self,
        order: int,
        opened: OpenedCase,
        folder: CaseFolder,
        failed: list[FailedField],
        open_maps: dict[str, MapReader],
    ) -> Result:
        """Run the passes of a case. Collect the failed fields and the maps, and return the result."""
        steps = self.predictor.steps(opened)
        store = None
        pass_names: list[str] = []
        while True:
            try:
                pass_ = next(steps) if store is None else steps.send(store)
            except StopIteration as end:
                result: Result = end.value
                return result
            pass_ = within_region(pass_, opened.case)
            self.progress.active[opened.case.id] = pass_.name
            pass_names.append(pass_.name)
            if self.retry_failed and failed_in(pass_, folder):
                folder.clear_stores(pass_names)  # Later passes depend on the recomputed one.
            sink = open_sink(pass_, folder, self.retry_failed)
            if pass_.preliminary and sink.needed.any():
                write_preliminary_scores(folder, pass_.preliminary)
                self.progress.tell_preliminary_scores(opened.case.id, pass_.preliminary)
            images: dict[str, PixelSource] = {**opened.images, **pass_.sources}
            size_caches(pass_, images, self.cache_bytes, self.pipeline.readers, self.engine.batch)
            plan_reads(pass_, images, sink.needed)
            self.pipeline.run_pass(order, pass_, images, sink)
            store = sink.finish()
            if isinstance(store, MapReader):
                open_maps[pass_.name] = store
            failed += sink.failures()

    def _run_share(self, order: int, case: Case, share: Share) -> bool:
        folder = self.results.case_folder(case.id)
        try:
            plan = plan_of(case, fingerprints(case))
            is_changed = (folder.path / PLAN).exists() and not same_plan(folder.path / PLAN, plan)
            if (folder.path / RESULT).exists() or is_changed:
                return False
            make_folder(folder.path)
            write_json(folder.path / PLAN, plan)
            with self._opened(case) as opened:
                return self._compute_share(order, opened, folder, share)
        except DamagedResults:  # The scan of the whole case meets it, too, and begins the case again.
            return False
        except (Stopped, ResultsError):
            raise
        except Exception:  # The scan of the whole case meets the same error, and records it.
            if self.pipeline.stopping:
                raise
            log.debug("share %s of case %s failed", share.number, case.id, exc_info=True)
            return False

    def _compute_share(self, order: int, opened: OpenedCase, folder: CaseFolder, share: Share) -> bool:
        """Compute a share of the first pass that is not complete. Return False if all are complete."""
        with closing(self.predictor.steps(opened)) as steps:
            store = None
            while True:
                try:
                    pass_ = next(steps) if store is None else steps.send(store)
                except StopIteration:
                    return False
                pass_ = within_region(pass_, opened.case)
                sink = open_sink(pass_, share.folder(folder))
                store = complete_store(pass_, folder, sink.chunk_of_row)
                if store is None and share == SCOUT:
                    return True
                if store is None:
                    sink.limit_to(share.rows(sink.chunk_of_row))
                    images: dict[str, PixelSource] = {**opened.images, **pass_.sources}
                    size_caches(pass_, images, self.cache_bytes, self.pipeline.readers, self.engine.batch)
                    plan_reads(pass_, images, sink.needed)
                    self.pipeline.run_pass(order, pass_, images, sink)
                    return True

    def _write_result(
        self,
        case: Case,
        folder: CaseFolder,
        status: str,
        extra_fields: Mapping[str, Any],
        result: Result | None = None,
        error: BaseException | None = None,
        maps: list[dict[str, Any]] | None = None,
    ) -> None:
        body = write_result(case, folder, status, self.bundle, self.engine, extra_fields, result, error, maps)
        self._keep_for_summary(case, body)

    def _keep_for_summary(self, case: Case, result: Mapping[str, Any]) -> None:
        self.summarised[case.id] = {name: result.get(name) for name in SUMMARISED}
