"""Comparisons: the rows of a table, methods that are left out, failures, interruptions, added rows."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lobule
from lobule.cli import ABOUT, COMMANDS
from lobule.cli.base import LazyGroup, run
from lobule.cohort import Case, Cohort
from lobule.comparison import MINUTES, Comparison, compare, rows
from lobule.comparison.entries import Encoder, Entry, plan_entries
from lobule.comparison.labels import annotation_cost, cases_to_learn, why_unusable, with_budget
from lobule.comparison.page import comparison_page
from lobule.errors import ConfigError, ResultsError, UsageError
from tests.methods.scannet.test_train import painted

TINY = "lobule:tiny"
SETTINGS: dict[str, dict[str, Any]] = {
    "colour": {"patches": 160, "mpp": 0.5},
    "probe": {"window": 96, "strides": (8,), "tokens": 300},
    "mean_pool": {"members": 1, "epochs": 2},
}
OPTIONS: dict[str, Any] = {
    "encoders": [TINY], "weights": "random", "resamples": 20, "device": "cpu", "precision": "float32",
    "tile": 224,
}  # fmt: skip
METHODS = ["colour", "probe", "mean_pool", "four_view"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("slides")
    content: list[tuple[str, Any]] = [("train", (200, 200, 360)), ("train", None), ("train", (500, 220, 340)),
              ("train", None), ("val", (300, 150, 320)), ("val", None), ("test", (150, 90, 620)),
              ("test", None), ("test", (400, 90, 620)), ("test", None)]  # fmt: skip
    return Cohort(
        tuple(
            painted(folder, f"s{number}", tumour, number, split)
            for number, (split, tumour) in enumerate(content)
        )
    )


def run_comparison(cohort: Cohort, out: Path, methods: list[str] = METHODS, **options: Any) -> Comparison:
    settings = {name: values for name, values in SETTINGS.items() if name in methods}
    return compare(cohort, out, methods, **{**OPTIONS, "settings": settings, **options})


@pytest.fixture(scope="module")
def finished(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return run_comparison(cohort, tmp_path_factory.mktemp("comparison") / "out")


def without_times(comparison: Comparison) -> dict[str, Any]:
    """The table without the seconds of its steps."""
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in comparison.rows]
    return {**comparison.data, "rows": rows}


def test_every_method_has_a_row(cohort: Cohort, finished: Comparison) -> None:
    by_name = {row["name"]: row for row in finished.rows}
    assert list(by_name) == ["colour", "probe-lobule_tiny", "mean_pool-lobule_tiny", "four_view"]
    assert [row["status"] for row in finished.rows] == [*["complete"] * 3, "left out"]
    assert "cases of kind exam" in by_name["four_view"]["reason"]
    assert finished.failed == 0 and finished.data["reference"] == "colour"
    colour, probe, pooled = list(finished.rows)[:3]
    assert colour["labels"] == {"outlines": 2, "slide": 2} and colour["annotation_minutes"] == 64
    assert pooled["labels"] == {"slide": 4} and pooled["annotation_minutes"] == 8
    assert all(row["cases"] == 4 and 0 <= row["auroc"]["value"] <= 1 for row in (colour, probe, pooled))
    assert colour["froc"]["value"] is not None and colour["auroc_difference"] is None
    assert all(row["seconds"]["training"] > 0 < row["seconds"]["scanning"] for row in (colour, probe))
    assert pooled["seconds"]["extracting"] > 0 and probe["seconds"]["extracting"] is None


def test_measures_are_those_of_evaluate(cohort: Cohort, finished: Comparison) -> None:
    probe = finished.rows[1]
    folders = {name: finished.out / "rows" / name / "results" for name in ("probe-lobule_tiny", "colour")}
    evaluation = lobule.evaluate(
        folders["probe-lobule_tiny"], cohort, split="test", against=folders["colour"], resamples=20
    )
    block = evaluation.tasks["tumor"]["all"]
    difference = evaluation.tasks["tumor"]["against"]["all"]["auroc"]
    assert probe["auroc"]["value"] == block["auroc"]["value"]
    assert probe["brier"] == block["calibration"]["brier"]
    maps = lobule.evaluate(folders["probe-lobule_tiny"], cohort, split="test", maps=True, resamples=5)
    assert probe["cell_auc"]["value"] == maps.data["maps"]["cell_auc"]["value"] > 0.5
    assert probe["dice"]["value"] == maps.data["maps"]["dice"]["value"] > 0
    assert maps.data["maps"]["fitted_on"] == "val" and probe["seconds"]["validating"] > 0
    colour = finished.rows[0]
    gain = probe["cell_auc"]["value"] - colour["cell_auc"]["value"]
    assert probe["cell_auc_difference"]["value"] == pytest.approx(gain)
    assert probe["auroc_difference"]["value"] == pytest.approx(difference["difference"]["value"])
    assert evaluation.lesions is not None
    froc = evaluation.lesions["against"]["all"]["froc"]["difference"]["value"]
    assert froc is not None and probe["froc_difference"]["value"] == pytest.approx(froc)


def test_table_and_page_are_written(finished: Comparison) -> None:
    with (finished.out / "table.csv").open() as file:
        lines = {line["name"]: line for line in csv.DictReader(file)}
    assert lines["four_view"]["status"] == "left out" and lines["four_view"]["auroc"] == ""
    assert float(lines["colour"]["auroc"]) == finished.rows[0]["auroc"]["value"]
    page = (finished.out / "index.html").read_text()
    for expected in ("probe-lobule_tiny", "Research use only", "one site", "four_view", "outlines 30"):
        assert expected in page
    assert json.loads((finished.out / "table.json").read_text()) == dict(finished.data)
    turned = [{**row, "orientation_passed": row["name"] != "colour"} for row in finished.rows]
    assert "check, so do not use them: colour." in comparison_page({**finished.data, "rows": turned})


def test_a_second_call_computes_nothing(
    cohort: Cohort, finished: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this step was done before")

    for name in ("train", "scan", "extract_features", "evaluate"):
        monkeypatch.setattr(f"lobule.api.{name}", refuse)
    assert run_comparison(cohort, finished.out).data == finished.data


def test_a_failed_row_says_so_and_the_others_finish(cohort: Cohort, tmp_path: Path) -> None:
    settings = {"colour": SETTINGS["colour"], "scannet": {"weights": str(tmp_path / "no.safetensors")}}
    failing = compare(cohort, tmp_path / "out", ["scannet", "colour"], settings=settings, resamples=5)
    scannet, colour = failing.rows
    assert scannet["status"] == "failed" and scannet["reason"].startswith("training: ")
    assert colour["status"] == "complete" and failing.failed == 1 and failing.data["reference"] == "colour"
    assert "no.safetensors" in (tmp_path / "out" / "index.html").read_text()


def test_an_interrupted_comparison_gives_the_same_table(
    cohort: Cohort, finished: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is interrupted in turn, before or after its work, and the call is repeated."""
    for number, step in enumerate(("extract_features", "train", "scan", "evaluate")):
        original: Callable[..., Any] = getattr(lobule.api, step)

        def interrupted(
            *arguments: Any, original: Any = original, after: bool = bool(number % 2), **options: Any
        ) -> Any:
            if after:
                original(*arguments, **options)
            raise KeyboardInterrupt

        monkeypatch.setattr(f"lobule.api.{step}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_comparison(cohort, tmp_path / "out", ["mean_pool"])
        monkeypatch.undo()
    (resumed,) = without_times(run_comparison(cohort, tmp_path / "out", ["mean_pool"]))["rows"]
    expected = without_times(finished)["rows"][2]
    paired = {name for name in expected if "difference" in name or name.endswith("_p")}
    assert resumed["auroc_difference"] is None
    assert {name: resumed[name] for name in resumed if name not in paired} == {
        name: value for name, value in expected.items() if name not in paired
    }


def test_methods_and_budgets_can_be_added(cohort: Cohort, finished: Comparison, tmp_path: Path) -> None:
    out = shutil.copytree(finished.out, tmp_path / "out")
    added = run_comparison(cohort, out, ["colour"], budgets=[2])
    assert [row["name"] for row in added.rows] == [*(row["name"] for row in finished.rows), "colour-2"]
    assert list(added.rows)[:4] == list(finished.rows)
    row = added.rows[4]
    assert row["training_cases"] == 2 and row["annotation_minutes"] == 32
    assert row["auroc_difference"]["value"] == row["auroc"]["value"] - added.rows[0]["auroc"]["value"]
    assert (out / "cost.svg").exists() and "hours of annotation" in (out / "index.html").read_text()


def test_other_cases_and_settings_are_refused(cohort: Cohort, finished: Comparison) -> None:
    fewer = Cohort(cohort.cases[:-1])
    with pytest.raises(ResultsError, match="comparison with other cases"):
        run_comparison(fewer, finished.out)
    with pytest.raises(ResultsError, match="comparison with other seed"):
        run_comparison(cohort, finished.out, seed=9)
    with pytest.raises(ResultsError, match="'colour' was made with other settings"):
        run_comparison(cohort, finished.out, ["colour"], settings={"colour": {"patches": 200}})
    with pytest.raises(UsageError, match="no row 'gmic'"):
        run_comparison(cohort, finished.out, reference="gmic")


# -- planning -----------------------------------------------------------------------------------------------


def test_entries_combine_methods_encoders_and_budgets() -> None:
    encoders = [Encoder("efficientnet-lite0"), Encoder("squeezenet1_1", "random")]
    entries = plan_entries(["reverse-distillation", "colour", "chowder"], encoders, [8, 4], {})
    assert [entry.name for entry in entries[:5]] == [
        "reverse_distillation-efficientnet_lite0-4", "reverse_distillation-efficientnet_lite0-8",
        "reverse_distillation-squeezenet1_1-4", "reverse_distillation-squeezenet1_1-8", "colour-4",
    ]  # fmt: skip
    assert len(entries) == 10 and entries[-1].settings == {}
    assert entries[3].settings == {"teacher": "squeezenet1_1", "weights": "random"}
    for methods, kwargs, message in (
        (["colour", "colour"], {}, "named twice"),
        ([], {}, "no method"),
        (["colour"], {"budgets": [1]}, "at least two"),
        (["colour"], {"settings": {"probe": {}}}, "not compared"),
    ):
        options: dict[str, Any] = {"budgets": [], "settings": {}, **kwargs}
        with pytest.raises(UsageError, match=message):
            plan_entries(methods, [], options["budgets"], options["settings"])
    with pytest.raises(ConfigError):
        plan_entries(["colour"], [], [], {"colour": {"no_setting": 1}})


def case(name: str, label: str | None, outlined: bool, split: str = "train", kind: Any = "slide") -> Case:
    return Case(
        name, name, kind, f"{name}.tif", split=split, label=label,
        annotation=f"{name}.xml" if outlined else None,
    )  # fmt: skip


def test_methods_that_cannot_learn_say_why() -> None:
    slides = Cohort((case("a", "tumor", False), case("b", "tumor", False)))
    kinds = ("slide", "region")
    assert "no training case has an annotation" in str(why_unusable(slides, "outlines", kinds))
    assert "have 1 labels" in str(why_unusable(slides, "slide", kinds))
    assert "labels of breasts" in str(why_unusable(slides, "breast", kinds))
    assert "of kind slide" in str(why_unusable(slides, "image", ("image",)))
    assert why_unusable(Cohort(()), None, kinds) == "no case is in the split 'train'"
    assert why_unusable(Cohort((*slides, case("c", "normal", True))), "outlines", kinds) is None


def test_labels_of_regions_are_only_for_methods_that_learn_from_images() -> None:
    slides = [case("t", "tumor", True), case("n", "normal", False), case("v", "tumor", True, "val")]
    regions = [case("r", "tumor", False, kind="region"), case("i", "normal", False, kind="image")]
    tested = [case("e", "normal", False, "test"), case("q", "tumor", False, "test", "region")]
    cohort = Cohort((*slides, *regions, *tested))

    def learned(kind: str | None, some: Cohort = cohort) -> str:
        return "".join(one.id for one in cases_to_learn(some, kind, "test"))

    assert learned("image") == "rieq"
    assert [learned(kind) for kind in ("outlines", "slide", "breast", None)] == ["tnveq"] * 4
    for some in (Cohort((*slides, *tested)), Cohort((*regions, *tested))):
        assert learned("image", some) == learned("outlines", some) == "".join(one.id for one in some)
    outlined = replace(regions[0], annotation="r.xml")
    assert learned("outlines", Cohort((*slides, outlined, *tested))) == "tnvreq"
    row = rows.Row(Entry("rakhlin", budget=2), rows.Common(cohort), Path("nowhere"))
    assert {one.id for one in row.cohort.split("train")} == {"r", "i"}
    assert row.base()["annotation_minutes"] == 2


def test_budgets_are_nested_and_balanced() -> None:
    cases = [case(f"t{number}", "tumor", True) for number in range(6)]
    cases += [case(f"n{number}", "normal", False) for number in range(10)]
    cases += [case("v", "tumor", True, "val"), case("e", "normal", False, "test")]
    cohort = Cohort(tuple(cases))
    chosen = {}
    for budget in (2, 4, 8, 15, 99):
        limited_cohort = with_budget(cohort, budget, 3)
        training = limited_cohort.split("train")
        assert len(training) == min(budget, 16) and len(limited_cohort) == len(training) + 2
        chosen[budget] = {one.id for one in training}
        positives = sum(one.label == "tumor" for one in training)
        assert positives == min(-(-budget // 2), 6)
    assert chosen[2] < chosen[4] < chosen[8] < chosen[15] < chosen[99]
    assert {one.id for one in with_budget(cohort, 4, 4).split("train")} != chosen[4]


def test_cost_counts_the_labels_that_a_method_uses() -> None:
    cases = [case("a", "tumor", True), case("b", "normal", False)]
    assert annotation_cost(cases, "outlines", MINUTES).minutes == 32
    cost = annotation_cost(cases, "slide", {**MINUTES, "slide": 5.0})
    assert (cost.minutes, dict(cost.labels)) == (10, {"slide": 2})
    exam = replace(case("c", None, False), breast_labels={"left_benign": True, "left_malignant": False})
    assert annotation_cost([exam], "breast", MINUTES).minutes == 2
    with pytest.raises(UsageError, match="minutes of a label"):
        lobule.compare(Cohort((case("t", "tumor", True, "test"),)), "nowhere", ["colour"], minutes={"x": 1})


def test_the_command_shows_the_plan_and_the_table(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "cohort.csv"
    header = "case,patient,split,label,slide,mpp,annotation"
    lines = [
        f"{one.id},{one.patient},{one.split},{one.label},{one.path},{one.mpp},{one.annotation or ''}"
        for one in cohort
    ]
    manifest.write_text("\n".join([header, *lines]) + "\n")
    arguments = ["compare", str(manifest), "--methods", "colour,four_view", "--out", str(tmp_path / "out")]
    arguments += ["--set", "colour.patches=160", "--resamples", "5", "--minutes", "outlines=60"]
    group = LazyGroup("lobule", COMMANDS, help=ABOUT)
    assert run(group, [*arguments, "--dry-run"]) == 0
    assert "four_view" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert run(group, [*arguments, "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "left out: it learns from" in shown and "2.1 h" in shown
    for wrong in (["--budgets", "few"], ["--minutes", "slide"], ["--set", "patches=3"]):
        assert run(group, [*arguments, *wrong, "--dry-run"]) == 2


def test_unknown_exceptions_end_only_their_row(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a library failed")

    monkeypatch.setattr(rows.Row, "_train", broken)
    comparison = run_comparison(cohort, tmp_path / "out", ["colour"])
    assert comparison.rows[0]["reason"] == "training: RuntimeError('a library failed')"
    assert comparison.data["reference"] is None
