"""The conformance suite of methods passes a sound method, and each of its checks fails for a broken one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lobule.bundles import Bundle, write_bundle
from lobule.cohort import Case
from lobule.results.result import Result
from lobule.scanning.contract import Batch, EngineSettings, OpenCase, ScanOptions, Steps, fill_map
from lobule.testing.method import FinishedScan, MethodConformance
from tests.scanning.support import STRIDE, WINDOW, MeanPredictor, cohort_of, pixels_of, write_slide


@dataclass(frozen=True)
class Means:
    """Key of the only pass of the toy method."""


class ToyPredictor(MeanPredictor):
    """The mean of each window plus a setting of the bundle."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        fitting = int((max_bytes / 60) ** 0.5 - WINDOW) // STRIDE + 1
        return replace(engine, cells=min(8, max(1, fitting)), batch=1)

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[Means, Batch]:
        return Means(), super().sample_batch(engine, options)[1]

    def steps(self, case: OpenCase) -> Steps[Result]:
        grid = self.grid(case)
        everywhere = np.ones((grid.rows, grid.columns), np.bool_)
        reader = yield from fill_map(Means(), "mean", grid, self.classes, everywhere)
        return Result({"mean": float(reader.scores().max())})

    def forward(self, key: object, batch: Batch) -> dict[str, torch.Tensor]:
        return {"map": super().forward(key, batch)["map"] + self.shift}


class TestToy(MethodConformance):
    """The sound method passes the whole suite."""

    scores = ("mean",)
    predictor: type[MeanPredictor] = ToyPredictor

    @pytest.fixture(scope="class")
    @classmethod
    def bundle(cls, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
        return toy_bundle(tmp_path_factory.mktemp("toy"))

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory) -> Case:
        return toy_case(tmp_path_factory.mktemp("slide"))

    def load(self, bundle: Bundle) -> MeanPredictor:
        return self.predictor(bundle.config["shift"])  # type: ignore[call-arg]


def toy_bundle(folder: Path) -> Bundle:
    return write_bundle(folder, Bundle("toy", {"shift": 0.25}, ("mean",), 0.5), {"none": torch.zeros(1)})


def toy_case(folder: Path) -> Case:
    (case,) = cohort_of(write_slide(folder / "one.tif", pixels_of(190, 150)))
    return case


class Undeclared(ToyPredictor):
    """Returns a score that the method does not declare."""

    def steps(self, case: OpenCase) -> Steps[Result]:
        result = yield from super().steps(case)
        return replace(result, scores={**result.scores, "other": 1.0})


class Untyped(ToyPredictor):
    """Its keys are text."""

    def steps(self, case: OpenCase) -> Steps[Result]:
        grid = self.grid(case)
        everywhere = np.ones((grid.rows, grid.columns), np.bool_)
        reader = yield from fill_map("means-s16", "mean", grid, self.classes, everywhere)
        return Result({"mean": float(reader.scores().max())})


class Restless(ToyPredictor):
    """Other cells are required every time the steps run."""

    runs = itertools.count()

    def steps(self, case: OpenCase) -> Steps[Result]:
        grid = self.grid(case)
        required = np.ones((grid.rows, grid.columns), np.bool_)
        required.flat[next(self.runs) % required.size] = False
        reader = yield from fill_map(Means(), "mean", grid, self.classes, required)
        return Result({"mean": float(reader.scores().max())})


class Forgetful(ToyPredictor):
    """Its score depends on batches that a resumed scan does not compute again."""

    def steps(self, case: OpenCase) -> Steps[Result]:
        yield from super().steps(case)
        return Result({"mean": float(self.forwards)})


class Greedy(ToyPredictor):
    """Takes the same fields whatever the memory limit is."""

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        return replace(engine, cells=8, batch=2)


class Meddling(ToyPredictor):
    """Changes settings that are not its own."""

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        return replace(super().choose_batch(engine, max_bytes, options), precision="bfloat16")


class Misshapen(ToyPredictor):
    """Computes one map for the whole batch."""

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[Means, Batch]:
        key, batch = super().sample_batch(engine, options)
        return key, Batch(batch.pixels.repeat(2, 1, 1, 1))

    def forward(self, key: object, batch: Batch) -> dict[str, torch.Tensor]:
        return {"map": super().forward(key, batch)["map"][:1]}


class Drifting(ToyPredictor):
    """Every batch changes the next one."""

    def forward(self, key: object, batch: Batch) -> dict[str, torch.Tensor]:
        self.shift += 0.001
        return super().forward(key, batch)


class Suite(TestToy):
    """The suite for a broken method; `check` runs one of its tests."""

    __test__ = False

    def __init__(self, predictor: type[MeanPredictor], folder: Path) -> None:
        self.predictor, self.folder = predictor, folder
        self.toy, self.slide = toy_bundle(folder / "toy"), toy_case(folder)

    @property
    def complete(self) -> FinishedScan:
        return self.run_scan(self.toy, self.slide, self.folder / "complete")


def result(suite: Suite) -> None:
    suite.test_result_has_the_declared_scores(suite.complete)


def keys(suite: Suite) -> None:
    suite.test_every_pass_has_a_typed_key_and_its_own_name(suite.complete)


def steps(suite: Suite) -> None:
    suite.test_steps_are_deterministic(suite.toy, suite.slide, suite.complete)


def resume(suite: Suite) -> None:
    suite.test_interrupted_scan_resumes_to_the_same_bytes(
        suite.toy, suite.slide, suite.complete, suite.folder
    )


def saved(suite: Suite) -> None:
    suite.test_settings_survive_saving_and_loading(suite.toy, suite.slide, suite.complete, suite.folder)


def memory_limit(suite: Suite) -> None:
    suite.test_choose_batch_respects_the_memory_limit(suite.toy, suite.complete)


def sample(suite: Suite) -> None:
    suite.test_sample_batch_has_the_promised_shape(suite.toy, suite.complete)


def replicas(suite: Suite) -> None:
    suite.test_replicas_compute_the_same_at_the_same_time(suite.toy, suite.complete)


@pytest.mark.parametrize(
    ("predictor", "check"),
    [
        (Undeclared, result), (Untyped, keys), (Restless, steps), (Forgetful, resume), (Greedy, memory_limit),
        (Meddling, memory_limit), (Misshapen, sample), (Drifting, replicas),
    ],
)  # fmt: skip
def test_broken_method_fails(
    predictor: type[MeanPredictor], check: Callable[[Suite], None], tmp_path: Path
) -> None:
    suite = Suite(predictor, tmp_path)
    with pytest.raises(AssertionError):
        check(suite)


def test_method_that_ignores_its_saved_settings_fails(tmp_path: Path) -> None:
    class Unsaved(Suite):
        def load(self, bundle: Bundle) -> MeanPredictor:
            return ToyPredictor(0.25 if bundle is self.toy else 0.0)

    with pytest.raises(AssertionError):
        saved(Unsaved(ToyPredictor, tmp_path))
