"""Training on painted images: folds, out-of-fold predictions, the cache, resuming, and what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lobule.bundles import Bundle, patient_hash, read_bundle
from lobule.cohort import Case, Cohort
from lobule.errors import BundleError, CaseError, ConfigError, Leakage
from lobule.methods.rakhlin import Config, describe, load, split_for_training
from lobule.methods.rakhlin.boosting import BoostingConfig
from lobule.methods.rakhlin.config import BACH
from lobule.methods.rakhlin.features import TABLE
from lobule.methods.rakhlin.folds import folds_of, read_folds
from lobule.methods.rakhlin.train import train
from lobule.results.folder import open_results
from tests.methods.rakhlin.support import CONFIG, MACHINE, cohort_in, painted
from tests.scanning.support import tree
from tests.training.interrupting import InterruptingProgress


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return cohort_in(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def trained(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    config = replace(CONFIG, calibration="platt")
    return train(config, cohort, tmp_path_factory.mktemp("trained") / "B", machine=MACHINE)


def rows_of(bundle: Bundle) -> list[dict[str, str]]:
    assert bundle.path is not None
    with (bundle.path / "training/out_of_fold.csv").open() as lines:
        return list(csv.DictReader(lines))


def descriptors(bundle: Bundle, cohort: Cohort, set_name: str) -> dict[bytes, Any]:
    """What the cache holds, by the content of the image."""
    assert bundle.path is not None
    (encoder_folder,) = (bundle.path / "features").iterdir()
    rows_by_content = {}
    for folder in open_results(encoder_folder).cases():
        path = next(iter(folder.result["input"]))  # type: ignore[index]
        rows_by_content[Path(path).read_bytes()] = folder.tables[TABLE].read([set_name])[set_name]
    return rows_by_content


def test_it_learns_and_says_how_well(trained: Bundle, cohort: Cohort) -> None:
    metrics = trained.metrics
    assert trained.classes == BACH
    assert metrics["accuracy"] > 0.7
    assert metrics["accuracy_interval"]["low"] < metrics["accuracy"] < metrics["accuracy_interval"]["high"]
    assert np.sum(metrics["confusion"]["counts"]) == len(cohort)
    assert metrics["carcinoma"]["auc"] > 0.8
    assert set(metrics["sets"]) == {"squeezenet1_1_features_3-40", "squeezenet1_1_features_3-60"}
    assert trained.patients == tuple(sorted(patient_hash(f"p{n}") for n in range(8)))
    assert "squeezenet1_1" not in json.dumps(sorted(trained.files)).replace("squeezenet1_1_features_3-", "")


def test_an_image_is_predicted_by_the_models_that_left_it_out(trained: Bundle, cohort: Cohort) -> None:
    predictor = load(trained)
    name = "squeezenet1_1_features_3-60"
    cached = descriptors(trained, cohort, name)
    rows = [row for row in rows_of(trained) if row["set"] == name]
    assert len(rows) == len(cohort)
    for row in rows[:5]:
        case = cohort[row["case"]]
        assert case.path is not None
        mine = cached[Path(case.path).read_bytes()]
        chosen = [predictor.model.forests.of_set[name][2 * seed + int(row["fold"])] for seed in range(2)]
        expected = np.mean([forest.predict(mine) for forest in chosen], axis=(0, 1))
        np.testing.assert_allclose([float(row[label]) for label in BACH], expected, atol=1e-6)


def test_the_fusion_is_the_mean_of_its_sets(trained: Bundle) -> None:
    rows = rows_of(trained)
    sets = {row["set"] for row in rows} - {"fusion"}
    for case in {row["case"] for row in rows}:
        of = {row["set"]: [float(row[label]) for label in BACH] for row in rows if row["case"] == case}
        np.testing.assert_allclose(of["fusion"], np.mean([of[name] for name in sets], axis=0), atol=2e-6)


def test_patients_stay_together_and_folds_are_saved(trained: Bundle, cohort: Cohort) -> None:
    assert trained.path is not None
    folds = read_folds(trained.path / "training/folds.csv", cohort, 2)
    folds_of_patient = {case.patient: set[int]() for case in cohort}
    for case, fold in zip(cohort, folds.tolist(), strict=True):
        folds_of_patient[case.patient].add(fold)
    assert {len(where) for where in folds_of_patient.values()} == {1}


def test_attributions_point_at_sets_and_layers(trained: Bundle) -> None:
    attributions = trained.metrics["attributions"]
    assert attributions["predictions"] == 2 * 16
    assert sum(attributions["share_of_crop_size"].values()) == pytest.approx(1)
    assert attributions["share_of_encoder"] == {CONFIG.encoders[0]: pytest.approx(1)}
    for name, layers in attributions["layers"].items():
        assert sum(layers.values()) == pytest.approx(attributions["sets"][name])


def test_calibration_is_kept_in_the_bundle(trained: Bundle) -> None:
    calibrator = load(trained).model.calibrator
    assert calibrator is not None
    fused = np.array([[0.4, 0.3, 0.2, 0.1]])
    again = calibrator(fused)
    assert again.sum() == pytest.approx(1)
    assert np.abs(again - fused).max() > 1e-3
    assert {"before", "after"} <= set(trained.metrics["calibration"])


def test_nothing_in_a_bundle_is_pickled(trained: Bundle) -> None:
    assert {Path(name).suffix for name in trained.files} == {".txt", ".safetensors"}
    assert len([name for name in trained.files if name.endswith(".txt")]) == 2 * 2 * 2


def test_other_boosting_parameters_describe_nothing_again(
    cohort: Cohort, trained: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("an image was described again")

    assert trained.path is not None
    config = replace(CONFIG, features=str(trained.path / "features"))
    monkeypatch.setattr(describe.Describer, "describe", refused)
    other = replace(config, boosting=replace(CONFIG.boosting, rounds=3, early_stopping=2))
    renamed = Cohort(tuple(replace(case, id=f"other-{case.id}") for case in cohort))
    bundle = train(other, renamed, tmp_path / "B", machine=MACHINE)
    assert not bundle.provenance["lost"]
    assert bundle.fingerprint != trained.fingerprint


def test_a_damaged_model_is_trained_again(cohort: Cohort, trained: Bundle, tmp_path: Path) -> None:
    config, out = replace(CONFIG, calibration="platt"), tmp_path / "B"
    with pytest.raises(KeyboardInterrupt):
        stop = InterruptingProgress("boosting squeezenet1_1_features_3-60")
        train(config, cohort, out, machine=MACHINE, progress=stop)
    models = out / "training/models"
    assert len(list(models.iterdir())) == 4
    cut = sorted(models.iterdir())[0]
    cut.write_text(cut.read_text()[:500])  # a disk that filled up
    bundle = train(config, cohort, out, machine=MACHINE, resume=True)
    assert bundle.fingerprint == trained.fingerprint
    assert trained.path is not None
    trees = [{n: b for n, b in tree(folder).items() if "/" not in n} for folder in (out, trained.path)]
    assert trees[0] == trees[1]


def test_models_of_images_that_were_exchanged_are_made_again(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    cohort = cohort_in(tmp_path / "images")
    stop = InterruptingProgress("boosting squeezenet1_1_features_3-60")
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, cohort, tmp_path / "B", machine=MACHINE, progress=stop)
    for number, case in enumerate(cohort):
        assert case.path is not None
        Image.fromarray(painted(case.label or "", 500 + number)).save(case.path)
    bundle = train(CONFIG, cohort, tmp_path / "B", machine=MACHINE, resume=True)
    assert bundle.fingerprint == train(CONFIG, cohort, tmp_path / "whole", machine=MACHINE).fingerprint


def test_folds_of_an_earlier_training_are_taken(cohort: Cohort, trained: Bundle, tmp_path: Path) -> None:
    assert trained.path is not None
    table = trained.path / "training/folds.csv"
    config = replace(CONFIG, folds_file=str(table), classes=BACH)
    labels = np.array([BACH.index(case.label or "") for case in cohort])
    folds = folds_of(config, cohort, labels, seed=99)
    np.testing.assert_array_equal(folds, read_folds(table, cohort, 2))
    lines = table.read_text().splitlines()
    flipped = lines[1][:-1] + str(1 - int(lines[1][-1]))
    (tmp_path / "torn.csv").write_text("\n".join([lines[0], flipped, *lines[2:]]))
    with pytest.raises(Leakage, match="in several folds"):
        read_folds(tmp_path / "torn.csv", cohort, 2)
    (tmp_path / "few.csv").write_text("\n".join(lines[:4]))
    with pytest.raises(ConfigError, match="13 cases have no fold"):
        read_folds(tmp_path / "few.csv", cohort, 2)
    with pytest.raises(ConfigError, match=r"boosting\.folds=2"):
        read_folds(table, cohort, 1)


def test_a_class_with_fewer_images_than_folds_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    config = replace(CONFIG, boosting=replace(CONFIG.boosting, folds=5))
    with pytest.raises(
        ConfigError, match=r"'normal' has fewer images than there are folds.*boosting\.folds=4"
    ):
        train(config, cohort, tmp_path / "B", machine=MACHINE)


def test_a_class_of_a_single_patient_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    lonely = Cohort(
        tuple(replace(case, patient="one") if case.label == "benign" else case for case in cohort)
    )
    with pytest.raises(ConfigError, match="all cases of the class 'benign' are in one fold"):
        train(CONFIG, lonely, tmp_path / "B", machine=MACHINE)


def test_who_trains() -> None:
    def case(name: str, split: str | None, label: str | None) -> Case:
        return Case(name, name, "image", path="x", split=split, label=label)

    cohort = Cohort((case("a", "train", "x"), case("b", "train", None), case("c", "val", "x")))
    who = split_for_training(cohort, "val", 0)
    assert [one.id for one in who.train] == ["a"]
    assert len(who.val) == 0
    assert any("'val' is left alone" in note for note in who.notes)
    assert any("1 cases without a label" in note for note in who.notes)
    with pytest.raises(ConfigError, match="no case has a label"):
        split_for_training(Cohort((case("b", None, None),)), None, 0)


def test_images_that_cannot_be_used_are_left_out_and_said(cohort: Cohort, tmp_path: Path) -> None:
    small, broken = tmp_path / "small.png", tmp_path / "broken.png"
    Image.new("RGB", (90, 70), (200, 120, 180)).save(small)
    broken.write_bytes(small.read_bytes()[:60])
    glass = tmp_path / "glass.png"
    Image.new("RGB", (200, 160), (250, 250, 250)).save(glass)
    extra = [
        Case(path.stem, path.stem, "image", path=str(path), label="normal", mpp=1.0)
        for path in (small, broken, glass)
    ]
    config = replace(CONFIG, boosting=BoostingConfig(folds=2, seeds=1, rounds=2, min_data_in_leaf=2))
    bundle = train(config, Cohort((*cohort.cases, *extra)), tmp_path / "B", machine=MACHINE)
    failures = bundle.provenance["lost"]
    assert set(failures) == {"small", "broken"}
    assert "too small for crops of 40 px" in failures["small"]
    assert any("hardly any tissue" in note and "glass" in note for note in bundle.provenance["notes"])
    assert bundle.metrics["images"] == 17


def test_where_too_few_images_are_left_the_cause_is_told(tmp_path: Path) -> None:
    cases = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (60, 60), (200, 100, 10 * number)).save(path)
        cases.append(Case(path.stem, path.stem, "image", path=str(path), label=str(number % 2), mpp=1.0))
    with pytest.raises(CaseError, match=r"too few are left.*too small for crops"):
        train(CONFIG, Cohort(tuple(cases)), tmp_path / "B", machine=MACHINE)


def test_labels_beyond_the_classes_are_refused(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'in situ' is not one of the classes"):
        train(replace(CONFIG, classes=("normal", "benign")), cohort, tmp_path / "B", machine=MACHINE)
    with pytest.raises(ConfigError, match="fewer than two classes"):
        train(CONFIG, cohort.where(lambda c: c.label == "benign"), tmp_path / "B", machine=MACHINE)


def test_a_damaged_bundle_is_refused(trained: Bundle, tmp_path: Path) -> None:
    import shutil

    assert trained.path is not None
    bundle_folder = tmp_path / "B"
    shutil.copytree(trained.path, bundle_folder, ignore=shutil.ignore_patterns("features", "training"))
    forest = next(iter(sorted(bundle_folder.glob("*.txt"))))
    forest.write_text(forest.read_text() + " ")
    with pytest.raises(BundleError, match="not the one the bundle was made with"):
        load(read_bundle(bundle_folder))


def test_the_paper_is_the_default_of_a_bundle(trained: Bundle) -> None:
    config = {k: v for k, v in trained.config.items() if k not in ("calibration_curves", "seed")}
    assert Config.from_dict(config) == replace(CONFIG, calibration="platt", classes=BACH)
