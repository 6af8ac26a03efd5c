"""Slide scores by a forest and the two kinds of findings, in scans and after a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lobule.bundles import Bundle, patient_hash, read_bundle
from lobule.cohort import Case, Cohort
from lobule.errors import BundleError, ConfigError
from lobule.findings import HEATMAP_FEATURES, cell_centre, heatmap_features, non_maximum_suppression
from lobule.methods.scannet import Config, DensePredictor, forest, load, save, scoring
from lobule.methods.scannet.forest import FOREST, grow_forest
from lobule.methods.scannet.scoring import features_of, is_tumour, learn_slide_score
from lobule.methods.scannet.train import train
from lobule.results.folder import open_results
from lobule.scanning.contract import ScanOptions
from lobule.scanning.scan import Machine, scan
from lobule.stitch import State
from lobule.tissue import TissueConfig
from lobule.training import training_scan
from lobule.training.fitting import TrainMachine
from lobule.training.patch_sampling import SlidePositions, find_positions
from lobule.training.training_scan import TrainingScan
from tests.methods.scannet.support import write_tiny_bundle
from tests.methods.scannet.test_train import MPP, painted
from tests.scanning.support import cohort_of, pixels_of, write_slide

MACHINE = Machine(device="cpu", precision="float32", cells=8, readers=2, replicas=2, channels_last=True)
METADATA = {"method": "scannet", "fingerprint": "f", "classes": ["normal", "tumour"]}
TISSUE = TissueConfig(mpp=8.0)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("s") / "one.tif", pixels_of(520, 430))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A dense bundle whose forest was trained on synthetic features."""
    folder = tmp_path_factory.mktemp("b")
    plain = load(read_bundle(write_tiny_bundle(folder / "plain", MPP, stride=16)))
    rng = np.random.default_rng(0)
    rows = np.abs(rng.normal(0, 60, (60, len(HEATMAP_FEATURES)))).round(2)
    config = replace(plain.config, slide_score="forest")
    trees = grow_forest(rows, rows[:, 0] > 40, 12, 0)
    return save(folder / "forest", config, plain.model.net, plain.model.scaling, forest=trees)


def test_the_forest_scores_the_map_at_its_training_stride(
    bundle: Bundle, slide: Path, tmp_path: Path
) -> None:
    predictor = load(bundle)
    assert predictor.forest is not None
    results = {}
    for name, options in (
        ("own", ScanOptions(tissue=None)),
        ("coarse", ScanOptions(tissue=None, stride=32)),
        ("refined", ScanOptions(tissue=None, refine=True, stride=8)),
    ):
        scan(predictor, METADATA, cohort_of(slide), tmp_path / name, options, MACHINE)
        results[name] = open_results(tmp_path / name).case_folder("one")
    assert list(results["own"].maps) == ["map-s16"]
    scores, states = results["own"].maps["map-s16"].read()
    row = heatmap_features(scores[0], states == State.SCORED)
    expected = float(predictor.forest.probability(row[None])[0])
    result_of = {name: folder.result for name, folder in results.items()}
    for name, result in result_of.items():
        assert result is not None
        assert result["scores"] == {"tumour": pytest.approx(expected, abs=1e-9)}, name
        assert result["slide_score"] == "forest"
    default_result = result_of["own"]
    assert default_result is not None
    assert default_result["highest"]["tumour"] == pytest.approx(float(scores.max()))


def test_scan_option_for_the_slide_score(bundle: Bundle, slide: Path, tmp_path: Path) -> None:
    options = ScanOptions(tissue=None, settings={"slide_score": "max", "threshold": 0.45})
    scan(load(bundle), METADATA, cohort_of(slide), tmp_path / "r", options, MACHINE)
    folder = open_results(tmp_path / "r").case_folder("one")
    highest = float(folder.maps["map-s16"].scores().max())
    result = folder.result
    assert result is not None
    assert result["scores"] == {"tumour": pytest.approx(highest)}
    assert 0.45 < folder.findings()["score"].min() < 0.5
    plain = load(read_bundle(write_tiny_bundle(tmp_path / "b", MPP)))
    with pytest.raises(ConfigError, match="does not contain a forest"):
        forest_options = ScanOptions(tissue=None, settings={"slide_score": "forest"})
        scan(plain, METADATA, cohort_of(slide), tmp_path / "p", forest_options, MACHINE)


def test_a_modified_forest_is_rejected(bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.path is not None
    copied = tmp_path / "b"
    copied.mkdir()
    for file in bundle.path.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    (copied / FOREST).write_text((copied / FOREST).read_text().replace("1", "2", 1))
    with pytest.raises(BundleError, match="not the one the bundle was made with"):
        load(read_bundle(copied))


def test_findings_by_non_maximum_suppression(slide: Path, tmp_path: Path) -> None:
    plain = load(read_bundle(write_tiny_bundle(tmp_path / "b", MPP, stride=16)))
    config = replace(plain.config, findings="nms", nms_radius=64, threshold=0.3)
    predictor = DensePredictor(config, plain.model.net, plain.model.scaling)
    scan(predictor, METADATA, cohort_of(slide), tmp_path / "r", ScanOptions(tissue=None), MACHINE)
    folder = open_results(tmp_path / "r").case_folder("one")
    scores = folder.maps["map-s16"].scores()
    expected = non_maximum_suppression(scores, 16, radius=4, threshold=0.3)
    assert len(expected) > 3
    findings = folder.findings()
    assert sorted(zip(findings["l0_x"], findings["l0_y"], strict=True)) == sorted(
        (f.l0_x, f.l0_y) for f in expected
    )
    assert set(findings["kind"]) == {"point"}
    best = int(np.argmax(findings["score"]))
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    assert (findings["l0_x"][best], findings["l0_y"][best]) == cell_centre(int(row), int(column), 16)


def test_opening_removes_thin_components(slide: Path, tmp_path: Path) -> None:
    plain = load(read_bundle(write_tiny_bundle(tmp_path / "b", MPP, stride=16)))
    cells = {}
    for opening in (0, 1):
        config = replace(plain.config, opening=opening, threshold=0.3)
        folder = tmp_path / str(opening)
        predictor = DensePredictor(config, plain.model.net, plain.model.scaling)
        scan(predictor, METADATA, cohort_of(slide), folder, ScanOptions(tissue=None), MACHINE)
        cells[opening] = open_results(folder).case_folder("one").findings()["cells"]
    assert cells[1].sum() < cells[0].sum()
    assert cells[1].min() >= 9 > cells[0].min()


# -- training -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Five patients with tumour and five without for training, and one of each for validation."""
    folder = tmp_path_factory.mktemp("slides")
    cases = []
    for number in range(12):
        square = (150 + 40 * number, 200, 300) if number % 2 else None
        split = "val" if number > 9 else "train"
        cases.append(painted(folder, f"s{number}", square, number, split))
    return Cohort(tuple(cases))


@pytest.fixture(scope="module")
def slides(cohort: Cohort) -> list[SlidePositions]:
    return [find_positions(case, TISSUE)[0] for case in cohort]


def test_features_are_computed_at_the_default_stride(
    slides: list[SlidePositions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = load(read_bundle(write_tiny_bundle(tmp_path / "b", MPP, stride=16)))
    slide_scan = TrainingScan(predictor, "scannet", "f", tmp_path, TISSUE, MACHINE)
    rows, notes = features_of(slide_scan, slides[:2])
    assert not notes
    options = ScanOptions(tissue=TISSUE, stride=16)
    scan(predictor, METADATA, Cohort((slides[1].case,)), tmp_path / "r", options, MACHINE)
    (reader,) = open_results(tmp_path / "r").case_folder("s1").maps.values()
    scores, states = reader.read()
    expected = heatmap_features(scores[0], states == State.SCORED)
    assert rows["s1"].tolist() == expected.tolist()
    assert not (tmp_path / "scan").exists()
    monkeypatch.setattr(training_scan, "scan", None)  # a second scan would fail
    again, _ = features_of(slide_scan, slides[:2])
    assert again["s1"].tolist() == expected.tolist()


def test_slide_scores_are_evaluated_on_unseen_patients(
    slides: list[SlidePositions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)

    def synthetic_features(_: object, slides: list[SlidePositions]) -> object:
        rows = {p.case.id: np.abs(rng.normal(5 + 50 * bool(is_tumour(p)), 3, 31)).round(2) for p in slides}
        rows.pop("s3")
        return rows, ["s3: not used for the slide score: the file is damaged"]

    predictor = load(read_bundle(write_tiny_bundle(tmp_path / "b", MPP)))
    slide_scan = TrainingScan(predictor, "scannet", "f", tmp_path, TISSUE, MACHINE)
    monkeypatch.setattr(scoring, "features_of", synthetic_features)
    learned = learn_slide_score(slide_scan, slides, trees=20, seed=0)
    assert learned.fitted is not None
    assert learned.cases == tuple(f"s{number}" for number in range(12) if number != 3)
    assert learned.metrics()["slide_auc_out_of_fold"] == 1.0
    assert learned.notes == ("s3: not used for the slide score: the file is damaged",)
    few = learn_slide_score(slide_scan, slides[:9], trees=20, seed=0)
    assert few.fitted is None
    assert few.metrics() == {}
    assert "4 patients with tumour and 5 without are too few for a forest" in few.notes[-1]
    one_class = learn_slide_score(slide_scan, slides[::2], trees=20, seed=0)
    assert "0 patients with tumour" in one_class.notes[-1]


def test_is_tumour_prefers_the_label_to_the_outlines(slides: list[SlidePositions]) -> None:
    def is_tumour_with_label(positions: SlidePositions, label: str | None) -> bool | None:
        return is_tumour(replace(positions, case=replace(positions.case, label=label)))

    normal, tumour = slides[0], slides[1]
    assert [is_tumour_with_label(tumour, label) for label in ("tumor", "Normal", None)] == [True, False, True]
    assert [is_tumour_with_label(normal, label) for label in ("normal", "macro")] == [False, True]
    assert is_tumour(replace(normal, case=Case("x", "p", "slide", normal.case.path, mpp=MPP))) is None


def test_training_with_a_forest(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FEWEST", "FOLDS"):
        monkeypatch.setattr(forest, name, 3)
    cohort = cohort.where(lambda case: case.id in ("s0", "s1", "s2", "s3", "s10", "s11"))
    config = Config(
        trunk="tiny", weights="random", mpp=MPP, steps=3, batch=4, rate=0.03, evaluate_every=3, val_patches=8,
        rounds=0, slide_score="forest", trees=9,
    )  # fmt: skip
    machine = TrainMachine(device="cpu", precision="float32", workers=1)
    bundle = train(config, cohort, tmp_path / "b", tissue=TISSUE, machine=machine)
    assert 0 <= bundle.metrics["slide_auc_out_of_fold"] <= 1
    assert set(bundle.metrics["slide_scores_out_of_fold"]) == {case.id for case in cohort}
    # The forest also learned from the validation slides, so their patients count as training patients.
    assert set(bundle.patients) == {patient_hash(case.patient) for case in cohort}
    predictor = load(bundle)
    assert predictor.forest is not None
    assert len(predictor.forest.roots) == 9


def test_invalid_settings_are_rejected() -> None:
    for wrong in ({"findings": "boxes"}, {"slide_score": "mean"}, {"trees": 0}):
        with pytest.raises(ConfigError):
            Config(**wrong)
