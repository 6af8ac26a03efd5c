"""Reviews read back: `evaluate` measures a person like a model, and training uses the outlines."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import lobule
from lobule.annotations import Polygon, rasterise, read_annotation, write_annotation
from lobule.annotations.outline import Annotation
from lobule.cli import COMMANDS
from lobule.cli.base import LazyGroup, run
from lobule.cohort import read_cohort, write_cohort
from lobule.errors import UsageError
from lobule.findings import Finding, Outline
from lobule.geometry import Box
from lobule.layouts import read_layout
from lobule.reviews import Review, append_review, in_force, read_reviews, reviewed_findings
from lobule.stitch import State
from tests.server.support import begin, resampled, squares, write_case, write_jpeg_slide


def square(left: float, top: float, side: float) -> np.ndarray:
    return np.array([[left, top], [left + side, top], [left + side, top + side], [left, top + side]], float)


def finding(left: float, top: float, side: float, score: float) -> Finding:
    outline = (Outline(square(left, top, side), ()),)
    return Finding(
        int(left + side / 2), int(top + side / 2), score, kind="polygon", label="tumour", polygon=outline
    )


@pytest.fixture
def reviewed(tmp_path: Path) -> Path:
    """Three slides: the model sees a tumour of `one` at (100, 100) and two false alarms."""
    pixels = squares(1100, 900)
    slide = write_jpeg_slide(tmp_path / "slide.tif", [pixels, resampled(pixels, 550, 450)])
    results = begin(tmp_path, ["one", "two", "three"])
    scores, states = np.full((57, 69), 0.5, np.float32), np.full((57, 69), State.SCORED, np.uint8)
    findings = {
        "one": [finding(100, 100, 100, 0.9), finding(760, 660, 80, 0.8)],
        "two": [finding(300, 300, 60, 0.7)],
        "three": [],
    }
    for name, case_findings in findings.items():
        write_case(results, name, slide, scores, states, case_findings)
    path = results.path
    append_review(path, "one", "ann", Review("accept", finding=0, position=(150, 150)))
    append_review(path, "one", "ann", Review("accept", finding=1, position=(800, 700)))
    append_review(path, "one", "ann", Review("reject", finding=1, position=(800, 700)))
    append_review(path, "two", "ann", Review("relabel", finding=0, label="normal", position=(330, 330)))
    append_review(path, "one", "bob", Review("reject", finding=0, position=(150, 150)))
    outline = tuple(map(tuple, square(700, 100, 100).tolist()))
    append_review(path, "one", "bob", Review("draw", polygon=outline))
    append_review(path, "three", "bob", Review("note", text="Nothing."))
    return tmp_path


def write_manifest(root: Path) -> Path:
    truth = Annotation((Polygon(square(40, 40, 620), "tumour", "metastasis", "Tumor"),))
    write_annotation(root / "one.geojson", truth)
    rows = [
        {"case": name, "patient": name, "slide": "slide.tif", "label": label, "annotation": annotation}
        for name, label, annotation in (
            ("one", "tumor", "one.geojson"),
            ("two", "normal", ""),
            ("three", "normal", ""),
        )
    ]
    with (root / "cohort.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root / "cohort.csv"


def test_a_reviewer_is_measured_like_a_model(reviewed: Path) -> None:
    cohort = write_manifest(reviewed)
    results = reviewed / "results"
    ann = lobule.evaluate(results, cohort, reviewer="ann", against=results, resamples=50)
    bob = lobule.evaluate(results, cohort, reviewer="bob", resamples=50)
    model = lobule.evaluate(results, cohort, resamples=50)
    assert ann.data["cases"]["complete"] == 2  # Ann did not review the third slide, which is not a failure.
    assert ann.data["cases"]["unscored"] == {"three": "not reviewed by ann"}
    assert ann.failed == 0
    # Ann rejected the false alarms. Bob missed the tumour, and drew an outline where there is nothing.
    assert ann.data["reader"] == {
        "person": "ann", "slides": 2, "lesions": 1, "marked": 1, "sensitivity": 1.0,
        "false_positives_per_slide": 0.0,
    }  # fmt: skip
    assert bob.data["reader"] == {
        "person": "bob", "slides": 2, "lesions": 1, "marked": 0, "sensitivity": 0.0,
        "false_positives_per_slide": 0.5,
    }  # fmt: skip
    assert "reader" not in model.data
    (task,) = ann.tasks.values()
    assert task["all"]["auroc"]["value"] == 1.0
    (bobs,) = bob.tasks.values()
    assert (
        bobs["all"]["slides"] == 2 and bobs["all"]["auroc"]["value"] == 1.0
    )  # A finding on `one`, none on `three`.
    assert ann.lesions["against"]["all"]["slides"] == 2


def test_the_command_names_the_reviewers(reviewed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = LazyGroup("lobule", COMMANDS, help="", version=False)
    arguments = [str(reviewed / "results"), str(write_manifest(reviewed)), "--resamples", "20"]
    assert run(group, ["evaluate", *arguments, "--reviewer", "ann", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"].endswith("as reviewed by ann")
    assert run(group, ["evaluate", *arguments, "--reviewer", "carl"]) == 2
    assert "reviews by ann, bob" in capsys.readouterr().err
    with pytest.raises(UsageError, match="stored findings"):
        lobule.evaluate(reviewed / "results", arguments[1], reviewer="ann", findings="nms")


def test_verdicts_on_findings_that_are_gone_do_not_count(reviewed: Path) -> None:
    """The case was scanned again, and row 0 is another finding."""
    entries = [Review("accept", finding=0, position=(150, 150)), Review("accept", finding=7)]
    columns = {"l0_x": np.array([150]), "l0_y": np.array([150])}
    assert [one.finding for one in reviewed_findings(entries, columns)] == [0]
    assert reviewed_findings(entries, {"l0_x": np.array([151]), "l0_y": np.array([150])}) == []
    assert reviewed_findings(entries, {}) == []


def test_reviews_become_a_cohort_for_training(reviewed: Path) -> None:
    results = reviewed / "results"
    append_review(results, "one", "cid", Review("accept", finding=0, position=(150, 150)))  # Two against one.
    cohort = read_layout("reviews", results)
    write_cohort(cohort, reviewed / "reviewed.csv")
    loaded = read_cohort(reviewed / "reviewed.csv")
    assert [(case.id, case.label, case.kind) for case in loaded] == [
        ("one", "tumor", "slide"),
        ("two", "normal", "slide"),
    ]
    assert [case.attributes["exhaustive"] for case in loaded] == ["true", "true"]
    assert loaded["one"].attributes["reviewers"] == "ann; bob; cid"
    assert loaded["two"].annotation is None
    assert loaded["one"].annotation is not None
    mask = rasterise(read_annotation(loaded["one"].annotation), 10, Box(0, 0, 110, 90))
    expected = np.zeros((90, 110), bool)
    expected[10:20, 10:20] = True  # accepted
    expected[10:20, 70:80] = True  # drawn by Bob
    assert np.array_equal(mask, expected)  # The rejected finding at (800, 700) is normal.


def test_training_draws_tumour_patches_from_the_reviewed_outlines(reviewed: Path) -> None:
    from lobule.training.patch_sampling import TUMOUR, Outlined

    append_review(reviewed / "results", "one", "cid", Review("accept", finding=0, position=(150, 150)))
    (case,) = [case for case in read_layout("reviews", reviewed / "results") if case.annotation]
    assert case.annotation is not None
    outlined = Outlined.of(read_annotation(case.annotation))
    points = np.array([[150, 150], [750, 150], [800, 700], [400, 400]], float)
    assert (outlined.classes(points) == TUMOUR).tolist() == [True, True, False, False]


def test_in_force_after_undo(reviewed: Path) -> None:
    append_review(reviewed / "results", "one", "ann", Review("undo"))
    entries = in_force(read_reviews(reviewed / "results", "one")["ann"])
    columns = {"l0_x": np.array([150, 800]), "l0_y": np.array([150, 700])}
    assert [one.is_tumour for one in reviewed_findings(entries, columns)] == [True, True]
