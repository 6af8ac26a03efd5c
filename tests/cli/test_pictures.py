"""Outlines lie where masks are, and the demo finds what was painted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lobule.cli.demo import phantom_with_room, zooms_of
from lobule.cli.picture import TISSUE, TRUTH, contours
from lobule.geometry import Box
from lobule.phantoms.slides import truth_of
from tests.cli.conftest import Lobule


def test_an_outline_has_the_area_and_place_of_its_mask() -> None:
    rows, columns = np.mgrid[:90, :120]
    mask = (rows + 0.5 - 50) ** 2 + (columns + 0.5 - 70) ** 2 < 30**2
    (line,) = contours(mask, 8.0, 4.0)
    x, y = line[:, 0], line[:, 1]
    area = abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2
    assert area == pytest.approx(np.pi * 30 * 8 * 30 * 4, rel=0.01)  # an ellipse of half axes 240 and 120
    assert (x.min() + x.max()) / 2 == pytest.approx(70 * 8, abs=4)
    assert (y.min() + y.max()) / 2 == pytest.approx(50 * 4, abs=2)


def test_an_outline_at_the_border_closes() -> None:
    (line,) = contours(np.ones((20, 30), bool), 1.0, 1.0)
    assert np.allclose(line[0], line[-1])
    assert np.ptp(line, axis=0) == pytest.approx([30, 20], abs=0.1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("side", [1024, 2048, 6144])
def test_there_is_always_a_demo_and_its_zooms_are_on_the_slide(seed: int, side: int) -> None:
    truth = truth_of(phantom_with_room(seed, side))
    for zoom in zooms_of(truth):
        assert Box(0, 0, truth.width, truth.height).contains(zoom.l0_box)
        inside = [
            (outline.points >= (zoom.l0_box.x, zoom.l0_box.y)).all(1)
            & (outline.points < (zoom.l0_box.right, zoom.l0_box.bottom)).all(1)
            for outline in truth.outlines
        ]
        assert any(some.any() for some in inside), "a zoom without a tumour in it"


def test_the_demo_finds_what_was_painted(lobule: Lobule, workspace: Path) -> None:
    data = json.loads(lobule("demo", "--side", "2048", "--out", "small-demo", "--json").out)
    tissue = data["tissue"]
    assert tissue["found_mm2"] == pytest.approx(tissue["painted_mm2"], rel=0.15)
    assert data["info"]["mpp_x"] == pytest.approx(0.5, rel=1e-3)
    with Image.open(workspace / "small-demo" / "demo.png") as picture:
        assert picture.width == 1200
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in (TISSUE, TRUTH):
        assert (pixels == colour).all(axis=1).sum() > 100
    assert lobule("demo", "--side", "10").status == 2


def test_tissue_writes_its_mask(lobule: Lobule, workspace: Path) -> None:
    data = json.loads(lobule("tissue", "slide.tif", "--mask", "m.png", "--json").out)
    with Image.open(workspace / "m.png") as mask:
        share = (np.asarray(mask) == 255).mean()
        assert mask.size == (data["mask"]["width"], data["mask"]["height"])
    assert share == pytest.approx(data["share"], abs=1e-6)
    step_x, step_y = data["mask"]["l0_step"]
    cell_mm2 = step_x * step_y * (0.5e-3) ** 2
    assert data["area_mm2"] == pytest.approx(share * mask.width * mask.height * cell_mm2, rel=1e-3)


def test_a_slide_of_unknown_mpp_names_the_remedy(lobule: Lobule) -> None:
    done = lobule("tissue", "photos/benign/1.png")
    assert done.status == 2
    assert "--mpp" in done.err
