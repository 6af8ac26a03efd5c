"""The published evaluations on patches, against a second computation of every figure."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.metrics import precision_recall_curve, roc_auc_score
from torch.nn import functional as F

from lobule.cohort import Cohort, read_cohort
from lobule.errors import ConfigError
from lobule.geometry import Box
from lobule.methods.reverse_distillation import AnomalyPredictor, load
from lobule.methods.reverse_distillation.patch_protocol import (
    PatchMaps,
    best_f1_threshold,
    evaluate_listed,
    evaluate_wsss4luad,
)
from lobule.methods.reverse_distillation.train import train
from lobule.methods.reverse_distillation.wsss4luad import labelled_patches, write_training
from lobule.slides.slide import open_slide
from tests.methods.reverse_distillation.support import CONFIG, MACHINE, TISSUE, painted
from tests.methods.reverse_distillation.wsss4luad_release import write_release


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("patches")


@pytest.fixture(scope="module")
def cohort(folder: Path) -> Cohort:
    return Cohort((painted(folder, "a", (200, 200, 300), 1, "train"), painted(folder, "b", None, 2, "train")))


@pytest.fixture(scope="module")
def predictor(cohort: Cohort, folder: Path) -> AnomalyPredictor:
    config = replace(CONFIG, epochs=3, val_slides=0)
    return load(train(config, cohort, folder / "bundle", val=None, tissue=TISSUE, machine=MACHINE))


def map_by_hand(predictor: AnomalyPredictor, patch: np.ndarray) -> np.ndarray:
    """The map of one patch by the definition: cosine distances, resized, summed, and smoothed by SciPy."""
    net, side = predictor.net.eval(), predictor.config.input
    with torch.inference_mode():
        image = predictor.model.images_of(torch.from_numpy(patch[None].copy()))
        teacher = net.teacher(image)
        total = torch.zeros(side, side)
        for ours, theirs in zip(teacher, net.student(teacher), strict=True):
            distance = 1 - F.cosine_similarity(ours, theirs, dim=1)
            total += F.interpolate(distance[None], (side, side), mode="bilinear", align_corners=True)[0, 0]
    smooth: np.ndarray = gaussian_filter(total.numpy().astype(np.float64), sigma=4)
    return smooth


def test_the_threshold_with_the_best_f1_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        labels = rng.random(30) < 0.4
        scores = np.round(rng.normal(labels * 0.7, 1), 1)
        if labels.all() or not labels.any():
            continue
        precision, recall, thresholds = precision_recall_curve(labels, scores)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = best_f1_threshold(labels, scores)
        assert f1[:-1][thresholds == best][0] == pytest.approx(f1[:-1].max())
        assert best == thresholds[np.flatnonzero(np.isclose(f1[:-1], f1[:-1].max()))[0]]


def test_listed_patches_are_scored_by_mean_and_maximum(
    predictor: AnomalyPredictor, cohort: Cohort, tmp_path: Path
) -> None:
    centres = {"normal": [(700, 400), (120, 120), (800, 600)], "tumour": [(300, 300), (350, 420), (400, 280)]}
    for label, points in centres.items():
        (tmp_path / label).write_text("".join(f"a,{x},{y}\n" for x, y in points))
    figures = evaluate_listed(
        PatchMaps(predictor), cohort, (str(tmp_path / "normal"), str(tmp_path / "tumour"))
    )
    slide = open_slide(cohort.cases[0].path or "", mpp=cohort.cases[0].mpp)
    maps = [
        map_by_hand(predictor, slide.read(Box(x - 16, y - 16, 32, 32), level=0))
        for points in centres.values()
        for x, y in points
    ]
    labels = np.repeat([0, 1], 3)
    assert figures["mean"]["auroc"] == pytest.approx(roc_auc_score(labels, [m.mean() for m in maps]))
    assert figures["maximum"]["auroc"] == pytest.approx(roc_auc_score(labels, [m.max() for m in maps]))
    threshold = figures["mean"]["threshold"]
    assert min(abs(m.mean() - threshold) for m in maps) < 1e-4
    expected = np.mean(
        [(m.mean() >= threshold - 1e-5) == label for m, label in zip(maps, labels, strict=True)]
    )
    assert figures["mean"]["accuracy"] == pytest.approx(expected)
    (tmp_path / "normal").write_text("c,10,10\n")
    with pytest.raises(ConfigError, match="1 listed slides are not in the cohort"):
        evaluate_listed(PatchMaps(predictor), cohort, (str(tmp_path / "normal"), str(tmp_path / "tumour")))


def test_wsss4luad_is_cut_as_published(tmp_path: Path) -> None:
    write_release(tmp_path)
    patches = list(labelled_patches(tmp_path))
    # Image 00 of 450 x 650 has 2 x 3 patches; the two without normal tissue are left out. One patch each of
    # three small images follows, and one image is too small.
    assert len(patches) == 4 + 1 + 1 + 1
    assert [int(patch.anomaly.sum()) for patch in patches[:4]] == [0, 75 * 200, 0, 75 * 200]
    assert int(patches[4].anomaly.sum()) == 170 * 90
    assert int(patches[4].background.sum()) == 30 * 200
    assert patches[6].anomaly[40:].all()
    assert all(patch.pixels.shape == (200, 200, 3) for patch in patches)


def test_training_and_evaluation_on_wsss4luad(tmp_path: Path) -> None:
    write_release(tmp_path / "release")
    counts = write_training(tmp_path / "release", tmp_path / "luad")
    assert counts == {"normal": 7, "tumour": 7}
    with (tmp_path / "luad" / "cohort.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["label"], Path(row["slide"]).stem.rpartition("-")[2]) for row in rows} == {
        ("normal", "[0, 0, 1]"), ("tumour", "[1, 1, 0]"),
    }  # fmt: skip
    coords = (str(tmp_path / "luad" / "normal.txt"), str(tmp_path / "luad" / "tumour.txt"))
    config = replace(CONFIG, mpp=0.5, patch=200, input=64, coords=coords, epochs=12, val_slides=0, stride=200)
    cohort = read_cohort(tmp_path / "luad" / "cohort.csv")
    bundle = train(config, cohort, tmp_path / "bundle", val=None, tissue=TISSUE, machine=MACHINE)
    assert bundle.provenance["budget"]["tumour_patches"] == 7
    predictor = load(bundle)
    figures = evaluate_wsss4luad(PatchMaps(predictor), tmp_path / "release")
    assert figures["patches"] == 7
    assert 0 <= figures["pixels"]["accuracy"] <= 1

    labels, scores = [], []
    for patch in labelled_patches(tmp_path / "release"):
        anomaly = map_by_hand(predictor, patch.pixels)
        side = anomaly.shape[0]
        near = np.minimum((np.arange(side) + 0.5) * 200 / side, 199).astype(int)
        tissue = ~patch.background[np.ix_(near, near)]
        labels.append(patch.anomaly[np.ix_(near, near)][tissue])
        scores.append(anomaly[tissue])
    expected = roc_auc_score(np.concatenate(labels), np.concatenate(scores))
    # Masks are resized with interpolation, so a few pixels at edges differ from the nearest ones used here.
    assert figures["pixels"]["auroc"] == pytest.approx(expected, abs=0.02)
    with pytest.raises(ConfigError, match="no patch of WSSS4LUAD"):
        evaluate_wsss4luad(PatchMaps(predictor), tmp_path / "luad")
