"""Conformance suite for methods. The tests of a method inherit `MethodConformance`.

A method outside this repository is tested in one short file:

    import pytest
    from lobule.methods import METHODS
    from lobule.testing.method import MethodConformance

    class TestMine(MethodConformance):
        scores = ("tumour",)                         # names of the scores of a case

        @pytest.fixture(scope="class")
        @classmethod
        def bundle(cls, tmp_path_factory):
            return save(tmp_path_factory.mktemp("bundle"), ...)   # a small untrained model

        @pytest.fixture(scope="class")
        @classmethod
        def case(cls, tmp_path_factory):
            return Case(...)                         # a small case in which something is scored

A method that is not in `METHODS` also overrides `load`.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lobule.bundles import Bundle, read_bundle
from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError
from lobule.methods import load
from lobule.results.folder import CaseFolder, open_results
from lobule.results.result import COMPLETE, Result
from lobule.scanning.contract import EngineSettings, MapSpec, OpenCase, Pass, Predictor, ScanOptions, Steps
from lobule.scanning.open_case import OpenedCase
from lobule.scanning.scan import Machine, scan

MACHINE = Machine(device="cpu", precision="float32", readers=1, replicas=2, channels_last=True)
AMPLE_BYTES = 4 << 30
"""Bytes in which the fields of every method fit."""


class Recorder:
    """Runs the steps of another predictor and keeps its passes. It can stop after the first pass.

    It is a wrapper like any other: it shares the model and the images, and only implements `steps`.
    """

    def __init__(self, inner: Predictor, stops: bool = False) -> None:
        self.inner, self.stops = inner, stops
        self.model, self.images = inner.model, inner.images
        self.passes: list[Pass] = []
        """The passes of the last run; a scan may run the first steps once more to measure the model."""

    def steps(self, case: OpenCase) -> Steps[Result]:
        self.passes = []
        steps = self.inner.steps(case)
        try:
            pass_ = next(steps)
            while True:
                self.passes.append(pass_)
                store = yield pass_
                if self.stops:
                    raise KeyboardInterrupt
                pass_ = steps.send(store)
        except StopIteration as end:
            result: Result = end.value
            return result


@dataclass(frozen=True)
class FinishedScan:
    """A complete scan of the case, and what the method did."""

    path: Path
    engine: EngineSettings
    passes: tuple[Pass, ...]

    @property
    def folder(self) -> CaseFolder:
        (folder,) = open_results(self.path).cases()
        return folder

    @property
    def result(self) -> Mapping[str, Any]:
        result = self.folder.result
        assert result is not None
        return result


class MethodConformance:
    """What the scanner, the results and the viewer expect of every method."""

    scores: tuple[str, ...]
    """Names of the scores of a case."""
    options = ScanOptions(tissue=None)
    """Options of the scans."""
    machine = MACHINE

    @pytest.fixture(scope="class")
    @classmethod
    def bundle(cls, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
        """The bundle as the method's `save` or training returned it."""
        raise NotImplementedError(f"{cls.__name__} inherits MethodConformance: define its fixture `bundle`")

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory) -> Case:
        """A small case in which something is scored."""
        raise NotImplementedError(f"{cls.__name__} inherits MethodConformance: define its fixture `case`")

    def load(self, bundle: Bundle) -> Predictor:
        return load(bundle, trust=True)

    @pytest.fixture(scope="class")
    @classmethod
    def finished(cls, bundle: Bundle, case: Case, tmp_path_factory: pytest.TempPathFactory) -> FinishedScan:
        return cls().run_scan(bundle, case, tmp_path_factory.mktemp("conformance") / "results")

    def run_scan(
        self,
        bundle: Bundle,
        case: Case,
        out: Path,
        *,
        predictor: Predictor | None = None,
        stops: bool = False,
    ) -> FinishedScan:
        """Scan the case, or continue its scan."""
        recorder = Recorder(predictor or self.load(bundle), stops)
        identity = {
            "method": bundle.method, "fingerprint": bundle.fingerprint, "classes": list(bundle.classes)
        }  # fmt: skip
        report = scan(recorder, identity, Cohort((case,)), out, self.options, self.machine)
        assert not report.failed, f"the scan of the case failed: {dict(report.failed)}"
        stored = open_results(out).settings["engine"]
        return FinishedScan(out, EngineSettings(**stored), tuple(recorder.passes))

    # -- steps and results --------------------------------------------------------------------------------

    def test_result_has_the_declared_scores(self, finished: FinishedScan) -> None:
        result = finished.result
        assert result["status"] == COMPLETE, result["notes"]
        assert set(result["scores"]) == set(self.scores)
        assert all(np.isfinite(value) for value in result["scores"].values())

    def test_every_pass_has_a_typed_key_and_its_own_name(self, finished: FinishedScan) -> None:
        assert finished.passes, "the method computed nothing"
        for pass_ in finished.passes:
            assert not isinstance(pass_.key, str | tuple), f"the key of '{pass_.name}' is not typed"
            assert pass_.key == pass_.key and pass_.key is not None
        names = [pass_.name for pass_ in finished.passes]
        assert len(set(names)) == len(names), f"two passes have the same name: {names}"

    def test_findings_lie_on_the_images(self, bundle: Bundle, case: Case, finished: FinishedScan) -> None:
        images = self.load(bundle).images(case, self.options)
        columns = finished.folder.findings()
        assert len(columns.get("score", ())) == finished.result["findings"]["count"]
        rows = (columns.get(key, ()) for key in ("image", "l0_x", "l0_y", "score"))
        # The centre of the last cell of a map can lie just outside the image.
        steps = [max(reader.info.l0_stride) for reader in finished.folder.maps.values()]
        beyond = max(steps, default=0.0)
        for name, x, y, score in zip(*rows, strict=True):
            assert 0 <= x < images[name].size.width + beyond
            assert 0 <= y < images[name].size.height + beyond
            assert np.isfinite(score)

    def test_steps_are_deterministic(self, bundle: Bundle, case: Case, finished: FinishedScan) -> None:
        """Replaying the steps with what is on disk asks for the same passes and gives the same scores."""
        predictor = self.load(bundle)
        images = predictor.images(case, self.options)
        opened = OpenedCase(case, images, self.options, finished.engine, (case,))
        replay = Recorder(predictor)
        steps = replay.steps(opened)
        maps, tables = finished.folder.maps, finished.folder.tables
        try:
            pass_ = next(steps)
            while True:
                stores = maps if isinstance(pass_.store, MapSpec) else tables
                assert pass_.name in stores, f"a second run asks for another pass: {pass_.name}"
                pass_ = steps.send(stores[pass_.name])
        except StopIteration as end:
            result: Result = end.value
        finally:
            opened.close()
        assert len(replay.passes) == len(finished.passes)
        for first, second in zip(finished.passes, replay.passes, strict=True):
            _assert_same_pass(first, second)
        assert {name: float(value) for name, value in result.scores.items()} == finished.result["scores"]
        assert len(result.findings) == finished.result["findings"]["count"]

    def test_interrupted_scan_resumes_to_the_same_bytes(
        self, bundle: Bundle, case: Case, finished: FinishedScan, tmp_path: Path
    ) -> None:
        """A scan is stopped after its first pass, loses the last chunk, and is resumed by a new process."""
        with pytest.raises(KeyboardInterrupt):
            self.run_scan(bundle, case, tmp_path / "results", stops=True)
        for folder in (tmp_path / "results" / "cases").rglob("*"):
            if chunks := sorted([*folder.glob("state/c/*/*"), *folder.glob("part-*.parquet")]):
                chunks[-1].unlink()
        self.run_scan(bundle, case, tmp_path / "results")
        assert dict(_files(tmp_path / "results")) == dict(_files(finished.path))

    # -- the bundle ---------------------------------------------------------------------------------------

    def test_settings_survive_saving_and_loading(
        self, bundle: Bundle, case: Case, finished: FinishedScan, tmp_path: Path
    ) -> None:
        """A copy of the bundle has the same settings and gives the same scores, maps and findings."""
        assert bundle.path is not None
        copied = read_bundle(shutil.copytree(bundle.path, tmp_path / "copy"))
        assert json.loads(json.dumps(dict(bundle.config))) == dict(copied.config)
        assert (copied.classes, copied.mpp) == (tuple(bundle.classes), bundle.mpp)
        assert copied.fingerprint == read_bundle(bundle.path).fingerprint
        self.run_scan(bundle, case, tmp_path / "results", predictor=self.load(copied))
        assert dict(_files(tmp_path / "results")) == dict(_files(finished.path))

    # -- the model ----------------------------------------------------------------------------------------

    def test_choose_batch_respects_the_memory_limit(self, bundle: Bundle, finished: FinishedScan) -> None:
        model, engine = self.load(bundle).model, replace(finished.engine, cells=1, batch=1)
        ample = model.choose_batch(engine, AMPLE_BYTES, self.options)
        assert ample.batch >= 1 and ample.cells >= 1
        assert replace(ample, batch=1, cells=1) == engine, "only the batch and the field size may be chosen"
        work = ample.batch * ample.cells**2
        for shift in (4, 8, 12, 32):
            try:
                tight = model.choose_batch(engine, AMPLE_BYTES >> shift, self.options)
            except ConfigError as error:
                assert error.remedy, "the error does not say how to provide more memory"
                return
            assert tight.batch * tight.cells**2 <= work, "less memory gives larger fields"
            work = tight.batch * tight.cells**2
        assert work == 1, "a memory limit of one byte does not give the smallest batch"

    def test_sample_batch_has_the_promised_shape(self, bundle: Bundle, finished: FinishedScan) -> None:
        model = self.load(bundle).model
        model.move_to_device(finished.engine, self.options)
        key, batch = model.sample_batch(finished.engine, self.options)
        assert batch.pixels.ndim == 4 and batch.pixels.dtype in (torch.uint8, torch.float32)
        with torch.inference_mode():
            outputs = model.forward(key, batch)
        assert outputs
        for name, values in outputs.items():
            assert len(values) == len(batch.pixels), f"'{name}' does not have one entry per field"
            assert torch.isfinite(values.float()).all(), f"'{name}' is not finite"
        specs = [pass_.store for pass_ in finished.passes if pass_.key == key]
        for spec in specs:
            if isinstance(spec, MapSpec):
                assert outputs["map"].ndim == 4 and outputs["map"].shape[1] == len(spec.classes)

    def test_replicas_compute_the_same_at_the_same_time(self, bundle: Bundle, finished: FinishedScan) -> None:
        """Several threads call `forward` of one model. Moving it to the device again changes nothing."""
        model = self.load(bundle).model
        model.move_to_device(finished.engine, self.options)
        key, batch = model.sample_batch(finished.engine, self.options)

        def compute(_: int = 0) -> dict[str, torch.Tensor]:
            torch.set_num_threads(finished.engine.replica_threads)
            with torch.inference_mode():
                return model.forward(key, batch)

        with ThreadPoolExecutor(2) as pool:
            runs = list(pool.map(compute, range(4)))
            model.move_to_device(finished.engine, self.options)
            runs.append(pool.submit(compute).result())
        for outputs in runs[1:]:
            assert outputs.keys() == runs[0].keys()
            assert all(torch.equal(outputs[name], runs[0][name]) for name in outputs)
        assert all(values.device.type == "cpu" for values in runs[0].values())

    def test_copies_of_the_model_compute_the_same(self, bundle: Bundle, finished: FinishedScan) -> None:
        """Each further card of a scan has a copy of the model, which shares nothing that a card changes."""
        model, engine = self.load(bundle).model, finished.engine
        copied, elsewhere = copy.deepcopy(model), copy.deepcopy(model)
        model.move_to_device(engine, self.options)
        key, batch = model.sample_batch(engine, self.options)
        copied.move_to_device(engine, self.options)
        with torch.inference_mode():
            expected = model.forward(key, batch)
            computed = copied.forward(key, batch)
            if engine.runtime == "torch":  # This device has no values: whatever the copy shares is lost.
                elsewhere.move_to_device(replace(engine, device="meta"), self.options)
            again = model.forward(key, batch)
        for outputs in (computed, again):
            assert outputs.keys() == expected.keys()
            assert all(torch.equal(outputs[name], expected[name]) for name in outputs)


def _assert_same_pass(first: Pass, second: Pass) -> None:
    assert (first.name, first.key, first.batch) == (second.name, second.key, second.batch)
    assert type(first.store) is type(second.store)
    pairs: list[tuple[Any, Any]] = [(first.fields.boxes, second.fields.boxes)]
    pairs.append((first.fields.image, second.fields.image))
    assert first.fields.params.keys() == second.fields.params.keys()
    pairs += [(values, second.fields.params[name]) for name, values in first.fields.params.items()]
    if isinstance(first.store, MapSpec) and isinstance(second.store, MapSpec):
        pairs += [(first.store.required, second.store.required), (first.store.glass, second.store.glass)]
    assert all(np.array_equal(*pair) for pair in pairs), f"the fields of '{first.name}' differ"


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of a results folder except those with times and locks."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("run.json", ".lock"):
            yield path.relative_to(folder).as_posix(), path.read_bytes()
