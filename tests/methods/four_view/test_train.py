"""Training on synthetic exams: learning, resuming bit for bit, starting from other weights, and errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from lobule.bundles import Bundle, patient_hash
from lobule.cohort import Case, Cohort
from lobule.errors import BundleError, ConfigError, Leakage
from lobule.methods.four_view import Config, load
from lobule.methods.four_view.train import train
from lobule.nets.four_view import TARGETS
from lobule.results.folder import open_results
from lobule.training.machine import TrainMachine
from tests.methods.four_view.configs import changed
from tests.methods.four_view.made_exams import cohort, exams
from tests.methods.four_view.support import run

PATCH_PREFIX = "patch."
"""Prefix of the patch network's tensors in a bundle."""

CONFIG = changed(
    epochs=1, augmentation=False, window=(96, 56), move=(4, 4), resize=4, crop_iterations=4, crop_buffer=4,
    patch=32, patch_stride=32, heatmap_cell=8, widths=(4, 8, 8, 8, 16), patch_growth=4,
    patch_blocks=(1, 1, 1, 1), patch_first_width=8, steps=60, batch=4, rate=0.005, trunk_rate=0.005,
    patch_steps=40, patch_batch=16, patch_rate=0.01, val_patches=64, birads_steps=0, evaluate_every=20,
    schedule="constant", weight_decay=0.0,
)  # fmt: skip
BRIEF = changed(CONFIG, steps=4, patch_steps=4, birads_steps=4, evaluate_every=2, val_patches=16, batch=2)
MACHINE = TrainMachine(device="cpu", precision="float32", workers=2)


def six_exams(painted: Cohort) -> Cohort:
    """Six training exams that include every kind of finding."""
    return painted.where(lambda case: case.id in ("e001", "e002", "e004", "e008", "e013", "e000"))


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return cohort(tmp_path_factory.mktemp("painted"), train=16, val=8, test=8)


@pytest.fixture(scope="module")
def with_heatmaps(painted: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle trained for a few steps in every stage except BI-RADS."""
    config = changed(BRIEF, heatmaps=True, birads_steps=0)
    subset = painted.where(lambda case: case in six_exams(painted).cases or case.split == "val")
    return train(config, subset, tmp_path_factory.mktemp("bundle"), machine=MACHINE)


def area(cases: Cohort, results: Path, grade: str) -> float:
    opened, labels, scores = open_results(results), [], []
    for case in cases:
        for side in ("left", "right"):
            labels.append(case.breast_labels[f"{side}_{grade}"])
            scores.append(opened.case_folder(case.id).result["scores"][f"{side}_{grade}"])
    return float(roc_auc_score(labels, scores))


@pytest.mark.campaign
def test_all_stages_detect_malignancy_in_test_exams(tmp_path: Path) -> None:
    exams_of_all = cohort(tmp_path / "painted", train=32, val=16, test=32)
    bundle = train(changed(CONFIG, heatmaps=True), exams_of_all, tmp_path / "bundle", machine=MACHINE)
    assert bundle.metrics["patches"]["val_auc"] > 0.9
    assert bundle.metrics["val_auc_malignant"] > 0.7
    unseen = exams_of_all.split("test")
    report = run(bundle.path, unseen, tmp_path / "results")
    assert dict(report.counts) == {"complete": len(unseen)}
    assert area(unseen, tmp_path / "results", "malignant") > 0.7


def test_training_on_images_alone_fits_six_exams(painted: Cohort, tmp_path: Path) -> None:
    """The training set has six exams and no augmentation, so the classifier can memorise it."""
    settings = changed(CONFIG, steps=40, batch=6, evaluate_every=40)
    bundle = train(settings, six_exams(painted), tmp_path / "bundle", val=None, machine=MACHINE)
    run(bundle.path, six_exams(painted), tmp_path / "results")
    assert area(six_exams(painted), tmp_path / "results", "malignant") > 0.9


def test_bundle_records_patients_metrics_and_config(with_heatmaps: Bundle, painted: Cohort) -> None:
    cases = (*six_exams(painted), *painted.split("val"))
    assert with_heatmaps.patients == tuple(sorted(patient_hash(case.patient) for case in cases))
    assert 0 <= with_heatmaps.metrics["patches"]["val_auc"] <= 1
    assert with_heatmaps.metrics["val_auc_malignant"] == with_heatmaps.metrics["breasts"]["val_auc"]
    assert with_heatmaps.metrics["breasts"]["steps"] == 4
    assert with_heatmaps.provenance["val_cases"] == [case.id for case in painted.split("val")]
    assert Config.from_dict(with_heatmaps.config) == changed(
        BRIEF, heatmaps=True, birads_steps=0, pool="mean"
    )


def test_classifier_starts_from_the_trunks_of_the_birads_stage(painted: Cohort, tmp_path: Path) -> None:
    frozen = changed(BRIEF, rate=0.0, trunk_rate=0.0, birads_rate=0.01)
    (moved,) = (train(frozen, painted, tmp_path / "with", val=None, machine=MACHINE),)
    fresh = train(changed(frozen, birads_steps=0), painted, tmp_path / "without", val=None, machine=MACHINE)
    moved_weights, fresh_weights = moved.weights(), fresh.weights()
    trunk = "four_view_resnet.cc.first_conv.weight"
    assert not torch.equal(moved_weights[trunk], fresh_weights[trunk])
    assert torch.equal(moved_weights["fc1_cc.weight"], fresh_weights["fc1_cc.weight"])
    assert "birads" not in fresh.metrics
    assert moved.metrics["birads"]["categories"] == ["0", "1"]
    assert moved.metrics["birads"]["steps"] == 4


def test_without_a_birads_column_the_stage_is_skipped_with_a_note(painted: Cohort, tmp_path: Path) -> None:
    plain = Cohort(tuple(replace(case, attributes={}) for case in painted.split("train")))
    bundle = train(changed(BRIEF, steps=1), plain, tmp_path, val=None, machine=MACHINE)
    assert "the cohort has no column 'birads': no BI-RADS stage" in bundle.provenance["notes"]


# -- from other weights -------------------------------------------------------------------------------------


def test_training_starts_from_the_weights_of_a_bundle(
    with_heatmaps: Bundle, painted: Cohort, tmp_path: Path
) -> None:
    """Settings come from the bundle, the patch network is unchanged, and a rate of 0 changes no parameter."""
    config = changed(
        weights=str(with_heatmaps.path), rate=0.0, trunk_rate=0.0, steps=2, batch=2, optimiser="sgd"
    )
    tuned = train(config, painted, tmp_path / "tuned", val=None, machine=MACHINE)
    assert Config.from_dict(tuned.config).architecture.widths == CONFIG.architecture.widths
    assert tuned.provenance["weights"] == with_heatmaps.fingerprint
    before, after = with_heatmaps.weights(), tuned.weights()
    parameters = [name for name in before if "running" not in name and "num_batches" not in name]
    assert any(name.startswith(PATCH_PREFIX) for name in parameters)
    for name in parameters:
        assert torch.equal(before[name], after[name]), name
    learnt = train(
        changed(config, rate=0.01, trunk_rate=0.0), painted, tmp_path / "b", val=None, machine=MACHINE
    )
    after = learnt.weights()
    trunk = "four_view_resnet.mlo.layer_list.2.0.conv1.weight"
    assert torch.equal(before[trunk], after[trunk])
    assert not torch.equal(before["fc1_mlo.weight"], after["fc1_mlo.weight"])


def test_settings_of_the_weights_cannot_be_changed(
    with_heatmaps: Bundle, painted: Cohort, tmp_path: Path
) -> None:
    config = changed(weights=str(with_heatmaps.path), widths=(4, 4, 4, 4, 4))
    with pytest.raises(ConfigError, match="widths belongs to the weights"):
        train(config, painted, tmp_path, machine=MACHINE)
    with pytest.raises(ConfigError, match="variant belongs to the weights"):
        train(
            changed(config, widths=CONFIG.architecture.widths, variant="image_wise"),
            painted,
            tmp_path,
            machine=MACHINE,
        )


def test_explicit_mean_pooling_is_not_replaced_by_that_of_the_weights(
    painted: Cohort, tmp_path: Path
) -> None:
    maxima = train(
        changed(BRIEF, pool="max", birads_steps=0, steps=1), six_exams(painted), tmp_path / "max", val=None,
        machine=MACHINE,
    )  # fmt: skip
    config = changed(weights=str(maxima.path), steps=1, batch=2)
    with pytest.raises(ConfigError, match="pool belongs to the weights"):
        train(changed(config, pool="mean"), painted, tmp_path / "mean", machine=MACHINE)
    inherited = train(config, six_exams(painted), tmp_path / "same", val=None, machine=MACHINE)
    assert inherited.config["architecture"]["pool"] == "max"
    fresh = train(
        changed(BRIEF, birads_steps=0, steps=1), six_exams(painted), tmp_path / "fresh", val=None,
        machine=MACHINE,
    )  # fmt: skip
    assert fresh.config["architecture"]["pool"] == "mean"


def test_trained_patch_network_is_used_for_another_classifier(
    with_heatmaps: Bundle, painted: Cohort, tmp_path: Path
) -> None:
    config = changed(BRIEF, heatmaps=True, variant="image_wise", birads_steps=0, steps=1)
    config = changed(config, patch_weights=str(with_heatmaps.path))
    bundle = train(config, six_exams(painted), tmp_path / "one", val=None, machine=MACHINE)
    before, after = with_heatmaps.weights(), bundle.weights()
    for name in before:
        if name.startswith(PATCH_PREFIX):
            assert torch.equal(before[name], after[name]), name
    assert "patches" not in bundle.metrics
    plain = train(changed(BRIEF, birads_steps=0, steps=1), six_exams(painted), tmp_path / "two", val=None,
                  machine=MACHINE)  # fmt: skip
    with pytest.raises(BundleError, match="no patch network"):
        train(changed(config, patch_weights=str(plain.path)), painted, tmp_path / "three", machine=MACHINE)


def test_patch_network_starts_from_a_densenet_of_another_task(painted: Cohort, tmp_path: Path) -> None:
    from lobule.nets.four_view import patch_densenet

    torch.manual_seed(3)
    other = patch_densenet(7, growth=4, blocks=(1, 1, 1, 1), first_width=8)
    torch.save(other.state_dict(), tmp_path / "densenet.pth")
    config = changed(
        BRIEF, heatmaps=True, patch_weights=str(tmp_path / "densenet.pth"), patch_rate=0.0, patch_steps=1,
        steps=1, birads_steps=0,
    )  # fmt: skip
    bundle = train(config, six_exams(painted), tmp_path / "out", val=None, machine=MACHINE)
    name = "features.denseblock2.denselayer1.conv1.weight"
    assert torch.equal(bundle.weights()[PATCH_PREFIX + name], other.state_dict()[name])
    torch.save({"features.conv0.weight": torch.ones(2)}, tmp_path / "wrong.pth")
    with pytest.raises(BundleError, match="does not fit the network"):
        train(changed(config, patch_weights=str(tmp_path / "wrong.pth")), painted, tmp_path / "no")


# -- cohorts ------------------------------------------------------------------------------------------------


def test_only_the_image_wise_variant_trains_on_incomplete_exams(tmp_path: Path) -> None:
    complete = exams(tmp_path, 4, None, first=1)
    incomplete = exams(tmp_path, 2, None, first=9, without=("R-MLO",))
    both = Cohort((*complete, *incomplete))
    settings = changed(BRIEF, birads_steps=0, steps=2)
    joined = train(settings, both, tmp_path / "view", val=None, machine=MACHINE)
    assert joined.provenance["train_cases"] == [case.id for case in complete]
    assert [note.split(":")[0] for note in joined.provenance["notes"][1:3]] == [
        case.id for case in incomplete
    ]
    alone = train(
        changed(settings, variant="image_wise"), both, tmp_path / "image", val=None, machine=MACHINE
    )
    assert len(alone.provenance["train_cases"]) == 6
    report = run(alone.path, Cohort(tuple(incomplete)), tmp_path / "results")
    assert dict(report.counts) == {"complete": 2}


def test_unreadable_exam_is_left_out_with_a_note(tmp_path: Path) -> None:
    cases = exams(tmp_path, 4, None)
    Path(cases[1].views["l_cc"][0]).write_bytes(b"no image")
    bundle = train(
        changed(BRIEF, birads_steps=0, steps=1),
        Cohort(tuple(cases)),
        tmp_path / "out",
        val=None,
        machine=MACHINE,
    )
    assert bundle.provenance["train_cases"] == ["e000", "e002", "e003"]
    assert any(note.startswith("e001: left out: ") for note in bundle.provenance["notes"])


def test_validation_patients_are_chosen_if_there_is_no_validation_split(tmp_path: Path) -> None:
    cases = Cohort(tuple(exams(tmp_path, 10, None)))
    bundle = train(changed(BRIEF, birads_steps=0, steps=1), cases, tmp_path / "out", machine=MACHINE)
    trained, validated = bundle.provenance["train_cases"], bundle.provenance["val_cases"]
    assert len(validated) == 2
    assert sorted([*trained, *validated]) == sorted(case.id for case in cases)
    leaking = Cohort((*cases.cases, replace(cases.cases[0], id="again", split="test")))
    with pytest.raises(Leakage):
        train(BRIEF, leaking, tmp_path / "torn", machine=MACHINE)


def test_unusable_cohorts_and_settings_are_errors(tmp_path: Path) -> None:
    cases = exams(tmp_path, 3, None)
    slide = Cohort((Case("s", "p", "slide", path="/s.tif"),))
    with pytest.raises(ConfigError, match="cases of kind exam"):
        train(BRIEF, slide, tmp_path / "a", machine=MACHINE)
    unlabelled = Cohort(tuple(replace(case, breast_labels={}, attributes={}) for case in cases))
    with pytest.raises(ConfigError, match="no exam has a label"):
        train(BRIEF, unlabelled, tmp_path / "b", val=None, machine=MACHINE)
    without_outlines = Cohort(tuple(replace(case, annotation=None) for case in cases))
    with pytest.raises(ConfigError, match="no view has a lesion outlined as malignant"):
        train(changed(BRIEF, heatmaps=True), without_outlines, tmp_path / "c", val=None, machine=MACHINE)
    with pytest.raises(ConfigError, match="patch_shares has the wrong length"):
        train(changed(BRIEF, patch_shares=(1.0,)), Cohort(tuple(cases)), tmp_path / "d", machine=MACHINE)


def test_classes_of_a_trained_bundle_are_the_targets(with_heatmaps: Bundle) -> None:
    predictor = load(with_heatmaps)
    assert predictor.classes == with_heatmaps.classes == TARGETS
    assert len(predictor.nets.patch_nets) == 1
    (classifier,) = predictor.nets.members
    assert all(torch.isfinite(parameter).all() for parameter in classifier.parameters())


@pytest.mark.parametrize("variant", ["side_wise", "joint"])
def test_side_wise_and_joint_variants_train_and_scan(painted: Cohort, tmp_path: Path, variant: str) -> None:
    settings = changed(BRIEF, variant=variant, birads_steps=0, steps=2)
    bundle = train(settings, six_exams(painted), tmp_path / "bundle", val=None, machine=MACHINE)
    report = run(bundle.path, Cohort(painted.split("test").cases[:1]), tmp_path / "results")
    assert dict(report.counts) == {"complete": 1}
