"""Tests of the agreement measures against closed forms, and of the notes they add."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from lobule.bundles import Bundle
from lobule.methods.chowder import Config, load
from lobule.methods.chowder.agreement import (
    case_note,
    case_spread,
    chance_error,
    ensemble_agreement,
    training_notes,
)
from lobule.methods.chowder.train import train
from lobule.results.folder import open_results
from lobule.scanning.contract import ScanOptions
from lobule.scanning.scan import Machine, scan
from lobule.training.fitting import TrainMachine
from tests.methods.chowder.support import make_cohort

MACHINE = TrainMachine(device="cpu", precision="float32")
SCANNER = Machine(device="cpu", precision="float32", channels_last=True, replicas=1, readers=1)


def logit(scores: list[float]) -> NDArray[np.float64]:
    values = np.array(scores)
    logits: NDArray[np.float64] = np.log(values / (1 - values))
    return logits


def test_case_spread_describes_the_members_scores() -> None:
    spread = case_spread(logit([0.2, 0.4, 0.9]))
    assert spread["scores"] == [0.2, 0.4, 0.9]
    assert spread["mean"] == pytest.approx(0.5)
    assert (spread["min"], spread["max"]) == (pytest.approx(0.2), pytest.approx(0.9))
    assert spread["spread"] == pytest.approx(np.sqrt((0.3**2 + 0.1**2 + 0.4**2) / 3))


@pytest.mark.parametrize(
    ("scores", "case_sd", "message"),
    [
        ([0.1, 0.9, 0.2, 0.8], 0.3, "from 0.100 to 0.900"),
        ([0.1, 0.9, 0.2, 0.8], None, "from 0.100 to 0.900"),
        ([0.48, 0.52, 0.49, 0.51], 0.001, "standard error of their mean, 0.0091, is above"),
        ([0.48, 0.52, 0.49, 0.51], 0.2, None),
        ([0.48, 0.52, 0.49, 0.51], None, None),
        ([0.97, 0.98, 0.99, 0.96], 0.2, None),
        ([0.5], 0.001, None),
    ],
)
def test_score_gets_a_note_if_members_disagree(
    scores: list[float], case_sd: float | None, message: str | None
) -> None:
    note = case_note(logit(scores), case_sd)
    if message is None:
        assert note is None
    else:
        assert note is not None
        assert message in note


def test_reliability_estimates_the_share_of_variance_between_cases() -> None:
    # scores = case effect + member noise with known variances, simulated many times
    rng = np.random.default_rng(0)
    case_sd, noise_sd, members = 0.05, 0.1, 4
    reliabilities = []
    for _ in range(200):
        scores = 0.5 + rng.normal(0, case_sd, (60, 1)) + rng.normal(0, noise_sd, (60, members))
        agreement = ensemble_agreement([logit(list(row)) for row in scores.clip(0.01, 0.99)])
        reliabilities.append(agreement["reliability"])
    expected = case_sd**2 / (case_sd**2 + noise_sd**2 / members)
    assert np.mean(reliabilities) == pytest.approx(expected, abs=0.02)


def test_members_that_differ_by_a_constant_agree() -> None:
    cases = np.linspace(-1, 1, 9)
    level = np.array([0.1, -0.1, 0.0])
    scores = 0.5 + 0.2 * cases[:, None] + level
    agreement = ensemble_agreement([logit(list(row)) for row in scores])
    assert agreement["reliability"] == pytest.approx(1.0)
    assert agreement["case_sd"] == pytest.approx(0.2 * cases.std(ddof=1))
    assert agreement["member_sd"] == pytest.approx(0.1)


def test_noise_alone_is_reported_as_unreliable() -> None:
    agreement = {"case_sd": 0.01, "member_sd": 0.1, "reliability": 0.2}
    notes = training_notes(agreement, {"min": 0.4, "max": 0.9}, [0] * 12 + [1] * 12, 10)
    assert "20% of the variance" in notes[0]
    assert "from 0.400 to 0.900" in notes[1]
    assert len(notes) == 2
    assert training_notes({**agreement, "reliability": 0.9}, None, [], 10) == []
    assert "depend on the seed" in training_notes({**agreement, "reliability": None}, None, [], 1)[0]


def test_chance_error_is_the_spread_of_the_auc_over_all_orders() -> None:
    positive, normal = 2, 3
    aucs = []
    for order in product(range(5), repeat=2):
        if order[0] < order[1]:
            labels = np.zeros(5, int)
            labels[list(order)] = 1
            aucs.append(roc_auc_score(labels, np.arange(5)))
    assert len(aucs) == 10
    assert chance_error(positive, normal) == pytest.approx(np.std(aucs))


@pytest.fixture(scope="module")
def short_training(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    folder = tmp_path_factory.mktemp("agreement")
    cohort, features = make_cohort(folder, 20, strength=0.0)
    config = Config(model="modern", members=4, epochs=1, rate=1e-6, features=str(features))
    return train(config, cohort, folder / "bundle", machine=MACHINE), features


def test_training_reports_member_aucs_and_a_small_validation_set(
    short_training: tuple[Bundle, Path],
) -> None:
    bundle, _ = short_training
    aucs = [member["val_auc"] for member in bundle.metrics["members"]]
    assert bundle.metrics["member_val_auc"] == {
        "mean": pytest.approx(np.mean(aucs)),
        "sd": pytest.approx(np.std(aucs, ddof=1)),
        "min": min(aucs),
        "max": max(aucs),
    }
    notes = "\n".join(bundle.provenance["notes"])
    assert "too small: with 2 positive and 2 normal cases" in notes
    assert "standard error of 0.32" in notes, "sqrt(5 / 48)"


def test_scan_adds_a_note_to_scores_with_disagreeing_members(
    short_training: tuple[Bundle, Path], tmp_path: Path
) -> None:
    """Untrained members score at random, so they disagree by far more than the cases differ."""
    bundle, _ = short_training
    assert bundle.metrics["agreement"]["case_sd"] < 0.01
    cohort, _ = make_cohort(tmp_path, 4)
    model_info = {"method": "chowder", "fingerprint": bundle.fingerprint, "classes": list(bundle.classes)}
    options = ScanOptions(settings={"features": str(tmp_path / "features")})
    for name, metrics in (("as trained", bundle.metrics), ("earlier", {})):
        predictor = load(replace(bundle, metrics=metrics))
        scan(predictor, model_info, cohort, tmp_path / name, options, SCANNER)
        result = open_results(tmp_path / name).case_folder("normal_000").result
        assert result is not None
        members = result["members"]
        assert members["min"] <= result["scores"]["tumour"] <= members["max"]
        assert members["mean"] == pytest.approx(result["scores"]["tumour"])
        assert len(members["scores"]) == 4
        unstable = any("unstable score" in note for note in result["notes"])
        assert unstable == (name == "as trained"), (
            "a bundle of an earlier version has no case_sd to compare with"
        )
