"""Exports, reports, evaluations and features with workers on Ray: the bytes of the local commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lobule.api import evaluate, export, extract_features, report
from lobule.api.runners import case_map
from lobule.cluster.case_map import MapJob, MapWorker
from lobule.errors import CaseError, ConfigError
from lobule.exports.run import HIDDEN
from lobule.results.case_map import map_here
from lobule.testing.export import write_known_results
from tests.cluster.local_ray import LocalRay, local_ray
from tests.evaluation.support import begin, put, write_csv, write_mask
from tests.scanning.support import pixels_of, tree, write_slide

__all__ = ["local_ray"]

RAY: dict[str, Any] = {"runner": "ray", "workers": 2}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Complete, empty, partial, unscored, failed, unfinished, damaged and waiting cases."""
    return write_known_results(tmp_path_factory.mktemp("known")).path


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of an export, without those that say how its records were made."""
    return {name: data for name, data in tree(folder).items() if not name.startswith(".")}


def test_an_export_on_workers_has_the_bytes_of_a_local_one(
    results: Path, tmp_path: Path, local_ray: LocalRay
) -> None:
    local = export(results, "qupath", tmp_path / "local")
    done: list[str] = []
    local_ray.lost_at = {0: 3}
    on_ray = export(results, "qupath", tmp_path / "ray", progress=done.append, **RAY)
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "local")
    assert on_ray.to_dict() == local.to_dict(), "failed and damaged cases are reported in the same way"
    assert local.failed and len(local_ray.actors) == 3 and local_ray.actors[0].is_lost
    assert sorted(done) == sorted(record.case for record in local.records)
    again = export(results, "qupath", tmp_path / "ray", **RAY)
    assert again.skipped == len(local.exported) and again.to_dict() == local.to_dict()
    assert not (tmp_path / "ray" / HIDDEN / "writing").exists()


def test_a_report_on_workers_has_the_bytes_of_a_local_one(
    results: Path, tmp_path: Path, local_ray: LocalRay
) -> None:
    local = report(results, tmp_path / "local", cases=["squares", "failed"])
    on_ray = report(results, tmp_path / "ray", cases=["squares", "failed"], **RAY)
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "local")
    assert on_ray.to_dict() == local.to_dict()


@dataclass(frozen=True)
class Scored:
    """Results of twelve slides, one of them damaged, with their cohort and the options of an evaluation."""

    results: Path
    cohort: Path
    options: dict[str, Any]


def scored_slides(folder: Path) -> Scored:
    """Write results of twelve slides. The one of `s5` is missing and the one of `s7` is damaged."""
    rows = []
    results = begin(folder / "results", [f"s{index}" for index in range(12)])
    for index in range(12):
        name, is_tumour = f"s{index}", index % 2 == 1
        if index != 5:
            put(results, name, {"tumour": 0.1 * (index % 7)}, [(0.5, 100 * index, 50)], size=(4096, 4096))
        row = {"case": name, "patient": f"p{index}", "slide": f"{name}.tif", "mpp": 0.25}
        rows.append({**row, "label": "tumour" if is_tumour else "normal"})
        mask = np.zeros((128, 128), np.bool_)
        mask[1:3, 4 * index : 4 * index + 3] = is_tumour
        write_mask(folder / "masks" / f"{name}_Mask.tif", mask)
    (results / "cases" / "s7" / "result.json").write_text("damaged")
    cohort = write_csv(folder / "cohort.csv", rows)
    return Scored(results, cohort, {"masks": folder / "masks", "mask_step": 32, "resamples": 50})


def compare_evaluations(folder: Path) -> None:
    """Evaluate on Ray and locally, and compare the numbers."""
    scored = scored_slides(folder)
    local = evaluate(scored.results, scored.cohort, **scored.options)
    on_ray = evaluate(scored.results, scored.cohort, **scored.options, **RAY)
    assert json.dumps(on_ray.data) == json.dumps(local.data)
    assert "s7" in local.data["cases"]["failed"] and local.lesions is not None


def compare_features(folder: Path, before_ray: Callable[[], None] = lambda: None) -> None:
    """Extract features locally and on Ray, and compare the files."""
    slides = [write_slide(folder / f"s{n}.tif", pixels_of(300, 200, n)) for n in (1, 2)]
    slides.append(folder / "bad.tif")
    slides[-1].write_bytes(b"not a slide")
    options: dict[str, Any] = {
        "encoder": "lobule:tiny", "weights": "random", "mpp": 0.5, "tile": 64, "input_px": 224,
        "tissue": False, "batch": 4, "precision": "float32", "runtime": "torch", "device": "cpu",
        "memory_layout": "contiguous",
    }  # fmt: skip
    out = folder / "features"  # The files contain the name of their folder.
    local = extract_features(slides, out, **options)
    out.rename(folder / "local")
    before_ray()
    on_ray = extract_features(slides, out, **options, **RAY)
    assert on_ray.counts == local.counts and on_ray.failed == local.failed
    names = [name for name in tree(folder / "local") if name.endswith((".h5", ".safetensors"))]
    assert len(names) == 5
    for name in [*names, "features.json", "scan/results.csv"]:
        assert (out / name).read_bytes() == (folder / "local" / name).read_bytes(), name


def test_an_evaluation_on_workers_has_the_numbers_of_a_local_one(tmp_path: Path, local_ray: LocalRay) -> None:
    compare_evaluations(tmp_path)
    assert len(local_ray.actors) >= 4, "workers read the cases, and others match them"


def test_features_on_workers_have_the_bytes_of_local_ones(tmp_path: Path, local_ray: LocalRay) -> None:
    compare_features(tmp_path, lambda: setattr(local_ray, "lost_at", {1: 2}))


# -- the map itself -----------------------------------------------------------------------------------------


def square(value: int) -> int:
    if value < 0:
        raise ConfigError("negative")
    return value * value


def test_results_have_the_order_of_the_items(local_ray: LocalRay) -> None:
    local_ray.lost_at = {0: 2, 1: 4}
    items = list(range(9))
    with case_map("ray", None, 3, None) as map_cases:
        assert map_cases(square, items) == map_here(square, items)
        assert map_cases(square, []) == []


def test_an_item_that_ends_its_workers_is_given_up(local_ray: LocalRay) -> None:
    local_ray.lost_at = dict.fromkeys(range(9), 2)
    with case_map("ray", None, 1, None) as map_cases:
        assert map_cases(square, [7], if_lost=lambda item, deaths: (item, deaths)) == [(7, 4)]
    with case_map("ray", None, 1, None) as map_cases, pytest.raises(CaseError, match="died 4 times"):
        map_cases(square, [7])


def test_errors_of_workers_reach_the_caller(local_ray: LocalRay) -> None:
    with case_map("ray", None, 1, None) as map_cases, pytest.raises(ConfigError, match="negative"):
        map_cases(square, [1, -1])
    with pytest.raises(ConfigError, match="another version of Lobule"):
        MapWorker(MapJob(square, lobule="0.0")).start()


def test_options_of_ray_need_the_runner(results: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--workers has an effect only with --runner ray"):
        export(results, "csv", tmp_path / "out", workers=2)
