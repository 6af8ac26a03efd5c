"""Weights, partial areas and paired tests of a reader study from the command line, against scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from lobule.cli import main
from lobule.evaluation import evaluate_readers
from lobule.evaluation.options import Options


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    rng = np.random.default_rng(8)
    labels = (np.arange(120) % 4 == 0).astype(int)
    columns = {
        "exam": np.arange(120), "malignant": labels,
        **{name: np.round(rng.normal(labels * gain, 1), 3) for name, gain in (
            ("reader1", 1.0), ("reader2", 0.6), ("ai_a", 1.4), ("ai_b", 0.1))},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("readers") / "readers.csv"
    rows = zip(*columns.values(), strict=True)
    path.write_text(",".join(columns) + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path, columns


def test_any_weight_of_a_model_is_combined_with_every_reader(
    table: tuple[Path, dict[str, np.ndarray]],
) -> None:
    path, columns = table
    data = evaluate_readers(path, Options(resamples=20), weights=(0.2, 0.9), max_fpr=0.2)
    rows = {row["name"]: row for row in data["rows"]}
    labels, readers = columns["malignant"], [columns["reader1"], columns["reader2"]]
    for weight in (0.2, 0.9):
        mixed = [(1 - weight) * reader + weight * columns["ai_a"] for reader in readers]
        row = rows[f"readers and ai_a, weight {weight:g}"]
        assert row["auroc"]["value"] == pytest.approx(np.mean([roc_auc_score(labels, m) for m in mixed]))
        partial = np.mean([roc_auc_score(labels, m, max_fpr=0.2) for m in mixed])
        assert row["partial_auc"] == pytest.approx(partial)
    assert rows["ai_b"]["partial_auc"] == pytest.approx(roc_auc_score(labels, columns["ai_b"], max_fpr=0.2))
    together = np.mean(readers, axis=0)
    assert rows["readers together"]["partial_auc"] == pytest.approx(
        roc_auc_score(labels, together, max_fpr=0.2)
    )
    assert data["comparisons"] == []


def delong_p(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """DeLong's paired test by its definition: placements of every case."""

    def placements(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        positive, negative = scores[labels == 1], scores[labels == 0]
        wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
        return wins.mean(axis=1), wins.mean(axis=0)

    (pa, na), (pb, nb) = placements(a), placements(b)
    variance = np.cov(pa - pb, ddof=1) / len(pa) + np.cov(na - nb, ddof=1) / len(na)
    return float(2 * stats.norm.sf(abs(pa.mean() - pb.mean()) / np.sqrt(variance)))


def test_models_are_compared_with_readers_in_pairs(
    table: tuple[Path, dict[str, np.ndarray]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, columns = table
    arguments = ["evaluate", "--reader-study", str(path), "--paired", "--weight", "0.3", "--max-fpr", "0.1"]
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--resamples", "50", "--json"])
    assert not exit_.value.code
    data = json.loads(capsys.readouterr().out)
    assert {(row["model"], row["reader"]) for row in data["comparisons"]} == {
        (model, reader) for model in ("ai_a", "ai_b") for reader in ("reader1", "reader2", "readers together")
    }
    for row in data["comparisons"]:
        reader = (columns["reader1"] + columns["reader2"]) / 2
        reader = columns.get(row["reader"], reader)
        areas = [roc_auc_score(columns["malignant"], s) for s in (columns[row["model"]], reader)]
        assert row["difference"]["value"] == pytest.approx(areas[0] - areas[1])
        assert row["p"] == pytest.approx(
            delong_p(columns["malignant"], columns[row["model"]], reader), rel=1e-6
        )
    assert data["max_fpr"] == 0.1
    with pytest.raises(SystemExit):
        main([*arguments, "--resamples", "50"])
    printed = capsys.readouterr().out
    assert "partial AUROC to 0.1" in printed
    assert "readers and ai_a, weight 0.3" in printed


def test_options_of_a_reader_study_belong_to_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", "R", "C", "--paired"])
    assert exit_.value.code == 2
    assert "belong to --reader-study" in capsys.readouterr().err
