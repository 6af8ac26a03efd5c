"""Scans with a probe: the map against plain loops, whatever the fields; bundles that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from lobule.bundles import read_bundle
from lobule.errors import BundleError, LobuleError
from lobule.methods import load
from lobule.methods.probe import Config, ProbeModel, ProbePredictor
from lobule.results import open_results
from lobule.scanning.contract import EngineSettings, ScanOptions
from lobule.scanning.scan import Machine, scan
from tests.methods.probe.support import probe_bundle, small_probe
from tests.scanning.support import cohort_of, pixels_of, write_slide

INFO = {"method": "probe", "fingerprint": "f", "classes": ["normal", "tumour"]}


def scanned(model: ProbeModel, slide: Path, out: Path, cells: int, **options: Any) -> np.ndarray:
    machine = Machine(
        device="cpu", precision="float32", cells=cells, readers=2, replicas=2, channels_last=True
    )
    predictor = ProbePredictor(model.config, model)
    scan(predictor, INFO, cohort_of(slide), out, ScanOptions(**{"tissue": None, **options}), machine)
    scores: np.ndarray = open_results(out).case_folder(slide.stem).maps["tokens"].scores()
    return scores


def by_hand(model: ProbeModel, pixels: np.ndarray) -> np.ndarray:
    """Score every window of the white-padded slide on its own and average them with Hann weights."""
    grid, px = model.windows, model.net.token_px
    rows, columns = -(-pixels.shape[0] // px), -(-pixels.shape[1] // px)
    margin = 20 * px
    padded = np.full((pixels.shape[0] + 2 * margin, pixels.shape[1] + 2 * margin, 3), 255, np.uint8)
    padded[margin:-margin, margin:-margin] = pixels
    hann = np.sin(np.pi * (np.arange(grid.side) + 0.5) / grid.side) ** 2
    summed, total = np.zeros((2, rows, columns))
    model.move_to_device(EngineSettings(), ScanOptions())
    for top in range(-2 * grid.side // grid.hop * grid.hop, rows, grid.hop):
        for left in range(-2 * grid.side // grid.hop * grid.hop, columns, grid.hop):
            cells = [
                (y, x)
                for y in range(max(0, top), min(rows, top + grid.side))
                for x in range(max(0, left), min(columns, left + grid.side))
            ]
            if not cells:
                continue
            window = padded[margin + top * px :, margin + left * px :][: model.net.window, : model.net.window]
            with torch.inference_mode():
                tokens = model.tokens(torch.from_numpy(window.copy())[None])[0]
                scores = torch.sigmoid(tokens @ model.head.weight + model.head.bias).numpy()
            for y, x in cells:
                weight = hann[y - top] * hann[x - left]
                summed[y, x] += weight * scores[y - top, x - left]
                total[y, x] += weight
    return summed / total


def test_map_is_the_mean_of_all_windows_over_a_cell(tmp_path: Path) -> None:
    model = small_probe()
    pixels = pixels_of(330, 260)
    slide = write_slide(tmp_path / "one.tif", pixels)
    scores = scanned(model, slide, tmp_path / "r", model.windows.hop)
    expected = by_hand(model, pixels)
    assert scores.shape == (17, 21) == expected.shape and expected.std() > 0.02
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_map_does_not_depend_on_the_fields(tmp_path: Path) -> None:
    model = small_probe()
    slide = write_slide(tmp_path / "one.tif", pixels_of(300, 240, 1))
    small = scanned(model, slide, tmp_path / "small", 1)
    large = scanned(model, slide, tmp_path / "large", 5 * model.windows.hop)
    np.testing.assert_allclose(small, large, atol=1e-5)


def test_a_slide_shifted_by_a_hop_has_a_shifted_map(tmp_path: Path) -> None:
    model = small_probe()
    step = model.windows.hop * model.net.token_px
    pixels = pixels_of(260, 210, 2)
    shifted = np.full((210, 260 + step, 3), 255, np.uint8)
    shifted[:, step:] = pixels
    first = scanned(model, write_slide(tmp_path / "a.tif", pixels), tmp_path / "ra", 8)
    second = scanned(model, write_slide(tmp_path / "b.tif", shifted), tmp_path / "rb", 8)
    np.testing.assert_allclose(second[:, model.windows.hop :], first, atol=1e-5)


def test_findings_and_slide_score_come_from_the_smoothed_map(tmp_path: Path) -> None:
    model = small_probe(smooth=1.5, threshold=0.55)
    slide = write_slide(tmp_path / "one.tif", pixels_of(330, 260))
    scores = scanned(model, slide, tmp_path / "r", 8)
    folder = open_results(tmp_path / "r").case_folder("one")
    ones = ndimage.gaussian_filter(np.ones_like(scores), 1.5, mode="constant")
    layer = ndimage.gaussian_filter(scores, 1.5, mode="constant") / ones
    assert folder.result is not None
    assert folder.result["scores"]["tumour"] == pytest.approx(float(layer.max()), abs=1e-5)
    _, regions = ndimage.label(layer > 0.55, np.ones((3, 3)))
    assert folder.result["findings"]["count"] == regions > 0


def test_bundles_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    bundle = probe_bundle(tmp_path)
    assert isinstance(load(bundle), ProbePredictor)
    assert bundle.path is not None
    path = bundle.path / "model.json"
    model = json.loads(path.read_text())

    def load_changed(**changes: Any) -> None:
        path.write_text(json.dumps({**model, **changes}))
        load(read_bundle(bundle.path or ""))

    encoding = {**model["config"]["encoding"], "hash": "sha256:0"}
    with pytest.raises(BundleError, match="not the one that the head was fitted to"):
        load_changed(config={**model["config"], "encoding": encoding})
    with pytest.raises(BundleError, match="does not contain its encoder"):
        load_changed(config={name: value for name, value in model["config"].items() if name != "encoding"})
    with pytest.raises(LobuleError, match="do not contain the head"):
        load_changed(config={**model["config"], "head": "boosted"})
    with pytest.raises(LobuleError, match="no map with a stride"):
        load_changed(config={**model["config"], "strides": [128]})


def test_default_settings_have_a_cell_of_8_um() -> None:
    config = Config()
    assert config.mpp * config.token_px == 8.0
