"""Bundles as TorchScript: they run in plain torch without Lobule and give the same scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lobule.bundles import Bundle, read_bundle, write_bundle
from lobule.cli.base import run
from lobule.cli.weights.torchscript import command
from lobule.methods import METHODS, find_method
from lobule.methods import load as load_predictor
from lobule.methods.classifier import Config as ClassifierConfig
from lobule.methods.classifier.config import of_wsinfer
from lobule.methods.reverse_distillation.predictor import AnomalyPredictor, save
from lobule.methods.scannet.predictor import load
from lobule.nets.reverse_distillation import Student
from lobule.nets.teachers import teacher
from tests.methods.reverse_distillation.support import CALIBRATION, CONFIG
from tests.methods.scannet.support import write_tiny_bundle

PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy, torch
for folder in sys.argv[1:]:
    config, patches = json.load(open(folder + "/config.json")), numpy.load(folder + "/patches.npy")
    steps = {step["name"]: step.get("arguments") for step in config["transform"]}
    mean, std = (torch.tensor(steps["Normalize"][name]).view(3, 1, 1) for name in ("mean", "std"))
    images = (torch.from_numpy(patches).permute(0, 3, 1, 2) / 255 - mean) / std
    assert images.shape[-1] == steps["Resize"]["size"]
    model = torch.jit.load(folder + "/torchscript_model.pt")
    with torch.no_grad():
        numpy.save(folder + "/scores.npy", torch.softmax(model(images), 1).numpy())
assert "lobule" not in sys.modules
"""
"""What a program without Lobule does with the files, in the way of WSInfer."""


def anomaly_predictor(**settings: object) -> AnomalyPredictor:
    torch.manual_seed(0)
    config = replace(CONFIG, **settings)
    frozen = teacher(config.teacher)
    return AnomalyPredictor(config, frozen, Student(frozen.student_shape(config.shortcut)), CALIBRATION)


CLASSIFIER = ClassifierConfig("torchvision:squeezenet1_1", ("a", "b", "c"), 0.5, 64, 64)


def write_bundles(folder: Path) -> None:
    """Write one bundle of each kind that can be converted."""
    from torchvision.models import squeezenet1_1

    write_tiny_bundle(folder / "scannet", mpp=2.0)
    for score in ("mean", "max"):
        save(folder / score, anomaly_predictor(score=score))
    torch.manual_seed(3)
    weights = squeezenet1_1(num_classes=3).state_dict()
    for activation in ("softmax", "none"):
        config = replace(CLASSIFIER, activation=activation)
        write_bundle(
            folder / activation, Bundle("classifier", config.to_dict(), config.classes, 0.5), weights
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `bundles`, and one folder per bundle with its files, patches and scores."""
    folder = tmp_path_factory.mktemp("torchscript")
    write_bundles(folder / "bundles")
    converted = []
    for bundle in sorted((folder / "bundles").iterdir()):
        out = folder / bundle.name
        assert run(command, [str(bundle), "--out", str(out)]) == 0
        side = json.loads((out / "config.json").read_text())["patch_size_pixels"]
        np.save(
            out / "patches.npy", np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
        )
        converted.append(str(out))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *converted],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def results_of(folder: Path, name: str) -> tuple[dict, torch.Tensor, np.ndarray]:
    """The configuration, the patches and the scores of a converted bundle."""
    config = json.loads((folder / name / "config.json").read_text())
    patches = torch.from_numpy(np.load(folder / name / "patches.npy"))
    return config, patches, np.load(folder / name / "scores.npy")


def test_scannet(folder: Path) -> None:
    config, patches, scores = results_of(folder, "scannet")
    model = load(read_bundle(folder / "bundles/scannet")).model
    with torch.no_grad():
        logits = model.net(model.scaling.apply(patches))
    if model.calibration is None:
        expected = torch.softmax(logits, 1).flatten(1).numpy()
    else:
        tumour = model.calibration.probabilities(logits).flatten(1).numpy()
        expected = np.concatenate([1 - tumour, tumour], axis=1)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert of_wsinfer(config).classes == model.config.classes and of_wsinfer(config).mpp == 2.0
    assert "# Lobule scannet model" in (folder / "scannet/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("score", ["mean", "max"])
def test_reverse_distillation(score: str, folder: Path) -> None:
    config, patches, scores = results_of(folder, score)
    predictor = load_predictor(read_bundle(folder / "bundles" / score))
    assert isinstance(predictor, AnomalyPredictor)
    with torch.no_grad():
        raw = predictor.model.patch_scores(patches).numpy()
    assert raw.std() > 1e-3
    assert scores[:, 1] == pytest.approx(CALIBRATION.patch_probability(raw), abs=1e-5)
    assert scores.sum(axis=1) == pytest.approx(1) and of_wsinfer(config).classes == CONFIG.classes


@pytest.mark.parametrize("activation", ["softmax", "none"])
def test_classifier(activation: str, folder: Path) -> None:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(3)
    net = squeezenet1_1(num_classes=3).eval()
    _, patches, scores = results_of(folder, activation)
    with torch.no_grad():
        outputs = net(CLASSIFIER.scaling.apply(patches, torch.float32))
    # With the activation none, the outputs are probabilities; those of this net only need to be positive.
    positive = outputs.clamp_min(1e-30)
    shares = positive / positive.sum(1, keepdim=True)
    expected = torch.softmax(outputs, 1) if activation == "softmax" else shares
    assert scores == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_purpose_is_printed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, [str(folder / "bundles/scannet"), "--out", str(tmp_path)]) == 0
    assert "Research use only" in capsys.readouterr().out


def test_reverse_distillation_without_calibration_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = anomaly_predictor()
    save(tmp_path / "bundle", AnomalyPredictor(CONFIG, predictor.net.teacher, predictor.net.student))
    assert run(command, [str(tmp_path / "bundle"), "--out", str(tmp_path / "out")]) == 2
    assert "no calibration of patches" in capsys.readouterr().err and not (tmp_path / "out").exists()


NOT_CONVERTED = [
    ({"architecture": "torchscript"}, "TorchScript file already"),
    ({"activation": "sigmoid"}, "exclude each other"),
]


@pytest.mark.parametrize(("settings", "message"), NOT_CONVERTED)
def test_classifiers_that_cannot_be_converted(
    settings: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ClassifierConfig("torchvision:squeezenet1_1", ("a", "b"), 0.5)
    write_bundle(
        tmp_path / "b",
        Bundle("classifier", {**plain.to_dict(), **settings}, ("a", "b"), 0.5),
        texts={"x.txt": "x"},
    )
    assert run(command, [str(tmp_path / "b"), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_every_other_method_is_refused_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in METHODS:
        method = find_method(name)
        if method.name in ("scannet", "reverse_distillation", "classifier"):
            continue
        write_bundle(tmp_path / name, Bundle(name, {}, ("a", "b"), None), texts={"x.txt": "x"})
        assert run(command, [str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
        message = capsys.readouterr().err
        slides, cause = method.kinds[0] == "slide" and name != "colour", "features of all its tiles"
        assert f"a model of {name} cannot become" in message and (cause in message) == slides, message
