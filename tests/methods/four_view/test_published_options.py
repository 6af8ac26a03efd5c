"""Options of the training and of reading that follow the paper, against second computations."""

from __future__ import annotations

import math
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torchvision.models import densenet121

from lobule.cohort import Case, Cohort, read_cohort
from lobule.mammograms.exam_list import read_exam_list
from lobule.mammograms.exam_views import ViewOptions, open_views
from lobule.methods.four_view import Config
from lobule.methods.four_view.objectives import mean_of_four
from lobule.methods.four_view.samples import other_categories, published_category, turned_patch
from lobule.methods.four_view.start import build_start
from lobule.methods.four_view.train import train
from lobule.methods.four_view.training_exams import UNKNOWN
from lobule.phantoms.exams import write_exams
from tests.methods.four_view.configs import changed
from tests.methods.four_view.made_exams import cohort
from tests.methods.four_view.test_train import BRIEF, MACHINE, six_exams

# -- patches ------------------------------------------------------------------------------------------------


def test_turned_patches_follow_the_definition_of_a_rotation() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 4096, (60, 70), np.uint16)
    same = turned_patch(pixels, 10, 20, 16, 0.0, 1.0)
    np.testing.assert_allclose(same, pixels[10:26, 20:36], atol=1e-3)
    quarter = turned_patch(pixels, 10, 20, 16, math.pi / 2, 1.0)
    np.testing.assert_allclose(quarter, np.rot90(pixels[10:26, 20:36]), atol=1e-2)
    rows, columns = np.mgrid[:200, :200]
    ramp = (3 * rows + 2 * columns).astype(np.uint16)
    enlarged = turned_patch(ramp, 80, 90, 21, math.radians(30), 2.0)
    centre = 3 * 90 + 2 * 100
    assert enlarged[10, 10] == pytest.approx(centre, abs=1e-3)
    # One pixel to the right is half a pixel in the image, 30 degrees below the horizontal.
    step = (3 * math.sin(math.radians(30)) + 2 * math.cos(math.radians(30))) / 2
    assert enlarged[10, 11] - enlarged[10, 10] == pytest.approx(step, abs=1e-3)
    assert turned_patch(ramp, 190, 190, 21, 0.0, 1.0)[-1, -1] == 0  # outside the image


def test_patch_network_starts_from_imagenets_densenet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    state = densenet121(weights=None).state_dict()
    # The published file has the names of torchvision before 0.4.1.
    old = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", name): value for name, value in state.items()}
    assert "features.denseblock1.denselayer1.conv.2.weight" in old
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(old, folder / "densenet121-a639ec97.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    start = build_start(changed(heatmaps=True, patch_weights="imagenet"))
    assert start.sources["patch_weights"] == "imagenet"
    assert start.patch_net is not None
    assert not start.patch_is_trained
    loaded = start.patch_net.state_dict()
    name = "features.denseblock3.denselayer7.conv1.weight"
    assert any(
        torch.equal(value, state[name]) for value in loaded.values() if value.shape == state[name].shape
    )


# -- labels and selection -----------------------------------------------------------------------------------


def test_categories_are_read_from_usual_spellings() -> None:
    values = ["0", "1.0", "BI-RADS 2", "birads_2", " BIRADS: 0", "3", "4a", "20", "", None]
    assert [published_category(value) for value in values] == [
        "0",
        "1",
        "2",
        "2",
        "0",
        None,
        None,
        None,
        None,
        None,
    ]
    assert other_categories(values) == ("20", "3", "4a")


def test_mean_of_the_four_areas_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, (30, 4))
    scores = rng.normal(labels * 0.8, 1)
    expected = np.mean([roc_auc_score(labels[:, target], scores[:, target]) for target in range(4)])
    assert mean_of_four(labels, scores) == pytest.approx(expected)
    labels[:, 1], labels[0, 0], scores[1, 0] = 0, UNKNOWN, np.nan  # a class is missing, a label, a score
    rest = [
        roc_auc_score(labels[2:, 0], scores[2:, 0]),
        *(roc_auc_score(labels[:, t], scores[:, t]) for t in (2, 3)),
    ]
    assert mean_of_four(labels, scores) == pytest.approx(np.mean(rest))
    assert mean_of_four(np.zeros((3, 4), int), scores[:3]) is None


def test_a_training_with_the_published_options(tmp_path: Path) -> None:
    painted = cohort(tmp_path / "painted", train=16, val=8, test=0)
    graded = [
        replace(case, attributes={"birads": ("0", "BI-RADS 1", "2", "4")[number % 4]})
        for number, case in enumerate((*six_exams(painted), *painted.split("val")))
    ]
    options = {
        "select_by": "mean of four",
        "birads_classes": "published",
        "patch_rotation": 20.0,
        "patch_resize": 0.2,
    }
    config = changed(BRIEF, heatmaps=True, **options)
    bundle = train(config, Cohort(tuple(graded)), tmp_path / "bundle", machine=MACHINE)
    assert bundle.metrics["birads"]["categories"] == ["0", "1", "2"]
    notes = bundle.provenance["notes"]
    assert any("other than 0, 1 and 2 are left out: 4" in note for note in notes)
    assert 0 <= bundle.metrics["breasts"]["val_auc"] <= 1
    assert Config().training.select_by == "malignant"


# -- reading ------------------------------------------------------------------------------------------------


def test_the_flip_of_an_exam_list_decides_the_direction_of_png_images(tmp_path: Path) -> None:
    exam_list = [
        {"horizontal_flip": "YES", "L-CC": ["a"], "R-CC": ["b"], "L-MLO": ["c"], "R-MLO": ["d"]},
        {"L-CC": ["a"]},
    ]
    (tmp_path / "list.pkl").write_bytes(pickle.dumps(exam_list))
    assert [exam.horizontal_flip for exam in read_exam_list(tmp_path / "list.pkl")] == ["YES", None]

    case = read_cohort(write_exams(tmp_path, exams=1, size=(300, 220), seed=5)).cases[0]
    views = {name: (str(Path(paths[0]).with_name(f"{name}.png")),) for name, paths in case.views.items()}
    for name, paths in views.items():
        breast = np.zeros((300, 220), np.uint16)
        breast[20:280, 40:180] = 900  # as many pixels on the left as on the right
        breast[100:140, 180:190] = 900
        Image.fromarray(breast).save(paths[0])
        assert name
    options = ViewOptions(crop_iterations=4, crop_buffer=6)
    by_flip = {}
    for flip in ("NO", "YES"):
        flipped = Case("e", "p", "exam", views=views, attributes={"horizontal_flip": flip})
        images = open_views(flipped, options, joined=True)
        by_flip[flip] = {view: image.mammogram.pointing for view, image in images.items()}  # type: ignore[union-attr]
        disagreements = [
            decision.sentence
            for image in images.values()
            for decision in image.mammogram.decisions  # type: ignore[union-attr]
            if decision.rule == "direction"
        ]
        assert len(disagreements) == 2, "the pixels of two of the four views suggest the other direction"
        assert f"horizontal_flip={flip}" in disagreements[0]
    assert by_flip["NO"] == {"L-CC": "right", "R-CC": "left", "L-MLO": "right", "R-MLO": "left"}
    assert by_flip["YES"] == {"L-CC": "left", "R-CC": "right", "L-MLO": "left", "R-MLO": "right"}
    plain = open_views(Case("e", "p", "exam", views=views), options, joined=True)
    assert len({image.mammogram.pointing for image in plain.values()}) == 1  # type: ignore[union-attr]
