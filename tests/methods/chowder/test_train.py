"""Training bag models from labels alone: they learn, find the place, resume, and say what they are."""

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

from lobule.api import config_of
from lobule.bundles import Bundle, patient_hash, read_bundle
from lobule.cli.scan import as_text
from lobule.cohort import Cohort
from lobule.errors import BundleError, ConfigError, Leakage, UsageError
from lobule.features import open_features
from lobule.methods import METHODS, method_module
from lobule.methods.chowder import Config, load, train
from lobule.methods.chowder.bags import gather
from lobule.methods.chowder.checks import tile_auc, tiles_in_outlines
from lobule.methods.chowder.config import OWN, build
from lobule.methods.chowder.ensemble import Ensemble, localisation_of, members_of, to_tensors
from lobule.methods.chowder.fit import class_weights, fit
from lobule.nets.mil import Chowder
from lobule.results.folder import open_results
from lobule.scanning.contract import ScanOptions
from lobule.scanning.scan import Machine, scan
from lobule.stitch import State
from lobule.training.fitting import TrainMachine
from tests.methods.chowder.support import COLUMNS, ROWS, SIDE, Made, made_cohort, made_slide, put

MACHINE = TrainMachine(device="cpu", precision="float32")
SMALL = Machine(device="cpu", precision="float32", channels_last=True, lanes=1, readers=1)
QUICK = Config(model="modern", members=2, epochs=12, rate=5e-3, standardise=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, Path]:
    return made_cohort(tmp_path_factory.mktemp("chowder"), 20)


@pytest.fixture(scope="module")
def trained(made: tuple[Cohort, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    cohort, features = made
    config = replace(QUICK, features=str(features), epochs=20)
    return train(config, cohort, tmp_path_factory.mktemp("bundle"), machine=MACHINE)


def scanned(bundle: Bundle, cohort: Cohort, out: Path, features: Path | str) -> Any:
    facts = {"method": "chowder", "fingerprint": bundle.fingerprint, "classes": list(bundle.classes)}
    options = ScanOptions(settings={"features": str(features)})
    report = scan(load(bundle), facts, cohort, out, options, SMALL)
    return report, open_results(out)


def test_it_learns_from_labels_alone_and_finds_the_place_on_unseen_slides(
    trained: Bundle, tmp_path: Path
) -> None:
    unseen, features = made_cohort(tmp_path, 8, seed=9)
    report, results = scanned(trained, unseen, tmp_path / "results", features)
    assert dict(report.counts) == {"complete": 8}
    labels, scores = [], []
    for number, case in enumerate(unseen):
        folder = results.case_folder(case.id)
        assert folder.result is not None
        labels.append(number % 2)
        scores.append(folder.result["scores"]["tumour"])
        slide = made_slide(9000 + number, number % 2 == 1)
        layer, states = folder.maps["map"].read()
        assert layer.shape == (1, ROWS, COLUMNS)
        assert (states == State.SCORED).all()
        if number % 2:
            assert roc_auc_score(slide.inside, layer[0].ravel()) > 0.95
            found = folder.findings()
            best = int(np.argmax(found["score"]))
            where = (found["l0_y"][best] // SIDE) * COLUMNS + found["l0_x"][best] // SIDE
            assert slide.inside[where]
    assert roc_auc_score(labels, scores) == 1.0


def test_a_map_cell_is_the_value_of_its_tile(
    trained: Bundle, made: tuple[Cohort, Path], tmp_path: Path
) -> None:
    """The scan against the ensemble called directly on the features."""
    cohort, features = made
    one = Cohort((cohort["tumor_001"],))
    _, results = scanned(trained, one, tmp_path, features)
    predictor = load(trained)
    told = predictor.ensemble.tell([torch.from_numpy(made_slide(1, True).features)])
    folder = results.case_folder("tumor_001")
    assert folder.result is not None
    assert folder.result["scores"]["tumour"] == pytest.approx(told.probability, abs=1e-5)
    expected = predictor.localisation.values(told.evidence)
    np.testing.assert_allclose(folder.maps["map"].read()[0].ravel(), expected, atol=2e-3)
    table = folder.tables["tiles"].read(["l0_x", "l0_y", "l0_width", "outputs"])
    np.testing.assert_array_equal(table["l0_x"], made_slide(1, True).coords[:, 0])
    assert set(table["l0_width"]) == {SIDE}
    assert table["outputs"].shape == (ROWS * COLUMNS, 2)


def test_the_bundle_says_who_trained_it_and_how_well(trained: Bundle) -> None:
    metrics = trained.metrics
    held = trained.provenance["val_cases"]
    assert len(held) == 4
    assert len(trained.provenance["train_cases"]) == 16
    assert "4 patients are held out" in trained.provenance["notes"][0]
    assert len(trained.patients) == 20, "who was held out stopped the training, and counts as seen"
    assert patient_hash("patient 3") in trained.patients
    assert metrics["val_auc"] == 1.0
    assert metrics["tile_auc"] > 0.95
    assert metrics["localisation"]["slides"] == 2
    assert metrics["judged_on"] == "validation cases"
    assert [set(one) for one in metrics["members"]] == [{"epochs", "best_epoch", "val_auc", "loss"}] * 2
    check = metrics["counterfactual"]
    assert check["removed"]["fell"] == check["inserted"]["rose"] == 1.0
    assert check["removed"]["change"] < -1 < check["random"]["change"]
    assert trained.config["features"] == ""
    assert trained.mpp == 0.5


def test_bags_of_every_size_are_scanned(trained: Bundle, tmp_path: Path) -> None:
    """Bags of 1, R, 2R - 1 and 2R tiles, and of none; R is ten."""
    unseen, features = made_cohort(tmp_path, 5)
    whole = made_slide(1, True)
    for case, count in zip(unseen, (0, 1, 10, 19, 20), strict=True):
        put(features, case.id, Made(whole.coords[:count], whole.features[:count], whole.inside[:count]))
    report, results = scanned(trained, unseen, tmp_path / "results", features)
    assert dict(report.counts) == {"complete": 4, "unscored": 1}
    assert "no tile" in report.unscored[unseen.cases[0].id]
    assert report.counters.pixels_done == 0
    assert report.counters.rows_done >= 1 + 10 + 19 + 20
    assert f"{report.counters.rows_done:,} rows" in as_text(report)
    assert "Mpixel" not in as_text(report)
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

    unseen, features = made_cohort(tmp_path, 2)
    (features / "features.json").unlink()
    for case in unseen:
        put(features, case.id, made_slide(1, True), Encoding("lobule:tiny", "sha256:other", 12))
    report, _ = scanned(trained, unseen, tmp_path / "results", features)
    assert "features of another backbone than the bundle was trained on" in report.failed["normal_000"]


def test_without_encoder_or_features_the_remedy_is_said(
    trained: Bundle, made: tuple[Cohort, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"holds no encoder.*--set features=DIR"):
        scanned(trained, made[0], tmp_path, "")


@pytest.mark.parametrize("model", [name for name in OWN if name not in ("modern", "transmil")])
def test_every_model_learns_under_the_one_loop(made: tuple[Cohort, Path], tmp_path: Path, model: str) -> None:
    cohort, features = made
    config = Config(
        model=model, features=str(features), members=1, epochs=15, rate=2e-2, l2=0.0, standardise=True
    )
    bundle = train(config, cohort, tmp_path, machine=MACHINE)
    assert bundle.metrics["train_auc"] > 0.9
    assert bundle.metrics["tile_auc"] > 0.75
    assert Config.from_dict(
        {k: v for k, v in bundle.config.items() if k not in ("encoding", "tiling", "localisation")}
    ) == replace(config.resolved(), features="")


def test_transmil_goes_whole_through_training_and_scan(made: tuple[Cohort, Path], tmp_path: Path) -> None:
    cohort, features = made
    some = Cohort(cohort.cases[:10])
    config = Config(model="transmil", features=str(features), members=1, epochs=1, tiles=20)
    bundle = train(config, some, tmp_path / "bundle", val=None, machine=MACHINE)
    report, results = scanned(bundle, Cohort(cohort.cases[:1]), tmp_path / "results", features)
    assert dict(report.counts) == {"complete": 1}
    result = results.case_folder("normal_000").result
    assert result is not None
    told = load(bundle).ensemble.tell([torch.from_numpy(made_slide(0, False).features)])
    assert result["scores"]["tumour"] == pytest.approx(told.probability, abs=1e-6)


def test_every_model_is_a_method_with_its_own_defaults() -> None:
    entries = {
        "chowder": "chowder", "chowder_modern": "modern", "weldon": "weldon", "mean_pool": "mean",
        "max_pool": "max", "abmil": "abmil", "transmil": "transmil",
    }  # fmt: skip
    for method, model in entries.items():
        assert method in METHODS
        module = method_module(method)
        assert module.Config().model == model
        assert module.Config().resolved().r == OWN[model]["r"]
        assert module.SCAN_SETTINGS == ("features",)
    assert set(entries.values()) == set(OWN)


def test_the_defaults_are_the_papers() -> None:
    config = Config().resolved()
    assert (config.model, config.r, config.epochs, config.batch, config.rate) == ("chowder", 5, 30, 10, 1e-3)
    assert (config.l2, config.dropout, config.members, config.tiles) == (0.5, 0.5, 10, 1000)
    model = build(config, 2048)
    assert isinstance(model, Chowder)
    assert [layer.out_features for layer in model.head if isinstance(layer, torch.nn.Linear)] == [200, 100, 1]
    modern = Config(model="modern").resolved()
    assert (modern.r, modern.epochs, modern.batch, modern.l2, modern.dropout) == (10, 50, 16, 0.0, 0.0)


def test_settings_given_as_text_are_typed() -> None:
    given = {"r": "7", "rate": "2e-3", "grid_rates": "0.1,0.2", "positive": "LUAD,LUSC", "standardise": "yes"}
    config = config_of(Config, given)
    assert (config.r, config.rate, config.grid_rates, config.standardise) == (7, 2e-3, (0.1, 0.2), True)
    assert config.positive == ("LUAD", "LUSC")
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": "huge"}, "no bag model 'huge'"),
        ({"r": "many"}, "is not a number"),
        ({"folds": 1}, "at least two folds"),
        ({"threshold": 1.0}, "threshold"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"classes": ["a", "b", "c"]}, "two classes"),
        ({"colour": 1}, "no setting 'colour'"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Config.from_dict(change)


def test_streaming_from_disk_gives_what_memory_gives(made: tuple[Cohort, Path]) -> None:
    cohort, features = made
    bags = gather(cohort, open_features(features)).bags
    config = replace(QUICK, epochs=2, tiles=30)
    one, other = (fit(config, bags, [], 5, max_ram=room).model for room in (10**9, 0))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_cross_validation_keeps_every_out_of_fold_score(made: tuple[Cohort, Path], tmp_path: Path) -> None:
    cohort, features = made
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


def test_nested_folds_choose_rate_and_decay(made: tuple[Cohort, Path], tmp_path: Path) -> None:
    cohort, features = made
    config = replace(
        QUICK, features=str(features), members=1, epochs=6, folds=2, nested=True, inner_folds=2,
        grid_rates=(1e-7, 2e-2), grid_decays=(0.0,),
    )  # fmt: skip
    bundle = train(config, cohort, tmp_path, machine=MACHINE)
    choices = bundle.metrics["cross_validation"]["choices"]
    assert len(choices) == 2
    assert bundle.config["rate"] == 2e-2, "a rate of nothing learns nothing"


def test_a_map_of_scores_that_say_nothing_is_refused(tmp_path: Path) -> None:
    cohort, features = made_cohort(tmp_path, 24, seed=3, strength=0.0)
    config = replace(QUICK, features=str(features), members=1, epochs=1, rate=1e-6)
    labels = {case.id: index for index, case in enumerate(cohort)}
    bundle = train(config, cohort, tmp_path / "bundle", machine=MACHINE, seed=2)
    facts = dict(bundle.config["localisation"])
    if facts["refused"] is None:  # noise may tell four slides apart by chance
        facts["refused"] = "made so"
    tensors = bundle.weights()
    assert localisation_of(facts, tensors).refused is not None
    predictor = load(replace(bundle, config={**bundle.config, "localisation": facts}))
    named = {"method": "chowder", "fingerprint": "0", "classes": []}
    options = ScanOptions(settings={"features": str(features)})
    scan(predictor, named, Cohort(cohort.cases[:1]), tmp_path / "results", options, SMALL)
    folder = open_results(tmp_path / "results").case_folder(next(iter(labels)))
    assert folder.result is not None
    assert "no map is drawn" in folder.result["notes"][0]
    assert not folder.maps
    assert 0 < folder.result["scores"]["tumour"] < 1


# -- what cannot be trained on -------------------------------------------------------------------------------


def test_what_cannot_be_trained_on_is_refused(made: tuple[Cohort, Path], tmp_path: Path) -> None:
    cohort, features = made
    config = replace(QUICK, features=str(features))
    with pytest.raises(ConfigError, match=r"stored features.*lobule features"):
        train(QUICK, cohort, tmp_path, machine=MACHINE)
    normal = cohort.where(lambda case: case.label == "normal")
    with pytest.raises(UsageError, match="normal cases alone"):
        train(config, normal, tmp_path, machine=MACHINE)
    torn = [replace(case, patient="p", split=s) for case, s in zip(cohort, ("train", "test"), strict=False)]
    with pytest.raises(Leakage, match="more than one split"):
        train(config, Cohort(tuple(torn)), tmp_path, machine=MACHINE)
    assert not (tmp_path / "model.json").exists()


def test_a_validation_split_with_one_label_validates_nothing(
    made: tuple[Cohort, Path], tmp_path: Path
) -> None:
    cohort, features = made
    split = {"normal_018": "val", "normal_016": "val"}
    cases = tuple(replace(case, split=split.get(case.id, "train")) for case in cohort)
    bundle = train(replace(QUICK, features=str(features), epochs=1), Cohort(cases), tmp_path, machine=MACHINE)
    assert "lacks a label" in bundle.provenance["notes"][0]
    assert bundle.metrics["val_auc"] is None
    assert len(bundle.provenance["train_cases"]) == 18


def test_a_lost_case_is_in_the_bundle_with_its_cause(tmp_path: Path) -> None:
    cohort, features = made_cohort(tmp_path, 12)
    path = next(features.rglob("normal_000.h5"))
    path.write_bytes(path.read_bytes()[:600])
    bundle = train(replace(QUICK, features=str(features), epochs=1), cohort, tmp_path / "b", machine=MACHINE)
    assert set(bundle.provenance["lost"]) == {"normal_000"}
    assert "half-written" in bundle.provenance["lost"]["normal_000"]


def test_a_slide_whose_features_are_no_numbers_leaves_the_training(tmp_path: Path) -> None:
    cohort, features = made_cohort(tmp_path, 12)
    with h5py.File(next(features.rglob("normal_000.h5")), "r+") as file:
        file["features"][-1, 0] = np.nan
    bundle = train(replace(QUICK, features=str(features), epochs=1), cohort, tmp_path / "b", machine=MACHINE)
    assert set(bundle.provenance["lost"]) == {"normal_000"}
    assert "not numbers" in bundle.provenance["lost"]["normal_000"]
    assert "normal_000" not in bundle.provenance["train_cases"]


# -- parts ---------------------------------------------------------------------------------------------------


def test_members_and_calibrations_survive_the_disk(trained: Bundle) -> None:
    predictor = load(read_bundle(trained.path or ""))
    tensors = to_tensors(predictor.ensemble, predictor.localisation)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        name: tuple(t.shape) for name, t in trained.weights().items()
    }
    with pytest.raises(BundleError, match="do not fit"):
        members_of(predictor.config, 5, tensors)
    with pytest.raises(BundleError, match="localisation in the bundle is damaged"):
        localisation_of({"signs": [1]}, tensors)


@pytest.mark.parametrize("model", list(OWN))
def test_a_bag_in_pieces_is_the_bag_as_a_whole(model: str) -> None:
    torch.manual_seed(0)
    config = Config(model=model).resolved()
    dim, tiles = 8, torch.randn(23, 8)
    from lobule.nets.mil import Standardised

    member = Standardised(build(config, dim), dim).eval()
    member.mean.copy_(torch.randn(dim))
    member.std.copy_(torch.rand(dim) + 0.5)
    told = Ensemble(config, (member,)).tell([tiles[:10], tiles[10:20], tiles[20:]])
    with torch.no_grad():
        whole = member(tiles[None])
    assert told.logits[0] == pytest.approx(whole["logit"].item(), abs=1e-4)
    np.testing.assert_allclose(told.evidence[0], whole["evidence"][0], atol=1e-4)


def test_classes_weigh_the_same_when_balanced() -> None:
    assert class_weights([0, 0, 0, 1], False) == (1.0, 1.0)
    normal, positive = class_weights([0, 0, 0, 1], True)
    assert 3 * normal == pytest.approx(positive)
    assert 3 * normal + positive == pytest.approx(4)


def test_tile_auc_by_outlines(made: tuple[Cohort, Path]) -> None:
    cohort, features = made
    bag = gather(Cohort((cohort["tumor_005"],)), open_features(features)).bags[0]
    inside = tiles_in_outlines(bag)
    assert inside is not None
    np.testing.assert_array_equal(inside, made_slide(5, True).inside)
    assert tile_auc(inside.astype(float), inside) == 1.0
    assert tile_auc(-inside.astype(float), inside) == 0.0
    assert tile_auc(np.ones(3), np.ones(3, bool)) is None
