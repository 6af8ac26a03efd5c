"""Tests with slides: extract features, train a bundle that contains its encoder, and scan the slides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from lobule.api import extract_features, scan
from lobule.bundles import Bundle, read_bundle
from lobule.cohort import Case, Cohort
from lobule.encoders import ENCODERS
from lobule.errors import BundleError
from lobule.methods.chowder import Config, load
from lobule.methods.chowder.train import train
from lobule.reports.model_card import model_card
from lobule.results.folder import open_results
from lobule.stitch import State
from lobule.training.fitting import TrainMachine
from tests.encoders.published import LAYOUTS, checkpoint, random_weights, small_entry
from tests.scanning.support import write_slide

TILE, MPP, SIDE = 64, 0.5, 256
MACHINE = {"device": "cpu", "precision": "float32", "memory_layout": "channels-last", "batch": 4}


def write_case(folder: Path, number: int) -> Case:
    """A slide of noise; every second slide has one tile with another colour."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(120, 200, (SIDE, SIDE, 3)).astype(np.uint8)
    tumour = number % 2 == 1
    if tumour:
        column, row = number // 2 % 4, number // 8 % 4
        pixels[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE, 1] //= 3
    path = write_slide(folder / f"s{number}.tif", pixels, tile=64)
    return Case(f"s{number}", f"p{number}", "slide", str(path), mpp=MPP, label=str(int(tumour)))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("slides")
    return Cohort(tuple(write_case(folder, number) for number in range(10)))


@pytest.fixture(scope="module")
def features(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    extract_features(
        cohort, folder, backbone="lobule:tiny", weights="random", mpp=MPP, tile=TILE, input_px=224,
        tissue=False, **MACHINE, dtype="float32",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def bundle(cohort: Cohort, features: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    config = Config(
        model="max", members=2, epochs=40, rate=2e-2, standardise=True, features=str(features), r=1
    )
    machine = TrainMachine(device="cpu", precision="float32")
    return train(config, cohort, tmp_path_factory.mktemp("bundle"), val=None, machine=machine)


def test_scan_of_slides_equals_scan_of_their_stored_features(
    bundle: Bundle, cohort: Cohort, features: Path, tmp_path: Path
) -> None:
    subset = Cohort(cohort.cases[:4])
    settings_by_source = {"slides": {}, "stored": {"features": str(features)}}
    for name, settings in settings_by_source.items():
        report = scan(bundle.path or "", subset, tmp_path / name, **MACHINE, tissue=False, settings=settings)
        assert dict(report.counts) == {"complete": 4}, report.failed
    for number, case in enumerate(subset):
        scanned, from_features = (
            open_results(tmp_path / name).case_folder(case.id) for name in settings_by_source
        )
        assert scanned.result is not None
        assert from_features.result is not None
        score = scanned.result["scores"]["tumour"]
        assert score == pytest.approx(from_features.result["scores"]["tumour"], abs=1e-4)
        assert (score > 0.5) == (number % 2 == 1)
        layer, states = scanned.maps["map"].read()
        np.testing.assert_allclose(layer, from_features.maps["map"].read()[0], atol=0.02)
        assert layer.shape == (1, 4, 4)
        assert (states == State.SCORED).all()
        if number % 2:
            row, column = np.unravel_index(int(layer[0].argmax()), (4, 4))
            assert (row, column) == (number // 8 % 4, number // 2 % 4)
    assert set(open_results(tmp_path / "slides").case_folder("s0").tables) == {"features", "tiles"}
    assert set(open_results(tmp_path / "stored").case_folder("s0").tables) == {"tiles"}


def test_replaced_encoder_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    assert bundle.path is not None
    shutil.copytree(bundle.path, tmp_path / "b")
    (tmp_path / "b" / "encoder.safetensors").write_bytes(b"other")
    predictor = load(read_bundle(tmp_path / "b"))
    with pytest.raises(BundleError, match="not the one the bundle was made with"):
        _ = predictor.model.encoder
    changed = {**bundle.config, "encoding": {**bundle.config["encoding"], "hash": "sha256:0"}}
    with pytest.raises(BundleError, match="not the one that computed its training features"):
        _ = load(replace(bundle, config=changed)).model.encoder


def test_bundle_with_an_encoder_of_the_table_scans_slides_and_states_its_licence(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small transformer with the layout of kaiko-vits16; its features come from slides and from files."""
    monkeypatch.setitem(ENCODERS, "kaiko-vits16", small_entry("kaiko-vits16"))
    tensors = checkpoint(random_weights(LAYOUTS["kaiko-vits16"]))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "w.safetensors")
    options = {"encoder": "kaiko-vits16", "weights": tmp_path / "w.safetensors", "mpp": MPP, "tile": TILE}
    subset = Cohort(cohort.cases[:4])
    extract_features(subset, tmp_path / "f", tissue=False, **options, **MACHINE, dtype="float32")
    config = Config(model="max", members=1, epochs=2, features=str(tmp_path / "f"), r=1)
    machine = TrainMachine(device="cpu", precision="float32")
    bundle = train(config, subset, tmp_path / "b", val=None, machine=machine)
    assert bundle.provenance["encoder_licence"] == [ENCODERS["kaiko-vits16"].licence.as_dict("kaiko-vits16")]
    card = model_card(tmp_path / "b")
    assert "encoder kaiko-vits16: Kaiko non-commercial public licence; it forbids commercial use" in card
    scores = []
    for name, settings in (("slides", {}), ("stored", {"features": str(tmp_path / "f")})):
        report = scan(tmp_path / "b", subset, tmp_path / name, **MACHINE, tissue=False, settings=settings)
        assert dict(report.counts) == {"complete": 4}, report.failed
        cases = [open_results(tmp_path / name).case_folder(case.id) for case in subset]
        scores.append([(case.result or {})["scores"]["tumour"] for case in cases])
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
