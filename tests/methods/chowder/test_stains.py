"""Features of slides with normalised stains, and bundles that were trained on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lobule.api import extract_features, scan
from lobule.bundles import read_bundle
from lobule.cohort import Case, Cohort
from lobule.errors import ResultsError
from lobule.features import open_features
from lobule.geometry import Box
from lobule.methods import find_method
from lobule.nets.encoders import encoder
from lobule.results import open_results
from lobule.slides.normalised import with_normalisation
from lobule.slides.slide import open_slide
from lobule.training.fitting import TrainMachine
from tests.scanning.support import write_slide

MPP, TILE = 0.5, 224
OPTIONS: dict[str, Any] = {
    "backbone": "lobule:tiny", "weights": "random", "mpp": MPP, "tile": TILE, "tissue": False,
    "device": "cpu", "precision": "float32", "dtype": "float32",
}  # fmt: skip


def stained(folder: Path, name: str, seed: int, label: str) -> Case:
    """A slide of two stains, whose strength depends on the seed."""
    rng = np.random.default_rng(seed)
    amounts = rng.exponential(0.4 + 0.2 * (seed % 3), (448, 672, 2)) * (
        1.0,
        0.7 if label == "normal" else 1.4,
    )
    density = amounts @ np.array([(0.65, 0.70, 0.29), (0.07, 0.99, 0.11)])
    pixels = (240 * np.exp(-density)).clip(0, 255).astype(np.uint8)
    return Case(
        name, f"p{seed}", "slide", str(write_slide(folder / f"{name}.tif", pixels)), label=label, mpp=MPP
    )


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("stains")
    return Cohort(tuple(stained(folder, f"s{n}", n, "tumor" if n % 2 else "normal") for n in range(4)))


def test_tiles_are_encoded_with_normalised_stains(cohort: Cohort, tmp_path: Path) -> None:
    extract_features(cohort, tmp_path / "macenko", stains="macenko", **OPTIONS)
    case = cohort.cases[0]
    file = open_features(tmp_path / "macenko").find(case)
    assert case.path is not None
    slide = with_normalisation(open_slide(case.path, mpp=MPP), "macenko")
    pixels = np.stack([slide.read(Box(int(x), int(y), TILE, TILE), level=0) for x, y in file.l0_coords()])
    network = encoder("lobule:tiny", "random")
    with torch.inference_mode():
        expected = network.net(network.scaling.apply(torch.from_numpy(pixels))).numpy()
    np.testing.assert_allclose(file.read(slice(None)), expected, atol=1e-4)
    raw = np.stack(
        [
            open_slide(case.path, mpp=MPP).read(Box(int(x), int(y), TILE, TILE), level=0)
            for x, y in file.l0_coords()
        ]
    )
    assert np.abs(raw.astype(int) - pixels).mean() > 3

    with pytest.raises(ResultsError, match="another stains"):  # two kinds of features are never mixed
        extract_features(cohort, tmp_path / "macenko", **OPTIONS)
    extract_features(cohort, tmp_path / "plain", **OPTIONS)
    assert "stains" not in json.loads((tmp_path / "plain" / "features.json").read_text())


def test_a_scan_of_slides_normalises_stains_as_the_training_features_were(
    cohort: Cohort, tmp_path: Path
) -> None:
    features = tmp_path / "features"
    extract_features(cohort, features, stains="macenko", **OPTIONS)
    method = find_method("mean_pool")
    bundle = method.trainer()(
        method.configured({"features": str(features), "members": 1, "epochs": 2}), cohort,
        tmp_path / "bundle", val=None, machine=TrainMachine(device="cpu", precision="float32", workers=1),
    )  # fmt: skip
    assert bundle.config["tiling"]["stains"] == "macenko"
    assert read_bundle(tmp_path / "bundle").config["tiling"]["stains"] == "macenko"
    machine: dict[str, Any] = {"device": "cpu", "precision": "float32", "tissue": False}
    scan(tmp_path / "bundle", cohort, tmp_path / "direct", **machine)
    scan(tmp_path / "bundle", cohort, tmp_path / "stored", settings={"features": str(features)}, **machine)
    for case in cohort:
        direct, stored = (
            open_results(tmp_path / name).case_folder(case.id).result for name in ("direct", "stored")
        )
        assert direct is not None
        assert stored is not None
        assert direct["scores"]["tumour"] == pytest.approx(stored["scores"]["tumour"], abs=1e-5)
