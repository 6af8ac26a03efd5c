"""The gallery of a mining round: pictures, captions, limits and the file that mining writes."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lobule.bundles import read_bundle
from lobule.cohort import Case
from lobule.methods.scannet import DensePredictor, load
from lobule.methods.scannet.gallery import (
    MAX_PICTURES,
    PICTURE_SIDE,
    HardNegative,
    inline_jpeg,
    write_gallery,
)
from lobule.methods.scannet.mining import mine
from lobule.scanning.scan import Machine
from lobule.tissue import TissueConfig
from lobule.training.patch_sampling import Pool, SlidePositions, find_positions
from lobule.training.training_scan import TrainingScan
from tests.methods.scannet.support import write_tiny_bundle
from tests.methods.scannet.test_train import LOOKALIKE, MPP, painted

TISSUE = TissueConfig(mpp=8.0)
MACHINE = Machine(device="cpu", precision="float32", cells=8, channels_last=True)
WINDOW = 100


@pytest.fixture(scope="module")
def positions(tmp_path_factory: pytest.TempPathFactory) -> SlidePositions:
    folder = tmp_path_factory.mktemp("g")
    return find_positions(painted(folder, "<a & b>", None, 3, "train", alike=(400, 250, 260)), TISSUE)[0]


def pictures_of(page: str) -> list[np.ndarray]:
    encoded = re.findall(r"data:image/jpeg;base64,([^']+)'", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in encoded]


def test_each_picture_shows_the_position_in_its_caption(positions: SlidePositions, tmp_path: Path) -> None:
    negatives = [HardNegative(0, 530.0, 380.0, 0.71), HardNegative(0, 200.0, 120.0, 0.93)]
    write_gallery(tmp_path / "g.html", [positions], negatives, name="round-1", mpp=MPP, window=WINDOW)
    page = (tmp_path / "g.html").read_text()
    plain, alike = pictures_of(page)
    assert plain.shape == alike.shape == (PICTURE_SIDE, PICTURE_SIDE, 3)
    # A picture is two windows wide, so the lookalike of 260 px fills the picture at its centre.
    np.testing.assert_allclose(alike.reshape(-1, 3).mean(axis=0), LOOKALIKE, atol=6)
    assert abs(plain.reshape(-1, 3).mean(axis=0) - LOOKALIKE).max() > 30
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert captions[0] == "<b>0.930</b> &lt;a &amp; b&gt;<br>x 200, y 120 px"
    assert captions[1].startswith("<b>0.710</b>")
    assert "Research use only" in page
    assert "2 positions of normal tissue" in page
    assert "<a & b>" not in page


def test_a_page_has_a_limited_number_of_pictures_and_the_total_count(
    positions: SlidePositions, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    negatives = [
        HardNegative(i % 2, float(x), 200.0, float(s))
        for i, (x, s) in enumerate(rng.random((MAX_PICTURES + 50, 2)))
    ]
    other = replace(positions, case=Case("other", "p", "slide", positions.case.path, mpp=MPP))
    write_gallery(tmp_path / "g.html", [positions, other], negatives, name="round-2", mpp=MPP, window=WINDOW)
    page = (tmp_path / "g.html").read_text()
    assert page.count("<figcaption>") == MAX_PICTURES
    assert f"{MAX_PICTURES + 50} positions" in page
    assert f"the {MAX_PICTURES} with the highest scores" in page
    assert page.count("<details") == 1 + MAX_PICTURES // 60
    assert page.count("<details open") == 1
    assert len(page) < 4e6
    shown = [float(text) for text in re.findall(r"<figcaption><b>([\d.]+)</b>", page)]
    assert shown == sorted(shown, reverse=True)
    assert min(shown) >= np.sort([negative.score for negative in negatives])[50] - 1e-3


def test_a_missing_slide_has_no_pictures(tmp_path: Path) -> None:
    gone = find_positions(painted(tmp_path, "gone", None, 5, "train"), TISSUE)[0]
    Path(str(gone.case.path)).unlink()
    write_gallery(
        tmp_path / "g.html",
        [gone],
        [HardNegative(0, 300.0, 300.0, 0.8)],
        name="round-1",
        mpp=MPP,
        window=WINDOW,
    )
    page = (tmp_path / "g.html").read_text()
    assert "cannot be read" in page
    assert not pictures_of(page)


def test_an_empty_gallery_has_a_message(positions: SlidePositions, tmp_path: Path) -> None:
    write_gallery(tmp_path / "g.html", [positions], [], name="round-1", mpp=MPP, window=WINDOW)
    assert "did not score any normal tissue as tumour" in (tmp_path / "g.html").read_text()


def test_mining_writes_a_gallery_of_the_hard_negatives(positions: SlidePositions, tmp_path: Path) -> None:
    predictor = load(read_bundle(write_tiny_bundle(tmp_path / "b", MPP)))
    config = replace(predictor.config, hard_cap=4, hard_merge=100)
    predictor.model.net[-1].bias.data[1] += 20  # type: ignore[index,union-attr,operator]
    predictor = DensePredictor(config, predictor.model.net, predictor.model.scaling)
    folder = tmp_path / "round-1"
    slide_scan = TrainingScan(predictor, "scannet", "f", folder, TISSUE, MACHINE)
    points_by_slide, _ = mine(slide_scan, Pool((positions,)))
    page = (folder / "gallery.html").read_text()
    assert len(points_by_slide[0]) == 4
    for x, y in points_by_slide[0]:
        assert f"x {round(x):,}, y {round(y):,} px" in page
    assert all(float(text) > 0.99 for text in re.findall(r"<figcaption><b>([\d.]+)</b>", page))
    assert len(pictures_of(page)) == 4


def test_a_picture_has_the_requested_size() -> None:
    wide = np.zeros((30, 90, 3), np.uint8)
    (picture,) = pictures_of(f"'{inline_jpeg(wide, 45)}'")
    assert picture.shape == (15, 45, 3)
