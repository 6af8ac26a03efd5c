"""The official Camelyon16 measures through the command, from submissions and from results folders."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lobule
from lobule.cli import ABOUT, COMMANDS
from lobule.cli.base import LazyGroup, run
from lobule.cohort import Case
from lobule.errors import ResultsError, UsageError
from lobule.evaluation import Options, open_source
from lobule.evaluation.lesions import match_slides
from lobule.evaluation.sources import CaseResult, read_detections, read_probabilities
from lobule.phantoms.truth import Outline, SlideTruth, write_annotation_files, write_mask_tiff
from lobule.results.maps import MapInfo, MapWriter
from lobule.stitch import State
from tests.evaluation.support import begin, golden_masks, put, write_csv, write_mask, write_submission

CASES = ("synthetic_1", "synthetic_2", "synthetic_3", "real_1", "real_2")
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `lobule evaluate … --json` and return the parsed output."""

    def go(*arguments: str, status: int = 0) -> dict[str, Any]:
        exit_status = run(LazyGroup("lobule", COMMANDS, help=ABOUT), ["evaluate", *arguments, "--json"])
        printed = capsys.readouterr()
        assert exit_status == status, printed.err
        return json.loads(printed.out)

    return go


def golden(goldens: Path, name: str) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
    case = json.loads((goldens / "camelyon16/cases.json").read_text())[name]
    return case, np.load(goldens / "camelyon16/masks.npz")


def assert_official(lesions: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert lesions["froc"]["score"] == pytest.approx(expected["froc_score"], abs=1e-9)
    assert lesions["froc_score"]["value"] == lesions["froc"]["score"]
    assert lesions["froc"]["false_positives"] == pytest.approx(expected["total_FPs"], abs=1e-9)
    assert lesions["froc"]["sensitivity"] == pytest.approx(expected["total_sensitivity"], abs=1e-9)
    assert lesions["jama"]["score"] == pytest.approx(expected["jama_variant"]["score"], abs=1e-9)
    for rate, value in expected["sensitivity_at"].items():
        assert lesions["froc"]["sensitivity_at"][rate] == pytest.approx(value, abs=1e-9)
    assert lesions["highest_confidence_auc"] == pytest.approx(expected["slide_auc"]["auc"], abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_submission_with_masks_reproduces_official_numbers(
    goldens: Path, tmp_path: Path, answer: Run, name: str
) -> None:
    case, masks = golden(goldens, name)
    submission = write_submission(tmp_path / "detections", case["slides"])
    for slide in case["slides"]:
        if slide["has_mask"]:
            mask = golden_masks(masks, name, slide["name"])
            write_mask(tmp_path / "masks" / f"{slide['name']}_Mask.tif", mask)
    data = answer(
        "--submission", str(submission), "--masks", str(tmp_path / "masks"), "--mask-step", "32",
        "--resamples", "20",
    )  # fmt: skip
    assert_official(data["lesions"]["all"], case["expected"])
    assert data["tasks"]["tumor"]["all"]["auroc"]["value"] == pytest.approx(
        case["expected"]["slide_auc"]["auc"], abs=1e-9
    )
    assert data["cases"]["complete"] == len(case["slides"])


@pytest.mark.parametrize("name", ["synthetic_3", "real_1"])
def test_results_with_cohort_reproduce_official_numbers(
    goldens: Path, tmp_path: Path, answer: Run, name: str
) -> None:
    case, masks = golden(goldens, name)
    results = begin(tmp_path / "results", [slide["name"] for slide in case["slides"]])
    rows = []
    for index, slide in enumerate(case["slides"]):
        row = {"case": slide["name"], "patient": f"p{index // 2}", "slide": f"{slide['name']}.tif"}
        size = (32 * 4096, 32 * 4096)
        if slide["has_mask"]:
            mask = golden_masks(masks, name, slide["name"])
            write_mask(tmp_path / f"{slide['name']}_mask.tif", mask)
            size = (32 * mask.shape[1], 32 * mask.shape[0])
            row |= {"annotation": f"{slide['name']}_mask.tif"}
        rows.append(row | {"label": "tumor" if slide["has_mask"] else "normal"})
        best = max((detection[0] for detection in slide["detections"]), default=0.0)
        put(results, slide["name"], {"tumour": best}, slide["detections"], size=size, mpp=0.226)
    cohort = write_csv(tmp_path / "cohort.csv", rows)
    data = answer(str(results), str(cohort), "--resamples", "20")
    assert_official(data["lesions"]["all"], case["expected"])
    assert data["labels"] == "by their usual meaning: positive tumor, negative normal"
    assert data["lesions"]["all"]["patients"] == -(-len(rows) // 2)


def test_polygons_give_the_same_lesions_at_both_resolutions(
    goldens: Path, tmp_path: Path, answer: Run
) -> None:
    """The same square as GeoJSON on a slide with half the resolution gives the same lesions."""
    square = np.zeros((64, 96), bool)
    square[10:40, 20:50] = True
    scores = {}
    for mpp, step in ((0.243, 32), (0.486, 16)):
        corners = [
            [20 * step, 10 * step],
            [50 * step, 10 * step],
            [50 * step, 40 * step],
            [20 * step, 40 * step],
        ]
        feature = {
            "type": "Feature", "properties": {"classification": {"name": "Tumor"}},
            "geometry": {"type": "Polygon", "coordinates": [[*corners, corners[0]]]},
        }  # fmt: skip
        (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
        results = begin(tmp_path / f"results-{step}", ["a", "b"])
        # The dilation reaches the point 4 cells beside the square but not the point at 6 cells.
        detections = [[0.9, 16 * step, 20 * step], [0.8, 14 * step, 20 * step]]
        put(results, "a", {"tumour": 0.9}, detections, size=(96 * step, 64 * step), mpp=mpp)
        put(results, "b", {"tumour": 0.1}, [], size=(96 * step, 64 * step), mpp=mpp)
        cohort = write_csv(
            tmp_path / "cohort.csv",
            [
                {"case": "a", "patient": "a", "label": "1", "slide": "a.tif", "annotation": "a.geojson"},
                {"case": "b", "patient": "b", "label": "0", "slide": "b.tif", "annotation": ""},
            ],
        )
        scores[step] = answer(str(results), str(cohort), "--resamples", "5")["lesions"]["all"]
    # One lesion is hit. The only false positive has the smallest threshold, which is skipped.
    assert scores[32]["froc"] == scores[16]["froc"]
    assert scores[32]["froc"]["false_positives"] == [0.0, 0.0]
    assert scores[32]["froc"]["score"] == 1.0
    assert scores[32]["lesions"] == 1


def disc(x: float, y: float, diameter_um: float, name: str, mpp: float) -> Outline:
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    points = np.column_stack([np.cos(angle), np.sin(angle)]) * diameter_um / mpp / 2 + (x, y)
    return Outline(points, name, diameter_um)


def test_mask_and_outlines_give_the_same_truth(tmp_path: Path) -> None:
    """A pyramid of 0 and 255, GeoJSON and ASAP XML of the same discs, at four times Camelyon16's µm/px."""
    mpp = 0.972
    discs = (
        disc(1500, 1500, 2200, "macro", mpp), disc(3300, 700, 600, "micro", mpp),
        disc(3300, 1500, 240, "micro", mpp), disc(3300, 2300, 120, "itc", mpp),
    )  # fmt: skip
    truth = SlideTruth(4096, 3072, mpp, discs, ())
    write_mask_tiff(truth, tmp_path / "one_mask.tif")
    write_annotation_files(truth, tmp_path / "one")
    results = begin(tmp_path / "results", ["one"])
    centres = [[0.9, *one.points.mean(0)] for one in discs]
    put(results, "one", {"tumour": 1.0}, centres, size=(4096, 3072), mpp=mpp)
    blocks = []
    for annotation in ("one_mask.tif", "one.geojson", "one.xml"):
        row = {"case": "one", "patient": "p", "label": "tumor", "slide": "one.tif", "annotation": annotation}
        evaluation = lobule.evaluate(results, write_csv(tmp_path / "cohort.csv", [row]), resamples=5)
        assert evaluation.lesions is not None
        blocks.append(evaluation.lesions["all"])
    assert blocks[0] == blocks[1] == blocks[2]
    by_class = blocks[0]["sensitivity_by_class"]
    assert {name: entry["lesions"] for name, entry in by_class.items()} == {"macro": 1, "micro": 2, "itc": 1}
    assert (blocks[0]["lesions"], blocks[0]["isolated_tumour_cells"]) == (3, 1)
    assert blocks[0]["froc"]["score"] == 1.0


def test_nms_findings_are_read_from_the_map(tmp_path: Path) -> None:
    results = begin(tmp_path / "results", ["a", "b"])
    mask = np.zeros((64, 64), bool)
    mask[5:40, 5:40] = True
    write_mask(tmp_path / "a_Mask.tif", mask)
    for name in "ab":
        put(results, name, {"tumour": 0.9}, [], size=(2048, 2048))
        info = MapInfo("map", "slide", ("normal", "tumour"), 32, 32, (64.0, 64.0), None, (32, 32))
        scores = np.zeros((2, 32, 32), np.float32)
        scores[1, 10, 12] = 0.875 if name == "a" else 0.25
        scores[1, 30, 30] = 0.625
        states = np.full((32, 32), State.SCORED, np.uint8)
        MapWriter(results / "cases" / name / "maps" / "map", info).write_chunk((0, 0), scores, states)
    cohort = write_csv(
        tmp_path / "cohort.csv",
        [
            {"case": name, "patient": name, "label": label, "slide": f"{name}.tif"}
            for name, label in (("a", "1"), ("b", "0"))
        ],
    )
    stored = lobule.evaluate(results, cohort, masks=str(tmp_path), resamples=5).lesions
    from_map = lobule.evaluate(results, cohort, masks=str(tmp_path), resamples=5, findings="nms").lesions
    assert stored is not None and from_map is not None
    assert stored["all"]["froc"]["sensitivity_at"]["8"] == 0.0
    # The hit has 0.875. Each slide has a false positive with 0.625, the smallest threshold: skipped.
    assert from_map["all"]["froc"]["sensitivity_at"]["0.25"] == 1.0
    assert from_map["all"]["jama"]["false_positives"] == [1.0, 0.0, 0.0]


def test_coarse_map_fills_cells_that_the_dense_map_did_not_reach(tmp_path: Path) -> None:
    results = begin(tmp_path / "results", ["a"])
    put(results, "a", {"tumour": 0.9}, [], size=(2048, 2048))
    maps = results / "cases/a/maps"
    for name, stride, side, at in (("s64", 64.0, 32, (10, 12)), ("s32", 32.0, 64, (40, 41))):
        info = MapInfo(name, "slide", ("tumour",), side, side, (stride, stride), None, (side, side))
        scores = np.zeros((1, side, side), np.float32)
        scores[0][at] = 0.875 if name == "s64" else 0.75
        states = np.full((side, side), State.SCORED, np.uint8)
        if name == "s32":
            states[:36] = State.PENDING
        MapWriter(maps / name, info).write_chunk((0, 0), scores, states)
    source = open_source(results, Options(findings="nms", nms_radius=4))
    detections = source.case_result(Case("a", "a", "slide")).detections
    # The centre of the first fine cell in the coarse cell, and the centre of the fine cell.
    assert detections is not None
    assert detections.tolist() == [[0.875, 24 * 32 + 16, 20 * 32 + 16], [0.75, 41 * 32 + 16, 40 * 32 + 16]]
    (results / "cases/a/result.json").write_text("{")
    assert source.case_result(Case("a", "a", "slide")).status == "failed"


@pytest.mark.parametrize("written", ["false", "FALSE", "0"])
def test_slides_excluded_from_froc_are_listed(tmp_path: Path, written: str) -> None:
    results = begin(tmp_path / "results", ["one", "two"])
    for name in ("one", "two"):
        put(results, name, {"tumour": 0.5}, [[0.9, 600, 600]], size=(1280, 1280), mpp=0.243)
        write_mask(tmp_path / f"masks/{name}_Mask.tif", np.ones((40, 40), bool))
    rows = [
        {"case": name, "patient": name, "slide": f"{name}.tif", "label": "tumor", "froc": froc}
        for name, froc in (("one", ""), ("two", written))
    ]
    cohort = write_csv(tmp_path / "cohort.csv", rows)
    report = lobule.evaluate(results, cohort, masks=str(tmp_path / "masks"), resamples=5).data
    assert list(report["lesions_left_out"]) == ["two"] and report["lesions"]["all"]["slides"] == 1


# -- the official forms -------------------------------------------------------------------------------------


def test_official_csv_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("0.5,10,20\n\n1e-3,0,7\n")
    assert read_detections(path).tolist() == [[0.5, 10, 20], [0.001, 0, 7]]
    path.write_text("")
    assert read_detections(path).shape == (0, 3)
    path.write_text("name,probability\nTest_001.tif,0.25\nTest_002,1\n")
    assert read_probabilities(path) == {"Test_001": 0.25, "Test_002": 1.0}


@pytest.mark.parametrize("line", ["0.5,10.0,20", "p,x,y", "0.5,10", "nan,1,2", "0.5,1,2,3"])
def test_invalid_detections_fail_only_their_slide(tmp_path: Path, line: str) -> None:
    write_mask(tmp_path / "masks/Tumor_1_Mask.tif", np.ones((40, 40), bool))
    for name, text in (("Tumor_1", "0.5,8,8\n"), ("Tumor_2", line + "\n"), ("Normal_1", "")):
        (tmp_path / "found").mkdir(exist_ok=True)
        (tmp_path / f"found/{name}.csv").write_text(text)
    evaluation = lobule.evaluate(
        None, submission=tmp_path / "found", masks=str(tmp_path / "masks"), mask_step=32, resamples=5
    )
    assert evaluation.failed == 1
    assert "Tumor_2" in evaluation.data["cases"]["failed"]
    assert "line 1" in evaluation.data["lesions_left_out"]["Tumor_2"]
    assert evaluation.lesions is not None and evaluation.lesions["all"]["slides"] == 2


def test_detections_that_are_not_text_fail_only_their_slide(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe0")
    (tmp_path / "b.csv").write_text("0.5,8,8\n")
    source = open_source(tmp_path, Options())
    assert source.case_result(Case("a", "a", "slide")).status == "failed"
    assert source.case_result(Case("b", "b", "slide")).status == "complete"


def test_slides_with_detections_outside_or_without_mask_are_listed(tmp_path: Path) -> None:
    write_mask(tmp_path / "masks/Tumor_1_Mask.tif", np.ones((40, 40), bool))
    (tmp_path / "found").mkdir()
    (tmp_path / "found/Tumor_1.csv").write_text("0.5,99999,8\n")
    (tmp_path / "found/Tumor_2.csv").write_text("")
    (tmp_path / "found/Normal_1.csv").write_text("0.1,5,5\n")
    evaluation = lobule.evaluate(
        None, submission=tmp_path / "found", masks=str(tmp_path / "masks"), mask_step=32, resamples=5
    )
    left_out = evaluation.data["lesions_left_out"]
    assert "outside the slide" in left_out["Tumor_1"]
    assert left_out["Tumor_2"] == "positive, but without annotation"
    assert evaluation.lesions is not None and evaluation.lesions["all"]["froc"]["score"] is None


def test_mask_without_scale_names_the_remedy(tmp_path: Path) -> None:
    write_mask(tmp_path / "masks/Tumor_1_Mask.tif", np.ones((40, 40), bool))
    (tmp_path / "found").mkdir()
    (tmp_path / "found/Tumor_1.csv").write_text("0.5,8,8\n")
    evaluation = lobule.evaluate(
        None, submission=tmp_path / "found", masks=str(tmp_path / "masks"), resamples=5
    )
    assert "--mask-step" in evaluation.data["lesions_left_out"]["Tumor_1"]


def test_invalid_submissions_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no cohort"):
        (tmp_path / "x.csv").write_text("a,0.5\n")
        lobule.evaluate(None, submission=tmp_path / "x.csv")
    with pytest.raises(UsageError, match="no folder of masks"):
        lobule.evaluate(None, submission=tmp_path / "x.csv", masks=str(tmp_path / "nowhere"))
    with pytest.raises(ResultsError, match="no CSV files"):
        (tmp_path / "empty").mkdir()
        lobule.evaluate(None, submission=tmp_path / "empty", masks=str(tmp_path))
    (tmp_path / "twice.csv").write_text("a,0.5\na,0.6\n")
    with pytest.raises(ResultsError, match="line 2"):
        read_probabilities(tmp_path / "twice.csv")


def test_slide_scores_and_detections_can_be_combined(tmp_path: Path, answer: Run) -> None:
    """Slide scores come from the slide CSV, detections from the folder."""
    write_mask(tmp_path / "masks/Tumor_1_Mask.tif", np.ones((40, 40), bool))
    (tmp_path / "found").mkdir()
    (tmp_path / "found/Tumor_1.csv").write_text("0.2,8,8\n")
    (tmp_path / "found/Normal_1.csv").write_text("0.9,8,8\n")
    (tmp_path / "slides.csv").write_text("Tumor_1,0.7\nNormal_1,0.3\n")
    out = tmp_path / "out"
    data = answer(
        "--submission", str(tmp_path / "found"), "--submission", str(tmp_path / "slides.csv"),
        "--masks", str(tmp_path / "masks"), "--mask-step", "32", "--resamples", "5", "--out", str(out),
    )  # fmt: skip
    assert data["tasks"]["tumor"]["all"]["auroc"]["value"] == 1.0
    assert data["lesions"]["all"]["highest_confidence_auc"] == 0.0
    assert json.loads((out / "evaluation.json").read_text()) == data
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    estimates = {row["measure"]: row["estimate"] for row in rows if row["column"] == ""}
    assert float(estimates["auroc"]) == 1.0
    assert float(estimates["froc_score"]) == data["lesions"]["all"]["froc"]["score"]
    assert {file.name for file in out.glob("*.svg")} == {
        "roc.svg", "precision-recall.svg", "reliability.svg", "froc.svg",
    }  # fmt: skip


def test_slide_whose_other_findings_cannot_be_matched_is_noted() -> None:
    slides = [
        (Case(name, name, "slide"), CaseResult("complete", {}, np.zeros((0, 3))), False) for name in "ab"
    ]
    impossible = CaseResult("complete", {}, np.array([[0.5, -3.0, 4.0]]))
    other_results = {"a": CaseResult("complete", {}, np.zeros((0, 3))), "b": impossible}
    matched = match_slides(slides, Options(), other_results)
    assert [case.id for case in matched.cases] == ["a", "b"] and not matched.left_out
    assert [match is None for match in matched.other_matches] == [False, True]
    (note,) = [note for note in matched.notes if "comparison" in note]
    assert note.startswith("b: left out of the comparison of lesions") and "impossible coordinates" in note
