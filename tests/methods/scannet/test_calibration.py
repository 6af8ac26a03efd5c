"""Cell scores are calibrated on validation slides, and the threshold for findings is chosen there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit

from lobule.bundles import Bundle, patient_hash, read_bundle, write_bundle
from lobule.cohort import Cohort
from lobule.errors import BundleError
from lobule.methods import load
from lobule.methods.scannet.calibration import (
    MAX_NORMAL_ABOVE,
    CellCalibration,
    ValidationCells,
    calibrate_cells,
    choose_threshold,
    fit_cells,
)
from lobule.methods.scannet.train import train
from lobule.results.folder import CaseFolder, open_results
from lobule.scanning.scan import Machine, scan
from lobule.stitch import State
from lobule.training.patch_sampling import NEITHER, NORMAL, TUMOUR, Runs, find_positions
from lobule.training.training_scan import TrainingScan
from tests.methods.scannet.support import write_tiny_bundle
from tests.methods.scannet.test_train import CONFIG, MACHINE, TISSUE, painted

SETTINGS = replace(CONFIG, rounds=0)


def simulated(
    slope: float, intercept: float, shifts: tuple[float, ...], count: int = 3000
) -> ValidationCells:
    """Cells whose true probability is a logistic function of their score's logit, on different slides."""
    rng = np.random.default_rng(4)
    logits = np.concatenate([rng.normal(shift, 2, count) for shift in shifts])
    tumour = rng.random(len(logits)) < expit(slope * logits + intercept)
    slides = np.repeat(np.arange(len(shifts)), count)
    return ValidationCells(expit(logits), tumour, slides, tuple(f"p{n}" for n in range(len(shifts))))


# -- the fit ------------------------------------------------------------------------------------------------


def test_the_fit_recovers_a_known_miscalibration() -> None:
    cells = simulated(0.6, -1.2, (-1.0, 0.0, 1.0))
    calibration, notes = fit_cells(cells)
    assert calibration is not None
    assert notes == []
    assert calibration.fit.slope == pytest.approx(0.6, abs=0.05)
    assert calibration.fit.intercept == pytest.approx(-1.2, abs=0.08)
    error = calibration.report["expected_error"]
    assert error["before"] > 0.1
    assert error["after"] < 0.02
    assert error["other_patients"] < 0.03
    calibrated = calibration.from_uncalibrated(cells.scores)
    assert (np.argsort(calibrated, kind="stable") == np.argsort(cells.scores, kind="stable")).all()
    np.testing.assert_allclose(calibration.to_uncalibrated(calibrated), cells.scores, atol=1e-9)


def test_the_threshold_has_the_best_dice_that_the_normal_cells_of_every_slide_allow() -> None:
    """Compared with a search over all scores as the threshold."""
    for slope in (0.5, 1.0, 6.0):
        cells = simulated(slope, -0.5, (-2.0, 0.0, 2.0), count=150)

        def dice(threshold: float, cells: ValidationCells = cells) -> float:
            above = cells.scores > threshold
            return float(2 * (above & cells.tumour).sum() / (above.sum() + cells.tumour.sum()))

        def allowed(threshold: float, cells: ValidationCells = cells) -> bool:
            shares = [
                (cells.scores[(cells.slides == n) & ~cells.tumour] > threshold).mean() for n in range(3)
            ]
            return max(shares) <= MAX_NORMAL_ABOVE

        chosen = choose_threshold(cells.scores, cells)
        assert allowed(chosen)
        assert dice(chosen) == pytest.approx(max(dice(t) for t in np.unique(cells.scores) if allowed(t)))


def test_the_slide_with_the_highest_normal_scores_limits_the_threshold() -> None:
    cells = simulated(1.0, -1.0, (-3.0, 2.0), count=2000)
    chosen = choose_threshold(cells.scores, cells)
    stained = cells.scores[(cells.slides == 1) & ~cells.tumour]
    assert (stained > chosen).mean() <= 0.05
    pooled = cells.scores[~cells.tumour]
    assert chosen > np.quantile(pooled, 0.95)


def test_cells_of_one_class_or_of_the_wrong_order_are_not_calibrated() -> None:
    cells = simulated(1.0, 0.0, (0.0,), count=400)
    none, notes = fit_cells(replace(cells, tumour=np.full(400, True)))
    assert none is None
    assert "lack cells of normal tissue" in notes[0]
    assert "stays 0.5" in notes[0]
    none, notes = fit_cells(replace(cells, tumour=~cells.tumour))
    assert none is None
    assert "does not score higher" in notes[0]


def test_normal_slides_alone_choose_the_threshold_and_leave_the_scores() -> None:
    cells = simulated(1.0, -1.0, (-3.0, 2.0), count=2000)
    normal = replace(cells, scores=cells.scores[~cells.tumour], slides=cells.slides[~cells.tumour],
                     tumour=np.zeros(int((~cells.tumour).sum()), bool))  # fmt: skip
    calibration, notes = fit_cells(normal)
    assert calibration is not None
    np.testing.assert_allclose(calibration.from_uncalibrated(normal.scores), normal.scores, atol=1e-9)
    shares = [(normal.scores[normal.slides == n] > calibration.threshold).mean() for n in range(2)]
    assert 0.045 < max(shares) <= MAX_NORMAL_ABOVE
    assert calibration.report["tumour_above"] is None
    assert "lack cells of tumour" in notes[0]
    low = replace(normal, scores=normal.scores / 100)
    faint, _ = fit_cells(low)
    assert faint is not None
    assert faint.threshold == 0.5


def test_a_threshold_that_most_tumour_cells_miss_is_reported() -> None:
    """Tumour cells score barely higher than the normal cells of the slide with an unusual stain."""
    cells = simulated(0.2, -1.0, (-4.0, 4.0), count=2000)
    calibration, notes = fit_cells(cells)
    assert calibration is not None
    share = (cells.scores > calibration.to_uncalibrated(calibration.threshold))[cells.tumour].mean()
    assert share < 0.1
    assert f"only {share:.0%} of the tumour cells" in notes[0]


def test_a_threshold_that_the_user_set_is_not_replaced() -> None:
    calibration, notes = fit_cells(simulated(1.0, 0.0, (0.0, 1.0)), threshold=0.83)
    assert calibration is not None
    assert calibration.threshold == 0.83
    assert notes == ["the threshold for findings was set to 0.83, so none was chosen"]


@pytest.mark.parametrize(
    "damage",
    [{"fit": None}, {"fit": {"kind": "platt", "slope": -1, "intercept": 0}}, {"threshold": "high"},
     {"threshold": float("nan")}, {"fit": {"kind": "isotonic", "slope": 1, "intercept": 0}}],
)  # fmt: skip
def test_a_damaged_calibration_is_an_error(damage: dict[str, Any]) -> None:
    sound = {"fit": {"kind": "platt", "slope": 1.0, "intercept": 0.0}, "threshold": 0.5}
    CellCalibration.from_dict(sound)
    with pytest.raises(BundleError, match="cell calibration"):
        CellCalibration.from_dict(sound | damage)


# -- the cells ----------------------------------------------------------------------------------------------


def test_many_cells_are_looked_up_as_one_by_one() -> None:
    mask = np.random.default_rng(0).random((9, 11)) < 0.4
    every = np.arange(-3, mask.size + 3)
    for runs in (Runs.of(mask), Runs.of(np.zeros((2, 2), np.bool_))):
        assert runs.contains(every).tolist() == [int(cell) in runs for cell in every]


def test_certain_classes_are_those_of_the_outlines_and_leave_out_borders(tmp_path: Path) -> None:
    case = painted(tmp_path, "s", (200, 200, 360), 1, "val")
    positions, _ = find_positions(case, TISSUE)
    points = np.stack(np.meshgrid(np.arange(5, 1100, 10), np.arange(5, 800, 10)), axis=-1).reshape(-1, 2)
    classes = positions.certain_classes(points.astype(np.float64))
    inside = ((points > 200) & (points < 560)).all(axis=1)
    assert inside[classes == TUMOUR].all()
    assert not inside[classes == NORMAL].any()
    assert (classes == TUMOUR).sum() > 0.6 * inside.sum()
    assert (classes == NORMAL).sum() > 1000
    borders = np.abs(points - 200).min(axis=1) < 4
    assert (classes[borders & (points >= 200).all(axis=1) & (points < 560).all(axis=1)] == NEITHER).all()
    outside = positions.certain_classes(np.array([[1e6, 10.0], [-5.0, 10.0]]))
    assert outside.tolist() == [NEITHER, NEITHER]
    partly, _ = find_positions(replace(case, attributes={"exhaustive": "false"}), TISSUE)
    assert set(partly.certain_classes(points.astype(np.float64)).tolist()) == {NEITHER, TUMOUR}


def test_a_slide_that_could_not_be_scanned_is_tried_again(tmp_path: Path) -> None:
    """The first calibration misses one of two slides; after the slide is back, it is used."""
    cases = [painted(tmp_path, name, (200, 200, 360), seed, "val") for seed, name in enumerate("ab", start=1)]
    slides = [find_positions(case, TISSUE)[0] for case in cases]
    predictor = load(read_bundle(write_tiny_bundle(tmp_path / "bundle", mpp=cases[0].mpp or 1.0)))
    slide, hidden = Path(str(cases[1].path)), tmp_path / "hidden.tif"
    folder = tmp_path / "calibration"

    def notes_of_calibration() -> list[str]:
        folder.mkdir(exist_ok=True)
        machine = Machine(device="cpu", precision="float32", cells=8, channels_last=True)
        slide_scan = TrainingScan(predictor, "scannet", "f", folder, TISSUE, machine)
        return calibrate_cells(slide_scan, slides)[1]

    slide.rename(hidden)
    assert any("b: not used for the calibration" in note for note in notes_of_calibration())
    hidden.rename(slide)
    assert not any("not used" in note for note in notes_of_calibration())
    slide.rename(hidden)
    assert not any("not used" in note for note in notes_of_calibration()), "a finished one is read"


# -- training and scanning ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("calibrated")
    return Cohort(
        (
            painted(folder, "a", (200, 200, 360), 1, "train"),
            painted(folder, "c", None, 3, "train", alike=(400, 250, 260)),
            painted(folder, "d", (300, 150, 320), 4, "val"),
            painted(folder, "e", (500, 220, 340), 5, "test", alike=(150, 200, 200)),
        )
    )


@pytest.fixture(scope="module")
def bundle(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return train(SETTINGS, cohort, tmp_path_factory.mktemp("bundle"), tissue=TISSUE, machine=MACHINE)


def scanned(bundle: Bundle, cohort: Cohort, folder: Path) -> CaseFolder:
    metadata = {"method": "scannet", "fingerprint": bundle.fingerprint, "classes": list(bundle.classes)}
    machine = Machine(device="cpu", precision="float32", cells=8, channels_last=True)
    assert not scan(load(bundle), metadata, cohort.split("test"), folder, machine=machine).failed
    return open_results(folder).case_folder("e")


def test_a_training_records_the_calibration_the_threshold_and_its_error(
    bundle: Bundle, cohort: Cohort
) -> None:
    cells = read_bundle(bundle.path or "").calibration["cells"]
    assert cells["fit"]["kind"] == "platt"
    assert cells["fit"]["slope"] > 0
    assert 0 < cells["threshold"] < 1
    assert cells["expected_error"]["after"] < 0.1
    assert cells["slides"] == 1
    assert 0 < cells["tumour_cells"] < cells["cells"]
    assert cells["normal_above"] <= MAX_NORMAL_ABOVE
    calibrating = {patient_hash(case.patient) for case in cohort.split("val")}
    assert calibrating <= set(bundle.patients)


def test_validation_slides_without_tumour_choose_the_threshold_only(cohort: Cohort, tmp_path: Path) -> None:
    normal = painted(tmp_path, "n", None, 6, "val", alike=(150, 200, 200))
    cases = (*cohort.split("train"), normal)
    bundle = train(SETTINGS, Cohort(cases), tmp_path / "b", tissue=TISSUE, machine=MACHINE)
    cells = bundle.calibration["cells"]
    assert cells["fit"] == {"kind": "platt", "slope": 1.0, "intercept": 0.0}
    assert cells["threshold"] >= 0.5
    assert cells["tumour_cells"] == 0
    assert patient_hash(normal.patient) in bundle.patients


def test_a_scan_uses_the_calibrated_scores_and_the_chosen_threshold(
    bundle: Bundle, cohort: Cohort, tmp_path: Path
) -> None:
    plain = write_bundle(
        tmp_path / "plain", replace(bundle, calibration={}, files={}, path=None), bundle.weights()
    )
    folders = [scanned(one, cohort, tmp_path / name) for one, name in ((plain, "p"), (bundle, "c"))]
    (uncalibrated, states), (calibrated, _) = (next(iter(f.maps.values())).read() for f in folders)
    cells = bundle.calibration["cells"]
    raw = uncalibrated[0][states == State.SCORED].astype(np.float64)
    middle = (raw > 1e-4) & (raw < 1 - 1e-4)
    assert middle.sum() > 100
    expected = expit(cells["fit"]["slope"] * logit(raw[middle]) + cells["fit"]["intercept"])
    np.testing.assert_allclose(calibrated[0][states == State.SCORED][middle], expected, atol=2e-3)
    for folder, threshold in zip(folders, (0.5, cells["threshold"]), strict=True):
        scores, states = next(iter(folder.maps.values())).read()
        above = (scores[0][states == State.SCORED] > threshold).sum()
        assert folder.findings()["cells"].sum() == above > 0
    results = [folder.result or {} for folder in folders]
    assert "finding_threshold" not in results[0]
    assert results[1]["finding_threshold"] == cells["threshold"]


def test_without_validation_nothing_is_calibrated_and_a_note_says_so(cohort: Cohort, tmp_path: Path) -> None:
    bundle = train(SETTINGS, cohort, tmp_path, tissue=TISSUE, machine=MACHINE, val=None)
    assert bundle.calibration == {}
    notes = [note for note in bundle.provenance["notes"] if "not calibrated" in note]
    assert len(notes) == 1
    assert notes[0].endswith("threshold for findings stays 0.5.")
