"""A ScanNet bundle as TorchScript: it runs in plain torch without Lobule and gives the same scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lobule.bundles import read_bundle
from lobule.cli.base import run
from lobule.cli.weights.torchscript import command
from lobule.methods.classifier.config import of_wsinfer
from lobule.methods.scannet.predictor import load
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
model = torch.jit.load(folder + "/torchscript_model.pt")
with torch.no_grad():
    print(json.dumps(torch.softmax(model(images), 1).tolist()))
assert "lobule" not in sys.modules
"""
"""What a program without Lobule does with the files, in the way of WSInfer."""


def test_the_file_runs_in_plain_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_bundle(tmp_path / "bundle", mpp=2.0)
    assert run(command, [str(tmp_path / "bundle"), "--out", str(tmp_path / "out")]) == 0
    assert "Research use only" in capsys.readouterr().out
    config = json.loads((tmp_path / "out/config.json").read_text())
    side = config["patch_size_pixels"]
    patches = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    np.save(tmp_path / "patches.npy", patches)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = [str(tmp_path / "out"), str(tmp_path / "patches.npy")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = load(read_bundle(tmp_path / "bundle")).model
    with torch.no_grad():
        logits = model.net(model.scaling.apply(torch.from_numpy(patches)))
    if model.calibration is None:
        expected = torch.softmax(logits, 1).flatten(1).numpy()
    else:
        tumour = model.calibration.probabilities(logits).flatten(1).numpy()
        expected = np.concatenate([1 - tumour, tumour], axis=1)
    assert np.array(json.loads(done.stdout)) == pytest.approx(expected, abs=1e-5)
    assert of_wsinfer(config).classes == model.config.classes and of_wsinfer(config).mpp == 2.0
    assert "# Lobule scannet model" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
