"""Trainings of a probe: from slides, from stored tokens, and with stored tokens that do not fit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import lobule
from lobule.bundles import Bundle, patient_hash, read_bundle
from lobule.cohort import Cohort
from lobule.encoders import ENCODERS
from lobule.encoders.load import open_encoder
from lobule.errors import ConfigError, NotReadable
from lobule.features import open_features
from lobule.methods import load
from lobule.methods.extraction import Extraction, extract
from lobule.methods.probe import Config, ProbeModel
from lobule.methods.probe.samples import _token_points, tokens_of_folder
from lobule.methods.probe.train import train
from lobule.results import open_results
from lobule.scanning.contract import EngineSettings, ScanOptions
from lobule.scanning.scan import Machine, scan
from lobule.scanning.tile_features import Tiling
from lobule.slides import open_slide
from lobule.training.machine import TrainMachine
from lobule.training.patch_pools import gather
from lobule.training.patch_sampling import TUMOUR
from tests.encoders.published import small_entry
from tests.methods.probe.support import SMALL
from tests.methods.scannet.test_train import painted

MACHINE = TrainMachine(device="cpu", precision="float32", workers=2)
SCANNER = Machine(device="cpu", precision="float32", readers=2, replicas=2, channels_last=True)
CONFIG = Config(**{**SMALL, "tokens": 800, "tokens_per_window": 8})
VIT = "kaiko-vits16"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("slides")
    return Cohort(
        (
            painted(folder, "a", (200, 200, 360), 1, "train"),
            painted(folder, "b", None, 2, "train"),
            painted(folder, "c", (300, 150, 320), 3, "val"),
            painted(folder, "d", (500, 220, 340), 4, "test"),
        )
    )


def run_training(cohort: Cohort, out: Path, config: Config = CONFIG, **options: Any) -> Bundle:
    return train(config, cohort.where(lambda case: case.split != "test"), out, machine=MACHINE, **options)


def test_tumour_of_an_unseen_slide_is_mapped(cohort: Cohort, tmp_path: Path) -> None:
    bundle = run_training(cohort, tmp_path / "bundle", seed=1)
    assert bundle.metrics["val_auc"] > 0.95 and 700 <= bundle.metrics["tokens"] <= 800
    assert set(bundle.patients) == {patient_hash("patient a"), patient_hash("patient b")}
    info = {"method": "probe", "fingerprint": bundle.fingerprint, "classes": list(bundle.classes)}
    scan(load(bundle), info, cohort.split("test"), tmp_path / "r", None, SCANNER)
    folder = open_results(tmp_path / "r").case_folder("d")
    scores, states = folder.maps["tokens"].read()
    y, x = np.indices(states.shape)
    inside = (x >= 500 // 16) & (x < 840 // 16) & (y >= 220 // 16) & (y < 560 // 16)
    tissue = states == 2
    assert roc_auc_score(inside[tissue], scores[0][tissue]) > 0.97
    assert folder.result is not None and folder.result["scores"]["tumour"] > 0.5
    again = run_training(cohort, tmp_path / "again", seed=1)
    assert again.files == bundle.files


def test_the_command_trains_a_probe(cohort: Cohort, tmp_path: Path) -> None:
    settings = {**SMALL, "tokens": 400, "head": "boosted", "trees": 10}
    bundle = lobule.train("probe", cohort, tmp_path / "b", settings=settings, device="cpu", val=None)
    assert bundle.method == "probe" and bundle.config["head"] == "boosted"
    with pytest.raises(ConfigError, match="does not support --stride"):
        lobule.scan(tmp_path / "b", cohort.split("test"), tmp_path / "r", stride=8, device="cpu")


# -- stored tokens ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder of tokens of a small transformer, and its entry in the table of encoders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, VIT, small_entry(VIT))
        folder = tmp_path_factory.mktemp("tokens") / "f"
        extraction = Extraction(Tiling(0.5, 224, 224), "float32", tokens="float16")
        extract(open_encoder(VIT, "random"), cohort, folder, extraction, ScanOptions(), SCANNER)
        yield folder


def test_stored_tokens_are_those_of_the_model(cohort: Cohort, stored: Path) -> None:
    """Every stored token of a class is compared with the token computed from the pixels of its tile."""
    config = Config(encoder=VIT, weights="random", tokens=4000)
    model = ProbeModel(config, open_encoder(VIT, "random"), torch.nn.Identity())
    model.move_to_device(EngineSettings(), ScanOptions())
    pool = gather(cohort.split("train"), None)
    rows, labels = tokens_of_folder(config, open_features(stored), model, pool, 0, 4000)
    assert rows.shape[1] == model.net.width and set(labels) == {0, 1}
    file = open_features(stored).find_tokens(cohort["a"])
    points = _token_points(file, 224.0)
    positions = pool.slides[0]
    chosen = np.flatnonzero(positions.certain_classes(points) == TUMOUR)
    assert len(chosen) == (labels == 1).sum()
    number = chosen[len(chosen) // 2]
    tile, token = divmod(int(number), file.grid.count)
    x, y = (int(value) for value in file.l0_coords()[tile])
    with open_slide(cohort["a"].path or "", mpp=0.5) as slide:
        pixels = slide.read_level(0, lobule.geometry.Box(x, y, 224, 224))
    with torch.inference_mode():
        expected = model.tokens(torch.from_numpy(pixels)[None])[0].reshape(-1, model.net.width)[token]
    actual = rows[labels == 1][np.flatnonzero(chosen == number)[0]]
    np.testing.assert_allclose(actual, expected.numpy(), atol=2e-2)
    np.testing.assert_array_equal(points[number], [x + token % 14 * 16 + 8, y + token // 14 * 16 + 8])


def test_training_from_stored_tokens(cohort: Cohort, stored: Path, tmp_path: Path) -> None:
    config = Config(encoder=VIT, tokens=600, tokens_per_window=8, features=str(stored))
    bundle = run_training(cohort, tmp_path / "b", config)
    assert bundle.metrics["val_auc"] > 0.9
    assert bundle.config["features"] == "" and bundle.config["encoding"]["name"] == VIT
    load(read_bundle(tmp_path / "b"))


def test_stored_tokens_that_do_not_fit_are_refused(cohort: Cohort, stored: Path, tmp_path: Path) -> None:
    config = Config(encoder=VIT, tokens=600, features=str(stored))
    for changes, message in (
        ({"mpp": 1.0}, "another µm/px"),
        ({"encoder": "efficientnet-lite0"}, "another encoder"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_training(cohort, tmp_path / "b", replace(config, **changes), fresh=True)
    copy = shutil.copytree(stored, tmp_path / "copy")
    (copy / "encoder.safetensors").unlink()
    other = replace(config, features=str(copy), weights="random")
    manifest = (copy / "features.json").read_text()
    revision = open_features(copy).manifest
    assert revision is not None
    (copy / "features.json").write_text(manifest.replace(revision.encoding.hash, "sha256:1"))
    with pytest.raises(ConfigError, match="another hash of the encoder"):
        run_training(cohort, tmp_path / "b", other, fresh=True)
    (copy / "features.json").write_text(manifest)
    for path in copy.rglob("tokens_*/*.h5"):
        path.unlink()
    with pytest.raises(NotReadable, match="no tokens of the case"):
        run_training(cohort, tmp_path / "b", other, fresh=True)
    without = shutil.copytree(stored, tmp_path / "without")
    (without / "features.json").write_text(manifest.replace('"tokens": "float16"', '"tokens": "none"'))
    with pytest.raises(ConfigError, match="contains no tokens"):
        run_training(cohort, tmp_path / "b", replace(config, features=str(without)), fresh=True)
