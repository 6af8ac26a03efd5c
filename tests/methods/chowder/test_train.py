"""Tests of training bag models with slide labels only: scores, maps, metrics, settings and errors."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lobule.bundles import Bundle, patient_hash, read_bundle
from lobule.cli.scan import _work
from lobule.cohort import Cohort
from lobule.errors import BundleError, ConfigError, Leakage, UsageError
from lobule.features import open_features
from lobule.methods.chowder import Config, load
from lobule.methods.chowder.bags import gather
from lobule.methods.chowder.checks import tile_auc, tiles_in_outlines
from lobule.methods.chowder.config import MODEL_DEFAULTS
from lobule.methods.chowder.ensemble import Ensemble, localisation_of, members_of, to_tensors
from lobule.methods.chowder.fit import class_weights, fit
from lobule.methods.chowder.models import build
from lobule.methods.chowder.train import train
from lobule.results.folder import open_results
from lobule.scanning.contract import ScanOptions
from lobule.scanning.scan import Machine, scan
from lobule.stitch import State
from lobule.training.fitting import TrainMachine
from tests.methods.chowder.support import (
    COLUMNS,
    ROWS,
    SIDE,
    SlideTiles,
    make_cohort,
    make_slide,
    write_tiles,
)

MACHINE = TrainMachine(device="cpu", precision="float32")
SMALL = Machine(device="cpu", precision="float32", channels_last=True, replicas=1, readers=1)
QUICK = Config(model="modern", members=2, epochs=12, rate=5e-3, standardise=True)


@pytest.fixture(scope="module")
def stored_cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, Path]:
    return make_cohort(tmp_path_factory.mktemp("chowder"), 20)


@pytest.fixture(scope="module")
def trained(stored_cohort: tuple[Cohort, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    cohort, features = stored_cohort
    config = replace(QUICK, features=str(features), epochs=20)
    return train(config, cohort, tmp_path_factory.mktemp("bundle"), machine=MACHINE)


def run_scan(bundle: Bundle, cohort: Cohort, out: Path, features: Path | str) -> Any:
    model_info = {"method": "chowder", "fingerprint": bundle.fingerprint, "classes": list(bundle.classes)}
    options = ScanOptions(settings={"features": str(features)})
    report = scan(load(bundle), model_info, cohort, out, options, SMALL)
    return report, open_results(out)


def test_trained_model_scores_and_localises_tumour_on_new_slides(trained: Bundle, tmp_path: Path) -> None:
    unseen, features = make_cohort(tmp_path, 8, seed=9)
    report, results = run_scan(trained, unseen, tmp_path / "results", features)
    assert dict(report.counts) == {"complete": 8}
    labels, scores = [], []
    for number, case in enumerate(unseen):
        folder = results.case_folder(case.id)
        assert folder.result is not None
        labels.append(number % 2)
        scores.append(folder.result["scores"]["tumour"])
        slide = make_slide(9000 + number, number % 2 == 1)
        layer, states = folder.maps["map"].read()
        assert layer.shape == (1, ROWS, COLUMNS)
        assert (states == State.SCORED).all()
        if number % 2:
            assert roc_auc_score(slide.inside, layer[0].ravel()) > 0.95
            findings = folder.findings()
            best = int(np.argmax(findings["score"]))
            tile = (findings["l0_y"][best] // SIDE) * COLUMNS + findings["l0_x"][best] // SIDE
            assert slide.inside[tile]
    assert roc_auc_score(labels, scores) == 1.0


def test_a_map_cell_is_the_value_of_its_tile(
    trained: Bundle, stored_cohort: tuple[Cohort, Path], tmp_path: Path
) -> None:
    """Compare the scan with the ensemble called directly on the features."""
    cohort, features = stored_cohort
    single_case = Cohort((cohort["tumor_001"],))
    _, results = run_scan(trained, single_case, tmp_path, features)
    predictor = load(trained)
    scores = predictor.ensemble.score_bag([torch.from_numpy(make_slide(1, True).features)])
    folder = results.case_folder("tumor_001")
    assert folder.result is not None
    assert folder.result["scores"]["tumour"] == pytest.approx(scores.probability, abs=1e-5)
    expected = predictor.localisation.values(scores.evidence)
    np.testing.assert_allclose(folder.maps["map"].read()[0].ravel(), expected, atol=2e-3)
    table = folder.tables["tiles"].read(["l0_x", "l0_y", "l0_width", "outputs"])
    np.testing.assert_array_equal(table["l0_x"], make_slide(1, True).coords[:, 0])
    assert set(table["l0_width"]) == {SIDE}
    assert table["outputs"].shape == (ROWS * COLUMNS, 2)


def test_bundle_contains_its_patients_and_metrics(trained: Bundle) -> None:
    metrics = trained.metrics
    val_cases = trained.provenance["val_cases"]
    assert len(val_cases) == 4
    assert len(trained.provenance["train_cases"]) == 16
    assert "4 patients are held out" in trained.provenance["notes"][0]
    assert len(trained.patients) == 20, (
        "patients held out for validation influenced the training and are listed too"
    )
    assert patient_hash("patient 3") in trained.patients
    assert metrics["val_auc"] == 1.0
    assert metrics["tile_auc"] > 0.95
    assert metrics["localisation"]["slides"] == 2
    assert metrics["judged_on"] == "validation cases"
    assert [set(member) for member in metrics["members"]] == [{"epochs", "best_epoch", "val_auc", "loss"}] * 2
    check = metrics["counterfactual"]
    assert check["removed"]["fell"] == check["inserted"]["rose"] == 1.0
    assert check["removed"]["change"] < -1 < check["random"]["change"]
    assert trained.config["features"] == ""
    assert trained.mpp == 0.5


def test_bags_of_any_size_are_scanned(trained: Bundle, tmp_path: Path) -> None:
    """Bags of 0, 1, R, 2R - 1 and 2R tiles, with R = 10."""
    unseen, features = make_cohort(tmp_path, 5)
    slide = make_slide(1, True)
    for case, count in zip(unseen, (0, 1, 10, 19, 20), strict=True):
        write_tiles(
            features, case.id, SlideTiles(slide.coords[:count], slide.features[:count], slide.inside[:count])
        )
    report, results = run_scan(trained, unseen, tmp_path / "results", features)
    assert dict(report.counts) == {"complete": 4, "unscored": 1}
    assert "no tile" in report.unscored[unseen.cases[0].id]
    assert report.counters.pixels_done == 0
    assert report.counters.rows_done >= 1 + 10 + 19 + 20
    work = _work(report)
    assert work is not None and f"{report.counters.rows_done:,} rows" in work[1] and "Mpixel" not in work[1]
    for case, count in zip(unseen, (0, 1, 10, 19, 20), strict=True):
        result = results.case_folder(case.id).result
        assert result is not None
        if count == 0:
            assert result["scores"] == {}
            assert result["status"] == "unscored"
            assert "no tissue" in result["notes"][0]
        else:
            assert 0 < result["scores"]["tumour"] < 1
            assert result["tiles"] == count


def test_a_scan_with_features_of_another_backbone_is_refused(trained: Bundle, tmp_path: Path) -> None:
    from lobule.features import Encoding

    unseen, features = make_cohort(tmp_path, 2)
    (features / "features.json").unlink()
    for case in unseen:
        write_tiles(features, case.id, make_slide(1, True), Encoding("lobule:tiny", "sha256:other", 12))
    report, _ = run_scan(trained, unseen, tmp_path / "results", features)
    assert "features of another backbone than the bundle was trained on" in report.failed["normal_000"]


def test_scan_without_encoder_or_features_names_the_remedy(
    trained: Bundle, stored_cohort: tuple[Cohort, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"contains no encoder.*--set features=DIR"):
        run_scan(trained, stored_cohort[0], tmp_path, "")


@pytest.mark.parametrize("model", [name for name in MODEL_DEFAULTS if name not in ("modern", "transmil")])
def test_every_model_learns_with_the_shared_loop(
    stored_cohort: tuple[Cohort, Path], tmp_path: Path, model: str
) -> None:
    cohort, features = stored_cohort
    config = Config(
        model=model, features=str(features), members=1, epochs=15, rate=2e-2, l2=0.0, standardise=True
    )
    bundle = train(config, cohort, tmp_path, machine=MACHINE)
    assert bundle.metrics["train_auc"] > 0.9
    assert bundle.metrics["tile_auc"] > 0.75
    assert Config.from_dict(
        {k: v for k, v in bundle.config.items() if k not in ("encoding", "tiling", "localisation")}
    ) == replace(config.resolved(), features="")


def test_transmil_is_trained_and_scanned_on_whole_bags(
    stored_cohort: tuple[Cohort, Path], tmp_path: Path
) -> None:
    cohort, features = stored_cohort
    subset = Cohort(cohort.cases[:10])
    config = Config(model="transmil", features=str(features), members=1, epochs=1, tiles=20)
    bundle = train(config, subset, tmp_path / "bundle", val=None, machine=MACHINE)
    report, results = run_scan(bundle, Cohort(cohort.cases[:1]), tmp_path / "results", features)
    assert dict(report.counts) == {"complete": 1}
    result = results.case_folder("normal_000").result
    assert result is not None
    scores = load(bundle).ensemble.score_bag([torch.from_numpy(make_slide(0, False).features)])
    assert result["scores"]["tumour"] == pytest.approx(scores.probability, abs=1e-6)


def test_training_from_disk_equals_training_from_memory(stored_cohort: tuple[Cohort, Path]) -> None:
    cohort, features = stored_cohort
    bags = gather(cohort, open_features(features)).bags
    config = replace(QUICK, epochs=2, tiles=30)
    from_memory, from_disk = (fit(config, bags, [], 5, max_ram=max_ram).model for max_ram in (10**9, 0))
    assert all(
        torch.equal(a, b) for a, b in zip(from_memory.parameters(), from_disk.parameters(), strict=True)
    )


def test_cross_validation_keeps_every_out_of_fold_score(
    stored_cohort: tuple[Cohort, Path], tmp_path: Path
) -> None:
    cohort, features = stored_cohort
    config = replace(QUICK, model="max", rate=2e-2, members=1, epochs=15, folds=4, repeats=2, by_site=True)
    config = replace(config, features=str(features))
    bundle = train(config, cohort, tmp_path, machine=MACHINE)
    table = list(csv.DictReader(io.StringIO(bundle.file("out_of_fold.csv").read_text())))
    assert len(table) == 40
    for repeat in ("0", "1"):
        rows = [row for row in table if row["repeat"] == repeat]
        assert {row["case"] for row in rows} == {case.id for case in cohort}
        site_of = {case.id: case.site for case in cohort}
        assert len({(row["fold"], site_of[row["case"]]) for row in rows}) == 4, "a site is in one fold"
        auc = roc_auc_score([int(r["label"]) for r in rows], [float(r["score"]) for r in rows])
        assert auc == pytest.approx(bundle.metrics["cross_validation"]["auc_of_repeats"][int(repeat)])
    assert bundle.metrics["cv_auc"] > 0.7


def test_nested_folds_choose_rate_and_decay(stored_cohort: tuple[Cohort, Path], tmp_path: Path) -> None:
    cohort, features = stored_cohort
    config = replace(
        QUICK, features=str(features), members=1, epochs=6, folds=2, nested=True, inner_folds=2,
        grid_rates=(1e-7, 2e-2), grid_decays=(0.0,),
    )  # fmt: skip
    bundle = train(config, cohort, tmp_path, machine=MACHINE)
    choices = bundle.metrics["cross_validation"]["choices"]
    assert len(choices) == 2
    assert bundle.config["rate"] == 2e-2, "the tiny rate learns nothing, so the other must be chosen"


def test_no_map_is_drawn_of_uninformative_scores(tmp_path: Path) -> None:
    cohort, features = make_cohort(tmp_path, 24, seed=3, strength=0.0)
    config = replace(QUICK, features=str(features), members=1, epochs=1, rate=1e-6)
    labels = {case.id: index for index, case in enumerate(cohort)}
    bundle = train(config, cohort, tmp_path / "bundle", machine=MACHINE, seed=2)
    description = dict(bundle.config["localisation"])
    if description["refused"] is None:  # noise may separate four slides by chance
        description["refused"] = "refused for this test"
    tensors = bundle.weights()
    assert localisation_of(description, tensors).refused is not None
    predictor = load(replace(bundle, config={**bundle.config, "localisation": description}))
    model_info = {"method": "chowder", "fingerprint": "0", "classes": []}
    options = ScanOptions(settings={"features": str(features)})
    scan(predictor, model_info, Cohort(cohort.cases[:1]), tmp_path / "results", options, SMALL)
    folder = open_results(tmp_path / "results").case_folder(next(iter(labels)))
    assert folder.result is not None
    assert "no map is drawn" in folder.result["notes"][0]
    assert not folder.maps
    assert 0 < folder.result["scores"]["tumour"] < 1


# -- cohorts that cannot be trained on -----------------------------------------------------------------------


def test_unusable_training_input_is_refused(stored_cohort: tuple[Cohort, Path], tmp_path: Path) -> None:
    cohort, features = stored_cohort
    config = replace(QUICK, features=str(features))
    with pytest.raises(ConfigError, match=r"stored features.*lobule features"):
        train(QUICK, cohort, tmp_path, machine=MACHINE)
    normal = cohort.where(lambda case: case.label == "normal")
    with pytest.raises(UsageError, match="only normal cases"):
        train(config, normal, tmp_path, machine=MACHINE)
    leaking_cases = [
        replace(case, patient="p", split=s) for case, s in zip(cohort, ("train", "test"), strict=False)
    ]
    with pytest.raises(Leakage, match="more than one split"):
        train(config, Cohort(tuple(leaking_cases)), tmp_path, machine=MACHINE)
    assert not (tmp_path / "model.json").exists()


def test_validation_split_with_one_label_is_not_used(
    stored_cohort: tuple[Cohort, Path], tmp_path: Path
) -> None:
    cohort, features = stored_cohort
    split = {"normal_018": "val", "normal_016": "val"}
    cases = tuple(replace(case, split=split.get(case.id, "train")) for case in cohort)
    bundle = train(replace(QUICK, features=str(features), epochs=1), Cohort(cases), tmp_path, machine=MACHINE)
    assert "has only one label" in bundle.provenance["notes"][0]
    assert bundle.metrics["val_auc"] is None
    assert len(bundle.provenance["train_cases"]) == 18


def test_case_without_features_is_in_the_bundle_with_the_reason(tmp_path: Path) -> None:
    cohort, features = make_cohort(tmp_path, 12)
    path = next(features.rglob("normal_000.h5"))
    path.write_bytes(path.read_bytes()[:600])
    bundle = train(replace(QUICK, features=str(features), epochs=1), cohort, tmp_path / "b", machine=MACHINE)
    assert set(bundle.provenance["lost"]) == {"normal_000"}
    assert "half-written" in bundle.provenance["lost"]["normal_000"]


def test_slide_with_nan_features_is_left_out_of_the_training(tmp_path: Path) -> None:
    cohort, features = make_cohort(tmp_path, 12)
    with h5py.File(next(features.rglob("normal_000.h5")), "r+") as file:
        file["features"][-1, 0] = np.nan
    bundle = train(replace(QUICK, features=str(features), epochs=1), cohort, tmp_path / "b", machine=MACHINE)
    assert set(bundle.provenance["lost"]) == {"normal_000"}
    assert "not numbers" in bundle.provenance["lost"]["normal_000"]
    assert "normal_000" not in bundle.provenance["train_cases"]


# -- building blocks -----------------------------------------------------------------------------------------


def test_members_and_calibrations_are_restored_from_disk(trained: Bundle) -> None:
    predictor = load(read_bundle(trained.path or ""))
    tensors = to_tensors(predictor.ensemble, predictor.localisation)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        name: tuple(t.shape) for name, t in trained.weights().items()
    }
    with pytest.raises(BundleError, match="do not fit"):
        members_of(predictor.config, 5, tensors)
    with pytest.raises(BundleError, match="localisation in the bundle is damaged"):
        localisation_of({"signs": [1]}, tensors)


@pytest.mark.parametrize("model", list(MODEL_DEFAULTS))
def test_scoring_in_blocks_equals_scoring_the_whole_bag(model: str) -> None:
    torch.manual_seed(0)
    config = Config(model=model).resolved()
    dim, tiles = 8, torch.randn(23, 8)
    from lobule.nets.mil import Standardised

    member = Standardised(build(config, dim), dim).eval()
    member.mean.copy_(torch.randn(dim))
    member.std.copy_(torch.rand(dim) + 0.5)
    scores = Ensemble(config, (member,)).score_bag([tiles[:10], tiles[10:20], tiles[20:]])
    with torch.no_grad():
        expected = member(tiles[None])
    assert scores.logits[0] == pytest.approx(expected["logit"].item(), abs=1e-4)
    np.testing.assert_allclose(scores.evidence[0], expected["evidence"][0], atol=1e-4)


def test_balance_gives_both_classes_the_same_total_weight() -> None:
    assert class_weights([0, 0, 0, 1], False) == (1.0, 1.0)
    normal, positive = class_weights([0, 0, 0, 1], True)
    assert 3 * normal == pytest.approx(positive)
    assert 3 * normal + positive == pytest.approx(4)


def test_tile_auc_by_outlines(stored_cohort: tuple[Cohort, Path]) -> None:
    cohort, features = stored_cohort
    bag = gather(Cohort((cohort["tumor_005"],)), open_features(features)).bags[0]
    inside = tiles_in_outlines(bag)
    assert inside is not None
    np.testing.assert_array_equal(inside, make_slide(5, True).inside)
    assert tile_auc(inside.astype(float), inside) == 1.0
    assert tile_auc(-inside.astype(float), inside) == 0.0
    assert tile_auc(np.ones(3), np.ones(3, bool)) is None
