"""The demo of slides: a fair cohort, all steps, and a page whose numbers agree with the evaluation."""

from __future__ import annotations

import base64
import io
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lobule.cli.demo_cohort import HOSPITALS, SLIDES, phantom_of, slide_counts
from lobule.cli.demo_picture import match_findings, zooms_of
from lobule.cli.demo_story import FULL_SIDE, share_of
from lobule.cli.picture import TISSUE, TRUTH
from lobule.cohort import read_cohort
from lobule.geometry import Box
from lobule.phantoms.slides import truth_of
from lobule.phantoms.truth import Outline, SlideTruth
from tests.cli.conftest import Lobule


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("side", [1024, 2048, FULL_SIDE])
def test_tumour_slides_have_lesions_and_zooms(seed: int, side: int) -> None:
    truth = truth_of(phantom_of(seed, side, "hospital-X", tumour=True))
    assert truth.outlines
    zooms = zooms_of(truth)
    assert 1 <= len(zooms) <= 3
    for zoom in zooms:
        assert Box(0, 0, truth.width, truth.height).contains(zoom.l0_box)
        inside = [
            (outline.points >= (zoom.l0_box.x, zoom.l0_box.y)).all(1)
            & (outline.points < (zoom.l0_box.right, zoom.l0_box.bottom)).all(1)
            for outline in truth.outlines
        ]
        assert any(some.any() for some in inside), "this zoom contains no tumour"
    assert not truth_of(phantom_of(seed, side, "hospital-X", tumour=False)).outlines


def test_full_test_split_is_large_and_its_hospitals_are_unseen() -> None:
    """For every seed there are at least twelve unseen slides, half of them normal, and thirty lesions."""
    assert slide_counts(FULL_SIDE) == SLIDES
    assert SLIDES["test"] >= 12
    assert not set(HOSPITALS["test"]) & {*HOSPITALS["train"], *HOSPITALS["val"]}
    for seed in (1, 2, 3, 11):
        micro = [truth_of(phantom_of(seed * 100 + n, FULL_SIDE, "h", tumour=True)).outlines for n in range(2)]
        counts = [sum(outline.lesion_class == "micro" for outline in outlines) for outlines in micro]
        assert min(counts) * SLIDES["test"] // 2 >= 30
    sizes = [slide_counts(side) for side in (1024, 2048, 4096, FULL_SIDE, 2 * FULL_SIDE)]
    for smaller, larger in pairwise(sizes):
        assert all(smaller[split] <= larger[split] for split in smaller)
    assert share_of(2 * FULL_SIDE) == 1


def square(x: float, y: float, side: float, kind: str, size_um: float) -> Outline:
    points = np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]])
    return Outline(points, kind, size_um)


def test_findings_are_matched_to_lesions() -> None:
    outlines = (
        square(1000, 1000, 400, "micro", 283.0),
        square(3000, 1000, 400, "micro", 283.0),
        square(5000, 1000, 100, "itc", 71.0),
    )
    truth = SlideTruth(8000, 4000, 0.5, outlines, ())
    findings = [
        (1470.0, 1200.0, 0.6),  # 35 µm from the first lesion: found
        (1100.0, 1100.0, 0.9),  # in the first lesion, with a higher score
        (5050.0, 1050.0, 0.99),  # isolated cells are ignored
        (1480.0, 1200.0, 0.7),  # 40 µm from the first lesion
        (7000.0, 3000.0, 0.8),
    ]
    hits, false_positives, missed = match_findings("s", truth, findings)
    assert [(location.l0_x, location.score) for location in hits] == [(1100.0, 0.9)]
    assert [location.score for location in false_positives] == [0.8, 0.7]
    assert [(location.l0_x, location.score) for location in missed] == [(3200.0, None)]


def test_demo_numbers_and_page_agree_with_the_evaluation(lobule: Lobule, workspace: Path) -> None:
    done = lobule("demo", "--side", "1536", "--seed", "4", "--out", "small-demo", "--json")
    assert (done.status, done.err) == (0, "")
    data = json.loads(done.out)
    folder = workspace / "small-demo"
    assert data["tissue"]["found_mm2"] == pytest.approx(data["tissue"]["painted_mm2"], rel=0.15)
    assert data["info"]["mpp_x"] == pytest.approx(0.5, rel=1e-3)
    cohort = read_cohort(data["cohort"])
    for split, count in data["slides"].items():
        cases = cohort.split(split)
        assert len(cases) == count
        assert sum(case.label == "normal" for case in cases) == count // 2
    for name, folder_name in (("scannet", "evaluation"), ("colour", "evaluation-colour")):
        evaluation = json.loads((folder / folder_name / "evaluation.json").read_text())
        summary = data["evaluation"][name]
        assert summary["froc"] == evaluation["lesions"]["all"]["froc_score"]
        (task,) = evaluation["tasks"].values()
        assert summary["slide_auc"] == task["all"]["auroc"]
        assert evaluation["cases"]["complete"] == data["slides"]["test"]
        assert evaluation["overlap"]["patients"] == []
    _check_page(data, (folder / "demo.html").read_text())
    with Image.open(folder / "demo.png") as picture:
        assert picture.width == 1200
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in (TISSUE, TRUTH):
        assert (pixels == colour).all(axis=1).sum() > 100
    assert lobule("demo", "--side", "10").status == 2


def _check_page(data: dict[str, dict[str, dict[str, dict[str, float]]]], page: str) -> None:
    """The page is self-contained, shows each unseen slide twice, and quotes the numbers of the evaluation."""
    assert not re.findall(r"(?:src|href)='(?!data:)", page)
    pictures = [base64.b64decode(text) for text in re.findall(r"data:image/jpeg;base64,([^']+)'", page)]
    assert len(pictures) >= 2 * int(data["slides"]["test"])  # type: ignore[call-overload]
    for picture in pictures:
        with Image.open(io.BytesIO(picture)) as opened:
            assert min(opened.size) > 100
    for name in ("scannet", "colour"):
        value = data["evaluation"][name]["froc"]["value"]
        # Intervals are left blank because the small demo has fewer than ten patients.
        assert f"<td>{value:.2f}" in page
    assert "Research use only" in page
