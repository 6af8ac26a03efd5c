"""Slide scores by forest, and the two ways to findings, through the scanner and out of a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lobule.bundles import Bundle, patient_hash, read_bundle
from lobule.cohort import Case, Cohort
from lobule.errors import BundleError, ConfigError
from lobule.findings import HEATMAP_FEATURES, cell_centre, heatmap_features, non_maximum_suppression
from lobule.methods.scannet import Config, DensePredictor, TrainMachine, forest, load, save, scoring, train
from lobule.methods.scannet.forest import FOREST, grow_forest
from lobule.methods.scannet.scoring import features_of, is_tumour, learn_slide_score
from lobule.results.folder import open_results
from lobule.scanning.contract import ScanOptions
from lobule.scanning.scan import Machine, scan
from lobule.stitch import State
from lobule.tissue import TissueConfig
from lobule.training.patch_sampling import SlidePositions, find_positions
from tests.methods.scannet.support import write_tiny_bundle
from tests.methods.scannet.test_train import MPP, painted
from tests.scanning.support import cohort_of, pixels_of, write_slide

MACHINE = Machine(device="cpu", precision="float32", cells=8, readers=2, lanes=2, channels_last=True)
FACTS = {"method": "scannet", "fingerprint": "f", "classes": ["normal", "tumour"]}
TISSUE = TissueConfig(mpp=8.0)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("s") / "one.tif", pixels_of(520, 430))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A dense bundle whose forest was grown from made-up features."""
    folder = tmp_path_factory.mktemp("b")
    plain = load(read_bundle(write_tiny_bundle(folder / "plain", MPP, stride=16)))
    rng = np.random.default_rng(0)
    rows = np.abs(rng.normal(0, 60, (60, len(HEATMAP_FEATURES)))).round(2)
    config = replace(plain.config, slide_score="forest")
    trees = grow_forest(rows, rows[:, 0] > 40, 12, 0)
    return save(folder / "forest", config, plain.net, plain.scaling, forest=trees)


def test_the_forest_scores_the_map_it_learned_whatever_stride_is_asked_for(
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
        scan(predictor, FACTS, cohort_of(slide), tmp_path / name, options, MACHINE)
        results[name] = open_results(tmp_path / name).case_folder("one")
    assert list(results["own"].maps) == ["map-s16"]
    scores, states = results["own"].maps["map-s16"].read()
    row = heatmap_features(scores[0], states == State.SCORED)
    want = float(predictor.forest.probability(row[None])[0])
    told = {name: folder.result for name, folder in results.items()}
    for name, result in told.items():
        assert result is not None
        assert result["scores"] == {"tumour": pytest.approx(want, abs=1e-9)}, name
        assert result["slide_score"] == "forest"
    own = told["own"]
    assert own is not None
    assert own["highest"]["tumour"] == pytest.approx(float(scores.max()))


def test_a_scan_may_ask_for_the_highest_cell_and_for_no_forest_that_is_not_there(
    bundle: Bundle, slide: Path, tmp_path: Path
) -> None:
    options = ScanOptions(tissue=None, settings={"slide_score": "max", "threshold": 0.45})
    scan(load(bundle), FACTS, cohort_of(slide), tmp_path / "r", options, MACHINE)
    folder = open_results(tmp_path / "r").case_folder("one")
    highest = float(folder.maps["map-s16"].scores().max())
    result = folder.result
    assert result is not None
    assert result["scores"] == {"tumour": pytest.approx(highest)}
    assert 0.45 < folder.findings()["score"].min() < 0.5
    plain = load(read_bundle(write_tiny_bundle(tmp_path / "b", MPP)))
    with pytest.raises(ConfigError, match="no forest"):
        wanted = ScanOptions(tissue=None, settings={"slide_score": "forest"})
        scan(plain, FACTS, cohort_of(slide), tmp_path / "p", wanted, MACHINE)


def test_a_changed_forest_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.path is not None
    copied = tmp_path / "b"
    copied.mkdir()
    for file in bundle.path.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    (copied / FOREST).write_text((copied / FOREST).read_text().replace("1", "2", 1))
    with pytest.raises(BundleError, match="not the one the bundle was made with"):
        load(read_bundle(copied))


def test_maxima_as_ncrf_finds_them(slide: Path, tmp_path: Path) -> None:
    plain = load(read_bundle(write_tiny_bundle(tmp_path / "b", MPP, stride=16)))
    config = replace(plain.config, findings="nms", nms_radius=64, threshold=0.3)
    predictor = DensePredictor(config, plain.net, plain.scaling)
    scan(predictor, FACTS, cohort_of(slide), tmp_path / "r", ScanOptions(tissue=None), MACHINE)
    folder = open_results(tmp_path / "r").case_folder("one")
    scores = folder.maps["map-s16"].scores()
    want = non_maximum_suppression(scores, 16, radius=4, threshold=0.3)
    assert len(want) > 3
    found = folder.findings()
    assert sorted(zip(found["l0_x"], found["l0_y"], strict=True)) == sorted((f.l0_x, f.l0_y) for f in want)
    assert set(found["kind"]) == {"point"}
    best = int(np.argmax(found["score"]))
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    assert (found["l0_x"][best], found["l0_y"][best]) == cell_centre(int(row), int(column), 16)


def test_opening_clears_what_is_thin(slide: Path, tmp_path: Path) -> None:
    plain = load(read_bundle(write_tiny_bundle(tmp_path / "b", MPP, stride=16)))
    cells = {}
    for opening in (0, 1):
        config = replace(plain.config, opening=opening, threshold=0.3)
        place = tmp_path / str(opening)
        predictor = DensePredictor(config, plain.net, plain.scaling)
        scan(predictor, FACTS, cohort_of(slide), place, ScanOptions(tissue=None), MACHINE)
        cells[opening] = open_results(place).case_folder("one").findings()["cells"]
    assert cells[1].sum() < cells[0].sum()
    assert cells[1].min() >= 9 > cells[0].min()


# -- learning -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Five patients with tumour and five without to train on, and one of each to validate."""
    folder = tmp_path_factory.mktemp("slides")
    cases = []
    for number in range(12):
        square = (150 + 40 * number, 200, 300) if number % 2 else None
        split = "val" if number > 9 else "train"
        cases.append(painted(folder, f"s{number}", square, number, split))
    return Cohort(tuple(cases))


@pytest.fixture(scope="module")
def places(cohort: Cohort) -> list[SlidePositions]:
    return [find_positions(case, TISSUE)[0] for case in cohort]


def test_features_are_those_of_a_scan_at_the_own_stride(
    places: list[SlidePositions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = load(read_bundle(write_tiny_bundle(tmp_path / "b", MPP, stride=16)))
    rows, notes = features_of(predictor, "f", places[:2], TISSUE, tmp_path, MACHINE)
    assert not notes
    options = ScanOptions(tissue=TISSUE, stride=16)
    scan(predictor, FACTS, Cohort((places[1].case,)), tmp_path / "r", options, MACHINE)
    (reader,) = open_results(tmp_path / "r").case_folder("s1").maps.values()
    scores, states = reader.read()
    want = heatmap_features(scores[0], states == State.SCORED)
    assert rows["s1"].tolist() == want.tolist()
    assert not (tmp_path / "slide-score").exists()
    monkeypatch.setattr(scoring, "scan", None)  # what was done is not done again
    again, _ = features_of(predictor, "f", places[:2], TISSUE, tmp_path, MACHINE)
    assert again["s1"].tolist() == want.tolist()


def test_what_is_learned_is_judged_on_patients_unseen(
    places: list[SlidePositions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)

    def made(predictor: object, fingerprint: str, slides: list[SlidePositions], *_: object) -> object:
        rows = {p.case.id: np.abs(rng.normal(5 + 50 * bool(is_tumour(p)), 3, 31)).round(2) for p in slides}
        rows.pop("s3")
        return rows, ["s3: not used for the slide score: it burned"]

    predictor = load(read_bundle(write_tiny_bundle(tmp_path / "b", MPP)))
    how = (TISSUE, tmp_path, MACHINE)
    monkeypatch.setattr(scoring, "features_of", made)
    learned = learn_slide_score(predictor, "f", places, *how, trees=20, seed=0)
    assert learned.fitted is not None
    assert learned.cases == tuple(f"s{number}" for number in range(12) if number != 3)
    assert learned.metrics()["slide_auc_out_of_fold"] == 1.0
    assert learned.notes == ("s3: not used for the slide score: it burned",)
    few = learn_slide_score(predictor, "f", places[:9], *how, trees=20, seed=0)
    assert few.fitted is None
    assert few.metrics() == {}
    assert "4 patients with tumour and 5 without are too few for a forest" in few.notes[-1]
    one_class = learn_slide_score(predictor, "f", places[::2], *how, trees=20, seed=0)
    assert "0 patients with tumour" in one_class.notes[-1]


def test_the_label_decides_and_else_the_outlines(places: list[SlidePositions]) -> None:
    def told(places: SlidePositions, label: str | None) -> bool | None:
        return is_tumour(replace(places, case=replace(places.case, label=label)))

    normal, tumour = places[0], places[1]
    assert [told(tumour, label) for label in ("tumor", "Normal", None)] == [True, False, True]
    assert [told(normal, label) for label in ("normal", "macro")] == [False, True]
    assert is_tumour(replace(normal, case=Case("x", "p", "slide", normal.case.path, mpp=MPP))) is None


def test_a_training_ends_with_a_forest(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FEWEST", "FOLDS"):
        monkeypatch.setattr(forest, name, 3)
    cohort = cohort.where(lambda case: case.id in ("s0", "s1", "s2", "s3", "s10", "s11"))
    config = Config(
        trunk="tiny", mpp=MPP, steps=3, batch=4, rate=0.03, evaluate_every=3, val_patches=8, rounds=0,
        slide_score="forest", trees=9,
    )  # fmt: skip
    machine = TrainMachine(device="cpu", precision="float32", workers=1)
    bundle = train(config, cohort, tmp_path / "b", tissue=TISSUE, machine=machine)
    assert 0 <= bundle.metrics["slide_auc_out_of_fold"] <= 1
    assert set(bundle.metrics["slide_scores_out_of_fold"]) == {case.id for case in cohort}
    # the forest learned from those who validated too, so nobody may be judged on them
    assert set(bundle.patients) == {patient_hash(case.patient) for case in cohort}
    predictor = load(bundle)
    assert predictor.forest is not None
    assert len(predictor.forest.roots) == 9


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in ({"findings": "boxes"}, {"slide_score": "mean"}, {"trees": 0}):
        with pytest.raises(ConfigError):
            Config(**wrong)
