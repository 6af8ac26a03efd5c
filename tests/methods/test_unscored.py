"""Tests for every method that scans slides: a blank slide has no score, a small tissue image has one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import squeezenet1_1

from lobule.bundles import read_bundle
from lobule.cohort import Case, Cohort
from lobule.methods import classifier, colour, scannet
from lobule.methods.classifier.predictor import TilePredictor
from lobule.methods.colour.model import ColourPredictor
from lobule.methods.probe import ProbePredictor
from lobule.phantoms.phantom import SlidePhantom
from lobule.phantoms.slides import write_slide as write_phantom
from lobule.results import open_results
from lobule.scanning.contract import Predictor, ScanOptions
from lobule.scanning.scan import Machine, ScanReport, scan
from tests.methods.probe.support import small_probe
from tests.methods.reverse_distillation.test_predictor import predictor_of
from tests.methods.scannet.support import write_tiny_bundle
from tests.scanning.support import write_slide

MACHINE = Machine(device="cpu", precision="float32", readers=1, replicas=1, channels_last=True)
MODEL_INFO = {"method": "any", "fingerprint": "f", "classes": ["normal", "tumour"]}
Build = Callable[[Path, float], Predictor]


def scannet_at(folder: Path, mpp: float) -> Predictor:
    return scannet.load(read_bundle(write_tiny_bundle(folder / "B", mpp=mpp)))


def reverse_distillation_at(folder: Path, mpp: float) -> Predictor:
    return predictor_of(mpp=mpp)


def colour_at(folder: Path, mpp: float) -> Predictor:
    weights = torch.tensor([0.02, -0.03, 0.01, 0.05, 0.0, -0.04], dtype=torch.float64)
    return ColourPredictor(colour.Config(mpp=mpp, window=48, stride=16), weights, torch.tensor([0.4]))


def classifier_at(folder: Path, mpp: float) -> Predictor:
    torch.manual_seed(3)
    config = classifier.Config(
        architecture="torchvision:squeezenet1_1", classes=("normal", "tumour"), mpp=mpp, tile=64, input=64
    )
    return TilePredictor(config, squeezenet1_1(num_classes=2).eval())


def probe_at(folder: Path, mpp: float) -> Predictor:
    model = small_probe(mpp=mpp)
    return ProbePredictor(model.config, model)


METHODS = {
    "scannet": scannet_at,
    "probe": probe_at,
    "reverse_distillation": reverse_distillation_at,
    "colour": colour_at,
    "classifier": classifier_at,
}


def run_scan(predictor: Predictor, path: Path, mpp: float, out: Path) -> tuple[ScanReport, dict[str, Any]]:
    cohort = Cohort((Case("one", "p", "slide", str(path), mpp=mpp),))
    report = scan(predictor, MODEL_INFO, cohort, out, ScanOptions(), MACHINE)
    result = open_results(out).case_folder("one").result
    assert result is not None
    return report, result


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated slide without tissue."""
    path = tmp_path_factory.mktemp("blank") / "blank.tif"
    write_phantom(SlidePhantom(seed=3, width=512, height=512, mpp=2.0, tissue=0.0), path, threads=1)
    return path


@pytest.mark.parametrize("build", METHODS.values(), ids=METHODS)
def test_blank_slide_has_no_score(build: Build, blank: Path, tmp_path: Path) -> None:
    report, result = run_scan(build(tmp_path, 2.0), blank, 2.0, tmp_path / "r")
    assert dict(report.counts) == {"unscored": 1}
    assert result["scores"] == {}
    assert result["findings"]["count"] == 0
    assert result["notes"] == ["Nothing was scored: no tissue was found."]


@pytest.mark.parametrize("build", METHODS.values(), ids=METHODS)
def test_small_image_of_tissue_alone_has_a_score(build: Build, tmp_path: Path) -> None:
    """256 px at 0.25 µm/px are 0.004 mm², less than the debris of a slide."""
    rng = np.random.default_rng(0)
    pixels = (np.array((190, 120, 170)) + rng.integers(-25, 25, (256, 256, 3))).astype(np.uint8)
    path = write_slide(tmp_path / "small.tif", pixels)
    report, result = run_scan(build(tmp_path, 0.25), path, 0.25, tmp_path / "r")
    assert dict(report.counts) == {"complete": 1}
    assert all(score > 0 for score in result["scores"].values())
    assert result["scores"]
