"""Scans with the runtime openvino: the scores of torch, the same bytes again, and what goes wrong."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm import create_model
from torch import Tensor, nn

from lobule.api import extract_features
from lobule.api import scan as scan_bundle
from lobule.errors import ConfigError, MissingExtra, ResultsError
from lobule.features import open_features
from lobule.files import read_json
from lobule.fingerprints import cache_folder
from lobule.methods.classifier.convert import convert
from lobule.nets.dense import densify
from lobule.nets.inference import for_inference
from lobule.nets.tiny import tiny
from lobule.results import open_results
from lobule.scanning import choice, openvino_conversion, openvino_library, openvino_runtime
from lobule.scanning import engine as engine_module
from lobule.scanning.contract import OPENVINO, EngineSettings
from lobule.scanning.device import copy_to_device
from lobule.scanning.network_identity import network_digest
from lobule.scanning.openvino_library import is_installed
from tests.methods.scannet.support import write_tiny_bundle
from tests.scanning.support import pixels_of, tree, write_slide

pytestmark = pytest.mark.skipif(not is_installed(), reason="the extra 'openvino' is not installed")
ENGINE = EngineSettings(runtime=OPENVINO)
TILE = 64


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for each test."""
    monkeypatch.setenv("LOBULE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "one.tif", pixels_of(420, 330))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    torch.manual_seed(5)
    net = create_model("test_resnet", num_classes=2)  # timm's smallest
    torch.save(net.eval().state_dict(), folder / "model.pt")
    config = {"architecture": "timm:test_resnet", "class_names": ["no", "yes"], "spacing_um_px": 0.5}
    (folder / "config.json").write_text(json.dumps({**config, "patch_size_pixels": TILE}))
    convert(folder / "model.pt", folder / "config.json", folder / "tiles")
    return {"dense": write_tiny_bundle(folder / "dense", mpp=0.5), "tiles": folder / "tiles"}


def run(bundle: Path, slide: Path, out: Path, runtime: str, **options: Any) -> dict[str, Any]:
    """Scan a slide in float32; return the engine settings of `scan.json`."""
    settings: dict[str, Any] = {"precision": "float32", "tissue": False, "device": "cpu", **options}
    settings.setdefault("max_ram", 48 << 20)  # small fields, because the slide is small
    report = scan_bundle(bundle, str(slide), out, runtime=runtime, **settings)  # type: ignore[arg-type]
    assert dict(report.counts) == {"complete": 1}, report.failed
    engine: dict[str, Any] = read_json(out / "scan.json")["engine"]
    return engine


def scores_of(out: Path) -> np.ndarray:
    (folder,) = open_results(out).cases()
    (reader,) = folder.maps.values()
    return np.asarray(reader.scores())


@pytest.mark.parametrize("kind", ["dense", "tiles"])
def test_scores_are_those_of_torch_and_bytes_are_the_same_again(
    kind: str, bundles: dict[str, Path], slide: Path, tmp_path: Path
) -> None:
    options = {"stride": 16} if kind == "dense" else {}
    engine = run(bundles[kind], slide, tmp_path / "openvino", OPENVINO, **options)
    assert (engine["runtime"], engine["precision"]) == (OPENVINO, "float32")
    run(bundles[kind], slide, tmp_path / "torch", "torch", **options)
    a, b = scores_of(tmp_path / "openvino"), scores_of(tmp_path / "torch")
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert np.ptp(a) > 1e-3
    run(bundles[kind], slide, tmp_path / "again", OPENVINO, **options)
    assert tree(tmp_path / "again") == tree(tmp_path / "openvino")


@pytest.mark.parametrize("kind", ["dense", "tiles"])
def test_a_resumed_scan_follows_the_recorded_runtime(
    kind: str, bundles: dict[str, Path], slide: Path, tmp_path: Path
) -> None:
    run(bundles[kind], slide, tmp_path / "r", OPENVINO)
    before = tree(tmp_path / "r")
    (tmp_path / "r" / "cases" / "one" / "result.json").unlink()
    names = {path.name for path in (tmp_path / "r" / "cases" / "one" / "maps").rglob("score/c/0/*")}
    for path in (tmp_path / "r" / "cases" / "one" / "maps").rglob(f"c/**/{max(names)}"):
        shutil.rmtree(path, ignore_errors=True)  # the last row of chunks
    run(bundles[kind], slide, tmp_path / "r", "auto")
    assert tree(tmp_path / "r") == before


def test_features_are_those_of_torch(slide: Path, tmp_path: Path) -> None:
    rows = {}
    for runtime in ("torch", OPENVINO):
        out = tmp_path / runtime
        extract_features(
            str(slide), out, encoder="timm:test_vit", weights="random", tile=160, mpp=0.5,
            tissue=False, dtype="float32", runtime=runtime, precision="float32", device="cpu",
        )  # fmt: skip
        (file,) = list((out / "scan" / "cases").iterdir())
        rows[runtime] = _features(out)
        assert file.name == "one"
    assert rows["torch"].shape == rows[OPENVINO].shape and len(rows["torch"]) > 1
    np.testing.assert_allclose(rows[OPENVINO], rows["torch"], atol=2e-3)


def _features(out: Path) -> np.ndarray:
    from lobule.cohort import Case

    file = open_features(out).find(Case("one", "one", "slide", None))
    return np.asarray(file.read(slice(0, file.count)))


def test_auto_measures_both_and_records_the_faster(
    bundles: dict[str, Path], slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = choice._rate

    def rate(model: Any, engine: EngineSettings, options: Any) -> Any:
        return (9.0 if engine.runtime == OPENVINO else 1.0), original(model, engine, options, 0.0)[1]

    monkeypatch.setenv("LOBULE_RUNTIME", "auto")
    monkeypatch.setattr(choice, "_rate", rate)
    engine = run(bundles["tiles"], slide, tmp_path / "r", "auto", precision="auto")
    assert engine["runtime"] == OPENVINO
    measured = read_json(tmp_path / "r" / "run.json")["measured"]
    assert {"float32 channels-last", "openvino float32"} <= set(measured["fields_per_s"])
    assert measured["measured_on"] == "tissue" and measured["difference"] < 1e-4
    # With a cached choice, the possible forms are not computed, which would import OpenVINO.
    monkeypatch.setattr(engine_module, "possible_forms", None)
    assert run(bundles["tiles"], slide, tmp_path / "again", "auto", precision="auto") == engine


def test_short_batches_are_padded_and_give_the_same_rows() -> None:
    net = copy_to_device(for_inference(tiny().eval()), ENGINE)
    x = torch.rand(11, 3, 203, 203)
    rows = torch.cat([net(x[:8]), net(x[8:])])
    torch.testing.assert_close(net(x), rows, atol=1e-5, rtol=1e-5)
    assert [openvino_runtime.padded_size(n) for n in (1, 2, 3, 5, 8, 9, 16, 17)] == [
        1,
        2,
        4,
        8,
        8,
        16,
        16,
        24,
    ]


def test_an_image_with_channels_last_is_read_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = for_inference(tiny().eval())
    plain, net = (copy_to_device(quick, ENGINE, channels_last_input=last) for last in (False, True))
    x = torch.rand(3, 3, 203, 235)
    expected = plain(x)
    last = x.contiguous(memory_format=torch.channels_last)
    read: list[np.ndarray] = []
    infer = openvino_runtime.infer

    def noting(request: Any, inputs: np.ndarray) -> Any:
        read.append(inputs)
        return infer(request, inputs)

    monkeypatch.setattr(openvino_runtime, "infer", noting)
    for inputs in (last, last[:2], x):  # The batches of 3 are padded to 4.
        torch.testing.assert_close(net(inputs), expected[: len(inputs)], atol=1e-5, rtol=1e-5)
    plain(last)
    assert [inputs.shape for inputs in read] == [
        (4, 203, 235, 3), (2, 203, 235, 3), (4, 3, 203, 235), (4, 3, 203, 235),
    ]  # fmt: skip
    assert read[1].ctypes.data == last.data_ptr()


def test_the_hash_of_a_network_covers_weights_structure_and_attributes() -> None:
    torch.manual_seed(0)
    net = for_inference(tiny().eval())
    names = {network_digest(densify(net, alpha)) for alpha in (1, 2, 4)}
    assert len(names) == 3 and network_digest(densify(net, 4)) in names
    with torch.no_grad():
        next(net.parameters())[0, 0, 0, 0] += 1e-6
    assert network_digest(densify(net, 4)) not in names


class Odd(nn.Module):
    """A layer that OpenVINO does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def test_a_layer_that_cannot_be_converted_is_named_and_torch_computes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), Odd(), nn.ReLU())
    x = torch.rand(2, 3, 9, 9)
    with caplog.at_level(logging.WARNING, "lobule.scan"), torch.inference_mode():
        outputs = copy_to_device(net, ENGINE)(x)
        torch.testing.assert_close(outputs, net(x))
    assert "the layer '2' (Odd)" in caplog.text and "torch computes" in caplog.text


class LevelRecorder(nn.Module):
    """Records the level of the root logger while it is converted."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.levels.append(logging.getLogger().level)
        return x + 1


def test_a_conversion_leaves_the_root_logger_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO would set its level to ERROR: warnings of other threads would be lost."""
    root, recorder = logging.getLogger(), LevelRecorder()
    before = root.level, list(root.handlers), list(root.filters)
    openvino_conversion.convert(recorder, (1, 4))
    assert set(recorder.levels) == {before[0]}
    with pytest.raises(Exception, match="bessel"):
        openvino_conversion.convert(nn.Sequential(Odd()), (1, 4))
    assert (root.level, root.handlers, root.filters) == before
    with monkeypatch.context() as patched:
        patched.setattr(root, "handlers", [])  # as in a command
        openvino_conversion.convert(recorder, (1, 5))
        assert root.handlers == []


def test_a_worker_that_cannot_follow_stops_with_an_error(
    bundles: dict[str, Path], slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(bundles["dense"], slide, tmp_path / "r", OPENVINO)
    shutil.rmtree(tmp_path / "r" / "cases" / "one")
    with monkeypatch.context() as patched:
        patched.setattr(openvino_library, "is_installed", lambda name="openvino": False)
        with pytest.raises(ResultsError, match="without the extra 'openvino'"):
            run(bundles["dense"], slide, tmp_path / "r", "auto")
    with monkeypatch.context() as patched:
        patched.setattr(openvino_library, "OLDEST", (2999, 0))
        with pytest.raises(ResultsError, match="too old"):
            run(bundles["dense"], slide, tmp_path / "r", "auto")
    scan_json = read_json(tmp_path / "r" / "scan.json")
    scan_json["engine"]["precision"] = "bfloat16"
    (tmp_path / "r" / "scan.json").write_text(json.dumps(scan_json))
    with monkeypatch.context() as patched:
        patched.setattr(openvino_library, "runs_bfloat16", lambda: False)
        with pytest.raises(ResultsError, match="without units for bfloat16"):
            run(bundles["dense"], slide, tmp_path / "r", "auto")


def test_a_missing_or_old_openvino_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lobule.scanning.choice import possible_forms

    with monkeypatch.context() as patched:
        patched.setattr(openvino_library, "OLDEST", (2999, 0))
        with pytest.raises(ConfigError, match="too old"):
            possible_forms(EngineSettings(), runtime=OPENVINO)
        with caplog.at_level(logging.WARNING, "lobule.scan"):
            forms = possible_forms(EngineSettings(), runtime="auto")
        assert {form.runtime for form in forms} == {"torch"}
        assert "OpenVINO is not used: the installed OpenVINO is too old" in caplog.text
        net = copy_to_device(nn.ReLU(), ENGINE)
        with pytest.raises(ConfigError, match="too old"):  # torch does not compute in its place
            net(torch.rand(1, 4))
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(openvino_library, "is_installed", lambda name="openvino": False)
    with pytest.raises(MissingExtra, match="pip install 'lobule\\[openvino\\]'"):
        possible_forms(EngineSettings(), runtime=OPENVINO)
    assert {form.runtime for form in possible_forms(EngineSettings(), runtime="auto")} == {"torch"}


def test_a_choice_of_openvino_is_not_followed_without_it(
    bundles: dict[str, Path],
    slide: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Otherwise every case would fail."""
    monkeypatch.setenv("LOBULE_RUNTIME", "auto")
    # Every form with OpenVINO counts as faster than every form with torch, whatever is measured.
    monkeypatch.setattr(choice, "_is_default", lambda form: form.runtime == "torch")
    monkeypatch.setattr(choice, "MARGIN", 1e9)
    assert run(bundles["tiles"], slide, tmp_path / "a", "auto")["runtime"] == OPENVINO
    with monkeypatch.context() as patched:
        patched.setattr(openvino_library, "OLDEST", (2999, 0))
        assert run(bundles["tiles"], slide, tmp_path / "b", "auto")["runtime"] == "torch"
    assert "OpenVINO is not used" in caplog.text
    assert run(bundles["tiles"], slide, tmp_path / "c", "auto")["runtime"] == OPENVINO


def test_bfloat16_is_tried_only_with_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from lobule.scanning.choice import possible_forms

    for runs, expected in ((True, ["float32", "bfloat16"]), (False, ["float32"])):
        monkeypatch.setattr(openvino_library, "runs_bfloat16", lambda runs=runs: runs)
        forms = possible_forms(replace(EngineSettings(), batch=2), runtime=OPENVINO)
        assert [form.precision for form in forms] == expected


def test_the_cache_is_in_the_cache_folder(cache: Path) -> None:
    assert cache_folder() == cache


WITHOUT_AVX2 = """
    import sys, torch
    from lobule.api import scan
    assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"
    bundle, slide, out = sys.argv[1:]
    for runtime in ("torch", "openvino"):
        report = scan(bundle, slide, f"{out}-{runtime}", runtime=runtime, precision="float32", tissue=False,
                      device="cpu", max_ram=48 << 20)
        assert dict(report.counts) == {"complete": 1}, report.failed
"""


@pytest.mark.campaign
def test_a_processor_without_avx2_computes_the_same_scores(
    bundles: dict[str, Path], slide: Path, tmp_path: Path
) -> None:
    """The libraries are limited to older instructions, as they limit themselves on such a processor."""
    variables = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "DNNL_MAX_CPU_ISA": "SSE41"}
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITHOUT_AVX2), bundles["tiles"], slide, tmp_path / "old"],
        check=True, env={**os.environ, **variables}, timeout=900,
    )  # fmt: skip
    run(bundles["tiles"], slide, tmp_path / "new", "torch")
    for runtime in ("torch", OPENVINO):
        np.testing.assert_allclose(
            scores_of(tmp_path / f"old-{runtime}"), scores_of(tmp_path / "new"), atol=1e-4
        )
