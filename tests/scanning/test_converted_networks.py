"""The cache of converted networks: what is damaged, and where it cannot be written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lobule.errors import ResultsError
from lobule.scanning import choice, converted_networks, openvino_conversion
from lobule.scanning.contract import OPENVINO, Batch, EngineSettings, ScanOptions
from lobule.scanning.device import copy_to_device
from lobule.scanning.openvino_library import is_installed
from tests.scanning.support import MeanPredictor

pytestmark = pytest.mark.skipif(not is_installed(), reason="the extra 'openvino' is not installed")
ENGINE = EngineSettings(runtime=OPENVINO)
x = torch.rand(1, 3, 5, 5)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for each test."""
    monkeypatch.setenv("LOBULE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()


def compute(net: nn.Module) -> torch.Tensor:
    """Compute with a new copy of the network, as a new process would."""
    with torch.inference_mode():
        return torch.as_tensor(copy_to_device(net, ENGINE)(x))


def test_a_network_is_converted_once(net: nn.Module, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compute(net)
    torch.testing.assert_close(first, net(x).detach())
    monkeypatch.setattr(converted_networks, "convert", None)
    assert torch.equal(compute(net), first)
    assert sorted(path.suffix for path in cache.iterdir()) == [".bin", ".lock", ".sha256", ".xml"]


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".xml", lambda data: data[: len(data) // 2]),
        (".xml", lambda data: b""),
        (".bin", lambda data: b""),
        (".bin", lambda data: bytes(len(data))),  # As after a power failure on some file systems.
        (".sha256", lambda data: b"\xff"),
    ],
)
def test_a_damaged_network_is_converted_again(
    net: nn.Module,
    cache: Path,
    suffix: str,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenVINO itself does not notice weights of zero: they would give wrong scores."""
    first = compute(net)
    (path,) = cache.glob(f"*{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        assert torch.equal(compute(net), first)
    assert "damaged and is converted again" in caplog.text
    monkeypatch.setattr(converted_networks, "convert", None)
    assert torch.equal(compute(net), first)


@contextmanager
def no_locks(path: Path) -> Iterator[None]:
    raise ResultsError("the file system cannot lock files", subject=path)
    yield


def full_disk(*folders: Path) -> Callable[[Any, Path], None]:
    """Return a replacement of `save_model` that finds no space in some folders."""
    original = openvino_conversion.save_model

    def save(model: Any, path: Path) -> None:
        if path.parent in folders or not folders:
            raise RuntimeError("Exception from src/core\nbasic_ios::clear: iostream error")
        original(model, path)

    return save


@pytest.mark.parametrize("problem", ["no locks", "full disk", "a file in place of the folder"])
def test_without_a_cache_openvino_computes_nevertheless(
    net: nn.Module,
    cache: Path,
    problem: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch would compute other last bits than those of the runtime that `scan.json` records."""
    first = compute(net)
    for path in cache.iterdir():
        path.unlink()
    if problem == "no locks":
        monkeypatch.setattr(converted_networks, "lock_file", no_locks)
    elif problem == "full disk":
        monkeypatch.setattr(converted_networks, "save_model", full_disk(cache))
    else:
        cache.rmdir()
        cache.write_text("")
    converted_networks._warn_not_cached.cache_clear()
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        assert torch.equal(compute(net), first) and torch.equal(compute(net), first)
    assert caplog.text.count("cannot be cached") == 1 and "torch computes" not in caplog.text


def test_a_network_that_cannot_be_stored_anywhere_is_an_error(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converted_networks, "save_model", full_disk())
    with pytest.raises(ResultsError, match=r"cannot be stored.*iostream error.*TMPDIR"):
        compute(net)


def test_a_runtime_that_fails_is_left_out_of_the_choice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Unstorable(MeanPredictor):
        runtime = "torch"

        def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
            self.runtime = engine.runtime

        def forward(self, key: Any, batch: Batch) -> dict[str, torch.Tensor]:
            if self.runtime == OPENVINO:
                raise ResultsError("the network cannot be stored")
            return super().forward(key, batch)

    model, engine = Unstorable(), EngineSettings(cells=2, batch=1)
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        best, measured = choice.measure(model, engine, ScanOptions(), "float32", True, "auto")
    assert (best.runtime, model.runtime) == ("torch", "torch")
    assert "cannot be stored" in measured.skipped["openvino float32"] and "left out" in caplog.text
    with pytest.raises(ResultsError, match="cannot be stored"):
        choice.measure(model, engine, ScanOptions(), "float32", None, OPENVINO)
