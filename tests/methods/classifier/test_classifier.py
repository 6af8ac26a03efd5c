"""Tests of tile classifiers: conversion of models, scores of each tile, trust, and settings."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.models import squeezenet1_1

from lobule.bundles import Bundle, read_bundle
from lobule.errors import BundleError, ConfigError, LobuleError
from lobule.methods.classifier import Config, load, of_wsinfer
from lobule.methods.classifier.convert import convert
from lobule.nets.fused import can_fuse
from lobule.results import open_results
from lobule.scanning.contract import EngineSettings, ScanOptions
from lobule.scanning.device import SLICE
from lobule.scanning.scan import Machine, scan
from tests.scanning.support import cohort_of, pixels_of, write_slide

TILE = 80
MODEL_INFO = {"method": "classifier", "fingerprint": "f", "classes": ["notumor", "tumor"]}
MACHINE = Machine(device="cpu", precision="float32", batch=4, readers=2, replicas=2, channels_last=True)
WSINFER = {
    "spec_version": "1.0",
    "architecture": "torchvision:squeezenet1_1",
    "num_classes": 2,
    "class_names": ["notumor", "tumor"],
    "patch_size_pixels": TILE,
    "spacing_um_px": 0.5,
    "transform": [
        {"name": "Resize", "arguments": {"size": 96}},
        {"name": "ToTensor"},
        {"name": "Normalize", "arguments": {"mean": [0.7, 0.6, 0.5], "std": [0.2, 0.25, 0.3]}},
    ],
}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(3)
    return squeezenet1_1(num_classes=2).eval()


@pytest.fixture
def files(model: torch.nn.Module, tmp_path: Path) -> tuple[Path, Path]:
    torch.save(model.state_dict(), tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(json.dumps(WSINFER))
    return tmp_path / "model.pt", tmp_path / "config.json"


def tile_scores(model: torch.nn.Module, pixels: np.ndarray) -> np.ndarray:
    """Score one tile at a time, following the WSInfer configuration."""
    rows, columns = -(-pixels.shape[0] // TILE), -(-pixels.shape[1] // TILE)
    white = np.full((rows * TILE, columns * TILE, 3), 255, np.uint8)
    white[: pixels.shape[0], : pixels.shape[1]] = pixels
    out = np.empty((2, rows, columns))
    mean, std = torch.tensor([0.7, 0.6, 0.5]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    for row in range(rows):
        for column in range(columns):
            tile = white[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
            x = (torch.from_numpy(tile.copy()).permute(2, 0, 1).float() / 255 - mean) / std
            x = F.interpolate(x[None], (96, 96), mode="bilinear", antialias=True)
            with torch.inference_mode():
                out[:, row, column] = torch.softmax(model(x)[0].double(), 0).numpy()
    return out


def test_converted_weights_give_the_scores_of_the_model(
    model: torch.nn.Module, files: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle = convert(*files, tmp_path / "bundle")
    assert bundle.method == "classifier" and bundle.classes == ("notumor", "tumor")
    pixels = pixels_of(410, 330)
    slide = write_slide(tmp_path / "one.tif", pixels)
    scan(load(bundle), MODEL_INFO, cohort_of(slide), tmp_path / "r", ScanOptions(tissue=None), MACHINE)
    folder = open_results(tmp_path / "r").case_folder("one")
    scores = folder.maps["tiles"].read()[0]
    expected = tile_scores(model, pixels)
    np.testing.assert_allclose(scores, expected, atol=2e-5)
    result = folder.result
    assert result is not None and result["scores"].keys() == {"tumor"}
    assert abs(result["scores"]["tumor"] - expected[1].max()) < 2e-5


def test_cores_wait_for_no_more_than_one_slice_at_the_end(files: tuple[Path, Path], tmp_path: Path) -> None:
    model = load(convert(*files, tmp_path / "bundle")).model
    batches = {
        device: model.choose_batch(EngineSettings(device=device), 1 << 30, ScanOptions()).batch
        for device in ("cpu", "cuda:0")
    }
    assert batches["cpu"] == SLICE < batches["cuda:0"]


def test_a_torchscript_file_needs_trust(
    model: torch.nn.Module, files: tuple[Path, Path], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch deprecates TorchScript
        torch.jit.trace(model, torch.zeros(1, 3, 96, 96)).save(str(tmp_path / "ts.pt"))
    with pytest.raises(ConfigError, match="can run code"):
        convert(tmp_path / "ts.pt", files[1], tmp_path / "bundle")
    bundle = convert(tmp_path / "ts.pt", files[1], tmp_path / "bundle", trust=True)
    with pytest.raises(ConfigError, match="--trust"):
        load(bundle)
    pixels = pixels_of(170, 90)
    slide = write_slide(tmp_path / "one.tif", pixels)
    options = ScanOptions(tissue=None)
    scan(load(bundle, trust=True), MODEL_INFO, cohort_of(slide), tmp_path / "r", options, MACHINE)
    scores = open_results(tmp_path / "r").case_folder("one").maps["tiles"].read()[0]
    np.testing.assert_allclose(scores, tile_scores(model, pixels), atol=2e-5)
    bfloat16_machine = Machine(device="cpu", precision="bfloat16", batch=4, readers=1, replicas=1)
    predictor = load(bundle, trust=True)
    scan(predictor, MODEL_INFO, cohort_of(slide), tmp_path / "bf16", options, bfloat16_machine)
    scores = open_results(tmp_path / "bf16").case_folder("one").maps["tiles"].read()[0]
    np.testing.assert_allclose(scores, tile_scores(model, pixels), atol=0.05)
    originals = predictor.model.net.parameters()
    assert all(parameter.dtype == torch.float32 for parameter in originals)


@pytest.mark.skipif(not can_fuse(), reason="this build of torch has no oneDNN operators")
def test_a_scan_frees_the_original_weights_until_they_are_used(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    slide = write_slide(tmp_path / "one.tif", pixels_of(170, 90))
    predictor = load(convert(*files, tmp_path / "bundle"))
    expected = {name: value.clone() for name, value in predictor.model.net.state_dict().items()}
    for name in ("first", "second"):
        scan(predictor, MODEL_INFO, cohort_of(slide), tmp_path / name, ScanOptions(tissue=None), MACHINE)
        left = sum(parameter.numel() for parameter in predictor.model._net.parameters())
        assert left < 0.01 * sum(value.numel() for value in expected.values())
    maps = [open_results(tmp_path / name).case_folder("one").maps["tiles"] for name in ("first", "second")]
    np.testing.assert_array_equal(maps[0].read()[0], maps[1].read()[0])
    restored = predictor.model.net.state_dict()
    assert all(torch.equal(restored[name], value) for name, value in expected.items())


@pytest.mark.parametrize("name", ["timm:hf-hub:someone/model", "timm:local-dir:/tmp", "torchvision:"])
def test_an_architecture_that_would_fetch_files_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown architecture"):
        Config(name, ("a", "b"), 0.5)


def test_pickled_code_is_never_run(files: tuple[Path, Path], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("run",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(BundleError, match="cannot be read"):
        convert(tmp_path / "evil.pt", files[1], tmp_path / "bundle")


def test_weights_of_another_architecture_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="do not fit the architecture torchvision:resnet18"):
        convert(*files, tmp_path / "bundle", architecture="torchvision:resnet18")


@pytest.mark.parametrize("change", [
    {"class_names": ["one"]},
    {"transform": [{"name": "RandomCrop"}]},
    {"spacing_um_px": "fine"},
    {"patch_size_pixels": None},
])  # fmt: skip
def test_invalid_configurations_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(LobuleError):
        of_wsinfer({**WSINFER, **change})


def test_classes_with_findings_and_scores() -> None:
    def target_classes(*classes: str, **settings: object) -> tuple[str, ...]:
        return Config("timm:resnet18", classes, 0.5, **settings).target_classes  # type: ignore[arg-type]

    assert target_classes("notumor", "tumor") == ("tumor",)
    assert target_classes("Other", "Tumor", "Necrosis") == ("Tumor", "Necrosis")
    assert target_classes("No", "Yes") == ("Yes",), (
        "every word for no tumour in cohort/labels.py is background"
    )
    assert target_classes("healthy", "background", "1") == ("1",)
    assert target_classes("a", "b") == ("b",)
    assert target_classes("a", "b", background=("b",)) == ("a",)


def test_bundle_is_restored_from_disk(files: tuple[Path, Path], tmp_path: Path) -> None:
    bundle = convert(*files, tmp_path / "bundle")
    assert read_bundle(tmp_path / "bundle") == bundle
    assert Config.from_dict(bundle.config).input == 96


def test_fingerprint_does_not_depend_on_the_order_of_a_calibration() -> None:
    first, second = ({"slope": 2.0, "threshold": 0.5}, {"threshold": 0.5, "slope": 2.0})
    bundles = [Bundle("classifier", {}, ("a",), 0.5, calibration=values) for values in (first, second, {})]
    assert bundles[0].fingerprint == bundles[1].fingerprint != bundles[2].fingerprint
