"""Cells of maps judged by outlines: area, Dice at a threshold of another split, orientation, smoothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

import lobule
from lobule.annotations import Annotation, Polygon, write_annotation
from lobule.cli import ABOUT, COMMANDS
from lobule.cli.base import LazyGroup, run
from lobule.cohort import Cohort, read_cohort
from lobule.errors import ConfigError
from lobule.files import read_json, write_json
from lobule.results import open_results
from lobule.results.map_check import maps_to_draw, why_maps_are_hidden
from lobule.results.maps import MapInfo, MapWriter
from lobule.stitch import State
from tests.evaluation.support import begin, put, write_csv

SIDE, CELL = 40, 32
TUMOUR = slice(10, 26)
"""Rows and columns of the tumour in cells."""


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Twenty-four slides, half with the same square of tumour, and maps that are high in it, with noise."""
    folder = tmp_path_factory.mktemp("maps")
    rng = np.random.default_rng(2)
    left, right = TUMOUR.start * CELL, TUMOUR.stop * CELL
    ring = np.array([(left, left), (right, left), (right, right), (left, right)], np.float64)
    write_annotation(folder / "outline.xml", Annotation((Polygon(ring),)))
    rows, layers = [], {}
    results = begin(folder / "results", [f"s{number}" for number in range(24)])
    info = MapInfo("map", "slide", ("tumour",), SIDE, SIDE, (CELL, CELL), None, (SIDE, SIDE))
    for number in range(24):
        name, positive = f"s{number}", number % 2 == 0
        layer = rng.normal(0.3, 0.15, (SIDE, SIDE)).clip(0, 1).astype(np.float32)
        if positive:
            layer[TUMOUR, TUMOUR] = rng.normal(0.6, 0.15, (16, 16)).clip(0, 1)
        states = np.full((SIDE, SIDE), State.SCORED, np.uint8)
        states[:, :4] = State.GLASS
        put(results, name, {"tumour": float(layer.max())}, [], size=(SIDE * CELL, SIDE * CELL))
        MapWriter(results / "cases" / name / "maps" / "map", info).write_chunk((0, 0), layer[None], states)
        layers[name] = layer
        rows.append({
            "case": name, "patient": f"p{number}", "slide": f"{name}.tif", "mpp": 0.25,
            "label": "tumor" if positive else "normal", "split": "val" if number >= 12 else "test",
            "annotation": str(folder / "outline.xml") if positive else "",
        })  # fmt: skip
    return results, write_csv(folder / "cohort.csv", rows), layers


def split_of(layers: dict[str, np.ndarray], numbers: range) -> tuple[np.ndarray, np.ndarray]:
    """Scores and truth (slides, rows, columns) of the scored cells."""
    truth = np.zeros((len(numbers), SIDE, SIDE), bool)
    truth[::2, TUMOUR, TUMOUR] = True
    return np.stack([layers[f"s{number}"] for number in numbers])[:, :, 4:], truth[:, :, 4:]


def dice_of(scores: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    above = scores > threshold
    return 2 * (above & truth).sum() / (above.sum() + truth.sum())


def test_areas_and_dice_agree_with_plain_formulas(scanned: Any) -> None:
    results, cohort, layers = scanned
    maps = lobule.evaluate(results, cohort, split="test", maps=True, resamples=100).data["maps"]
    scores, truth = split_of(layers, range(12))
    areas = [
        roc_auc_score(one.ravel(), layer.ravel())
        for layer, one in zip(scores, truth, strict=True)
        if one.any()
    ]
    assert (maps["slides"], maps["outlined"], maps["left_out"]) == (12, 6, {})
    assert maps["cell_auc"]["value"] == pytest.approx(np.mean(areas), abs=1e-9)
    assert maps["dice"]["value"] == pytest.approx(dice_of(scores, truth, maps["threshold"]), abs=1e-9)
    assert maps["dice"]["low"] < maps["dice"]["value"] < maps["dice"]["high"]
    fit_scores, fit_truth = split_of(layers, range(12, 24))
    best = max(dice_of(fit_scores, fit_truth, value) for value in np.linspace(0, 1, 400))
    assert dice_of(fit_scores, fit_truth, maps["threshold"]) > best - 0.02
    evidence = [np.sort(layer.ravel())[-10:].mean() for layer in scores]
    expected = roc_auc_score([number % 2 == 0 for number in range(12)], evidence)
    assert maps["orientation"]["value"] == pytest.approx(expected) and maps["orientation_passed"] is True


def test_the_difference_of_areas_is_paired(scanned: Any, tmp_path: Path) -> None:
    """Maps that are lower by a constant have the same areas; less noise gives larger ones on every slide."""
    results, cohort, layers = scanned
    info = MapInfo("map", "slide", ("tumour",), SIDE, SIDE, (CELL, CELL), None, (SIDE, SIDE))
    states = np.full((SIDE, SIDE), State.SCORED, np.uint8)
    states[:, :4] = State.GLASS
    differences = {}
    for name, change in (("lower", lambda layer: layer / 2), ("smooth", ndimage.uniform_filter)):
        copy = shutil.copytree(results, tmp_path / name)
        for case, layer in layers.items():
            shutil.rmtree(copy / "cases" / case / "maps")
            MapWriter(copy / "cases" / case / "maps" / "map", info).write_chunk(
                (0, 0), change(layer)[None].astype(np.float32), states
            )
        maps = lobule.evaluate(copy, cohort, split="test", maps=True, against=results, resamples=200).data[
            "maps"
        ]
        differences[name] = maps["against"]["cell_auc"]
        assert differences[name]["a"] == maps["cell_auc"]["value"]
    assert differences["lower"]["difference"]["value"] == differences["lower"]["difference"]["high"] == 0
    smooth = differences["smooth"]
    assert smooth["difference"]["value"] == pytest.approx(smooth["a"] - smooth["b"])
    assert smooth["difference"]["low"] > 0 and smooth["p"] < 0.05


def test_smoothing_is_a_gaussian_over_scored_cells(scanned: Any) -> None:
    results, cohort, layers = scanned
    maps = lobule.evaluate(results, cohort, split="test", maps=True, map_smooth=1.5, resamples=5).data["maps"]
    areas = []
    scores, truth = split_of(layers, range(12))
    for layer, one in zip(scores[::2], truth[::2], strict=True):
        ones = ndimage.gaussian_filter(np.ones_like(layer), 1.5, mode="constant")
        smooth = ndimage.gaussian_filter(layer, 1.5, mode="constant") / ones
        areas.append(roc_auc_score(one.ravel(), smooth.ravel()))
    assert maps["cell_auc"]["value"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert np.mean(areas) > 0.97 and maps["smooth"] == 1.5
    with pytest.raises(ConfigError, match="smoothing"):
        lobule.evaluate(results, cohort, maps=True, map_smooth=-1)


def test_reversed_maps_fail_the_orientation_check(scanned: Any, tmp_path: Path) -> None:
    results, cohort, layers = scanned
    copy = shutil.copytree(results, tmp_path / "copy")
    info = MapInfo("map", "slide", ("tumour",), SIDE, SIDE, (CELL, CELL), None, (SIDE, SIDE))
    for name, layer in layers.items():
        shutil.rmtree(copy / "cases" / name / "maps")
        states = np.full((SIDE, SIDE), State.SCORED, np.uint8)
        path = copy / "cases" / name / "maps" / "map"
        reversed_layer = layer * (0.5 if layer[TUMOUR, TUMOUR].mean() > 0.5 else 1)
        MapWriter(path, info).write_chunk((0, 0), (1 - reversed_layer)[None] / 2, states)
    flipped = lobule.evaluate(copy, cohort, split="test", maps=True, resamples=5, positive=["normal"])
    assert flipped.data["maps"]["orientation_passed"] is False
    orientation = flipped.data["maps"]["orientation"]["value"]
    reason = why_maps_are_hidden(open_results(copy))
    assert reason is not None and f"{orientation:.3f}".rstrip("0") in reason
    assert "12 slides of the split 'test'" in reason
    folder = open_results(copy).case_folder("s0")
    assert maps_to_draw(folder) == ({}, reason) and list(folder.maps) == ["map"]
    settings = read_json(copy / "scan.json")
    write_json(copy / "scan.json", {**settings, "bundle": {**settings["bundle"], "fingerprint": "another"}})
    assert why_maps_are_hidden(open_results(copy)) is None, "results of another bundle were not checked"
    (copy / "map_check.json").write_text("{")
    assert why_maps_are_hidden(open_results(copy)) is None


def test_maps_that_pass_or_have_few_patients_are_drawn(scanned: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(scanned[0], tmp_path / "copy")
    lobule.evaluate(copy, scanned[1], split="test", maps=True, resamples=5)
    assert read_json(copy / "map_check.json")["passed"] is True
    assert why_maps_are_hidden(open_results(copy)) is None
    (copy / "map_check.json").unlink()
    cohort = read_cohort(scanned[1], check_files=False)
    few = Cohort(tuple(case for case in cohort if case.id in ("s0", "s1", "s2", "s3")))
    lobule.evaluate(copy, few, maps=True, resamples=5, positive=["normal"])
    assert not (copy / "map_check.json").exists()


def test_no_threshold_without_another_split(scanned: Any, tmp_path: Path) -> None:
    results, cohort, _ = scanned
    for options in ({}, {"split": "val"}):
        maps = lobule.evaluate(results, cohort, maps=True, resamples=5, **options).data["maps"]  # type: ignore[arg-type]
        assert maps["threshold"] is None and maps["dice"]["value"] is None
        assert "must be another one" in maps["dice"]["reason"]
        assert maps["cell_auc"]["value"] > 0.8
    without = shutil.copytree(results, tmp_path / "copy")
    for number in range(12, 24):
        shutil.rmtree(without / "cases" / f"s{number}" / "maps")
    shutil.rmtree(without / "cases" / "s0" / "maps")
    maps = lobule.evaluate(without, cohort, split="test", maps=True, resamples=5).data["maps"]
    assert "no outlined slide" in maps["dice"]["reason"]
    assert maps["left_out"] == {"s0": "the results contain no map of it"}
    assert lobule.evaluate(results, cohort, split="test", resamples=5).data["maps"] is None


def test_the_command_prints_and_writes_maps(
    scanned: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, cohort, _ = scanned
    arguments = ["evaluate", str(results), str(cohort), "--split", "test", "--maps", "--map-smooth", "1"]
    arguments += ["--resamples", "5", "--no-plots", "--out", str(tmp_path)]
    assert run(LazyGroup("lobule", COMMANDS, help=ABOUT), arguments) == 0
    assert "orientation check passed" in capsys.readouterr().out
    assert "\nmap,maps,,all,dice," in (tmp_path / "table.csv").read_text()
