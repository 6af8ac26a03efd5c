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
folder, patches = sys.argv[1], numpy.load(sys.argv[2])
config = json.load(open(folder + "/config.json"))
normalise = next(step["arguments"] for step in config["transform"] if step["name"] == "Normalize")
mean, std = (torch.tensor(normalise[name]).view(3, 1, 1) for name in ("mean", "std"))
images = (torch.from_numpy(patches).permute(0, 3, 1, 2) / 255 - mean) / std
size = next(step["arguments"]["size"] for step in config["transform"] if step["name"] == "Resize")
assert images.shape[-1] == size
model = torch.jit.load(folder + "/torchscript_model.pt")
with torch.no_grad():
    print(json.dumps(torch.softmax(model(images), 1).tolist()))
assert "lobule" not in sys.modules
"""
"""What a program without Lobule does with the files, in the way of WSInfer."""


def converted(bundle: Path, out: Path) -> tuple[dict, np.ndarray, np.ndarray]:
    """Convert a bundle; return its configuration, random patches, and their scores without Lobule."""
    assert run(command, [str(bundle), "--out", str(out)]) == 0
    config = json.loads((out / "config.json").read_text())
    side = config["patch_size_pixels"]
    patches = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    np.save(out / "patches.npy", patches)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(out), str(out / "patches.npy")],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return config, patches, np.array(json.loads(done.stdout))


def test_scannet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_bundle(tmp_path / "bundle", mpp=2.0)
    config, patches, scores = converted(tmp_path / "bundle", tmp_path / "out")
    assert "Research use only" in capsys.readouterr().out
    model = load(read_bundle(tmp_path / "bundle")).model
    with torch.no_grad():
        logits = model.net(model.scaling.apply(torch.from_numpy(patches)))
    if model.calibration is None:
        expected = torch.softmax(logits, 1).flatten(1).numpy()
    else:
        tumour = model.calibration.probabilities(logits).flatten(1).numpy()
        expected = np.concatenate([1 - tumour, tumour], axis=1)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert of_wsinfer(config).classes == model.config.classes and of_wsinfer(config).mpp == 2.0
    assert "# Lobule scannet model" in (tmp_path / "out/README.md").read_text(encoding="utf-8")


def anomaly_predictor(**settings: object) -> AnomalyPredictor:
    torch.manual_seed(0)
    config = replace(CONFIG, **settings)
    frozen = teacher(config.teacher)
    return AnomalyPredictor(config, frozen, Student(frozen.student_shape(config.shortcut)), CALIBRATION)


@pytest.mark.parametrize("score", ["mean", "max"])
def test_reverse_distillation(score: str, tmp_path: Path) -> None:
    save(tmp_path / "bundle", anomaly_predictor(score=score))
    config, patches, scores = converted(tmp_path / "bundle", tmp_path / "out")
    predictor = load_predictor(read_bundle(tmp_path / "bundle"))
    assert isinstance(predictor, AnomalyPredictor)
    with torch.no_grad():
        raw = predictor.model.patch_scores(torch.from_numpy(patches)).numpy()
    assert raw.std() > 1e-3
    assert scores[:, 1] == pytest.approx(CALIBRATION.patch_probability(raw), abs=1e-5)
    assert scores.sum(axis=1) == pytest.approx(1) and of_wsinfer(config).classes == CONFIG.classes


def test_reverse_distillation_without_calibration_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = anomaly_predictor()
    save(tmp_path / "bundle", AnomalyPredictor(CONFIG, predictor.net.teacher, predictor.net.student))
    assert run(command, [str(tmp_path / "bundle"), "--out", str(tmp_path / "out")]) == 2
    assert "no calibration of patches" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("activation", ["softmax", "none"])
def test_classifier(activation: str, tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(3)
    net = squeezenet1_1(num_classes=3).eval()
    config = ClassifierConfig(
        "torchvision:squeezenet1_1", ("a", "b", "c"), 0.5, 64, 64, activation=activation
    )
    bundle = Bundle("classifier", config.to_dict(), config.classes, 0.5)
    write_bundle(tmp_path / "bundle", bundle, net.state_dict())
    _, patches, scores = converted(tmp_path / "bundle", tmp_path / "out")
    with torch.no_grad():
        outputs = net(config.scaling.apply(torch.from_numpy(patches), torch.float32))
    # With the activation none, the outputs are probabilities; those of this net only need to be positive.
    positive = outputs.clamp_min(1e-30)
    expected = (
        torch.softmax(outputs, 1) if activation == "softmax" else positive / positive.sum(1, keepdim=True)
    )
    assert scores == pytest.approx(expected.numpy(), abs=1e-5)


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
