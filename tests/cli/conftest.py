"""A small workspace that contains every file used by the examples in the help of the commands."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from torchvision.models import squeezenet1_1

from lobule.bundles import read_bundle
from lobule.cli import ABOUT, COMMANDS
from lobule.cli.base import LazyGroup, run
from lobule.methods.reverse_distillation import save
from lobule.nets.four_view import ViewWise
from lobule.nets.gmic import Gmic
from lobule.phantoms.exams import write_exams
from lobule.phantoms.phantom import SlidePhantom
from lobule.phantoms.slides import write_slide
from lobule.phantoms.truth import Outline, SlideTruth, write_mask_tiff
from lobule.reviews import Review, append_review
from tests.evaluation.support import begin, put, write_csv
from tests.methods.four_view.support import bundle_of
from tests.methods.rakhlin import keras_files
from tests.methods.reverse_distillation.test_predictor import predictor_of
from tests.methods.reverse_distillation.wsss4luad_release import write_release
from tests.methods.scannet.support import write_tiny_bundle


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


Lobule = Callable[..., Done]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    phantom = SlidePhantom(seed=3, width=2048, height=1536, mpp=0.5, micro=1)
    write_slide(phantom, folder / "slide.tif", threads=1)
    for name in (
        "training/normal/normal_001.tif",
        "training/tumor/tumor_015.tif",
        "testing/images/test_114.tif",
    ):
        (folder / "CAMELYON16" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "CAMELYON16" / name).write_bytes(b"II*\0")
    for name in ("benign", "malignant"):
        (folder / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (32, 24), (200, 120, 180)).save(folder / "photos" / name / "1.png")
    (folder / "cohort.csv").write_text("case,patient,slide\none,p1,slide.tif\n")
    save_file({"fc.weight": np.ones((2, 3), np.float32)}, folder / "weights.safetensors")
    torch.save({"model": {"fc.weight": torch.ones(2, 3)}}, folder / "checkpoint.pt")
    (folder / "corrected").mkdir()
    (folder / "corrected/one.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    write_tiny_bundle(folder / "BUNDLE", mpp=2.0)
    _write_classifier(folder)
    torch.save({"model": ViewWise().state_dict()}, folder / "sample_image_model.p")
    torch.save(Gmic().state_dict(), folder / "sample_model_1.p")
    (folder / "sample_model_2.p").hardlink_to(folder / "sample_model_1.p")
    keras_files.vgg16(np.zeros((1, 32, 32, 3), np.uint8))[0].write(folder / "vgg16_notop.h5")
    write_exams(folder / "exams", exams=1, size=(300, 220), seed=5)
    bundle_of(folder / "FOUR_VIEW", heatmaps=True)
    _write_patches(folder)
    _write_evaluated(folder)
    return folder


def _write_evaluated(folder: Path) -> None:
    """Write inputs of `evaluate`: results with a cohort, a submission with masks, and a reader study."""
    made_by = {"fingerprint": read_bundle(folder / "BUNDLE").fingerprint}
    results = begin(folder / "RESULTS", ["one", "two", "three"], made_by)
    rows = []
    for index, name in enumerate(("one", "two", "three")):
        put(results, name, {"tumour": 0.9 - 0.3 * index}, [[0.9, 600, 600]], size=(2048, 1536), mpp=0.5)
        row = {
            "case": name,
            "patient": name,
            "label": "tumor" if index < 2 else "normal",
            "site": f"s{index % 2}",
        }
        rows.append(row | {"slide": f"{name}.tif", "annotation": "truth.tif" if index < 2 else ""})
    append_review(folder / "RESULTS", "one", "Ann Smith", Review("accept", finding=0))
    write_csv(folder / "cohort-scanned.csv", rows)
    square = np.array([[500, 500], [900, 500], [900, 900], [500, 900]], np.float64)
    truth = SlideTruth(2048, 1536, 0.5, (Outline(square, "micro", 280.0),), ())
    (folder / "masks").mkdir()
    for name in ("truth.tif", "masks/Tumor_001_Mask.tif"):
        write_mask_tiff(truth, folder / name)
    (folder / "detections").mkdir()
    (folder / "detections/Tumor_001.csv").write_text("0.9,600,600\n0.2,10,10\n")
    (folder / "detections/Normal_001.csv").write_text("")
    (folder / "readers.csv").write_text(
        "patient,malignant,reader1,ai_a\n1,0,0.2,0.1\n2,1,0.7,0.9\n3,0,0.8,0.3\n"
    )


def _write_patches(folder: Path) -> None:
    """Write a release of WSSS4LUAD, lists of patches, and a bundle with random weights that scores them."""
    write_release(folder / "WSSS4LUAD", training=2)
    for number, name in enumerate(("normal", "tumour")):
        (folder / f"{name}.txt").write_text(f"one,{600 + 300 * number},500\none,700,{600 + 100 * number}\n")
    save(folder / "ANOMALY", predictor_of())


def _write_classifier(folder: Path) -> None:
    """Write a tile classifier as weights and as TorchScript, with a configuration like that of WSInfer."""
    model = squeezenet1_1(num_classes=2).eval()
    save_torch(model.state_dict(), folder / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated but still in use
        torch.jit.trace(model, torch.zeros(1, 3, 64, 64)).save(str(folder / "torchscript_model.pt"))
    config = {
        "architecture": "torchvision:squeezenet1_1",
        "class_names": ["notumor", "tumor"],
        "patch_size_pixels": 64,
        "spacing_um_px": 2.0,
    }
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def lobule(workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Lobule:
    """Run a command line in the workspace."""
    monkeypatch.chdir(workspace)

    def run_command(*arguments: str) -> Done:
        capfd.readouterr()
        status = run(LazyGroup("lobule", COMMANDS, help=ABOUT, version=True), arguments)
        captured = capfd.readouterr()
        return Done(status, captured.out, captured.err)

    return run_command
