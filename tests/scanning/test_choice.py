"""Which runtime, precision and memory layout a scan chooses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lobule.api import scan as scan_bundle
from lobule.errors import ConfigError
from lobule.files import read_json
from lobule.nets.dense import densify
from lobule.nets.fused import FusedConv, can_fuse
from lobule.nets.inference import for_inference
from lobule.nets.tiny import tiny
from lobule.results import open_results
from lobule.scanning import choice, device
from lobule.scanning.choice import measure, possible_forms
from lobule.scanning.contract import Batch, EngineSettings, ScanOptions
from lobule.scanning.scan import Machine
from tests.methods.scannet.support import write_tiny_bundle
from tests.scanning.support import MeanPredictor, pixels_of, write_slide


class Forms(MeanPredictor):
    """A model that records the forms that it is moved to."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[str] = []

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        self.forms.append(engine.precision)

    def forward(self, key: Any, batch: Batch) -> dict[str, torch.Tensor]:
        outputs = super().forward(key, batch)
        if self.forms[-1:] == ["bfloat16"]:
            return {name: value + 0.25 for name, value in outputs.items()}
        return outputs


def measured_rates(monkeypatch: pytest.MonkeyPatch, rates: dict[tuple[str, bool], float]) -> None:
    """Let each precision and layout measure as this fast."""
    original = choice._rate

    def rate(model: Any, engine: EngineSettings, options: ScanOptions) -> Any:
        return rates[engine.precision, engine.channels_last], original(model, engine, options, 0.0)[1]

    monkeypatch.setattr(choice, "_rate", rate)
    monkeypatch.setattr(choice, "_bfloat16_pays", lambda _: True)


@pytest.mark.parametrize(
    ("contiguous", "channels_last", "rounded", "chosen"),
    [
        (50.0, 100.0, 114.0, ("float32", True)),
        (50.0, 100.0, 116.0, ("bfloat16", True)),
        (105.0, 100.0, 90.0, ("float32", True)),
        (120.0, 100.0, 137.0, ("float32", False)),
        (120.0, 100.0, 139.0, ("bfloat16", True)),
    ],
)
def test_bfloat16_is_chosen_if_it_is_faster_by_its_margin(
    monkeypatch: pytest.MonkeyPatch,
    contiguous: float,
    channels_last: float,
    rounded: float,
    chosen: tuple[str, bool],
) -> None:
    rates = {("float32", False): contiguous, ("float32", True): channels_last, ("bfloat16", True): rounded}
    measured_rates(monkeypatch, rates)
    model = Forms()
    engine, measured = measure(model, EngineSettings(cells=2, batch=1), ScanOptions())
    assert (engine.precision, engine.channels_last) == chosen
    assert model.forms[-1] == chosen[0]
    assert measured.difference == (0.25 if chosen[0] == "bfloat16" else 0.0)


def test_the_default_is_measured_again_before_another_form_replaces_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program that ran during the first measurement must not slow down every later scan."""
    measured_rates(monkeypatch, {("float32", False): 120.0, ("float32", True): 100.0})
    rates_of_default = iter([50.0, 115.0])
    rate = choice._rate

    def rate_of_a_busy_machine(model: Any, engine: EngineSettings, options: ScanOptions) -> Any:
        measured, outputs = rate(model, engine, options)
        return (next(rates_of_default) if engine.channels_last else measured), outputs

    monkeypatch.setattr(choice, "_rate", rate_of_a_busy_machine)
    engine, measured = measure(Forms(), EngineSettings(cells=2, batch=1), ScanOptions(), "float32")
    assert engine.channels_last
    assert measured.fields_per_s == {"float32": 120.0, "float32 channels-last": 115.0}
    assert next(rates_of_default, None) is None


def test_a_form_that_cannot_be_measured_again_keeps_its_first_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    measured_rates(monkeypatch, {("float32", False): 120.0, ("float32", True): 100.0})
    rate, measured_forms = choice._rate, []

    def rate_until_memory_is_exhausted(model: Any, engine: EngineSettings, options: ScanOptions) -> Any:
        measured_forms.append(engine.channels_last)
        if len(measured_forms) > 2:
            raise torch.OutOfMemoryError("exhausted")
        return rate(model, engine, options)

    monkeypatch.setattr(choice, "_rate", rate_until_memory_is_exhausted)
    engine, measured = measure(Forms(), EngineSettings(cells=2, batch=1), ScanOptions(), "float32")
    assert not engine.channels_last and measured_forms == [False, True, True]
    assert measured.fields_per_s == {"float32": 120.0, "float32 channels-last": 100.0}


def test_bfloat16_is_tried_wherever_torch_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag of AMX, which decided earlier, is not asked."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert [form.precision for form in possible_forms(EngineSettings())] == ["float32", "float32", "bfloat16"]


def test_bfloat16_is_tried_if_the_measured_card_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch answers for the current card, which may be another one."""
    current = ["cuda:0"]

    @contextmanager
    def use(card: str) -> Iterator[None]:
        current.append(card)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", use)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == "cuda:1")
    for card, precisions in (("cuda:0", {"float32"}), ("cuda:1", {"float32", "bfloat16"})):
        forms = possible_forms(EngineSettings(device=card), runtime="auto")
        assert {form.precision for form in forms} == precisions


def test_an_unknown_value_of_the_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOBULE_RUNTIME", "tensorrt")
    with pytest.raises(ConfigError, match="LOBULE_RUNTIME has the unknown value 'tensorrt'"):
        Machine.with_layout("auto", "cpu", "auto", 1 << 30, None, None, "auto")


def test_a_processor_that_emulates_bfloat16_measures_no_field_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(layer: torch.nn.Module, x: torch.Tensor) -> float:
        return 1.3 if x.dtype == torch.bfloat16 else 1.0

    choice._bfloat16_pays.cache_clear()
    monkeypatch.setattr(choice, "_seconds", seconds)
    model = Forms()
    engine, measured = measure(model, EngineSettings(cells=2, batch=1), ScanOptions())
    choice._bfloat16_pays.cache_clear()
    assert engine.precision == "float32" and "bfloat16" not in model.forms
    assert "slower in bfloat16" in measured.skipped["bfloat16 channels-last"]


def test_one_layer_that_is_fast_enough_lets_the_model_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(layer: torch.nn.Module, x: torch.Tensor) -> float:
        is_slow = x.dtype == torch.bfloat16 and isinstance(layer, torch.nn.Conv2d)
        return 9.0 if is_slow else 1.0

    choice._bfloat16_pays.cache_clear()
    monkeypatch.setattr(choice, "_seconds", seconds)
    assert choice._bfloat16_pays("cpu")
    choice._bfloat16_pays.cache_clear()


def test_the_difference_is_measured_on_tissue_and_recorded(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "one.tif", pixels_of(420, 330))
    bundle = write_tiny_bundle(tmp_path / "bundle", mpp=0.5)
    maps = {}
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        options: dict[str, Any] = {"tissue": False, "device": "cpu", "precision": precision}
        scan_bundle(bundle, str(slide), out, max_ram=96 << 20, **options)  # small fields are enough
        (reader,) = open_results(out).case_folder("one").maps.values()
        maps[precision] = reader.scores()
    measured = read_json(tmp_path / "bfloat16" / "run.json")["measured"]
    assert measured["measured_on"] == "tissue"
    # The whole slide is one field, so that the difference of the two maps is the difference of the field.
    assert measured["difference"] == pytest.approx(np.abs(maps["float32"] - maps["bfloat16"]).max(), rel=0.05)
    assert measured["difference"] > 1e-6
    assert read_json(tmp_path / "bfloat16" / "scan.json")["engine"]["runtime"] == "torch"


@pytest.mark.parametrize("supported", [True, False])
def test_convolutions_are_fused_in_bfloat16_where_the_processor_can(
    monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    """Only the choice is tested: the operator itself does not run in bfloat16 on every processor."""
    fused: list[torch.dtype] = []

    def fuse(module: torch.nn.Module) -> torch.nn.Module:
        fused.append(next(module.parameters()).dtype)
        return module

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(device, "fuse", fuse)
    net = densify(for_inference(tiny()), 2)
    device.copy_to_device(net, EngineSettings(precision="bfloat16"))
    assert fused == ([torch.bfloat16] if supported else [])
    assert can_fuse(torch.bfloat16) is supported and can_fuse() and not can_fuse(torch.float64)


@pytest.mark.skipif(not can_fuse(torch.bfloat16), reason="this processor has no fused operators in bfloat16")
def test_fused_convolutions_in_bfloat16_are_near_those_in_float32() -> None:
    conv = torch.nn.Conv2d(8, 16, 3).eval()
    x = torch.rand(2, 8, 20, 20).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = torch.relu(conv(x))
        conv = conv.to(dtype=torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rounded = FusedConv(conv, relu=True)(x.bfloat16())
    torch.testing.assert_close(rounded.float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int8"}, "no int8 models"),
        ({"precision": "int4"}, "unknown precision"),
        ({"runtime": "onnx"}, "unknown runtime"),
    ],
)
def test_a_form_that_does_not_exist_is_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        possible_forms(EngineSettings(), **change)


def test_openvino_is_refused_on_a_gpu() -> None:
    with pytest.raises(ConfigError, match="OpenVINO computes on a CPU"):
        possible_forms(EngineSettings(device="cuda:0"), runtime="openvino")
