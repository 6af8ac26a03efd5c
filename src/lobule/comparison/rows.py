"""Run one entry: extract features, train, scan and evaluate, each step once; a failure ends only this row."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lobule.cohort import Cohort
from lobule.comparison.entries import FEATURES, Entry, reads_features
from lobule.comparison.labels import MINUTES, annotation_cost, cases_to_learn, why_unusable, with_budget
from lobule.errors import LobuleError, ResultsError
from lobule.features.frame import folder_name
from lobule.files import make_folder, read_json, write_json
from lobule.methods import find_method

log = logging.getLogger("lobule.compare")

REQUEST, TIMES, EVALUATION = "request.json", "times.json", "evaluation.json"
COMPLETE, FAILED, LEFT_OUT = "complete", "failed", "left out"


@dataclass(frozen=True)
class Common:
    """What all rows of a table have in common."""

    cohort: Cohort
    split: str = "test"
    """The split on which rows are compared."""
    val: str | None = "val"
    seed: int = 0
    resamples: int = 2000
    mpp: float = 0.5
    """µm/px of the tiles of features."""
    tile: int | None = None
    minutes: Mapping[str, float] = field(default_factory=lambda: dict(MINUTES))
    """Minutes of annotation per label, by kind."""
    train_options: Mapping[str, Any] = field(default_factory=dict)
    scan_options: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What must be the same when a table is continued."""
        cases = [[case.id, case.patient, case.split, case.label, case.annotation] for case in self.cohort]
        return {
            "split": self.split, "val": self.val, "seed": self.seed, "mpp": self.mpp, "tile": self.tile,
            "cases": cases,
        }  # fmt: skip


class Row:
    """An entry with its folder: runs the steps that are missing and returns the measures."""

    def __init__(self, entry: Entry, common: Common, out: Path) -> None:
        self.entry, self.common, self.out = entry, common, out
        self.method = find_method(entry.method)
        cohort = cases_to_learn(common.cohort, entry.learns_from, common.split)
        self.all_cases = cohort
        """The cases of all budgets."""
        self.cohort = cohort if entry.budget is None else with_budget(cohort, entry.budget, common.seed)
        self.folder = out / "rows" / entry.name

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def base(self) -> dict[str, Any]:
        """What the table says about the row before it is measured."""
        kind = self.entry.learns_from
        training = self.cohort.split("train")
        cost = None if kind is None else annotation_cost(training, kind, self.common.minutes)
        return {
            "name": self.entry.name,
            "method": self.entry.method,
            "encoder": self.entry.encoder,
            "budget": self.entry.budget,
            "learns_from": kind,
            "training_cases": len(training),
            "labels": None if cost is None else dict(cost.labels),
            "annotation_minutes": None if cost is None else cost.minutes,
        }

    def why_left_out(self) -> str | None:
        """The reason why the method cannot learn from the cohort; None if it can."""
        if self.method.train is None:
            return "it is not trained by Lobule"
        training = self.cohort.split("train")
        if reason := why_unusable(training, self.entry.learns_from, self.method.kinds):
            return reason
        if reads_features(self.method) and not (self.entry.encoder or self.entry.settings.get(FEATURES)):
            return "it learns from features of tiles, and no encoder is named"
        return None

    def run(self) -> dict[str, Any]:
        """Train and scan, unless that is done; return the status, and the cause of a failure."""
        if reason := self.why_left_out():
            return {"status": LEFT_OUT, "reason": reason}
        step = "starting"
        try:
            self._check_request()
            for step, work in self._steps():
                log.info("%s: %s", self.entry.name, step)
                work()
        except ResultsError as error:
            if error.subject == str(self.folder):
                raise
            return self._failure(step, error)
        except Exception as error:
            return self._failure(step, error)
        return {"status": COMPLETE, "reason": None}

    def _failure(self, step: str, error: Exception) -> dict[str, Any]:
        """A failed row. Whatever the libraries of a method raise must not end the table."""
        log.warning("%s failed while %s: %s", self.entry.name, step, error, exc_info=not _is_typed(error))
        text = str(error) or type(error).__name__
        return {"status": FAILED, "reason": f"{step}: {text if _is_typed(error) else repr(error)}"}

    def _steps(self) -> list[tuple[str, Callable[[], None]]]:
        steps: list[tuple[str, Callable[[], None]]] = []
        if reads_features(self.method) and self.entry.encoder is not None:
            steps.append(("extracting features", self._extract))
        steps += [("training", self._train), ("scanning", self._scan)]
        if any(case.annotation is not None for case in self._validation()):
            steps.append(("scanning validation slides", self._scan_validation))
        return steps

    def _validation(self) -> Cohort:
        """The slides on which the threshold of the Dice coefficient is chosen."""
        val = self.common.val
        return Cohort(()) if val is None else self.common.cohort.split(val)

    # -- steps ----------------------------------------------------------------------------------------------

    def _features(self) -> Path:
        assert self.entry.encoder is not None
        return self.out / "features" / folder_name(self.entry.encoder)

    def _extract(self) -> None:
        """Extract the features of the training and validation cases; all rows with the encoder share them."""
        from lobule.api import extract_features

        common = self.common
        if self._is_done(self._features() / TIMES, "extracting"):
            return
        learned = self.all_cases.where(lambda case: case.split in ("train", common.val))
        began = time.perf_counter()
        report = extract_features(
            learned,
            self._features(),
            encoder=self.entry.encoder or "",
            weights=self.entry.weights or "pretrained",
            mpp=common.mpp,
            tile=common.tile,
            **common.scan_options,
        )
        if report.failed:
            case, cause = next(iter(report.failed.items()))
            problem = f"the features of {len(report.failed)} cases could not be extracted"
            raise ResultsError(problem, subject=case, actual=cause)
        self._add_seconds(self._features() / TIMES, "extracting", time.perf_counter() - began)

    def _train(self) -> None:
        from lobule.api import train
        from lobule.bundles import MODEL

        if (self.bundle / MODEL).exists():
            return
        settings = dict(self.entry.settings)
        if reads_features(self.method) and self.entry.encoder is not None:
            settings[FEATURES] = str(self._features())
        began = time.perf_counter()
        try:
            train(
                self.entry.method, self._learned(), self.bundle, settings=settings, val=self.common.val,
                seed=self.common.seed, **self.common.train_options,
            )  # fmt: skip
        finally:
            self._add_seconds(self.folder / TIMES, "training", time.perf_counter() - began)

    def _learned(self) -> Cohort:
        """The cases that a training may use: all but those on which rows are compared."""
        return self.cohort.where(lambda case: case.split != self.common.split)

    def _scan(self) -> None:
        from lobule.api import scan

        if self._is_done(self.folder / TIMES, "scanning"):
            return
        cases = self.cohort.split(self.common.split)
        began = time.perf_counter()
        report = scan(self.bundle, cases, self.results, **self.common.scan_options)
        if report.failed and len(report.failed) == len(cases):
            case, cause = next(iter(report.failed.items()))
            raise ResultsError("no case could be scanned", subject=case, actual=cause)
        self._add_seconds(self.folder / TIMES, "scanning", time.perf_counter() - began)

    def _scan_validation(self) -> None:
        """Scan the validation slides into the same results, if these have maps."""
        from lobule.api import scan

        if self._is_done(self.folder / TIMES, "validating") or not _has_maps(self.results):
            return
        began = time.perf_counter()
        scan(self.bundle, self._validation(), self.results, **self.common.scan_options)
        self._add_seconds(self.folder / TIMES, "validating", time.perf_counter() - began)

    def _is_done(self, path: Path, step: str) -> bool:
        """Whether a step has ended in an earlier call."""
        return path.exists() and bool(read_json(path).get(f"{step}_done"))

    def _add_seconds(self, path: Path, step: str, seconds: float) -> None:
        """Add the seconds of a step to those of earlier runs of it that were interrupted."""
        make_folder(path.parent)
        stored = read_json(path) if path.exists() else {}
        stored[step] = stored.get(step, 0.0) + seconds
        if step != "training" or self.bundle.joinpath("model.json").exists():
            stored[f"{step}_done"] = True
        write_json(path, stored)

    def seconds(self) -> dict[str, float | None]:
        """Seconds of each step; None if it has not been run."""
        times = read_json(self.folder / TIMES) if (self.folder / TIMES).exists() else {}
        shared: dict[str, Any] = {}
        if reads_features(self.method) and self.entry.encoder is not None:
            path = self._features() / TIMES
            shared = read_json(path) if path.exists() else {}
        return {
            "extracting": shared.get("extracting"),
            "training": times.get("training"),
            "scanning": times.get("scanning"),
            "validating": times.get("validating"),
        }

    # -- measures -------------------------------------------------------------------------------------------

    def evaluate(self, reference: Row | None) -> Mapping[str, Any]:
        """The evaluation of the row, with the paired differences from the reference row if there is one.

        It is stored, and computed again only if the scans or the options have changed.
        """
        from lobule.api import evaluate

        key = {
            "results": _scan_identity(self.results),
            "reference": None if reference is None else _scan_identity(reference.results),
            "resamples": self.common.resamples,
        }
        path = self.folder / EVALUATION
        if path.exists() and (stored := read_json(path))["key"] == key:
            data: Mapping[str, Any] = stored["data"]
            return data
        evaluation = evaluate(
            self.results,
            self.common.cohort,
            split=self.common.split,
            against=None if reference is None else reference.results,
            resamples=self.common.resamples,
            maps=True,
            map_fit=self.common.val or "val",
        )
        write_json(path, {"key": key, "data": dict(evaluation.data)})
        as_stored: Mapping[str, Any] = read_json(path)["data"]
        return as_stored

    def _check_request(self) -> None:
        """Raise `ResultsError` if the folder contains a row that was made in another way."""
        training = [[case.id, case.patient, case.split, case.label] for case in self._learned()]
        entry = json.loads(json.dumps(self.entry.to_dict(), default=str))
        request = {**entry, "val": self.common.val, "seed": self.common.seed, "cases": training}
        path = make_folder(self.folder) / REQUEST
        if not path.exists():
            write_json(path, request)
            return
        stored = read_json(path)
        for key, value in request.items():
            if stored.get(key) != value:
                raise ResultsError(
                    f"the row '{self.entry.name}' was made with other {key}",
                    subject=self.folder,
                    expected=str(stored.get(key))[:200],
                    actual=str(value)[:200],
                    remedy="Write the table to another folder, or delete the folder of this row",
                )


def _is_typed(error: Exception) -> bool:
    return isinstance(error, LobuleError)


def _has_maps(results: Path) -> bool:
    """Whether any case of a results folder has a map."""
    from lobule.results import open_results

    opened = open_results(results)
    return any(opened.case_folder(case.case_id).maps for case in opened.cases())


def _scan_identity(results: Path) -> list[Any]:
    """What identifies the scores of a results folder: its bundle and the state of its cases."""
    from lobule.results import open_results

    opened = open_results(results)
    statuses = sorted((case.case_id, case.status) for case in opened.cases())
    fingerprint = opened.settings.get("bundle", {}).get("fingerprint")
    return json.loads(json.dumps([fingerprint, statuses]))  # type: ignore[no-any-return]
