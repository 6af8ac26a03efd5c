"""Scanning with ScanNet: the map equals that of the net for any fields, tissue and refinement."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from lobule.bundles import read_bundle
from lobule.errors import BundleError, ConfigError, ModelError
from lobule.geometry import Lattice, Size
from lobule.grid import MapGrid
from lobule.methods.scannet import Config, DensePredictor, load, save
from lobule.methods.scannet.config import NET_STRIDE, NET_STRIDES
from lobule.methods.scannet.predictor import CPU_CELLS
from lobule.nets.backbones import BACKBONES
from lobule.nets.receptive import geometry_of
from lobule.nets.scaling import PLAIN_SCALING
from lobule.nets.vgg import scannet_vgg16
from lobule.results import open_results
from lobule.scanning.contract import EngineSettings, ScanOptions
from lobule.scanning.scan import Machine, scan
from lobule.stitch import State
from tests.methods.scannet.support import write_tiny_bundle
from tests.scanning.support import cohort_of, pixels_of, write_slide

MACHINE = Machine(device="cpu", precision="float32", cells=3, readers=2, replicas=2, channels_last=True)
METADATA = {"method": "scannet", "fingerprint": "f", "classes": ["normal", "tumour"]}


def test_tiling_plans(goldens: Path) -> None:
    """The published block plans: the starts, the side and the number of blocks."""
    geometry = geometry_of(scannet_vgg16(2, widths=(4, 4, 4, 4, 4), head_widths=(4, 4)))
    for plan in json.loads((goldens / "scannet" / "goldens.json").read_text())["tiling"]:
        lattice = Lattice(Fraction(1), Fraction(1), Size(*plan["slide_wh"]), None, 0)
        dense = geometry.dense(plan["alpha"])
        grid = MapGrid(lattice, plan["map_stride"], dense.extent, plan["cells_per_block"], dense.first_centre)
        assert [grid.rows, grid.columns] == plan["map_rows_cols"]
        assert grid.field_side == plan["block_side"]
        assert [grid.field_rows, grid.field_columns] == plan["blocks_rows_cols"]
        first, second = grid.field_boxes(np.array([[0, 0], [0, 1]])).tolist()
        assert first[:2] == plan["first_block_origin_xy"]
        assert second[0] == plan["second_block_origin_x"]
        centre = [grid.stride * 5 + grid.stride // 2, grid.stride * 3 + grid.stride // 2]
        assert centre == plan["window_centre_of_cell_3_5_xy"]


def scores_by_patch(
    predictor: DensePredictor, pixels: np.ndarray, stride: int, cells: np.ndarray
) -> np.ndarray:
    """Reference: each cell's window is cut from the picture, padded with white and scored separately."""
    window = predictor.geometry.extent
    padded = np.full((pixels.shape[0] + 4 * window, pixels.shape[1] + 4 * window, 3), 255, np.uint8)
    padded[2 * window : 2 * window + pixels.shape[0], 2 * window : 2 * window + pixels.shape[1]] = pixels
    start = int(np.floor(stride / 2 - predictor.geometry.first_centre)) + 2 * window
    out = []
    for row, column in cells:
        y, x = start + stride * row, start + stride * column
        patch = torch.from_numpy(padded[None, y : y + window, x : x + window].copy())
        with torch.inference_mode():
            logits = predictor.model.net(predictor.model.scaling.apply(patch))
        out.append(float(torch.softmax(logits.double(), 1)[0, 1, 0, 0]))
    return np.array(out)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("b") / "bundle", mpp=0.5)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("s") / "one.tif", pixels_of(901, 740))


@pytest.mark.parametrize("stride", [32, 8])
def test_the_map_equals_patch_by_patch(bundle: Path, slide: Path, tmp_path: Path, stride: int) -> None:
    predictor = load(read_bundle(bundle))
    options = ScanOptions(tissue=None, stride=stride)
    scan(predictor, METADATA, cohort_of(slide), tmp_path / "r", options, MACHINE)
    reader = open_results(tmp_path / "r").case_folder("one").maps[f"map-s{stride}"]
    scores, states = reader.read()
    assert scores.shape == (1, -(-740 // stride), -(-901 // stride)) and (states == State.SCORED).all()
    rng = np.random.default_rng(0)
    cells = np.stack([rng.integers(0, n, 24) for n in states.shape], axis=1)
    cells[:4] = [[0, 0], [0, -1], [-1, 0], [-1, -1]]
    cells %= states.shape
    want = scores_by_patch(predictor, pixels_of(901, 740), stride, cells)
    np.testing.assert_allclose(scores[0][tuple(cells.T)], want, atol=1e-5)
    assert want.std() > 0.01, "the comparison needs patches with different scores"


def test_only_suspicious_cells_are_refined(bundle: Path, slide: Path, tmp_path: Path) -> None:
    predictor = load(read_bundle(bundle))
    everything = ScanOptions(tissue=None, stride=8)
    scan(predictor, METADATA, cohort_of(slide), tmp_path / "uniform", everything, MACHINE)
    uniform = open_results(tmp_path / "uniform").case_folder("one").maps["map-s8"].scores()
    bar = float(np.quantile(uniform, 0.99))
    config = Config.from_dict({**predictor.config.to_dict(), "refine_above": bar})
    refining = DensePredictor(config, predictor.model.net, predictor.model.scaling)
    scan(refining, METADATA, cohort_of(slide), tmp_path / "r", ScanOptions(tissue=None, refine=True), MACHINE)
    folder = open_results(tmp_path / "r").case_folder("one")
    coarse, coarse_states = folder.maps["map-s32"].read()
    fine, states = folder.maps["map-s8"].read()
    scored = states == State.SCORED
    assert 0 < scored.sum() < scored.size
    np.testing.assert_allclose(fine[0][scored], uniform[scored], atol=1e-5)
    hot = (coarse[0] >= bar) & (coarse_states == State.SCORED)
    spread = hot.repeat(4, 0).repeat(4, 1)[: states.shape[0], : states.shape[1]]
    assert scored[spread].all(), "every cell under a promising coarse cell is refined"
    result = folder.result
    assert result is not None
    assert result["strides"] == {"32": coarse_states.size, "8": int(scored.sum())}


def test_nothing_is_refined_without_a_time_budget(bundle: Path, slide: Path, tmp_path: Path) -> None:
    options = ScanOptions(tissue=None, refine=True, budget=0.0)
    report = scan(load(read_bundle(bundle)), METADATA, cohort_of(slide), tmp_path / "r", options, MACHINE)
    assert dict(report.counts) == {"complete": 1}
    folder = open_results(tmp_path / "r").case_folder("one")
    assert folder.maps["map-s8"].counts()["scored"] == 0
    assert folder.maps["map-s32"].counts()["pending"] == 0


def test_findings_lie_where_the_map_is_high(bundle: Path, slide: Path, tmp_path: Path) -> None:
    predictor = load(read_bundle(bundle))
    scan(predictor, METADATA, cohort_of(slide), tmp_path / "a", ScanOptions(tissue=None), MACHINE)
    scores = open_results(tmp_path / "a").case_folder("one").maps["map-s32"].scores()
    bar = float(np.quantile(scores, 0.9))
    config = Config.from_dict({**predictor.config.to_dict(), "threshold": bar})
    scan(
        DensePredictor(config, predictor.model.net, predictor.model.scaling),
        METADATA,
        cohort_of(slide),
        tmp_path / "b",
        ScanOptions(tissue=None),
        MACHINE,
    )
    folder = open_results(tmp_path / "b").case_folder("one")
    findings = folder.findings()
    assert len(findings["score"]) > 0
    rows, columns = findings["l0_y"] // 32, findings["l0_x"] // 32
    np.testing.assert_allclose(scores[rows, columns], findings["score"], atol=1e-6)
    assert findings["cells"].sum() == (scores > bar).sum()
    assert (np.diff(findings["score"]) <= 0).all()
    result = folder.result
    assert result is not None and abs(result["scores"]["tumour"] - scores.max()) < 1e-6


@pytest.mark.parametrize("refine", [False, True])
def test_unsupported_strides_are_rejected(bundle: Path, slide: Path, tmp_path: Path, refine: bool) -> None:
    with pytest.raises(ConfigError, match="does not support stride 24"):
        scan(
            load(read_bundle(bundle)),
            METADATA,
            cohort_of(slide),
            tmp_path / "r",
            ScanOptions(tissue=None, stride=24, refine=refine),
            MACHINE,
        )


def test_the_strides_that_are_checked_before_torch_is_loaded_are_those_of_the_nets() -> None:
    with torch.device("meta"):
        strides = {name: geometry_of(BACKBONES[name](2)).stride for name in ("tiny", "scannet_vgg16")}
        strides |= {name: geometry_of(BACKBONES[name](2)).stride for name in ("squeezenet1_1", "resnet18")}
    assert {name: NET_STRIDES.get(name, NET_STRIDE) for name in strides} == strides


def test_the_field_size_depends_on_the_memory(bundle: Path) -> None:
    predictor = load(read_bundle(bundle))
    large = predictor.model.choose_batch(EngineSettings(), 2 << 30, ScanOptions()).cells
    small = predictor.model.choose_batch(EngineSettings(), 64 << 20, ScanOptions()).cells
    assert 1 <= small < large <= min(CPU_CELLS, predictor.config.cells)
    with pytest.raises(ConfigError, match="memory ceiling"):
        predictor.model.choose_batch(EngineSettings(), 1 << 20, ScanOptions())


@pytest.mark.parametrize(("precision", "cells"), [("float32", 8), ("int8", 11)])
def test_int8_is_measured_on_complete_fields(bundle: Path, precision: str, cells: int) -> None:
    model = load(read_bundle(bundle)).model
    engine = EngineSettings(precision=precision, cells=11)
    _, batch = model.sample_batch(engine, ScanOptions(stride=32))
    window, stride = model.geometry.extent, 32
    assert batch.pixels.shape[1:3] == (window + (cells - 1) * stride,) * 2


def test_a_modified_bundle_is_rejected(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "bundle", mpp=0.5)
    weights = path / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(BundleError, match="not the one the bundle was made with"):
        load(read_bundle(path))


def test_weights_of_another_net_are_rejected(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "bundle", mpp=0.5)
    model = path / "model.json"
    model.write_text(model.read_text().replace('"tiny"', '"vgg11"'))
    with pytest.raises(ModelError, match="do not fit"):
        load(read_bundle(path))


def test_fields_are_smaller_on_a_cpu(tmp_path: Path) -> None:
    save(tmp_path / "b", Config(trunk="tiny"), BACKBONES["tiny"](2), PLAIN_SCALING)
    model = load(read_bundle(tmp_path / "b")).model
    on_cpu = model.choose_batch(EngineSettings(), 1 << 40, ScanOptions())
    on_gpu = model.choose_batch(EngineSettings(device="cuda:0"), 1 << 40, ScanOptions())
    assert (on_cpu.cells, on_gpu.cells) == (CPU_CELLS, model.config.cells)
