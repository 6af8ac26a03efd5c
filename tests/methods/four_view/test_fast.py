"""Heatmaps with `painting="fast"`: bands cover the view, pooling is exact, the difference is reported."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from lobule.cohort import Cohort, read_cohort
from lobule.errors import ConfigError
from lobule.mammograms.published.patches import PatchGrid, heatmap_of
from lobule.mammograms.views import VIEWS
from lobule.methods.four_view import METHOD, Config
from lobule.methods.four_view.heatmaps import Bands, pooled_scores
from lobule.nets.four_view import TARGETS
from lobule.nets.painter import Painter
from lobule.phantoms.exams import write_exams
from lobule.results import open_results
from tests.methods.four_view.configs import changed
from tests.methods.four_view.support import SMALL, bundle_of, exam_by_hand, nets, run, views_of
from tests.nets.four_view_recipe import patch_pixels

NEAR = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def exams(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("exams")
    return read_cohort(write_exams(folder, exams=1, size=(300, 220), seed=5))


@given(
    rows=st.integers(1, 4000),
    columns=st.integers(1, 3000),
    cells=st.integers(200, 20_000),
)
def test_bands_cover_every_row_once_and_respect_the_cell_limit(rows: int, columns: int, cells: int) -> None:
    bands = Bands.over((rows, columns), cells)
    windows = bands.windows()
    assert len({window.shape for window in windows}) == 1
    numbered = np.arange(bands.rows * bands.columns, dtype=np.float64).reshape(1, bands.rows, bands.columns)
    around = np.pad(numbered, ((0, 0), (bands.halo + 999, 999 + 2 * bands.halo), (0, 0)))
    pieces = [
        around[:, window.top // 32 + bands.halo + 999 : window.bottom // 32 + bands.halo + 999].ravel()
        for window in windows
    ]
    np.testing.assert_array_equal(bands.joined(pieces), numbered)
    assert windows[-1].bottom >= rows and windows[0].width >= columns
    room = cells if bands.columns * 9 <= cells else 9 * bands.columns
    assert windows[0].height // 32 * bands.columns <= room


def test_pooling_is_the_mean_over_the_footprint() -> None:
    """Compare with evidence repeated for every pixel and averaged over the patch."""
    rng = np.random.default_rng(0)
    evidence = rng.standard_normal((4, 9, 7))
    grid = PatchGrid((0, 13, 32), (0, 5, 77), 192 - 64)
    actual = pooled_scores(evidence, grid)
    pixels = evidence.repeat(32, axis=1).repeat(32, axis=2)
    expected = [
        softmax(pixels[:, row : row + 128, column : column + 128].mean(axis=(1, 2)))
        for row, column in grid.corners()
    ]
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def by_hand(view, patch_net: torch.nn.Module, rng: random.Random):
    """Return the benign and the malignant heatmap of a view, from one run over the view padded with zeros."""
    grid, pixels = view.grid(rng), patch_pixels(view.image)
    height, width = (-(-length // 32) * 32 for length in pixels.shape)
    wide = np.full((height, width), (0 - view.image.mean()) / view.image.std())
    wide[: pixels.shape[0], : pixels.shape[1]] = pixels
    with torch.inference_mode():
        x = torch.from_numpy(wide.astype(np.float32))[None, None].expand(-1, 3, -1, -1)
        features = torch.relu(patch_net.features(x))
        evidence = torch.einsum("kc,nchw->khw", patch_net.classifier.weight, features)
        evidence += patch_net.classifier.bias[:, None, None]
    scores = pooled_scores(evidence.double().numpy(), grid)
    return tuple(heatmap_of(view.image.shape, grid, scores[:, index]) for index in (1, 0))


def test_scores_equal_those_by_hand_and_the_difference_is_reported(exams: Cohort, tmp_path: Path) -> None:
    run(
        bundle_of(tmp_path / "bundle", heatmaps=True),
        exams,
        tmp_path / "r",
        settings={"reading.painting": "fast"},
    )
    net, patch_net = nets(changed(SMALL, heatmaps=True))
    views, rng = views_of(exams.cases[0]), random.Random(0)
    heatmaps = {view: by_hand(views[view][0], patch_net, rng) for view in VIEWS}
    expected = exam_by_hand(exams.cases[0], net, np.random.RandomState(0), heatmaps).mean(axis=0)
    folder = open_results(tmp_path / "r").case_folder("exam0000")
    result = folder.result
    np.testing.assert_allclose([result["scores"][name] for name in TARGETS], expected, **NEAR)
    report = result["heatmaps"]
    assert report["painting"] == "fast" and report["patches_compared"] == 32
    # The reported difference is that of the eight patches per view that were scored both ways.
    table, view = folder.tables["patches L-CC"].read(), views["L-CC"][0]
    fast = by_hand(view, patch_net, random.Random(0))
    assert len(table["field"]) == 8 and 0 < report["mean_difference"] < report["greatest_difference"] < 1
    exact = view.heatmaps(random.Random(0), patch_net)
    differences = [np.abs(a - b).max() for a, b in zip(fast, exact, strict=True)]
    assert max(differences) < 2 * report["greatest_difference"] + 0.05


def test_heatmaps_setting_must_fit_the_classifier(tmp_path: Path) -> None:
    assert changed(heatmaps=True).set({"reading.painting": "fast"}).reading.painting == "fast"
    with pytest.raises(ConfigError, match="reads no heatmaps"):
        Config().set({"reading.painting": "fast"})
    with pytest.raises(ConfigError, match="painting"):
        METHOD.changed_for_scan({"reading.painting": "none"})


def test_scan_settings_are_parsed_from_text() -> None:
    texts = {"reading.painting": "fast", "reading.epochs": "3", "reading.augmentation": "no"}
    assert METHOD.changed_for_scan(texts) == {
        "reading.painting": "fast",
        "reading.epochs": 3,
        "reading.augmentation": False,
    }


def test_uniform_view_gives_equal_scores_far_from_its_edges() -> None:
    """In a uniform view, patches far from its edges all have the same evidence under them."""
    _, patch_net = nets(changed(SMALL, heatmaps=True))
    painter = Painter(copy.deepcopy(patch_net))
    with torch.inference_mode():
        evidence = painter.evidence(torch.full((1, 1, 1280, 1280), 0.7))[0].double().numpy()
    scores = pooled_scores(evidence, PatchGrid((500, 512, 544), (500, 551), 64))
    assert np.ptp(scores, axis=0).max() < 1e-5
