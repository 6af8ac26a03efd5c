"""A scan of the real exam gives the numbers of the published code."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lobule.bundles import Bundle, write_bundle
from lobule.cohort import Case, Cohort
from lobule.mammograms.exams import read_view
from lobule.mammograms.published.crop import crop_of
from lobule.mammograms.published.patches import distinct_patches, draw_grid, heatmap_of
from lobule.mammograms.views import VIEWS
from lobule.nets.four_view import TARGETS
from lobule.results import open_results
from tests.methods.four_view.configs import changed
from tests.methods.four_view.support import (
    NEAR,
    result_of,
    run,
    weights_of,
)
from tests.nets.four_view_recipe import made_net

SALT = "four_view-visible-12"


def real_scan(
    kit: Path,
    out: Path,
    classifier: str,
    patch: bool = False,
    views: Sequence[str] = VIEWS,
    **settings: object,
) -> dict:
    """Scan the real exam with the published architectures and weights derived from tensor names."""
    files = {view.lower().replace("-", "_"): (str(kit / f"0_{view}.png"),) for view in views}
    config = changed(heatmaps=patch, **settings)  # type: ignore[arg-type]
    weights = weights_of(made_net(classifier, SALT), made_net("patch", SALT) if patch else None)
    write_bundle(out / "bundle", Bundle("four_view", config.to_dict(), TARGETS, None), weights)
    cohort = Cohort((Case("0", "p", "exam", views=files),))
    report = run(out / "bundle", cohort, out / "r")
    assert dict(report.counts) == {"complete": 1}, report.failed
    return result_of(out / "r", "0")


@pytest.fixture
def images(kit: Path) -> Path:
    return kit / "mammograms" / "nyu" / "images"


def test_real_exam_without_augmentation(images: Path, tmp_path: Path) -> None:
    result = real_scan(images, tmp_path, "view-image", augmentation=False)
    expected = [0.6386423, 0.3694731, 0.1391435, 0.3586272]
    actual = [result["scores"][name] for name in TARGETS]
    np.testing.assert_allclose(actual, expected, **NEAR)
    # The published program prints four decimals.
    assert ",".join(f"{score:.4f}" for score in actual) == "0.6386,0.3695,0.1391,0.3586"


@pytest.mark.campaign
def test_real_exam_with_ten_windows(images: Path, tmp_path: Path) -> None:
    result = real_scan(images, tmp_path, "view-image", compat="nyu")
    expected = [0.6373349, 0.3769582, 0.1425985, 0.3634894]
    np.testing.assert_allclose([result["scores"][name] for name in TARGETS], expected, **NEAR)


@pytest.mark.campaign
def test_real_exam_with_heatmaps(images: Path, tmp_path: Path) -> None:
    result = real_scan(images, tmp_path, "view-heatmaps", patch=True, compat="nyu")
    expected = [0.2852467, 0.4216548, 0.3568609, 0.5758981]
    np.testing.assert_allclose([result["scores"][name] for name in TARGETS], expected, **NEAR)


@pytest.mark.campaign
def test_single_views_of_the_real_exam(images: Path, tmp_path: Path) -> None:
    result = real_scan(images, tmp_path, "image-image", variant="image_wise")
    expected = {
        "L-CC": (0.5374609, 0.7544019),
        "R-CC": (0.4429651, 0.6504307),
        "L-MLO": (0.388155, 0.7294227),
        "R-MLO": (0.6710556, 0.4156977),
    }
    for view, pair in expected.items():
        actual = [result["views"][view][grade]["score"] for grade in ("benign", "malignant")]
        np.testing.assert_allclose(actual, pair, **NEAR)


@pytest.mark.campaign
def test_single_right_view_with_heatmaps(images: Path, goldens: Path, tmp_path: Path) -> None:
    """The published tool for single images cuts a right view into patches without mirroring it."""
    published = json.loads((goldens / "four_view" / "network.json").read_text())["end_to_end_image_wise"][
        "R-CC"
    ]
    result = real_scan(images, tmp_path, "image-heatmaps", True, ["R-CC"], variant="image_wise", epochs=1)
    actual = [result["views"]["R-CC"][grade]["score"] for grade in ("benign", "malignant")]
    expected = published["quirk_single_image_heatmaps_1_epoch_prediction"]
    np.testing.assert_allclose(actual, [expected["benign"], expected["malignant"]], **NEAR)
    quirk = published["quirk_single_image_heatmaps"]
    folder = open_results(tmp_path / "r").case_folder("0")
    table = folder.tables["patches R-CC"].read()
    np.testing.assert_allclose(table["scores"][0], quirk["first_patch_probs"], **NEAR)
    np.testing.assert_allclose(table["scores"][-1], quirk["last_patch_probs"], **NEAR)
    stored = read_view(images / "0_R-CC.png", view="R-CC")
    pixels = crop_of(stored.pixels, stored.pointing).window.of(stored.pixels)
    grid = draw_grid(pixels.shape, random.Random(0))
    assert len(grid) == quirk["n_patches"]
    _, row_of = distinct_patches(grid, pixels)
    benign, malignant = (
        heatmap_of(pixels.shape, grid, table["scores"][row_of][:, i])[:, ::-1] for i in (1, 0)
    )
    for row, column, value in quirk["right_facing_malignant"]["samples"]:
        assert malignant[row, column] == pytest.approx(value, abs=1e-5)
    assert benign.mean(dtype=np.float64) == pytest.approx(quirk["right_facing_benign"]["mean"], abs=1e-5)
