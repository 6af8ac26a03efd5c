"""Networks are compiled for OpenVINO while the first case is opened."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lobule.errors import ResultsError
from lobule.nets.inference import for_inference
from lobule.nets.tiny import tiny
from lobule.scanning import openvino_runtime
from lobule.scanning.contract import OPENVINO, Batch, EngineSettings, ScanOptions
from lobule.scanning.device import copy_to_device
from lobule.scanning.early_compilation import EarlyCompilation
from lobule.scanning.openvino_library import is_installed

needs_openvino = pytest.mark.skipif(not is_installed(), reason="the extra 'openvino' is not installed")
ENGINE = EngineSettings(runtime=OPENVINO, precision="int8")


class TinyModel:
    """A model of one network that counts its batches."""

    def __init__(self, engine: EngineSettings = ENGINE) -> None:
        self.net = copy_to_device(for_inference(tiny().eval()), engine)
        self.threads: list[str] = []
        self.outputs: list[Tensor] = []

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[None, Batch]:
        return None, Batch(torch.rand(3, 3, 203, 203))

    def forward(self, key: None, batch: Batch) -> dict[str, Tensor]:
        self.threads.append(threading.current_thread().name)
        self.outputs.append(self.net(batch.pixels))
        return {"map": self.outputs[-1]}


def compiled_early(model: Any, engine: EngineSettings = ENGINE) -> None:
    compilation = EarlyCompilation(model, engine, ScanOptions())
    for _ in range(2):  # The second call changes nothing.
        compilation.start()
    compilation.wait()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOBULE_CACHE", str(tmp_path / "cache"))


@needs_openvino
def test_the_first_batch_finds_a_compiled_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TinyModel()
    recorded: list[Tensor] = []
    with openvino_runtime.recorded_inputs(lambda net, x: recorded.append(x)):
        compiled_early(model)
    assert model.threads == ["compile"]
    assert not recorded, "a calibration must not see random pixels"
    assert not model.outputs[0].any(), "nothing is computed"

    def unexpected(*arguments: object) -> None:
        raise AssertionError("the network is compiled again")

    monkeypatch.setattr(openvino_runtime, "converted", unexpected)
    x = torch.rand(3, 3, 203, 203)
    computed = model.net(x)
    assert computed.shape == model.outputs[0].shape
    torch.testing.assert_close(computed, for_inference(model.net.net)(x), atol=1e-4, rtol=1e-4)


@needs_openvino
def test_an_error_is_left_to_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: object) -> None:
        raise ResultsError("no space")

    model = TinyModel()
    monkeypatch.setattr(openvino_runtime, "converted", failing)
    compiled_early(model)
    assert model.threads == ["compile"]
    assert not model.outputs
    with pytest.raises(ResultsError, match="no space"):
        model.net(torch.rand(3, 3, 203, 203))


@pytest.mark.parametrize("runtime", ["torch", pytest.param(OPENVINO, marks=needs_openvino)])
def test_nothing_is_compiled_early_in_float32(runtime: str) -> None:
    engine = EngineSettings(runtime=runtime)
    model = TinyModel(engine)
    compiled_early(model, engine)
    assert not model.threads
