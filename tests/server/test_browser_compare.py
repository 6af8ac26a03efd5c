"""Comparisons and colours in Chromium: difference maps, the truth, colour profiles, other exams, bounds, classes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from lobule.annotations import Polygon, write_annotation
from lobule.annotations.outline import Annotation
from lobule.cohort import Case, Cohort
from lobule.findings import Finding
from lobule.geometry import Box
from lobule.phantoms._mammogram_dicom import dicom_dataset, write_dicom
from lobule.results import open_results
from lobule.server.library import Library, Source
from lobule.slides.slide import Slide
from lobule.stitch import State
from tests.server.browsing import (
    MM,
    NEEDS_BROWSER,
    PLAIN,
    change,
    look,
    new_tab,
    open_slide_page,
    picture,
    screen_position,
    serving,
    settle,
    until,
    view_pixels,
    write_exam,
)
from tests.server.support import (
    begin,
    build_scene,
    squares,
    swapped_profile,
    write_case,
    write_jpeg_slide,
)

pytestmark = NEEDS_BROWSER

SQUARE = np.array([[300, 300], [620, 300], [620, 620], [300, 620]], float)


@dataclass
class ServedResults:
    url: str
    root: Path


@pytest.fixture(scope="module")
def served_results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedResults]:
    """A slide with truth and two results, one with a profile, one with two classes and strides, and two exams."""
    root = tmp_path_factory.mktemp("compare")
    scene = build_scene(root)
    (root / "second").mkdir()
    second = begin(root / "second", ["one"])
    scores = scene.scores.copy()
    scores[20:24, 20:24] = 0.9  # A square of 64 px at (320, 320) that only the second result has.
    write_case(second, "one", scene.slide, scores, np.full_like(scene.states, State.SCORED), [])
    write_annotation(root / "truth.geojson", Annotation((Polygon(SQUARE, "tumour", "", "Tumor"),)))
    (root / "third").mkdir()
    third = begin(root / "third", ["profile", "classes"])
    pixels = squares(1100, 900)
    coloured = write_jpeg_slide(root / "profile.tif", [pixels], profile=swapped_profile())
    states = np.full((57, 69), State.SCORED, np.uint8)
    low = np.full((57, 69), 0.1, np.float32)
    write_case(third, "profile", coloured, low, states, [])
    findings = [
        Finding(100 + 20 * n, 200, 0.5 + n / 100, label="tumour" if n % 3 else "lymphoid") for n in range(30)
    ]
    plain = write_jpeg_slide(root / "plain.tif", [pixels])
    write_case(
        third, "classes", plain, np.full((15, 18), 0.9, np.float32), states[:15, :18], findings, stride=64.0
    )
    fine = np.full((57, 69), State.PENDING, np.uint8)
    fine[:20] = State.SCORED
    write_case(third, "classes", plain, low, fine, findings, map_name="fine")
    exams = write_exam(root)
    older = write_exam(root, "older")
    (older / "results/cases/exam").rename(exams / "results/cases/older")
    inverted = dicom_dataset(
        4095 - view_pixels("L-CC"), "L-CC", MM, seed=1, patient="PHANTOM", horizontal_flip="NO"
    )
    inverted.PhotometricInterpretation, inverted.PresentationLUTShape = "MONOCHROME1", "INVERSE"
    write_dicom(older / "L-CC.dcm", inverted)
    rows = [Case("one", "p", "slide", path=str(scene.slide), annotation=str(root / "truth.geojson"))]
    for name, folder, date in (("exam", exams, "20210101"), ("older", older, "20180101")):
        views = {
            view.lower().replace("-", "_"): (str(folder / f"{view}.dcm"),)
            for view in ("L-CC", "R-CC", "L-MLO")
        }
        rows.append(Case(name, "x", "exam", views=views, attributes={"date": date}))
    sources = [Source("first", scene.results), Source("second", open_results(second.path)),
               Source("third", open_results(third.path)), Source("exams", open_results(exams / "results"))]  # fmt: skip
    with serving(Library(sources, Cohort(tuple(rows)))) as url:
        yield ServedResults(url, root)


@pytest.fixture(scope="module")
def page(browser, served_results: ServedResults):
    with new_tab(browser, served_results.url) as opened:
        yield opened


def pixel_at(page, x: float, y: float, selector: str = ".slide:not(.other)") -> np.ndarray:
    """The colour on the screen at a level-0 position of the main view, averaged over 3 × 3 pixels."""
    a, b, c, d, e, f = page.evaluate("lobule.view.affine")
    column, row = round(a * x + c * y + e), round(b * x + d * y + f)
    return picture(page, selector)[row - 1 : row + 2, column - 1 : column + 2].mean(axis=(0, 1))


def test_the_difference_of_two_results(page) -> None:
    open_slide_page(page, "one")
    change(page, **{**PLAIN, "threshold": 0.3})
    page.keyboard.press("s")
    until(page, "lobule.beside?.viewer.isOpen()")
    look(page, x=350, y=350, scale=0.8, rotation=0)
    page.keyboard.press("d")
    until(page, "lobule.view.comparedWith !== null && lobule.view.layers[0].tiles.size > 0")
    settle(page)
    only_second, equal = pixel_at(page, 350, 350), pixel_at(page, 290, 290)
    assert only_second[2] > 90 > only_second[0]  # 0.1 - 0.9: blue
    assert (
        np.abs(equal - [40, 20, 120]).max() < 12
    )  # The square at (256, 256) is in both: only the slide shows.
    value = page.evaluate("lobule.view.layers[0].valueAt(350, 350)")
    assert value["score"] == pytest.approx(-0.8, abs=0.01)
    assert "minus second" in page.locator(".notices").inner_text()
    page.click("button:text('difference')")
    assert page.evaluate("lobule.view.comparedWith") is None
    page.keyboard.press("s")
    page.keyboard.press("s")
    assert page.locator(".slide.other").count() == 0


def test_the_truth_beside_a_result_and_its_difference(page) -> None:
    open_slide_page(page, "one")
    change(page, **{**PLAIN, "threshold": 0.3})
    page.click("button:text('truth')")
    until(page, "lobule.beside?.viewer.isOpen()")
    look(page, x=450, y=450, scale=1.2, rotation=0)
    settle(page)
    a, _, _, d, e, f = page.evaluate("lobule.beside.affine")
    other = picture(page, ".slide.other")
    x, y = round(a * 300 + e), round(d * 460 + f)
    green = (other[..., 1] > 180) & (other[..., 0] < 120) & (other[..., 2] < 170)
    assert green[y - 12 : y + 12, x - 3 : x + 4].sum() > 10  # The dashed outline of the truth.
    page.keyboard.press("d")
    until(page, "lobule.view.comparedWith === 'truth' && lobule.view.layers[0].tiles.size > 0")
    values = {
        position: page.evaluate("([x, y]) => lobule.view.layers[0].valueAt(x, y).score", position)
        for position in ((400, 400), (540, 540), (30, 30))
    }
    assert values == pytest.approx({(400, 400): 0.1 - 1, (540, 540): 0.9 - 1, (30, 30): 0.9}, abs=0.01)
    settle(page)
    missed = pixel_at(page, 400, 400)
    assert missed[2] > 60 > missed[0]  # Missed tumour is blue.
    page.click("button:text('truth')")


def test_the_colour_profile_is_applied_to_the_pixels(page, served_results: ServedResults) -> None:
    open_slide_page(page, "profile")
    change(page, **{**PLAIN, "heatmap": False, "profile": True})
    look(page, x=32, y=32, scale=0.25, rotation=0)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(swapped_profile()))
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    expected = ImageCms.applyTransform(Image.new("RGB", (1, 1), (40, 20, 120)), transform).getpixel((0, 0))
    for _ in range(100):
        if np.abs(pixel_at(page, 32, 32) - expected).max() <= 6:
            break
        page.wait_for_timeout(50)
    assert np.abs(pixel_at(page, 32, 32) - expected).max() <= 6, (pixel_at(page, 32, 32), expected)
    assert "is applied" in page.locator("p.profile").inner_text()
    page.locator(".switch", has_text="Colour profile").click()
    for _ in range(100):
        if np.abs(pixel_at(page, 32, 32) - [40, 20, 120]).max() <= 6:
            break
        page.wait_for_timeout(50)
    assert np.abs(pixel_at(page, 32, 32) - [40, 20, 120]).max() <= 6
    assert "is not applied" in page.locator("p.profile").inner_text()
    open_slide_page(page, "classes")
    assert "has no colour profile" in page.locator("p.profile").inner_text()


def test_the_finest_of_several_maps_is_shown(page) -> None:
    open_slide_page(page, "classes")
    change(page, **{**PLAIN, "threshold": 0})
    look(page, x=500, y=320, scale=1, rotation=0)
    until(
        page, "lobule.view.layers.length === 2 && lobule.view.layers.every((layer) => layer.tiles.size > 0)"
    )
    settle(page)
    fine, coarse = pixel_at(page, 400, 200), pixel_at(page, 400, 420)
    assert fine[2] > fine[0] and fine[0] < 90  # 0.1 of the fine map: violet in viridis
    assert coarse[0] > 150 > coarse[2]  # 0.9 of the coarse map, where the fine one is still pending: yellow


def test_findings_of_one_class(page) -> None:
    open_slide_page(page, "classes")
    change(page, points=True)
    page.click(".tabs button:text('findings')")
    until(page, "lobule.view.inView.findings === 30")
    page.select_option(".panel select", "lymphoid")
    until(page, "lobule.view.inView.findings === 10")
    until(page, "document.querySelectorAll('.finding').length === 10")
    labels = set(page.locator(".finding > span:nth-of-type(2)").all_inner_texts())
    assert labels == {"lymphoid"}
    page.select_option(".panel select", "")
    until(page, "lobule.view.inView.findings === 30")


def test_the_gallery_shows_ten_fields_at_once_and_flies_to_one(page) -> None:
    open_slide_page(page, "classes")
    page.add_style_tag(content=".gallery { display: block !important }")
    page.keyboard.press("g")
    until(page, "document.querySelectorAll('.strip img').length === 10")
    until(
        page,
        "[...document.querySelectorAll('.strip img')].every((image) => image.complete && image.naturalWidth > 100)",
    )
    edges = page.evaluate("""[...document.querySelectorAll('.strip button')].map((button) => {
      const [shown, stage] = [button.getBoundingClientRect(), document.querySelector('.stage').getBoundingClientRect()];
      return Math.min(shown.left - stage.left, stage.right - shown.right, shown.top - stage.top, stage.bottom - shown.bottom);
    })""")
    assert min(edges) > 0, edges
    page.locator(".strip button").nth(2).focus()
    page.keyboard.press("Enter")
    until(
        page, "Math.hypot(lobule.view.view.x - 640, lobule.view.view.y - 200) < 2"
    )  # The third highest score.
    page.keyboard.press("g")
    until(page, "!document.querySelector('.gallery')")


def test_the_details_say_how_to_see_the_calibration(page) -> None:
    open_slide_page(page, "classes")
    page.click(".tabs button:text('details')")
    assert "--bundle BUNDLE" in page.locator(".tab").inner_text()
    page.click(".tabs button:text('display')")


def test_the_viewed_area_counts_tissue(page) -> None:
    open_slide_page(page, "one")
    change(page, **{**PLAIN, "seen": True})
    look(page, x=550, y=450, scale=1.6, rotation=0)
    page.evaluate("lobule.view.viewer.raiseEvent('animation-finish')")
    until(page, "lobule.view.layers[0].tiles.size > 0")
    settle(page)
    caption = page.locator(".seen figcaption")
    viewed, tissue = (int(caption.get_attribute(f"data-{name}")) for name in ("viewed", "tissue"))
    side = page.evaluate("lobule.view.seenSide")
    rows, columns = -(-900 // side), -(-1100 // side)
    assert tissue <= rows * columns
    box = page.evaluate("lobule.view.box()")
    inside = {
        (column, row)
        for row in range(int(rows))
        for column in range(int(columns))
        if box[0] <= column * side
        and (column + 1) * side <= box[2]
        and box[1] <= row * side
        and (row + 1) * side <= box[3]
    }
    viewed_cells = {tuple(map(int, key.split(","))) for key in page.evaluate("[...lobule.view.seen.keys()]")}
    assert inside <= viewed_cells and 0 < viewed <= tissue
    scale = page.evaluate("Math.min(...lobule.view.seen.values())")
    assert scale == pytest.approx(1.6, rel=0.01)
    change(page, seen=False)
    assert page.locator(".seen").count() == 0


def test_measuring_and_drawing_by_mouse(page, served_results: ServedResults) -> None:
    open_slide_page(page, "one")
    change(page, **{**PLAIN, "person": "Mouse"})
    look(page, x=500, y=400, scale=1, rotation=0)
    box = page.locator(".slide").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.keyboard.press("m")
    page.mouse.click(*middle)
    page.mouse.click(middle[0] + 100, middle[1])
    assert page.locator(".readout strong").text_content() == "50 µm"  # 100 px of 0.5 µm
    page.keyboard.press("Escape")
    page.click(".tabs button:text('review')")
    page.click("button:text('Draw')")
    corners = [(0, 0), (80, 0), (80, 60)]
    for dx, dy in corners:
        page.mouse.click(middle[0] + dx, middle[1] + dy)
        page.wait_for_timeout(350)  # Two clicks in a short time are a double click, which zooms.
    page.keyboard.press("Enter")
    page.wait_for_selector("h2:text('Mouse')")
    files = list((served_results.root / "results/reviews/one").glob("Mouse.jsonl"))
    import json

    entry = json.loads(files[0].read_text().splitlines()[-1])
    assert entry["action"] == "draw"
    expected = [[500 + dx, 400 + dy] for dx, dy in corners]
    assert np.abs(np.array(entry["polygon"]) - expected).max() <= 2


def test_a_prior_exam_has_the_same_scale(page) -> None:
    page.goto(page.url.partition("#")[0] + "#/")
    page.wait_for_selector(".row")
    ids = {
        row["name"]: row["id"] for row in page.evaluate("fetch('api/cases').then((answer) => answer.json())")
    }
    page.goto(page.url.partition("#")[0] + f"#/case/{ids['exam']}")
    until(page, "window.lobule?.exam?.detail?.name === 'exam'")
    page.click("button:text('prior 2018-01-01')")
    until(
        page,
        "lobule.besideExam && [...lobule.besideExam.views.values()].every((view) => view.image || view.problem)",
    )
    page.keyboard.press("+")
    page.keyboard.press("ArrowDown")
    settle(page)
    main, other = page.evaluate("[lobule.exam.affine('L-MLO'), lobule.besideExam.affine('L-MLO')]")
    assert main[0] == pytest.approx(other[0]) and main[5] == pytest.approx(other[5])
    page.keyboard.press("s")
    assert page.locator(".exam.other").count() == 0


def test_values_of_inverted_views_are_those_of_the_file(page, served_results: ServedResults) -> None:
    import pydicom

    ids = {
        row["name"]: row["id"] for row in page.evaluate("fetch('api/cases').then((answer) => answer.json())")
    }
    page.goto(page.url.partition("#")[0] + f"#/case/{ids['older']}")
    until(page, "window.lobule?.exam?.detail?.name === 'older' && lobule.exam.views.get('L-CC').image")
    settle(page)
    box = page.locator(".exam").bounding_box()
    x, y = screen_position(page, "L-CC", 77.5, 140.5)
    page.mouse.move(box["x"] + x, box["y"] + y)
    settle(page)
    at = page.evaluate("lobule.exam.at(...lobule.exam.pointer)")
    stored = pydicom.dcmread(served_results.root / "older/L-CC.dcm").pixel_array
    assert at["value"] == stored[at["row"], at["column"]]
    shown = picture(page, ".exam")[y, x]
    assert shown[0] > 30  # The breast is bright although its stored values are low.


def test_a_slide_with_bounds_opens_on_them_and_its_map_agrees(
    browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps lie on the uncropped frame, so the offset of the bounds must move neither slide nor map."""
    monkeypatch.setattr(Slide, "bounds", property(lambda self: Box(512, 256, 512, 512)))
    scene = build_scene(tmp_path)
    with serving(Library([Source("results", scene.results)])) as url, new_tab(browser, url) as page:
        open_slide_page(page, "one")
        view = page.evaluate("lobule.view.view")
        assert (view["x"], view["y"]) == pytest.approx((768, 512), abs=3)
        box = page.evaluate("lobule.view.box()")
        assert box[3] - box[1] == pytest.approx(512, rel=0.02)
        change(page, **{**PLAIN, "heatmap": False})
        look(page, x=544, y=288, scale=0.5, rotation=0)
        slide = picture(page, ".slide")
        change(page, **PLAIN)
        until(page, "lobule.view.layers[0].tiles.size > 0")
        settle(page)
        overlaid = picture(page, ".slide")
        dark, coloured = (slide[..., 0] < 140), (overlaid[..., 0] > 150) & (overlaid[..., 2] < 120)
        rows, columns = (np.flatnonzero(dark.any(axis=axis)) for axis in (1, 0))
        map_rows, map_columns = (np.flatnonzero(coloured.any(axis=axis)) for axis in (1, 0))
        for of_slide, of_map in ((rows, map_rows), (columns, map_columns)):
            assert abs(of_slide[0] - of_map[0]) <= 1 and abs(of_slide[-1] - of_map[-1]) <= 1
