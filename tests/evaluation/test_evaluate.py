"""Evaluations of results: labels, sites, comparisons, missing cases, leakage, exams, reader studies."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

import lobule
from lobule.bundles import FORMAT, Bundle, patient_hash, read_bundle
from lobule.cli import ABOUT, COMMANDS
from lobule.cli.base import LazyGroup, run
from lobule.errors import BundleError, ConfigError, Leakage, UsageError
from lobule.evaluation.labels import plan_targets
from lobule.files import write_json
from lobule.results.folder import store_training_patients
from tests.evaluation.support import begin, put, write_csv

Written = tuple[Path, Path, dict[str, np.ndarray]]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Eighty slides of forty patients at two sites; the model does worse at the second."""
    rng = np.random.default_rng(1)
    labels = np.arange(80) % 3 == 0
    sites = np.array(["north", "south"])[np.arange(80) // 40]
    noise = rng.normal(0, np.where(sites == "north", 0.5, 1.6))
    scores = 1 / (1 + np.exp(-(2 * labels - 1 + noise)))
    rows = [
        {
            "case": f"c{i}", "patient": f"p{i // 2}", "label": "tumor" if labels[i] else "normal",
            "site": sites[i], "split": "train" if i >= 60 else "test", "slide": f"c{i}.tif", "stain": "",
        }
        for i in range(80)
    ]  # fmt: skip
    results = begin(tmp_path / "results", [row["case"] for row in rows])
    for row, score in zip(rows, scores, strict=True):
        put(results, str(row["case"]), {"normal": 1 - score, "tumour": score})
    cohort = write_csv(tmp_path / "cohort.csv", rows)
    return results, cohort, {"labels": labels, "scores": scores, "sites": sites}


def test_areas_agree_with_scikit_learn_for_each_site(written: Written) -> None:
    results, cohort, truth = written
    evaluation = lobule.evaluate(results, cohort, by=("site",), thresholds=[0.5], resamples=200)
    task = evaluation.tasks["tumor"]
    for value, keep in [("all", truth["labels"] == truth["labels"])] + [
        (site, truth["sites"] == site) for site in ("north", "south")
    ]:
        block = task["all"] if value == "all" else task["by"]["site"][value]
        label, score = truth["labels"][keep], truth["scores"][keep]
        assert block["slides"] == keep.sum()
        assert block["auroc"]["value"] == pytest.approx(roc_auc_score(label, score), abs=1e-12)
        assert block["auroc"]["low"] < block["auroc"]["value"] < block["auroc"]["high"]
        assert block["auroc"]["method"] == "bootstrap of patients, percentiles"
        assert block["auroc_delong"]["value"] == pytest.approx(block["auroc"]["value"], abs=1e-12)
        assert block["ap"]["value"] == pytest.approx(average_precision_score(label, score), abs=1e-12)
        assert block["calibration"]["brier"] == pytest.approx(brier_score_loss(label, score), abs=1e-12)
        point = block["operating_points"][0]
        assert point["sensitivity"]["value"] == pytest.approx(((score >= 0.5) & label).sum() / label.sum())
    by = task["by"]["site"]
    assert by["north"]["auroc"]["value"] > by["south"]["auroc"]["value"]
    assert evaluation.failed == 0


def test_every_case_is_listed_with_its_status(written: Written) -> None:
    results, cohort, _ = written
    put(results, "c0", {}, status="failed", error="c0.tif: the file cannot be read")
    put(results, "c1", {"normal": 0.2, "tumour": 0.8}, status="partial", failed=3)
    (results / "cases/c2/result.json").unlink()
    for file in (results / "cases/c3").iterdir():
        file.unlink()
    (results / "cases/c3").rmdir()
    put(results, "stranger", {"tumour": 0.5})
    evaluation = lobule.evaluate(results, cohort, resamples=5)
    cases = evaluation.data["cases"]
    assert cases["failed"] == {"c0": "c0.tif: the file cannot be read"}
    assert cases["partial"] == {"c1": "3 fields failed"}
    assert (cases["unfinished"], cases["not_scanned"]) == (["c2"], ["c3"])
    assert cases["not_in_cohort"] == ["stranger"]
    assert cases["complete"] + 4 == cases["cohort"] == 80
    assert evaluation.failed == 3
    assert evaluation.tasks["tumor"]["all"]["slides"] == 77
    filled = lobule.evaluate(results, cohort, resamples=5, missing_score=0.0)
    assert filled.tasks["tumor"]["all"]["slides"] == 80
    assert filled.failed == 3


def test_two_results_are_compared_on_their_common_cases(written: Written, tmp_path: Path) -> None:
    results, cohort, truth = written
    other = begin(tmp_path / "other", [])
    rng = np.random.default_rng(2)
    for i in range(70):
        put(other, f"c{i}", {"normal": 0.0, "tumour": float(rng.uniform())})
    evaluation = lobule.evaluate(results, cohort, against=other, by=("site",), resamples=100)
    compared = evaluation.tasks["tumor"]["against"]
    assert compared["all"]["slides"] == 70
    area = compared["all"]["auroc"]
    assert area["a"] == pytest.approx(roc_auc_score(truth["labels"][:70], truth["scores"][:70]), abs=1e-12)
    assert area["difference"]["value"] == pytest.approx(area["a"] - area["b"], abs=1e-12)
    assert area["difference"]["low"] > 0.05
    assert compared["by"]["site"]["south"]["slides"] == 30
    same = lobule.evaluate(results, cohort, against=results, resamples=20).tasks["tumor"]["against"]["all"]
    assert same["auroc"]["difference"] == {
        **same["auroc"]["difference"],
        "value": 0.0,
        "low": 0.0,
        "high": 0.0,
    }


# -- leakage ------------------------------------------------------------------------------------------------


def model(path: Path, patients: tuple[str, ...]) -> Bundle:
    """A bundle without weights, which these tests do not use."""
    path.mkdir()
    metadata = {"method": "scannet", "config": {}, "classes": [], "mpp": 0.5, "metrics": {}, "provenance": {}}
    write_json(path / "model.json", {"format": FORMAT, **metadata, "patients": list(patients), "files": {}})
    return read_bundle(path)


def test_training_patients_are_rejected(written: Written, tmp_path: Path) -> None:
    results, cohort, _ = written
    trained = tuple(patient_hash(f"p{i}") for i in range(30, 40))
    bundle = model(tmp_path / "bundle", trained)
    begin(results, [f"c{i}" for i in range(80)], {"fingerprint": bundle.fingerprint})
    with pytest.raises(Leakage, match="10 of the 40 patients"):
        lobule.evaluate(results, cohort, bundle=tmp_path / "bundle", resamples=5)
    unknown = lobule.evaluate(results, cohort, resamples=5).data["overlap"]
    assert not unknown["checked"] and "not checked" in unknown["sentence"]
    store_training_patients(results, bundle.fingerprint, bundle.patients)
    with pytest.raises(Leakage) as refused:
        lobule.evaluate(results, cohort, resamples=5)
    assert "--allow-overlap" in str(refused.value)
    allowed = lobule.evaluate(results, cohort, allow_overlap=True, resamples=5).data["overlap"]
    assert allowed["patients"] == sorted(f"p{i}" for i in range(30, 40))
    apart = lobule.evaluate(results, cohort, split="test", resamples=5)
    assert apart.data["overlap"] == {
        "checked": True,
        "sentence": "none of the 30 patients is among the 10 training patients",
        "patients": [],
    }
    assert apart.tasks["tumor"]["all"]["slides"] == 60


def test_bundle_that_did_not_produce_the_results_is_rejected(written: Written, tmp_path: Path) -> None:
    results, cohort, _ = written
    model(tmp_path / "bundle", ("x",))
    with pytest.raises(BundleError, match="not the bundle"):
        lobule.evaluate(results, cohort, bundle=tmp_path / "bundle")
    other = Bundle("scannet", {}, (), 0.5, patients=(patient_hash("p0"),))
    store_training_patients(results, other.fingerprint, other.patients)
    assert not (results / "patients.json").exists()


# -- labels and scores --------------------------------------------------------------------------------------


def test_labels_by_their_usual_meaning() -> None:
    for labels, positive in (
        (["normal", "tumor"], {"tumor"}), (["0", "1"], {"1"}), (["0.0", "1.0"], {"1.0"}),
        (["Benign", "Malignant", "Normal"], {"Malignant"}), (["macro", "negative"], {"macro"}),
        (["Non-Tumour", "Tumour"], {"Tumour"}), (["normal"], set()),
    ):  # fmt: skip
        plan = plan_targets(labels, ["slide"])
        assert plan.targets[0].positive == positive
        assert plan.targets[0].scores == ("slide",)
    assert plan_targets(["normal", "tumor"], ["normal", "tumour"]).targets[0].scores == ("tumour",)
    both = plan_targets(
        ["benign", "insitu", "invasive"], ["benign", "in situ", "invasive"], ["insitu", "invasive"]
    )
    assert both.targets[0].scores == ("in situ", "invasive")
    rest = plan_targets(["benign", "insitu", "normal"], ["normal", "benign", "in situ"])
    assert [(target.name, target.scores) for target in rest.targets] == [
        ("benign", ("benign",)), ("insitu", ("in situ",)), ("normal", ("normal",)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "scores", "arguments", "remedy"),
    [
        (["grade 1", "grade 3"], ["s"], {}, "--positive"),
        (["itc", "macro", "negative"], ["s"], {}, "--positive"),
        (["0", "1"], ["mean", "max"], {}, "--score"),
        (["0", "1"], ["mean"], {"score": "median"}, "no score 'median'"),
        (["0", "1"], ["mean"], {"positive": ["2"]}, "no case has the label 2"),
    ],
)
def test_ambiguous_labels_and_scores_name_the_option_to_use(
    labels: list, scores: list, arguments: dict, remedy: str
) -> None:
    with pytest.raises(UsageError, match=remedy):
        plan_targets(labels, scores, **arguments)


def test_invalid_options_are_rejected(written: Written) -> None:
    results, cohort, _ = written
    with pytest.raises(UsageError, match="column 'stain'"):
        lobule.evaluate(results, cohort, by=("stain",))
    with pytest.raises(UsageError, match="split 'val'"):
        lobule.evaluate(results, cohort, split="val")
    with pytest.raises(ConfigError, match="no option 'colour'"):
        lobule.evaluate(results, cohort, **{"colour": "red"})
    with pytest.raises(ConfigError, match="by must be a list"):
        lobule.evaluate(results, cohort, by="site")


def test_scores_outside_0_to_1_have_no_calibration(written: Written) -> None:
    results, cohort, truth = written
    for i in range(80):
        put(results, f"c{i}", {"tumour": 10 * float(truth["scores"][i])})
    block = lobule.evaluate(results, cohort, resamples=5).tasks["tumor"]["all"]
    assert "not probabilities" in block["calibration"]["reason"]
    assert block["auroc"]["value"] == pytest.approx(roc_auc_score(truth["labels"], truth["scores"]))


def test_each_class_is_evaluated_against_the_rest(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    names = ["normal", "benign", "insitu", "invasive"]
    truth = np.arange(60) % 4
    scores = rng.dirichlet(np.ones(4), 60) + 0.4 * np.eye(4)[truth]
    scores /= scores.sum(1, keepdims=True)
    results = begin(tmp_path / "results", [])
    rows = []
    for i in range(60):
        rows.append({"case": f"i{i}", "patient": f"p{i}", "label": names[truth[i]], "image": f"{i}.png"})
        put(results, f"i{i}", dict(zip(names, scores[i].tolist(), strict=True)))
    evaluation = lobule.evaluate(results, write_csv(tmp_path / "cohort.csv", rows), resamples=5)
    for index, name in enumerate(names):
        block = evaluation.tasks[name]["all"]
        assert block["images"] == 60
        assert block["auroc"]["value"] == pytest.approx(roc_auc_score(truth == index, scores[:, index]))
    called = scores.argmax(1)
    # The classes are listed in the order of the sorted labels.
    order = [names.index(name) for name in evaluation.data["classes"]["classes"]]
    expected = [[int(((truth == a) & (called == b)).sum()) for b in order] for a in order]
    assert evaluation.data["classes"]["confusion"] == expected
    assert evaluation.data["classes"]["accuracy"]["value"] == pytest.approx((truth == called).mean())
    two = lobule.evaluate(
        results, tmp_path / "cohort.csv", positive=("insitu", "invasive"), resamples=5
    ).tasks["positive"]["all"]
    assert two["auroc"]["value"] == pytest.approx(roc_auc_score(truth >= 2, scores[:, 2:].sum(1)))


# -- exams and readers --------------------------------------------------------------------------------------


def test_exams_are_evaluated_per_breast(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    results = begin(tmp_path / "results", [])
    rows, labels, scores = [], [], []
    for i in range(40):
        row: dict[str, object] = {"case": f"e{i}", "patient": f"p{i // 2}", "site": "ab"[i % 2]}
        row |= {view: f"{view}.png" for view in ("l_cc", "r_cc", "l_mlo", "r_mlo")}
        exam_scores: dict[str, float] = {}
        for side in ("left", "right"):
            label, score = bool(rng.uniform() < 0.3), float(rng.uniform())
            # A breast without a label is left out.
            row[f"{side}_malignant"] = "" if i == 0 and side == "left" else int(label)
            row[f"{side}_benign"] = 0
            exam_scores |= {f"{side}_malignant": score, f"{side}_benign": 0.5}
            if not (i == 0 and side == "left"):
                labels.append(label)
                scores.append(score)
        rows.append(row)
        put(results, f"e{i}", exam_scores)
    cohort = write_csv(tmp_path / "cohort.csv", rows)
    evaluation = lobule.evaluate(results, cohort, by=("site",), resamples=20)
    block = evaluation.tasks["malignant"]["all"]
    assert (block["breasts"], block["patients"]) == (79, 20)
    assert block["auroc"]["value"] == pytest.approx(roc_auc_score(labels, scores))
    assert evaluation.tasks["malignant"]["by"]["site"]["a"]["breasts"] == 39
    assert evaluation.tasks["benign"]["all"]["auroc"] == {
        **evaluation.tasks["benign"]["all"]["auroc"], "value": None, "reason": "no positive cases",
    }  # fmt: skip
    assert evaluation.lesions is None


EvaluateCommand = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lobule_evaluate(capsys: pytest.CaptureFixture[str]) -> EvaluateCommand:
    def go(*arguments: str) -> tuple[int, str, str]:
        status = run(LazyGroup("lobule", COMMANDS, help=ABOUT), ["evaluate", *map(str, arguments)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return go


def test_published_reader_study_is_reproduced(
    kit: Path, lobule_evaluate: EvaluateCommand, tmp_path: Path
) -> None:
    table = str(kit / "reader_study/reader_study.csv")
    status, out, _ = lobule_evaluate("--reader-study", table, "--resamples", "4", "--json", "--out", tmp_path)
    assert status == 0
    data = json.loads(out)
    rows = {row["name"]: row for row in data["rows"]}
    assert (data["cases"], data["positive"], data["patients"]) == (1440, 61, 720)
    shown = {
        name: [round(row[m]["value"], 4) for m in ("auroc", "auprc", "ap")] for name, row in rows.items()
    }
    assert shown["reader01"] == [0.7256, 0.2973, 0.2611]
    assert shown["reader13"] == [0.8598, 0.3784, 0.3643]
    assert shown["ai_gmic_top5"] == [0.8812, 0.4008, 0.4070]
    assert shown["mean of readers"] == [0.7788, 0.3585, 0.3241]
    assert shown["readers together"][:2] == [0.8946, 0.5119]
    assert round(rows["mean of readers"]["spread"]["auroc"], 4) == 0.0436
    mixed = {name: values[0] for name, values in shown.items() if name.startswith("readers and")}
    assert mixed["readers and ai_gmic_top5, weight 0.5"] == 0.8871
    assert mixed["readers and ai_dmvcnn, weight 0.5"] == 0.8515
    assert round(rows["reader01"]["auroc"]["value"], 6) == 0.725555
    assert round(rows["ai_dmvcnn"]["auroc"]["value"], 6) == 0.778754
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + len(data["rows"])


def test_invalid_reader_studies_are_rejected(tmp_path: Path, lobule_evaluate: EvaluateCommand) -> None:
    for text, message in (
        ("exam,malignant,ai_a\n1,0,0.5\n", "no column begins with 'reader'"),
        ("exam,reader1\n1,0.5\n", "no column malignant"),
        ("malignant,reader1\n0,much\n", "must contain a number"),
        ("malignant,reader1\n2,0.5\n", "must contain only 0 and 1"),
        ("malignant,reader1\n1\n", "row 2 has 1 cells"),
    ):
        (tmp_path / "study.csv").write_text(text)
        status, _, err = lobule_evaluate("--reader-study", tmp_path / "study.csv")
        assert status == 2
        assert message in err


# -- the command --------------------------------------------------------------------------------------------


def test_terminal_output_lists_failures_areas_and_sites(
    written: Written, lobule_evaluate: EvaluateCommand, tmp_path: Path
) -> None:
    results, cohort, truth = written
    put(results, "c0", {}, status="failed", error="broken")
    status, out, err = lobule_evaluate(results, cohort, "--by", "site", "--resamples", "20")
    assert (status, err) == (1, "")
    assert "1: c0 (broken)" in out
    assert "not checked" in out and "Research use only" in out
    keep = np.arange(80) > 0
    area = roc_auc_score(truth["labels"][keep], truth["scores"][keep])
    assert f"{area:.4f} (" in out
    assert "site = north" in out and "site = south" in out
    status, _, err = lobule_evaluate(results)
    assert status == 2 and "RESULTS and COHORT" in err
    status, _, err = lobule_evaluate(results, cohort, "--by", "stain")
    assert status == 2 and "stain" in err


def test_results_and_cohort_without_common_cases_are_reported(
    written: Written, lobule_evaluate: EvaluateCommand, tmp_path: Path
) -> None:
    _, cohort, _ = written
    other = begin(tmp_path / "other", ["x"])
    put(other, "x", {"tumour": 0.5})
    status, out, _ = lobule_evaluate(other, cohort)
    assert status == 1
    assert "Nothing to measure" in out and "80: c0, c1" in out


def test_training_patients_are_stored_with_the_results_of_their_bundle(tmp_path: Path) -> None:
    bundle = Bundle("scannet", {}, (), 0.5, patients=("b", "a"))
    results = begin(tmp_path / "results", [], {"fingerprint": bundle.fingerprint})
    store_training_patients(results, bundle.fingerprint, bundle.patients)
    assert json.loads((results / "patients.json").read_text())["patients"] == ["a", "b"]
    store_training_patients(results, replace(bundle, mpp=1.0).fingerprint, ("c",))
    assert json.loads((results / "patients.json").read_text())["patients"] == ["a", "b"]


def test_training_patients_of_another_bundle_are_ignored(written: Written) -> None:
    results, cohort, _ = written
    (results / "patients.json").write_text(json.dumps({"fingerprint": "0" * 64, "patients": ["a"]}))
    overlap = lobule.evaluate(results, cohort, resamples=5).data["overlap"]
    assert not overlap["checked"] and "--bundle" in overlap["sentence"]


def test_figures_are_drawn_for_several_sites(written: Written, tmp_path: Path) -> None:
    results, cohort, _ = written
    files = lobule.evaluate(results, cohort, by=("site",), resamples=20).write(tmp_path / "out")
    names = sorted(file.name for file in files)
    assert names == sorted([
        "evaluation.json", "table.csv", "roc.svg", "roc.png", "precision-recall.svg", "precision-recall.png",
        "reliability.svg", "reliability.png",
    ])  # fmt: skip
    text = (tmp_path / "out/roc.svg").read_text()
    assert "site north" in text and "sensitivity" in text


def test_nine_patients_are_measured_without_intervals(written: Written, tmp_path: Path) -> None:
    results, cohort, truth = written
    with cohort.open(newline="") as file:
        rows = list(csv.DictReader(file))
    few = write_csv(tmp_path / "few.csv", [dict(row) for row in rows[:18]])
    evaluation = lobule.evaluate(results, few, resamples=50)
    area = evaluation.tasks["tumor"]["all"]["auroc"]
    assert area["value"] == pytest.approx(roc_auc_score(truth["labels"][:18], truth["scores"][:18]))
    assert (area["low"], area["high"]) == (None, None)
    assert area["reason"] == "no interval: 9 patients, and at least 10 are needed"
    evaluation.write(tmp_path / "report", plots=False)
    with next((tmp_path / "report").glob("table.csv")).open(newline="") as file:
        table = {row["measure"]: row for row in csv.DictReader(file)}
    assert (table["auroc"]["low"], table["auroc"]["high"]) == ("", "")
    assert "9 patients" in table["auroc"]["reason"]
