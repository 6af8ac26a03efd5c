"""Quantised bundles: their calibration, their report, and scans in int8."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lobule.api import quantization
from lobule.api import scan as scan_bundle
from lobule.api.quantization import quantize, rank_correlation
from lobule.bundles import read_bundle
from lobule.cohort import Cohort
from lobule.errors import BundleError, ConfigError, UsageError
from lobule.files import read_json
from lobule.methods.classifier.convert import convert
from lobule.nets.inference import for_inference
from lobule.nets.tiny import tiny
from lobule.results import open_results
from lobule.scanning import int8, openvino_library
from lobule.scanning.contract import OPENVINO, EngineSettings
from lobule.scanning.device import copy_to_device
from lobule.scanning.int8 import CollectedInputs, write_models
from lobule.scanning.network_identity import INDEX, int8_models, signature, structure_digest
from lobule.scanning.openvino_library import core, is_installed
from lobule.scanning.openvino_runtime import OpenVinoNet
from tests.methods.scannet.support import write_tiny_bundle
from tests.scanning.support import cohort_of, pixels_of, tree, write_slide

pytestmark = pytest.mark.skipif(
    not (is_installed() and is_installed("nncf")), reason="the extra 'quantize' is not installed"
)
TILE = 64


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("slides")
    slides = [write_slide(folder / f"{seed}.tif", pixels_of(420, 330, seed)) for seed in (0, 1)]
    return cohort_of(*slides)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of tiles: timm's smallest ResNet, with seeded weights."""
    from timm import create_model

    folder = tmp_path_factory.mktemp("bundles")
    torch.manual_seed(5)
    net = create_model("test_resnet", num_classes=2)
    torch.save(net.eval().state_dict(), folder / "model.pt")
    config = {"architecture": "timm:test_resnet", "class_names": ["no", "yes"], "spacing_um_px": 0.5}
    (folder / "config.json").write_text(json.dumps({**config, "patch_size_pixels": TILE}))
    convert(folder / "model.pt", folder / "config.json", folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def quantised(original: Path, cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantised") / "bundle"
    quantize(original, cohort, out, fields=40, scans=1)
    return out


def run(bundle: Path, cohort: Cohort, out: Path, **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"runtime": "openvino", "tissue": False, "device": "cpu", **options}
    report = scan_bundle(bundle, cohort, out, **settings)
    assert dict(report.counts) == {"complete": 2}, report.failed
    engine: dict[str, Any] = read_json(out / "scan.json")["engine"]
    return engine


def scores_of(out: Path) -> np.ndarray:
    return np.stack([case.maps["tiles"].scores() for case in open_results(out).cases()])


def test_a_scan_with_a_quantised_bundle_runs_in_int8_near_float32(
    original: Path, quantised: Path, cohort: Cohort, tmp_path: Path
) -> None:
    engine = run(quantised, cohort, tmp_path / "int8")
    assert (engine["runtime"], engine["precision"]) == ("openvino", "int8")
    run(original, cohort, tmp_path / "float32", precision="float32")
    rounded, exact = scores_of(tmp_path / "int8"), scores_of(tmp_path / "float32")
    difference = np.abs(rounded - exact)
    assert 1e-6 < difference.max() < 0.1
    measured = read_json(tmp_path / "int8" / "run.json")["measured"]
    assert measured["measured_on"] == "tissue"
    assert measured["difference"] == pytest.approx(difference[0].max(), rel=0.01)
    run(quantised, cohort, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(tmp_path / "int8")


def test_float32_on_request(quantised: Path, original: Path, cohort: Cohort, tmp_path: Path) -> None:
    assert run(quantised, cohort, tmp_path / "a", precision="float32")["precision"] == "float32"
    run(original, cohort, tmp_path / "b", precision="float32")
    np.testing.assert_array_equal(scores_of(tmp_path / "a"), scores_of(tmp_path / "b"))


def test_the_report_is_in_the_bundle(quantised: Path, original: Path) -> None:
    bundle, source = read_bundle(quantised), read_bundle(original)
    report = bundle.provenance["int8"]
    assert set(source.files) < set(bundle.files) and bundle.fingerprint != source.fingerprint
    assert report["models"][0]["shape"] == [8, 3, TILE, TILE] and report["models"][0]["fields"] >= 30
    fields = report["fields"]
    assert 0 < fields["mean"] < fields["largest"] < 0.1 and fields["rank_correlation"] > 0.9
    scores = report["scans"]["scores"]
    changes = [abs(scores["float32"]["0"][name] - scores["int8"]["0"][name]) for name in scores["int8"]["0"]]
    assert report["scans"]["largest_change"] == pytest.approx(max(changes))


def test_what_cannot_be_quantised_is_refused(
    original: Path, quantised: Path, cohort: Cohort, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="already quantised"):
        quantize(quantised, cohort, tmp_path / "again")
    model = (quantised / "model.json").read_bytes()
    with pytest.raises(UsageError, match="contains a bundle already"):
        quantize(original, cohort, quantised)
    with pytest.raises(ConfigError, match="already quantised"):
        quantize(quantised, cohort, quantised, fresh=True)
    assert (quantised / "model.json").read_bytes() == model
    small = write_slide(tmp_path / "small.tif", pixels_of(2 * TILE, TILE))
    with pytest.raises(ConfigError, match="too few fields"):
        quantize(original, cohort_of(small), tmp_path / "few")
    blank = write_slide(tmp_path / "blank.tif", np.full((300, 300, 3), 243, np.uint8))
    with pytest.raises(ConfigError, match="no field with tissue"):
        quantize(original, cohort_of(blank), tmp_path / "few")
    assert not (tmp_path / "few").exists()


def test_sizes_that_do_not_fit_the_models_are_reported(
    quantised: Path, cohort: Cohort, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        assert run(quantised, cohort, tmp_path / "a", batch=4)["batch"] == 8
    assert "batches of 8: --batch 4 is ignored" in caplog.text and "exceed" not in caplog.text
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        run(quantised, cohort, tmp_path / "b", max_ram=1 << 20)
    assert "may exceed this limit" in caplog.text


def test_a_scan_without_openvino_says_that_int8_is_not_used(
    quantised: Path,
    cohort: Cohort,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("LOBULE_RUNTIME", "auto")
    monkeypatch.setattr(openvino_library, "is_installed", lambda name="openvino": False)
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        engine = run(quantised, cohort, tmp_path / "r", runtime="auto")
    assert engine["runtime"] == "torch" and "pip install 'lobule[openvino]'" in caplog.text


def test_a_changed_model_is_refused(quantised: Path, cohort: Cohort, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(quantised, tmp_path / "changed")
    (tmp_path / "changed" / "int8-0.bin").write_bytes(b"other")
    with pytest.raises(BundleError, match="not the one the bundle was made with"):
        run(tmp_path / "changed", cohort, tmp_path / "r")


def test_a_dense_net_is_calibrated_on_small_fields_and_computes_large_ones(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The mean score must not shift: NNCF's fast correction of biases once raised all scores."""
    monkeypatch.setenv("LOBULE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(quantization, "CALIBRATION_CELLS", 2)
    dense = write_tiny_bundle(tmp_path / "dense", mpp=0.5)
    # The first slide has no field from which the size of complete fields could be learnt.
    blank = cohort_of(write_slide(tmp_path / "blank.tif", np.full((300, 300, 3), 243, np.uint8)))
    cases = Cohort((*blank, *cohort))
    bundle = quantize(dense, cases, tmp_path / "int8", scans=1, max_ram=48 << 20)
    scans = bundle.provenance["int8"]["scans"]
    assert (scans["cases"], scans["without_score"], scans["largest_change"]) == (0, ["blank"], None)
    (model,) = bundle.provenance["int8"]["models"]
    settings: dict[str, Any] = {"tissue": False, "device": "cpu", "max_ram": 48 << 20, "runtime": "openvino"}
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        scan_bundle(tmp_path / "int8", cohort, tmp_path / "rounded", precision="int8", **settings)
    assert "no int8 model" not in caplog.text
    scan_bundle(dense, cohort, tmp_path / "exact", precision="float32", **settings)
    engine = read_json(tmp_path / "rounded" / "scan.json")["engine"]
    assert engine["cells"] > 2, "complete fields are larger than those of the calibration"
    assert model["fields"] > 2 * len(list(cohort)), "small fields are more than complete ones"
    exact, rounded = (
        np.concatenate(
            [next(iter(case.maps.values())).scores().ravel() for case in open_results(out).cases()]
        )
        for out in (tmp_path / "exact", tmp_path / "rounded")
    )
    assert abs((rounded - exact).mean()) < 0.1 * np.std(exact) and not np.array_equal(rounded, exact)


def test_a_model_belongs_to_its_network_and_shape(tmp_path: Path) -> None:
    torch.manual_seed(0)
    nets = [for_inference(tiny().eval()) for _ in range(2)]
    entries = [
        {"file": f"int8-{n}.xml", "structure": structure_digest(net), "signature": signature(net),
         "shape": [1, 3, 203, 203]}
        for n, net in enumerate(nets)
    ]  # fmt: skip
    (tmp_path / INDEX).write_text(json.dumps({"cells": 1, "batch": 1, "models": entries}))
    for number, net in enumerate(nets):
        assert int8_models(tmp_path, net) == {(1, 3, 203, 203): tmp_path / f"int8-{number}.xml"}
    with torch.no_grad():
        for parameter in nets[0].parameters():
            parameter.mul_(1 + 1e-6)  # as another processor rounds folded weights
    assert set(int8_models(tmp_path, nets[0]).values()) == {tmp_path / "int8-0.xml"}
    assert not int8_models(tmp_path, for_inference(tiny().eval()))


def test_a_method_without_networks_has_nothing_to_quantise(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to quantise"):
        write_models(CollectedInputs(8), EngineSettings(), tmp_path)


def test_short_batches_are_computed_in_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LOBULE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    engine = EngineSettings(runtime=OPENVINO, int8_folder=str(tmp_path))
    net, collected = for_inference(tiny().eval()), CollectedInputs(20)
    x, exact = torch.rand(19, 3, 203, 203), copy_to_device(net, engine)
    assert isinstance(exact, OpenVinoNet)
    for batch in x.split(8):  # the last has three fields, too few for a model of their own
        collected.add(exact, batch)
    entries = write_models(collected, engine, tmp_path)
    assert [entry["shape"] for entry in entries] == [[8, 3, 203, 203]]
    rounded = copy_to_device(net, replace(engine, precision="int8"))
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        torch.testing.assert_close(rounded(x[:3]), rounded(x[:8])[:3])
    assert not caplog.text and not torch.equal(rounded(x[:3]), exact(x[:3]))


def test_int8_models_are_compiled_before_the_first_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOBULE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    engine = EngineSettings(runtime=OPENVINO, int8_folder=str(tmp_path))
    net, collected, x = for_inference(tiny().eval()), CollectedInputs(20), torch.rand(16, 3, 203, 203)
    exact = copy_to_device(net, engine)
    assert isinstance(exact, OpenVinoNet)
    collected.add(exact, x)
    write_models(collected, engine, tmp_path)
    compiling_threads: list[str] = []
    compile_form = OpenVinoNet._compile_form

    def noting(self: OpenVinoNet, form: Any) -> Any:
        compiling_threads.append(threading.current_thread().name)
        return compile_form(self, form)

    monkeypatch.setattr(OpenVinoNet, "_compile_form", noting)
    rounded = copy_to_device(net, replace(engine, precision="int8"))
    for thread in threading.enumerate():
        if thread.name == "compile":
            thread.join()
    rounded(x)
    assert compiling_threads == ["compile"]


@pytest.mark.parametrize("returns_map", [False, True])
def test_networks_that_return_maps_keep_their_first_and_last_layer_in_float32(
    returns_map: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOBULE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)]
    ends = [] if returns_map else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    engine = EngineSettings(runtime=OPENVINO)
    exact, collected = copy_to_device(nn.Sequential(*layers, *ends).eval(), engine), CollectedInputs(8)
    assert isinstance(exact, OpenVinoNet)
    collected.add(exact, torch.rand(8, 3, 32, 32))
    (entry,) = write_models(collected, engine, tmp_path)
    model = core().read_model(tmp_path / entry["file"])
    convolutions = [op for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"]
    in_int8 = [op.input_value(0).get_node().get_type_name() == "FakeQuantize" for op in convolutions]
    assert in_int8 == ([False, True, False] if returns_map else [True, True, True])


def test_a_calibration_leaves_logging_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """NNCF's own function also sets the level of the handlers that its logger shares with others."""
    logger, handler, levels = logging.getLogger("nncf"), logging.NullHandler(), []
    library = SimpleNamespace(
        quantize=lambda *_, **__: levels.append(logger.getEffectiveLevel()),
        Dataset=list, QuantizationPreset=SimpleNamespace(MIXED=0), IgnoredScope=lambda names: names,
        set_log_level=openvino_library.nncf().set_log_level,
    )  # fmt: skip
    monkeypatch.setattr(int8, "nncf", lambda: library)
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, handler])
    before = logger.level
    int8._quantised(torch.nn.Conv2d(1, 1, 1), (1, 1, 2, 2), [])
    assert levels == [logging.ERROR] and (logger.level, handler.level) == (before, logging.NOTSET)
    assert logging.getLoggerClass() is logging.Logger


def test_rank_correlation_is_that_of_scipy() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    x = rng.integers(0, 20, 200).astype(np.float32)
    y = (x + rng.normal(0, 5, 200)).astype(np.float32)
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert rank_correlation(x, np.ones_like(x)) is None
