"""Pages of cases, exams and cohorts: self-contained, complete, private, and readable as HTML and as PDF."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lobule.bundles import patient_hash
from lobule.cohort import Case, Cohort
from lobule.exports.export import CaseRecord
from lobule.files import read_json, write_json
from lobule.reports.claim import ITEMS, claim_table
from lobule.reports.cohort import CohortReport, cohort_page, strip_plot
from lobule.reports.page import html_page, table, text, words
from lobule.reports.pdf import pango_problem
from lobule.reports.pictures import bar_um, ramp
from lobule.reports.write import write_reports
from lobule.results import Results, open_results
from lobule.results.folder import PATIENTS
from lobule.results.map_check import store_map_check
from lobule.results.result import RESEARCH_USE
from lobule.reviews import Review, append_review
from lobule.testing.export import EMPTY, PATIENT, STRANGE_NAME, write_known_results
from tests.server.support import build_scene


class Balance(HTMLParser):
    """Counts tags that are not closed in order."""

    VOID = frozenset({"meta", "img", "br", "line", "rect", "circle", "col"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.wrong: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attributes) -> None:
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        pass

    def handle_endtag(self, tag) -> None:
        if not self.stack or self.stack.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data) -> None:
        self.words.append(data)


def read_page(path: Path) -> tuple[str, str]:
    """Return the HTML and the text of a page, after checks that hold for every page."""
    html = path.read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(html)
    assert not parser.wrong and not parser.stack, (parser.wrong, parser.stack)
    assert not re.findall(r"src='(?!data:)", html) and "http" not in re.sub(
        r"http://www.w3.org[^'\"]*", "", html
    )
    shown = re.sub(r"\s+", " ", " ".join(parser.words))
    assert shown.count(RESEARCH_USE) >= 2
    return html, shown


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    results = write_known_results(tmp_path_factory.mktemp("known"))
    append_review(results.path, "squares", "Grace", Review("accept", finding=0))
    return results


def cohort_of(names: dict[str, str]) -> Cohort:
    return Cohort(
        tuple(
            Case(
                name, f"patient {number}", "slide", f"/gone/{number}.tif", label=label, split="test",
                site=f"site {number % 2}",
            )
            for number, (name, label) in enumerate(names.items())
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def pages(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pages") / "out"
    cohort = cohort_of({"squares": "tumour", EMPTY: "normal", STRANGE_NAME: "tumour", "partial": "normal"})
    report = write_reports(results.path, out, cohort=cohort)
    assert len(report.exported) == 4 and report.files == ("index.html",)
    return out


def test_a_map_that_failed_the_orientation_check_is_not_drawn(tmp_path: Path) -> None:
    scene = build_scene(tmp_path)
    page_by_verdict = {}
    for passed in (True, False):
        store_map_check(scene.results, 0.41, passed, 12, "test")
        write_reports(scene.results.path, tmp_path / "pages")
        page_by_verdict[passed] = read_page(tmp_path / "pages/cases/one.html")
    html, shown = page_by_verdict[False]
    assert "Scores of the class" in page_by_verdict[True][1] and "Scores of the class" not in shown
    assert "failed the orientation check" in shown and "area of only 0.41 (12 slides of" in shown
    assert "The slide of one" in html and "The map of one" not in html
    assert "orientation" not in page_by_verdict[True][1]


def test_a_case_whose_slide_is_gone_has_a_page(pages: Path) -> None:
    _, shown = read_page(pages / "cases/squares.html")
    for words_ in ("The slide is gone, so its fields cannot be shown", "tumour 0.875", "0.900", "micro", "90",
                   "Grace: accept", "The scores are not calibrated", "sha256:0123456789abcdef",
                   "What this must not be used for"):  # fmt: skip
        assert words_ in shown, words_
    # The findings are sorted by score; a size is in µm and an area in mm².
    assert re.search(r"1 0\.900 tumour itc 90 0\.004 0\.27, 0\.19", shown), shown[:1500]


def test_a_map_is_drawn_darker_where_scores_are_high(pages: Path) -> None:
    html, _ = read_page(pages / "cases/squares.html")
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^']+)", html)
    ]
    heatmap = next(picture for picture in pictures if picture.width == 640)
    grey = np.asarray(heatmap.convert("L"), np.float64)
    scale = 640 / 4096
    inside = grey[int(1350 * scale), int(1850 * scale)]  # in the second square
    outside = grey[int(1100 * scale), int(3500 * scale)]
    assert inside < outside - 60
    luminance = ramp(np.linspace(0, 1, 64, dtype=np.float32)) @ [0.299, 0.587, 0.114]
    assert (np.diff(luminance) < 0).all()


def test_partial_and_strange_cases(pages: Path) -> None:
    _, shown = read_page(pages / "cases/partial.html")
    assert "1 fields could not be read" in shown and "a bad tile" in shown
    _, shown = read_page(pages / "cases/Fälle%2Fäöü 7%3A «a».html")
    assert STRANGE_NAME in shown
    _, shown = read_page(pages / f"cases/{EMPTY}.html")
    assert "There are no findings" in shown and "cells of the map" not in shown


def test_the_page_of_the_cohort(pages: Path) -> None:
    html, shown = read_page(pages / "index.html")
    for target in re.findall(r"href='([^']+)'", html):
        from urllib.parse import unquote

        assert (pages / unquote(target)).is_file(), target
    for words_ in ("the file is cut off", "The scan of this case is not finished", "AUROC", "site 0 (2)",
                   "CLAIM 2024", "of 44 items are answered", "4 cases of 4 patients"):  # fmt: skip
        assert words_ in shown, words_


def test_pages_name_no_patient_unless_requested(results: Results, pages: Path, tmp_path: Path) -> None:
    for path in pages.rglob("*.html"):
        assert PATIENT not in path.read_text(encoding="utf-8") and "patient 0" not in path.read_text("utf-8")
    write_reports(results.path, tmp_path, cases=["squares"], show_patients=True)
    assert PATIENT in (tmp_path / "cases/squares.html").read_text(encoding="utf-8")


def test_unchanged_pages_are_kept(results: Results, pages: Path) -> None:
    cohort = cohort_of({"squares": "tumour", EMPTY: "normal", STRANGE_NAME: "tumour", "partial": "normal"})
    assert write_reports(results.path, pages, cohort=cohort).skipped == 4


def test_a_slide_opens_with_its_highest_fields(tmp_path: Path) -> None:
    scene = build_scene(tmp_path)
    case = Case("one", "p", "slide", str(scene.slide), mpp=0.5)
    write_reports(scene.results.path, tmp_path / "out", cohort=Cohort((case,)), cases=["one"])
    html, shown = read_page(tmp_path / "out/cases/one.html")
    fields = re.findall(r"alt='Field (\d+), score ([0-9.]+)'", html)
    highest = sorted((finding.score for finding in scene.findings), reverse=True)[:10]
    assert [int(number) for number, _ in fields] == list(range(1, 11))
    assert [float(score) for _, score in fields] == [round(score, 3) for score in highest]
    assert (
        html.index("highest-scoring fields")
        < html.index("The slide and its map")
        < html.index("<h2>Findings")
    )
    # Each picture shows the pixels around its finding: compare the first one with the slide.
    data = re.search(r"base64,([^']+)' alt='Field 1,", html)
    assert data is not None
    shown_pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))), np.float64)
    best = max(scene.findings, key=lambda finding: finding.score)
    padded = np.pad(scene.pixels, ((300, 300), (300, 300), (0, 0)), constant_values=255)
    cut = padded[best.l0_y + 100 : best.l0_y + 500, best.l0_x + 100 : best.l0_x + 500]
    expected = np.asarray(Image.fromarray(cut).resize((256, 256)), np.float64)
    assert np.median(np.abs(shown_pixels - expected)) < 6 and "200 µm wide, bar 50 µm" in shown


def test_an_exam_shows_its_views(tmp_path: Path) -> None:
    from tests.server.browsing import write_exam

    folder = write_exam(tmp_path)
    report = write_reports(folder / "results", tmp_path / "out")
    html, shown = read_page(tmp_path / "out/cases/exam.html")
    assert html.count("view under its heatmap") == 3 and "The exam has no view R-MLO" in shown
    assert "score value std least greatest" in shown and "left breast 0.710" in shown
    assert re.search(r"left_malignant 0\.7100 0\.020 0\.650 0\.770", shown), shown
    assert report.records[0].exported


def test_pdf(results: Results, tmp_path: Path) -> None:
    problem = pango_problem()  # importing WeasyPrint directly would let Pillow accept truncated files
    if problem:
        pytest.skip(problem)
    write_reports(results.path, tmp_path, cases=["squares"], pdf=True)
    for name in ("cases/squares.pdf", "index.pdf"):
        data = (tmp_path / name).read_bytes()
        assert data.startswith(b"%PDF") and len(data) > 5000


def test_the_page_of_a_thousand_cases_is_small(results: Results) -> None:
    records = [
        CaseRecord(f"case {i:04d}", "complete", {"tumour": i / 1000}, True,
                   summary={"findings": i, "seconds": 2.0, "page": f"cases/case {i:04d}.html",
                            "site": f"s{i % 20}"})
        for i in range(1000)
    ]  # fmt: skip
    html = cohort_page(CohortReport(results, records, evaluation_note="not evaluated"))
    assert len(html.encode()) < 5_000_000 and html.count("<a href=") == 1000
    assert "8 smaller sites are not drawn" in html and "2,000 s" in html


# -- building blocks ----------------------------------------------------------------------------------------


def test_text_from_results_cannot_become_markup() -> None:
    page = html_page(
        "<script>", [f"<p>{text('<img src=x onerror=alert(1)>')}</p>", table(["a"], [[text("</td>")]])]
    )
    assert "<script>" not in page and "<img src=x" not in page
    assert text("bad\x07name\udcff") == "bad\\x07name\\udcff"


def test_values_become_words() -> None:
    assert words({"a": {"b": 0.123456, "c": [1, 2]}, "d": None, "e": True}) == "a: b 0.1235; c 1, 2; e yes"


def test_cases_outside_the_results_do_not_prevent_an_evaluation(results: Results, tmp_path: Path) -> None:
    """A cohort has training cases, too, which `lobule evaluate` refuses and the report leaves out."""
    scanned = cohort_of({"squares": "tumour", EMPTY: "normal", STRANGE_NAME: "tumour", "partial": "normal"})
    training_case = Case(
        "trained", "patient of the training", "slide", "/gone/t.tif", label="tumour", split="train"
    )
    copy = Path(shutil.copytree(results.path, tmp_path / "results"))
    write_json(copy / PATIENTS, {"patients": [patient_hash(training_case.patient)]})
    write_reports(copy, tmp_path / "out", cohort=Cohort((*scanned.cases, training_case)))
    _, shown = read_page(tmp_path / "out/index.html")
    assert "AUROC" in shown and "cannot be evaluated" not in shown


def test_the_checklist_has_44_items_and_shows_open_ones() -> None:
    assert len(ITEMS) == 44
    assert all(item.endswith(".") and len(item.split()) >= 6 for _, item in ITEMS)
    sections = list(dict.fromkeys(section for section, _ in ITEMS))
    assert sections == [
        "Title and abstract", "Introduction", "Study design", "Data", "Reference standard", "Data partitions",
        "Testing data", "Model", "Training", "Evaluation", "Results", "Discussion", "Other information",
    ]  # fmt: skip
    shown = claim_table({7: "one hospital", 44: ""})
    assert "1 of 44 items are answered" in shown and shown.count("the study team must answer") == 43


@pytest.mark.parametrize(("width", "bar"), [(200, 50), (280, 50), (2000, 500), (900, 200), (88, 20)])
def test_scale_bars_have_round_lengths(width: float, bar: float) -> None:
    assert bar_um(width) == pytest.approx(bar)


def test_distributions_show_every_site_and_score() -> None:
    svg = strip_plot({"A": [0.1, 0.9], "B": [0.5]})
    assert svg.count("<circle") == 3 and "A (2)" in svg and "B (1)" in svg
    positions = [float(x) for x in re.findall(r"<circle cx=([0-9.]+)", svg)]
    assert positions[0] < positions[2] < positions[1]


def test_damaged_settings_do_not_prevent_a_page(tmp_path: Path) -> None:
    results = write_known_results(tmp_path, ["squares"], incomplete_cases=False)
    path = results.case_folder("squares").path / "result.json"
    write_json(path, {**read_json(path), "spread": {"tumour": 0.1}, "images": None})
    report = write_reports(results.path, tmp_path / "out")
    _, shown = read_page(tmp_path / "out/cases/squares.html")
    assert report.failed == 0 and "tumour 0.1" in shown
    assert open_results(results.path).planned() == ["squares"]


def test_writing_pdf_does_not_let_readers_accept_truncated_images() -> None:
    code = (
        "from PIL import ImageFile\nfrom lobule.reports.pdf import pango_problem\n"
        "pango_problem()\nassert not ImageFile.LOAD_TRUNCATED_IMAGES"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
