"""Outlines of masks, and the output of `lobule tissue`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lobule.cli.picture import trace_outlines
from tests.cli.conftest import Lobule


def test_outline_has_the_area_and_position_of_its_mask() -> None:
    rows, columns = np.mgrid[:90, :120]
    mask = (rows + 0.5 - 50) ** 2 + (columns + 0.5 - 70) ** 2 < 30**2
    (line,) = trace_outlines(mask, 8.0, 4.0)
    x, y = line[:, 0], line[:, 1]
    area = abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2
    assert area == pytest.approx(
        np.pi * 30 * 8 * 30 * 4, rel=0.01
    )  # an ellipse with semi-axes of 240 and 120
    assert (x.min() + x.max()) / 2 == pytest.approx(70 * 8, abs=4)
    assert (y.min() + y.max()) / 2 == pytest.approx(50 * 4, abs=2)


def test_an_outline_at_the_border_closes() -> None:
    (line,) = trace_outlines(np.ones((20, 30), bool), 1.0, 1.0)
    assert np.allclose(line[0], line[-1])
    assert np.ptp(line, axis=0) == pytest.approx([30, 20], abs=0.1)


def test_tissue_writes_its_mask(lobule: Lobule, workspace: Path) -> None:
    data = json.loads(lobule("tissue", "slide.tif", "--mask", "m.png", "--json").out)
    with Image.open(workspace / "m.png") as mask:
        share = (np.asarray(mask) == 255).mean()
        assert mask.size == (data["mask"]["width"], data["mask"]["height"])
    assert share == pytest.approx(data["share"], abs=1e-6)
    step_x, step_y = data["mask"]["l0_step"]
    cell_mm2 = step_x * step_y * (0.5e-3) ** 2
    assert data["area_mm2"] == pytest.approx(share * mask.width * mask.height * cell_mm2, rel=1e-3)


def test_unknown_mpp_error_names_the_remedy(lobule: Lobule) -> None:
    done = lobule("tissue", "photos/benign/1.png")
    assert done.status == 2
    assert "--slide-mpp" in done.err
