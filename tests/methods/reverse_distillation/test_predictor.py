"""Scanning with reverse distillation: cells have the published patch scores, in both forms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lobule.bundles import read_bundle
from lobule.cohort import Cohort
from lobule.errors import BundleError, ConfigError, ModelError
from lobule.geometry import Box
from lobule.measures.calibration import Platt
from lobule.methods.reverse_distillation import AnomalyPredictor, Config, load, save
from lobule.methods.reverse_distillation.predictor import PatchModel
from lobule.nets.reverse_distillation import Student
from lobule.nets.teachers import teacher
from lobule.results import open_results
from lobule.scanning.contract import EngineSettings, ScanOptions
from lobule.scanning.scan import Machine, scan
from lobule.stitch import State
from tests.methods.reverse_distillation.support import CALIBRATION, SMALL, TISSUE, painted
from tests.reference.anomaly import patch_scores
from tests.scanning.support import cohort_of, pixels_of, tree, write_slide

MACHINE = Machine(device="cpu", precision="float32", readers=2, replicas=2, channels_last=True)
METADATA = {"method": "reverse_distillation", "fingerprint": "f", "classes": ["normal", "tumour"]}
WIDTH, HEIGHT = 229, 170
ALL_CELLS = ScanOptions(tissue=None)


def predictor_of(**settings: Any) -> AnomalyPredictor:
    """A small untrained predictor whose scores vary over the slide."""
    torch.manual_seed(5)
    config = Config(**{**SMALL, **settings})
    frozen = teacher("tiny")
    student = Student(frozen.student_shape(config.shortcut))
    for module in (*frozen.modules(), *student.modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
    return AnomalyPredictor(config, frozen, student, CALIBRATION)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("s") / "one.tif", pixels_of(WIDTH, HEIGHT))


def scanned(predictor: AnomalyPredictor, slide: Path, out: Path, options: ScanOptions = ALL_CELLS) -> Any:
    assert not scan(predictor, METADATA, cohort_of(slide), out, options, MACHINE).failed
    return open_results(out).case_folder("one")


def patch_by_patch(predictor: AnomalyPredictor, stride: int, name: str = "mean") -> np.ndarray:
    """Reference: each cell's patch is cut from the picture, padded with white and scored separately."""
    side, wide = predictor.config.patch, predictor.config.input
    white = np.full((HEIGHT + 4 * side, WIDTH + 4 * side, 3), 255, np.uint8)
    white[2 * side : 2 * side + HEIGHT, 2 * side : 2 * side + WIDTH] = pixels_of(WIDTH, HEIGHT)
    start = 2 * side + stride // 2 - side // 2
    out = np.zeros((-(-HEIGHT // stride), -(-WIDTH // stride)))
    with torch.inference_mode():
        for row, column in np.ndindex(*out.shape):
            y, x = start + stride * row, start + stride * column
            patch = torch.from_numpy(white[None, y : y + side, x : x + side].copy())
            images = predictor.model.scaling.apply(patch)
            if wide != side:
                images = torch.nn.functional.interpolate(
                    images, (wide, wide), mode="bilinear", antialias=True
                )
            maps = predictor.net.teacher(images)
            full = (predictor.model.padded_size, predictor.model.padded_size)
            out[row, column] = patch_scores(maps, predictor.net.student(maps), (wide, wide), full)[name]
    return out


@pytest.mark.parametrize(
    ("settings", "stride"),
    [({}, 16), ({}, 24), ({"input": 64}, 32), ({"patch": 50, "input": 50}, 25), ({"score": "max"}, 32)],
)
def test_the_exact_map_has_the_published_score_of_each_patch(
    slide: Path, tmp_path: Path, settings: dict[str, Any], stride: int
) -> None:
    predictor = predictor_of(**settings)
    folder = scanned(predictor, slide, tmp_path / "r", replace(ALL_CELLS, stride=stride))
    probability, raw = folder.maps[f"map-s{stride}"].read()[0]
    expected = patch_by_patch(predictor, stride, settings.get("score", "mean"))
    np.testing.assert_allclose(raw, expected, atol=2e-5)
    np.testing.assert_allclose(probability, Platt(3.0, -4.0)(expected), atol=2e-5)
    assert raw.std() > 0.002, "the comparison needs patches with different scores"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mosaics": 1},
        {"mosaics": 1, "patch": 50, "input": 50, "stride": 25},
        {"input": 64, "stride": 8},
        {"mosaics": 4, "stride": 8},
    ],
)
def test_the_shared_map_averages_windows_over_adjacent_patches(
    slide: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Compared with smoothed anomaly maps of adjacent patches, computed step by step."""
    predictor = predictor_of(form="shared", **settings)
    config = predictor.config
    folder = scanned(predictor, slide, tmp_path / "r")
    raw = folder.maps[f"map-s{config.stride}"].read()[0][1]
    layings = [number * config.patch // config.mosaics for number in range(config.mosaics)]
    expected = np.mean([windows_of_a_mosaic(predictor, before, raw.shape) for before in layings], axis=0)
    np.testing.assert_allclose(raw, expected, atol=2e-5)
    result = folder.result
    assert (result["form"], result["shared_rank"]) == ("shared", 0.9)


def windows_of_a_mosaic(predictor: AnomalyPredictor, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    """Means over windows of a mosaic that starts `offset` pixels before the first window."""
    config = predictor.config
    side, wide = config.patch, config.input
    start = config.stride // 2 - side // 2 - offset
    across = [-(-(length - start + side) // side) for length in (HEIGHT, WIDTH)]
    white = np.full((across[0] * side, across[1] * side, 3), 255, np.uint8)
    white[-start : HEIGHT - start, -start : WIDTH - start] = pixels_of(WIDTH, HEIGHT)
    mosaic = np.zeros((across[0] * wide, across[1] * wide))
    with torch.inference_mode():
        for row, column in np.ndindex(*across):
            patch = white[row * side : (row + 1) * side, column * side : (column + 1) * side]
            maps = predictor.net.teacher(predictor.model.images_of(torch.from_numpy(patch[None].copy())))
            full = (predictor.model.padded_size, predictor.model.padded_size)
            maps_of_patch = patch_scores(maps, predictor.net.student(maps), (wide, wide), full)["anomaly"]
            mosaic[row * wide : (row + 1) * wide, column * wide : (column + 1) * wide] = maps_of_patch[0]
    step, first = config.stride * wide // side, offset * wide // side
    rows, columns = (first + step * np.arange(count) for count in shape)
    return np.array([[mosaic[r : r + wide, c : c + wide].mean() for c in columns] for r in rows])


def test_shared_cells_that_coincide_with_patches_are_exact(slide: Path, tmp_path: Path) -> None:
    predictor = predictor_of()
    exact = scanned(predictor, slide, tmp_path / "a").maps["map-s16"].read()[0]
    options = replace(ALL_CELLS, settings={"form": "shared", "mosaics": 1})
    shared = scanned(predictor, slide, tmp_path / "b", options).maps["map-s16"].read()[0]
    np.testing.assert_allclose(shared[:, ::2, ::2], exact[:, ::2, ::2], atol=2e-5)
    assert np.abs(shared - exact).max() > 1e-4


@pytest.mark.parametrize("form", ["exact", "shared"])
def test_only_tissue_is_computed_and_the_field_size_does_not_matter(tmp_path: Path, form: str) -> None:
    full_slide = painted(tmp_path, "one", None, 1, "test")
    case = replace(full_slide, kind="region", l0_box=Box(150, 130, 330, 270))
    predictor, options = predictor_of(form=form), ScanOptions(tissue=TISSUE)
    maps = {}
    for cells in (8, 4):
        machine = replace(MACHINE, cells=cells)
        assert not scan(predictor, METADATA, Cohort((case,)), tmp_path / f"{cells}", options, machine).failed
        maps[cells], states = open_results(tmp_path / f"{cells}").case_folder("one").maps["map-s16"].read()
        assert 0 < (states == State.SCORED).sum() < states.size
    np.testing.assert_allclose(maps[4], maps[8], atol=1e-5)


def test_a_blank_slide_has_a_note_that_nothing_was_scored(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "one.tif", np.full((700, 900, 3), 244, np.uint8))
    result = scanned(predictor_of(), path, tmp_path / "R", ScanOptions(tissue=TISSUE, mpp=0.5)).result
    assert any("no tissue was found" in note for note in result["notes"])


@pytest.mark.parametrize("form", ["exact", "shared"])
def test_cells_that_are_not_required_are_not_computed(form: str) -> None:
    predictor = predictor_of(form=form, mosaics=1)
    counts: list[int] = []

    def counted(patches: torch.Tensor) -> Any:
        counts.append(len(patches))
        return PatchModel.images_of(predictor.model, patches)

    predictor.model.images_of = counted  # type: ignore[method-assign, assignment]
    options = ScanOptions()
    engine = replace(EngineSettings(), cells=4)
    predictor.model.move_to_device(engine, options)
    key, batch = predictor.model.sample_batch(engine, options)
    required = torch.zeros((1, 4, 4), dtype=torch.bool)
    required[0, 0, :2] = True
    with torch.inference_mode():
        partial_map = predictor.model.forward(key, replace(batch, params={"required": required}))["map"]
        full_map = predictor.model.forward(key, batch)["map"]
    # The windows of two cells overlap two patches of the mosaic; those of all cells overlap nine.
    assert counts == ([2, 16] if form == "exact" else [2, 9])
    np.testing.assert_allclose(partial_map[0, -1][required[0]], full_map[0, -1][required[0]], atol=1e-5)


def test_a_resumed_scan_has_the_same_bytes(slide: Path, tmp_path: Path) -> None:
    predictor = predictor_of()
    scanned(predictor, slide, tmp_path / "a")
    (tmp_path / "b").mkdir()
    scanned(predictor, slide, tmp_path / "b")
    case = open_results(tmp_path / "b").case_folder("one").path
    (case / "result.json").unlink()
    for chunk in sorted((case / "maps").rglob("state/c/*/*"))[:1]:
        chunk.unlink()
    scanned(predictor, slide, tmp_path / "b")
    assert tree(tmp_path / "a").keys() == tree(tmp_path / "b").keys()
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


# -- scores of slides ---------------------------------------------------------------------------------------


def test_the_threshold_of_the_paper_gives_the_scores_of_the_paper(slide: Path, tmp_path: Path) -> None:
    predictor = predictor_of()
    raw = scanned(predictor, slide, tmp_path / "a").maps["map-s16"].read()[0][1]
    options = replace(ALL_CELLS, settings={"threshold": "paper"})
    folder = scanned(predictor, slide, tmp_path / "b", options)
    reader = folder.maps["map-s16"]
    assert reader.info.classes == ("tumour",)
    np.testing.assert_allclose(reader.read()[0][0], raw, atol=1e-6)
    high = raw[raw >= 2.01]
    expected = float(high.mean()) if len(high) else 0.0
    assert folder.result["scores"] == {"tumour": pytest.approx(expected, abs=1e-5)}


def test_the_calibrated_slide_score_uses_the_tuned_threshold(slide: Path, tmp_path: Path) -> None:
    predictor = predictor_of()
    folder = scanned(predictor, slide, tmp_path / "a")
    raw = folder.maps["map-s16"].read()[0][1]
    high = raw[raw >= 1.2]
    scores = folder.result["scores"]
    mean = float(high.mean()) if len(high) else 0.0
    assert scores["anomaly"] == pytest.approx(mean, abs=1e-5)
    assert scores["tumour"] == pytest.approx(float(Platt(2.0, -1.0)([mean])[0]), abs=1e-5)


# -- bundles ------------------------------------------------------------------------------------------------


def test_a_bundle_is_self_contained(slide: Path, tmp_path: Path) -> None:
    predictor = predictor_of()
    bundle = save(tmp_path / "bundle", predictor, patients=["p"])
    loaded = load(read_bundle(tmp_path / "bundle"))
    assert loaded.config == predictor.config
    assert loaded.calibration == CALIBRATION
    assert bundle.config["identity"]["weights_sha256"] == loaded.net.teacher.identity()["weights_sha256"]
    original = scanned(predictor, slide, tmp_path / "a").maps["map-s16"].read()[0]
    reloaded = scanned(loaded, slide, tmp_path / "b").maps["map-s16"].read()[0]
    np.testing.assert_array_equal(original, reloaded)
    model = tmp_path / "bundle" / "model.json"
    stored = json.loads(model.read_text())
    for name, damage in (("student", None), ("scaling", None), ("calibration", {"patch": 3})):
        damaged = {key: value for key, value in stored["config"].items() if key != name}
        model.write_text(json.dumps(stored | {"config": damaged | ({name: damage} if damage else {})}))
        with pytest.raises(BundleError, match="lacks a setting"):
            load(read_bundle(tmp_path / "bundle"))
    model.write_text(json.dumps(stored).replace('"tiny"', '"resnet18"'))
    with pytest.raises(ModelError, match="do not fit"):
        load(read_bundle(tmp_path / "bundle"))


# -- invalid options ----------------------------------------------------------------------------------------


def test_unsupported_strides_and_forms_are_rejected(slide: Path, tmp_path: Path) -> None:
    predictor = predictor_of()
    shared = replace(ALL_CELLS, settings={"form": "shared"})
    with pytest.raises(ConfigError, match="does not support stride 12"):
        scan(predictor, METADATA, cohort_of(slide), tmp_path / "a", replace(shared, stride=12), MACHINE)
    with pytest.raises(ConfigError, match="does not support score=max"):
        scan(predictor_of(score="max"), METADATA, cohort_of(slide), tmp_path / "b", shared, MACHINE)
    with pytest.raises(ConfigError, match="not a whole number of patches"):
        scan(predictor, METADATA, cohort_of(slide), tmp_path / "c", shared, replace(MACHINE, cells=3))


def test_the_field_size_depends_on_the_memory() -> None:
    predictor = predictor_of(patch=64, input=64)
    for form in ("exact", "shared"):
        options = ScanOptions(settings={"form": form})
        large = predictor.model.choose_batch(EngineSettings(), 2 << 30, options).cells
        small = predictor.model.choose_batch(EngineSettings(), 4 << 20, options).cells
        assert 1 <= small < large
        with pytest.raises(ConfigError, match="memory ceiling"):
            predictor.model.choose_batch(EngineSettings(), 1 << 16, options)


@pytest.mark.parametrize("every_depth", [True, False])
def test_bundles_with_transformers_keep_their_maps(every_depth: bool, tmp_path: Path) -> None:
    """Bundles of earlier versions, whose identity does not mention depths, took maps from three blocks."""
    frozen = teacher("timm:test_vit", every_depth=every_depth)
    config = Config(**{**SMALL, "teacher": "timm:test_vit", "input": 128})
    predictor = AnomalyPredictor(config, frozen, Student(frozen.student_shape()), CALIBRATION)
    bundle = save(tmp_path / "bundle", predictor, patients=["p"])
    assert ("every_depth" in bundle.config["identity"]) == every_depth
    loaded = load(read_bundle(tmp_path / "bundle"))
    images = torch.randn(1, 3, 128, 128)
    torch.testing.assert_close(list(loaded.net.teacher(images)), list(frozen(images)), rtol=0, atol=0)
    assert loaded.net.teacher.identity() == bundle.config["identity"]
