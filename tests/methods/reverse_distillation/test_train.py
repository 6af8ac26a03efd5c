"""Training reverse distillation on painted slides: its budget, what it learns, and bad input said plainly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import lobule
from lobule.augment import NO_AUGMENTATION, AugmentConfig
from lobule.bundles import Bundle, patient_hash, read_bundle
from lobule.cohort import Cohort
from lobule.errors import ConfigError, ModelError
from lobule.losses import distillation_loss, focal_distillation_loss
from lobule.methods.reverse_distillation import Config, load
from lobule.methods.reverse_distillation.budget import choose_patches
from lobule.methods.reverse_distillation.config import RANDOM, STAIN_AUGMENTATION
from lobule.methods.reverse_distillation.predictor import ANOMALY, PatchModel
from lobule.methods.reverse_distillation.train import train
from lobule.nets.teachers import teacher
from lobule.results.folder import open_results
from lobule.scanning.scan import Machine, scan
from lobule.slides.slide import open_slide
from lobule.stitch import State
from lobule.training.fitting import FitProgress
from lobule.training.patch_pools import VALIDATION, gather
from lobule.training.patch_sampling import NORMAL, TUMOUR
from lobule.training.sampling import SampleConfig, SampleStream
from tests.methods.reverse_distillation.support import (
    CONFIG,
    HEIGHT,
    MACHINE,
    MPP,
    SMALL,
    TISSUE,
    WIDTH,
    painted,
)

SCANNER = Machine(device="cpu", precision="float32", channels_last=True, readers=1, replicas=1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("train")
    return Cohort(
        (
            painted(folder, "a", (200, 200, 300), 1, "train"),
            painted(folder, "b", (500, 300, 260), 2, "train"),
            painted(folder, "c", None, 3, "train"),
            painted(folder, "d", (300, 150, 280), 4, "val"),
            painted(folder, "e", None, 5, "val"),
            painted(folder, "f", (400, 220, 300), 6, "test"),
            painted(folder, "g", None, 7, "test"),
        )
    )


@pytest.fixture(scope="module")
def trained(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return train(CONFIG, cohort, tmp_path_factory.mktemp("bundle"), tissue=TISSUE, machine=MACHINE)


# -- training -----------------------------------------------------------------------------------------------


def test_tumour_is_found_on_an_unseen_slide_and_slides_are_separated(
    trained: Bundle, cohort: Cohort, tmp_path: Path
) -> None:
    assert trained.metrics["val_auc"] > 0.95
    assert trained.path is not None
    assert trained.path is not None
    report = lobule.scan(
        trained.path,
        cohort.split("test"),
        tmp_path / "r",
        device="cpu",
        precision="float32",
        memory_layout="channels-last",
        readers=1,
    )
    assert not report.failed
    results = open_results(tmp_path / "r")
    reader = results.case_folder("f").maps["map-s16"]
    assert reader.info.classes == ("tumour", ANOMALY)
    scores, states = reader.read()
    rows, columns = np.nonzero(states == State.SCORED)
    x, y = 16 * columns + 8, 16 * rows + 8
    inside = (x >= 400) & (x < 700) & (y >= 220) & (y < 520)
    assert 300 < inside.sum() < 400
    for layer in scores:
        assert roc_auc_score(inside, layer[rows, columns]) > 0.95
    probability, raw = scores[:, rows, columns]
    assert raw.min() >= 0
    fit = load(trained).calibration.patch
    assert fit is not None
    np.testing.assert_allclose(probability, fit(raw), atol=1e-5)
    slide_scores = {case: results.case_folder(case).result["scores"] for case in "fg"}  # type: ignore[index]
    assert slide_scores["f"]["tumour"] > 0.5 > slide_scores["g"]["tumour"]
    findings = results.case_folder("f").findings()
    best = findings["l0_x"][0], findings["l0_y"][0]
    assert 380 < best[0] < 720 and 200 < best[1] < 540
    evaluation = lobule.evaluate(tmp_path / "r", cohort, split="test", plots=False).data
    assert evaluation["tasks"]["tumor"]["all"]["auroc"]["value"] == 1.0


def test_the_bundle_records_the_training_patches(trained: Bundle) -> None:
    budget = trained.provenance["budget"]
    assert (budget["slides"], budget["normal_patches"], budget["tumour_patches"]) == (2, 60, 40)
    assert budget["of"] == {"a": [30, 20], "b": [30, 20]}
    assert trained.patients == tuple(sorted(patient_hash(f"patient {name}") for name in "abde"))
    lines = trained.file("places.csv").read_text().splitlines()
    assert len(lines) == 101
    assert trained.config["identity"]["teacher"] == "tiny"
    assert trained.metrics["slide_auc"] == 1.0
    assert trained.metrics["shared_rank"] > 0.5
    assert any("random" in note for note in trained.provenance["notes"])


def test_a_form_that_cannot_be_scanned_does_not_fail_the_training(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fields of the shared form need more memory than those of the exact form."""
    plain = PatchModel.choose_batch

    def choose_batch(self: PatchModel, engine: Any, max_bytes: int, options: Any) -> Any:
        if self.scan_config(options).form == "shared":
            raise ConfigError("the smallest field of patches does not fit under the memory ceiling")
        return plain(self, engine, max_bytes, options)

    monkeypatch.setattr(PatchModel, "choose_batch", choose_batch)
    bundle = train(replace(CONFIG, epochs=1), cohort, tmp_path, tissue=TISSUE, machine=MACHINE)
    assert set(bundle.config["calibration"]["slides"]) == {"exact"}
    assert "the shared form are not calibrated" in " ".join(bundle.provenance["notes"])


def test_training_with_the_published_loss_and_shortcut(cohort: Cohort, tmp_path: Path) -> None:
    config = replace(CONFIG, safe=False, shortcut=1, epochs=1, val_slides=0)
    bundle = train(config, cohort, tmp_path, tissue=TISSUE, machine=MACHINE)
    assert bundle.config["student"]["shortcut"] == 1
    assert bundle.config["calibration"]["slides"] == {}
    assert load(bundle).config.safe is False


# -- settings of the few-label form --------------------------------------------------------------------------


def test_training_patches_are_augmented_by_default_and_validation_patches_never(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[tuple[int, AugmentConfig]] = []

    class RecordingStream(SampleStream):
        def __init__(self, pool: Any, config: SampleConfig, *arguments: Any, **options: Any) -> None:
            streams.append((options["round_"], config.augment))
            super().__init__(pool, config, *arguments, **options)

    monkeypatch.setattr("lobule.training.patch_pools.SampleStream", RecordingStream)
    quick = replace(CONFIG, epochs=1, val_slides=0)
    train(quick, cohort, tmp_path / "default", tissue=TISSUE, machine=MACHINE)
    assert {config for round_, config in streams if round_ == 0} == {STAIN_AUGMENTATION}
    assert {config for round_, config in streams if round_ == VALIDATION} == {NO_AUGMENTATION}
    assert STAIN_AUGMENTATION.hematoxylin > 0 and STAIN_AUGMENTATION.eosin > 0
    streams.clear()
    train(replace(quick, augmentation=False), cohort, tmp_path / "as-read", tissue=TISSUE, machine=MACHINE)
    assert {config for _, config in streams} == {NO_AUGMENTATION}


def test_teacher_statistics_are_those_of_the_normal_training_patches(cohort: Cohort, tmp_path: Path) -> None:
    """Compared with means and standard deviations by NumPy over the listed patches."""
    config = replace(CONFIG, epochs=1, val_slides=0, standardise_teacher=True, augmentation=False)
    bundle = train(config, cohort, tmp_path, tissue=TISSUE, machine=MACHINE)
    predictor = load(bundle)
    assert predictor.net.student.shape.signed
    patch_budget = choose_patches(config, gather(cohort.split("train"), TISSUE), seed=0)
    assert patch_budget.to_csv() == bundle.file("places.csv").read_text()
    patches = []
    for number, point in zip(patch_budget.positions.slides, patch_budget.positions.l0_points, strict=True):
        with open_slide(str(patch_budget.pool.slides[number].case.path), mpp=MPP) as slide:
            pixels = slide.backend.read(0, slide.bounds, 1)
        left, top = round(point[0] - 16), round(point[1] - 16)
        patches.append(pixels[top : top + 32, left : left + 32])
    normal = patch_budget.positions.labels == NORMAL
    assert normal.sum() == 60
    torch.manual_seed(0)
    plain = teacher("tiny")
    scaled = torch.from_numpy(np.stack(patches)[normal] / 255 * 2 - 1).float().permute(0, 3, 1, 2)
    for stage, maps in enumerate(plain(scaled), start=1):
        values = np.moveaxis(maps.numpy().astype(np.float64), 1, 0).reshape(maps.shape[1], -1)
        spread = values.std(axis=1)
        floor = 0.01 * spread.mean()
        mean_buffer = predictor.net.teacher.get_buffer(f"mean{stage}")
        spread_buffer = predictor.net.teacher.get_buffer(f"spread{stage}")
        np.testing.assert_allclose(mean_buffer.flatten(), values.mean(axis=1), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(spread_buffer.flatten(), np.maximum(spread, floor), rtol=1e-3, atol=1e-4)


def test_a_training_with_every_new_setting_resumes_to_the_same_bytes(cohort: Cohort, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=2, val_slides=0, standardise_teacher=True, normal_slides=1)
    options: dict[str, Any] = {"tissue": TISSUE, "machine": MACHINE}
    uninterrupted = train(config, cohort, tmp_path / "whole", **options)

    class StopsAtStep7(FitProgress):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "step" and value == 7:
                raise KeyboardInterrupt
            super().__setattr__(name, value)

    with pytest.raises(KeyboardInterrupt):
        train(config, cohort, tmp_path / "stopped", progress=StopsAtStep7(), **options)
    torch.manual_seed(99)
    resumed = train(config, cohort, tmp_path / "stopped", resume=True, **options)
    assert resumed.files == uninterrupted.files
    assert resumed.provenance["budget"]["of"] == {"a": [20, 20], "b": [20, 20], "c": [20, 0]}


def test_normal_slides_provide_normal_patches_in_turn_with_outlined_slides(cohort: Cohort) -> None:
    pool = gather(cohort, TISSUE)
    without = choose_patches(CONFIG, pool, seed=0)
    assert sorted(without.counts.values()) == [(30, 20), (30, 20)]
    patch_budget = choose_patches(replace(CONFIG, normal_slides=2), pool, seed=0)
    assert sorted(patch_budget.counts.values()) == [(15, 0), (15, 0), (15, 20), (15, 20)]
    assert {name for name, (_, tumour) in patch_budget.counts.items() if not tumour} < {"c", "e", "g"}
    too_many = choose_patches(replace(CONFIG, normal_slides=5), pool, seed=0)
    assert any("only 3 slides are normal" in note for note in too_many.notes)


# -- the budget ---------------------------------------------------------------------------------------------


def test_a_budget_is_reproducible_and_a_subset_of_a_larger_one(cohort: Cohort) -> None:
    pool = gather(cohort, TISSUE)
    small, again, large = (choose_patches(replace(CONFIG, slides=n), pool, seed=3) for n in (1, 1, 3))
    assert small.to_csv() == again.to_csv()
    assert set(small.counts) < set(large.counts)
    assert small.total(TUMOUR) == large.total(TUMOUR) == 40
    assert choose_patches(CONFIG, pool, seed=4).to_csv() != choose_patches(CONFIG, pool, seed=3).to_csv()
    assert max(tumour for _, tumour in large.counts.values()) == 14


def test_patches_have_one_class_up_to_the_corners_and_keep_their_distance(cohort: Cohort) -> None:
    patch_budget = choose_patches(CONFIG, gather(cohort.split("train"), TISSUE), seed=0)
    for index, slide in enumerate(patch_budget.pool.slides):
        for label in (NORMAL, TUMOUR):
            points = patch_budget.positions.l0_points[
                (patch_budget.positions.slides == index) & (patch_budget.positions.labels == label)
            ]
            corners = points[:, None] + 16 * np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)])
            assert (slide.classes(corners.reshape(-1, 2)) == label).all()
            assert corners.min() > 0 and (corners < (WIDTH, HEIGHT)).all()
            gaps = np.abs(points[:, None] - points[None]).max(axis=2) + 1e9 * np.eye(len(points))
            assert gaps.min() >= 16


def test_normal_slides_replace_missing_normal_patches(tmp_path: Path) -> None:
    partly = painted(tmp_path, "p", (200, 200, 300), 1, "train", attributes={"exhaustive": "false"})
    normal_slide = painted(tmp_path, "n", None, 2, "train")
    patch_budget = choose_patches(CONFIG, gather(Cohort((partly, normal_slide)), TISSUE), seed=0)
    assert patch_budget.counts == {"p": (0, 40), "n": (60, 0)}
    assert any("1 additional normal slides provide the 60" in note for note in patch_budget.notes)


def test_lesions_smaller_than_a_patch_are_used(tmp_path: Path) -> None:
    tiny = painted(tmp_path, "t", (300, 300, 20), 1, "train")
    patch_budget = choose_patches(CONFIG, gather(Cohort((tiny,)), TISSUE), seed=0)
    assert 1 <= patch_budget.total(TUMOUR) <= 9
    assert any("tumour patches were requested" in note for note in patch_budget.notes)


# -- bad input ----------------------------------------------------------------------------------------------


def test_training_without_tumour_learns_normal_tissue_with_a_note(tmp_path: Path) -> None:
    cases = [painted(tmp_path, name, None, seed, "train") for seed, name in enumerate("abc")]
    config = replace(CONFIG, epochs=1)
    bundle = train(config, Cohort(tuple(cases)), tmp_path / "out", tissue=TISSUE, machine=MACHINE)
    notes = " ".join(bundle.provenance["notes"])
    assert "plain one-class loss" in notes
    assert "there are no tumour patches" in notes
    assert bundle.config["loss"] == "plain"
    predictor = load(bundle)
    assert predictor.calibration.patch is not None
    assert predictor.calibration.slides == {}
    unseen = Cohort((painted(tmp_path, "u", (200, 200, 300), 9, "test"),))
    assert not scan(predictor, _metadata_of(bundle), unseen, tmp_path / "r", machine=SCANNER).failed


def test_training_without_normal_tissue_is_rejected(tmp_path: Path) -> None:
    case = painted(tmp_path, "t", (200, 200, 300), 1, "train", attributes={"exhaustive": "false"})
    with pytest.raises(ConfigError, match="no slide has normal tissue"):
        train(CONFIG, Cohort((case,)), tmp_path / "out", tissue=TISSUE, machine=MACHINE)


def test_a_single_slide_trains_and_is_calibrated_on_itself(cohort: Cohort, tmp_path: Path) -> None:
    alone = Cohort((cohort["a"],))
    bundle = train(replace(CONFIG, epochs=1), alone, tmp_path, tissue=TISSUE, machine=MACHINE)
    notes = " ".join(bundle.provenance["notes"])
    assert "too few patients to hold any out" in notes
    assert "1" in notes and "Calibrated on the training patches" in notes
    assert bundle.metrics["val_auc"] is None
    assert load(bundle).calibration.patch is not None


@pytest.mark.parametrize("tumour", [False, True])
def test_a_similarity_of_exactly_0_or_1_gives_no_nan(tumour: bool) -> None:
    """The losses and gradients of a student equal to its teacher, and of one whose maps are all zero."""
    frozen = teacher("tiny")
    maps = frozen(torch.randn(3, 3, 64, 64))
    normal = torch.full((3,), not tumour)
    for factor in (1.0, 0.0):
        rebuilt = [(factor * m).detach().requires_grad_() for m in maps]
        for loss in (distillation_loss(maps, rebuilt), focal_distillation_loss(maps, rebuilt, normal)):
            loss.backward(retain_graph=True)
            assert loss.isfinite()
            assert all(m.grad is not None and m.grad.isfinite().all() for m in rebuilt)


def test_settings_are_read_strictly_and_follow_the_loss() -> None:
    assert Config.from_dict(Config().to_dict()) == Config()
    published = Config().of_loss("focal")
    assert (published.rate, published.batch, published.epochs) == (1e-6, 32, 10)
    assert (published.slides, published.tumour_patches, published.normal_patches) == (10, 1001, 5000)
    plain = Config(loss="plain", epochs=3).of_loss("plain")
    assert (plain.rate, plain.batch, plain.epochs, plain.tumour_patches) == (0.005, 16, 3, 0)
    for wrong in (
        {"loss": "huber"},
        {"augmentation": "maybe"},
        {"normal_slides": -1},
        {"form": "fast"},
        {"threshold": "high"},
        {"patch": 0},
        {"tumours": 3},
    ):
        with pytest.raises(ConfigError):
            Config.from_dict(wrong)


def test_unavailable_weights_are_an_error_with_a_remedy(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no published weights"):
        train(replace(CONFIG, weights=""), cohort, tmp_path / "a", tissue=TISSUE, machine=MACHINE)
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="another backbone"):
        config = replace(CONFIG, weights=str(tmp_path / "w.pth"))
        train(config, cohort, tmp_path / "b", tissue=TISSUE, machine=MACHINE)


@pytest.mark.campaign
def test_the_command_trains_scans_and_evaluates(cohort: Cohort, tmp_path: Path) -> None:
    from lobule.cli import ABOUT, COMMANDS
    from lobule.cli.base import LazyGroup, run
    from lobule.cohort import write_cohort

    write_cohort(cohort, tmp_path / "cohort.csv")

    def go(*arguments: str) -> int:
        return run(LazyGroup("lobule", COMMANDS, help=ABOUT, version=True), arguments)

    settings = [f"--set={name}={value}" for name, value in {**SMALL, "epochs": 1}.items()]
    manifest, bundle, results = (str(tmp_path / name) for name in ("cohort.csv", "b", "r"))
    assert go("train", "reverse-distillation", manifest, "--out", bundle, *settings) == 0
    assert read_bundle(bundle).method == "reverse_distillation"
    assert go("scan", bundle, manifest, "--out", results, "--set", "threshold=paper") == 0
    assert go("evaluate", results, manifest, "--allow-overlap", "--out", str(tmp_path / "e")) == 0
    assert SMALL["weights"] == RANDOM


def _metadata_of(bundle: Bundle) -> dict[str, Any]:
    return {"method": bundle.method, "fingerprint": bundle.fingerprint, "classes": list(bundle.classes)}
