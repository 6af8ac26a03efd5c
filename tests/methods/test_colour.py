"""Tests of the colour baseline: the features of a window, the fit, and the map of a scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lobule.bundles import read_bundle
from lobule.cohort import Cohort
from lobule.errors import ConfigError, ModelError
from lobule.methods.colour import Config
from lobule.methods.colour.model import ColourPredictor, _fit_regression, colour, load, train
from lobule.results import open_results
from lobule.scanning.contract import ScanOptions
from lobule.scanning.scan import Machine, scan
from lobule.tissue import TissueConfig
from lobule.training.fitting import TrainMachine
from tests.methods.scannet.test_train import painted
from tests.scanning.support import cohort_of, pixels_of, write_slide

MACHINE = Machine(device="cpu", precision="float32", cells=5, readers=2, replicas=2, channels_last=True)
MODEL_INFO = {"method": "colour", "fingerprint": "f", "classes": ["normal", "tumour"]}


@pytest.mark.parametrize(("window", "stride"), [(24, 8), (20, 8), (16, 16)])
def test_features_are_mean_and_deviation_of_each_window(window: int, stride: int) -> None:
    pixels = pixels_of(90, 70)
    colours = colour(torch.from_numpy(pixels[None]), window, stride)[0].numpy()
    rows, columns = (70 - window) // stride + 1, (90 - window) // stride + 1
    assert colours.shape == (6, rows, columns)
    for row in range(rows):
        for column in range(columns):
            window_pixels = (
                pixels[stride * row :, stride * column :][:window, :window].reshape(-1, 3).astype(float)
            )
            expected = np.concatenate([window_pixels.mean(axis=0), window_pixels.std(axis=0)])
            np.testing.assert_allclose(colours[:, row, column], expected, atol=1e-3)


def test_fit_equals_logistic_regression_of_standardised_colours() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 2
    rows = rng.normal(120, 30, (300, 6)) + 12 * labels[:, None] * np.array([1, 0, -1, 0, 1, 0])
    coefficients, intercept = _fit_regression(rows, labels)
    reference = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(rows, labels)
    np.testing.assert_allclose(
        rows @ coefficients + intercept, reference.decision_function(rows), rtol=0, atol=1e-9
    )


def test_map_scores_the_window_centred_on_each_cell(tmp_path: Path) -> None:
    pixels = pixels_of(333, 210)
    slide = write_slide(tmp_path / "one.tif", pixels)
    weights = torch.tensor([0.02, -0.03, 0.01, 0.05, 0.0, -0.04], dtype=torch.float64)
    predictor = ColourPredictor(Config(mpp=0.5, window=48, stride=16), weights, torch.tensor([0.4]))
    scan(predictor, MODEL_INFO, cohort_of(slide), tmp_path / "r", ScanOptions(tissue=None), MACHINE)
    scores = open_results(tmp_path / "r").case_folder("one").maps["map-s16"].scores()
    padded = np.full((210 + 96, 333 + 96, 3), 255.0)
    padded[48:258, 48:381] = pixels
    expected = np.empty(scores.shape)
    for row in range(scores.shape[0]):
        for column in range(scores.shape[1]):
            y, x = 48 + 16 * row + 8 - 24, 48 + 16 * column + 8 - 24
            window_pixels = padded[y : y + 48, x : x + 48].reshape(-1, 3)
            colours = np.concatenate([window_pixels.mean(axis=0), window_pixels.std(axis=0)])
            expected[row, column] = 1 / (1 + np.exp(-(colours @ weights.numpy() + 0.4)))
    assert expected.std() > 0.05
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_tumour_of_another_colour_is_found(tmp_path: Path) -> None:
    """Train and scan slides on which tumour has another colour than the other tissue."""
    cases = (
        painted(tmp_path, "a", (200, 200, 360), 1, "train"),
        painted(tmp_path, "b", None, 2, "train"),
        painted(tmp_path, "c", (300, 150, 320), 3, "val"),
        painted(tmp_path, "d", (500, 220, 340), 4, "test"),
    )
    config = Config(mpp=0.5, window=32, patches=256)
    machine = TrainMachine(device="cpu", precision="float32", workers=1)
    bundle = train(config, Cohort(cases), tmp_path / "b", tissue=TissueConfig(mpp=8.0), machine=machine)
    assert bundle.metrics["val_auc"] > 0.99
    assert bundle.provenance["train_cases"] == ["a", "b"]
    unseen = Cohort((cases[3],))
    scan(load(read_bundle(tmp_path / "b")), MODEL_INFO, unseen, tmp_path / "r", machine=MACHINE)
    folder = open_results(tmp_path / "r").case_folder("d")
    findings = folder.findings()
    assert findings["score"][0] > 0.9
    best = int(np.argmax(findings["cells"]))
    assert 500 <= findings["l0_x"][best] < 840
    assert 220 <= findings["l0_y"][best] < 560
    assert findings["area_um2"][best] == pytest.approx((340 * 0.5) ** 2, rel=0.25)


def test_invalid_settings_and_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="settings of the method colour"):
        Config(classes=("a", "b", "c"))
    with pytest.raises(ConfigError, match="no setting 'hue'"):
        Config.from_dict({"hue": 1})
    with pytest.raises(ModelError, match="weights of a colour model"):
        ColourPredictor(Config(), torch.zeros(4), torch.zeros(1))
    assert Config.from_dict(Config().to_dict()) == Config()
