"""The viewer in Chromium: values read from pixels of the screen, from files and from the API."""

from __future__ import annotations

import io
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image
from scipy.ndimage import binary_dilation

from lobule.files import write_json
from lobule.phantoms._mammogram_dicom import dicom_dataset, write_dicom
from lobule.results import Results, open_results
from lobule.results.maps import MapInfo, MapWriter
from lobule.results.result import FORMAT
from lobule.results.writing import map_summaries
from lobule.reviews import Review, append_review, review_path
from lobule.server.app import STATIC, create_app
from lobule.server.library import Library, Source
from lobule.stitch import State
from tests.server.support import Scene, begin, build_scene, write_case

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
    pytest.mark.skipif(
        not (STATIC / "index.html").is_file(), reason="the pages are not built: run `make viewer`"
    ),
]

AXE = Path(__file__).parents[2] / "web/node_modules/axe-core/axe.min.js"
GL = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
WAIT_MS = 60_000
HIDE = ".readout, .scale-bar, .notices, .navigator, .seen, .gallery { display: none !important }"
MM = 0.1
EXAM = (300, 220)


@dataclass
class Site:
    url: str
    scene: Scene
    live: MapWriter
    exam: Path
    results: Results


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    scene = build_scene(root)
    cells = scene.states.shape
    live = write_case(
        begin(root, ["one", "two", "live"]),
        "live",
        scene.slide,
        scene.scores,
        scene.states,
        [],
        finished=False,
    )
    exam = write_exam(root)
    second = begin(root / "second", ["one"])
    write_case(second, "one", scene.slide, 1 - scene.scores, scene.states, [])
    sources = {
        "results": root / "results",
        "exams": root / "exams/results",
        "second": root / "second/results",
    }
    library = Library([Source(name, open_results(path)) for name, path in sources.items()])
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(library), port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    assert cells == (57, 69)
    yield Site(f"http://127.0.0.1:{port}", scene, live, exam, open_results(root / "results"))
    server.should_exit = True
    thread.join()


def view_pixels(view: str) -> np.ndarray:
    """A half disc of increasing values at the chest wall; left breasts are stored pointing right."""
    height, width = EXAM
    y, x = np.mgrid[:height, :width]
    inside = (x / (0.8 * width)) ** 2 + ((y - height / 2) / (0.45 * height)) ** 2 < 1
    values = np.where(inside, 400 + 9 * x + 4 * y, 0).astype(np.uint16)
    return values if view.startswith("L") else values[:, ::-1].copy()


def write_exam(root: Path) -> Path:
    """An exam of three views (R-MLO is missing) with a heatmap per view."""
    folder = root / "exams"
    folder.mkdir()
    bundle = {"method": "four_view", "fingerprint": "cd" * 32}
    results = begin(folder, ["exam"])
    case = results.case_folder("exam")
    views = {}
    for view in ("L-CC", "R-CC", "L-MLO"):
        path = folder / f"{view}.dcm"
        pixels = view_pixels(view)
        write_dicom(path, dicom_dataset(pixels, view, MM, seed=0, patient="PHANTOM", horizontal_flip="NO"))
        views[view.lower().replace("-", "_")] = [str(path)]
        rows, columns = -(-EXAM[0] // 10), -(-EXAM[1] // 10)
        info = MapInfo(
            f"heatmap {view}",
            view,
            ("benign", "malignant"),
            rows,
            columns,
            (10.0, 10.0),
            None,
            (rows, columns),
        )
        scores = np.zeros((2, rows, columns), np.float32)
        scores[1, 10:20, 5:15] = 0.95
        MapWriter(case.map_path(info.name), info).write_chunk(
            (0, 0), scores, np.full((rows, columns), State.SCORED, np.uint8)
        )
    paths = {file: "sha256:" + "0" * 64 for files in views.values() for file in files}
    write_json(
        case.path / "plan.json", {"case": "exam", "input": paths, "mpp": None, "l0_box": None, "views": views}
    )
    result = {
        "format": FORMAT, "case": "exam", "patient": "x", "status": "complete", "scores": {"left_malignant": 0.71},
        "maps": map_summaries(case), "tables": [], "findings": {"count": 0}, "notes": [], "error": None, "bundle": bundle,
        "input": paths, "failed": [], "spread": {"left_malignant": {"std": 0.02, "least": 0.65, "greatest": 0.77}},
    }  # fmt: skip
    write_json(case.path / "result.json", result)
    return folder


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=GL)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def tab(browser, site: Site):
    context = browser.new_context(
        viewport={"width": 1000, "height": 700}, color_scheme="light", reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(site.url)
    page.wait_for_selector(".row")
    yield page
    assert page.problems == []
    context.close()


def until(page, expression: str) -> None:
    """Wait until a JavaScript expression is true. The page's policy forbids Playwright's own way to wait."""
    for _ in range(WAIT_MS // 50):
        if page.evaluate(f"Boolean({expression})"):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


def case_id(page, name: str) -> str:
    rows = page.evaluate("fetch('api/cases').then((answer) => answer.json())")
    return next(row["id"] for row in rows if row["name"] == name)


def open_slide_page(page, name: str = "one", suffix: str = "") -> str:
    case = case_id(page, name)
    page.goto(page.url.partition("#")[0].partition("?")[0] + f"{suffix}#/case/{case}")
    until(page, f"window.lobule?.view?.detail?.id === '{case}' && lobule.view.viewer.isOpen()")
    page.add_style_tag(content=HIDE)
    return case


def look(page, **view: float) -> None:
    """Go to a view at once and wait until its tiles are drawn."""
    page.evaluate("(view) => lobule.view.setView(view, true)", view)
    until(page, "lobule.view.viewer.world.getItemAt(0).getFullyLoaded()")
    settle(page)


def settle(page) -> None:
    page.evaluate(
        "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 60))))"
    )


def change(page, **values: object) -> None:
    """Change display settings as the panel does, and wait for the next frame."""
    page.evaluate("(values) => lobule.change(values)", values)
    settle(page)


def picture(page, selector: str = ".stage") -> np.ndarray:
    data = page.locator(selector).screenshot()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


PLAIN = {"heatmap": True, "opacity": 1, "threshold": 0.5, "gamma": 1, "colours": "viridis", "states": False, "smooth": False,
         "points": False, "outlines": False, "truth": False}  # fmt: skip


@pytest.mark.parametrize("ratio", [1, 2])
def test_map_and_slide_agree_within_a_pixel(browser, site: Site, ratio: int) -> None:
    context = browser.new_context(
        viewport={"width": 900, "height": 600}, device_scale_factor=ratio, reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(site.url)
    page.wait_for_selector(".row")
    open_slide_page(page)
    views = [(3.0, 0, False), (1.7, 0, False), (1.0, 90, False), (0.6, 0, True), (2.3, 30, False)]
    for scale, rotation, flip in views if ratio == 1 else views[1:4]:
        page.evaluate("(flip) => lobule.view.viewer.viewport.setFlip(flip)", flip)
        change(page, **{**PLAIN, "heatmap": False})
        look(page, x=550, y=420, scale=scale, rotation=rotation)
        slide = picture(page, ".slide")
        change(page, **PLAIN)
        until(page, "lobule.view.layers[0].tiles.size > 0")
        settle(page)
        overlaid = picture(page, ".slide")
        dark = (slide[..., 0] < 140) & (slide[..., 2] > 60)
        coloured = (overlaid[..., 0] > 150) & (overlaid[..., 2] < 120)
        assert coloured.sum() > 400, (scale, rotation, flip)
        near = np.ones((3, 3), bool)
        # Where the map's last rows are glass, dark squares have no coloured ones above them.
        rows = np.flatnonzero(coloured.any(axis=1)) if rotation == 0 else np.arange(len(dark))
        partly_dark = slide[..., 0] < 220  # Edges are smoothed, so pixels may be partly covered by a square.
        only_map = coloured & ~binary_dilation(partly_dark, near)
        assert only_map.sum() == 0, (ratio, scale, rotation, flip, int(only_map.sum()))
        if rotation == 0:
            inside = dark.copy()
            inside[rows[-1] - 1 :] = False
            only_slide = inside & ~binary_dilation(coloured, near)
            failed = 0.02 * dark.sum()  # the failed cells, which have no colour
            assert only_slide.sum() <= failed, (ratio, scale, int(only_slide.sum()))
    context.close()


def test_colours_change_without_a_request_and_are_those_of_the_colour_map(tab, site: Site) -> None:
    import matplotlib

    open_slide_page(tab)
    change(tab, **PLAIN)
    look(tab, x=32, y=32, scale=0.25, rotation=0)
    until(tab, "lobule.view.layers[0].tiles.size > 0")
    settle(tab)
    requests: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    box = tab.locator(".slide").bounding_box()
    assert box is not None
    for settings in (
        {"colours": "viridis"},
        {"colours": "cividis"},
        {"gamma": 2.0},
        {"colours": "magma", "gamma": 0.5},
    ):
        change(tab, **{**PLAIN, **settings})
        shown = picture(tab, ".slide")[int(box["height"] / 2), int(box["width"] / 2)]
        position = (round(0.9 * 255) / 255) ** settings.get("gamma", 1)
        expected = 255 * np.array(matplotlib.colormaps[settings.get("colours", "viridis")](position)[:3])
        assert np.abs(shown - expected).max() <= 4, (settings, shown, expected)
    change(tab, **{**PLAIN, "opacity": 0.5, "colours": "viridis"})
    base = np.array([40, 20, 120])
    expected = 0.5 * 255 * np.array(matplotlib.colormaps["viridis"](230 / 255)[:3]) + 0.5 * base
    assert np.abs(picture(tab, ".slide")[int(box["height"] / 2), int(box["width"] / 2)] - expected).max() <= 6
    change(tab, **{**PLAIN, "threshold": 0.95})
    assert np.abs(picture(tab, ".slide")[int(box["height"] / 2), int(box["width"] / 2)] - base).max() <= 6
    assert requests == []


def test_glass_and_failed_cells_have_their_own_patterns(tab, site: Site) -> None:
    open_slide_page(tab)
    change(tab, **{**PLAIN, "states": True})
    look(
        tab, x=22 * 16, y=11 * 16, scale=0.5, rotation=0
    )  # The failed cells: rows 10 and 11, columns 20 to 23.
    until(tab, "lobule.view.layers[0].tiles.size > 0")
    settle(tab)
    shown = picture(tab, ".slide")
    height, width = shown.shape[:2]
    failed = shown[height // 2 - 25 : height // 2 + 25, width // 2 - 50 : width // 2 + 50]
    pink = (failed[..., 0] > 190) & (failed[..., 1] < 140)
    assert 0.2 < pink.mean() < 0.8  # A pattern, not an area.
    look(tab, x=400, y=53 * 16, scale=0.5, rotation=0)
    glass = picture(tab, ".slide")[height // 2 - 40 : height // 2 + 20, width // 2 - 80 : width // 2 + 80]
    marked = np.abs(glass - 245).max(axis=2) > 20
    assert 0.005 < marked.mean() < 0.08  # Sparse dots.


def test_findings_are_visited_and_judged_by_keys(tab, site: Site) -> None:
    case = open_slide_page(tab)
    findings = tab.evaluate(f"fetch('api/cases/{case}/findings').then((answer) => answer.json())")["findings"]
    change(tab, person="Key Board", points=True)
    for finding in findings[:2]:
        tab.keyboard.press("n")
        settle(tab)
        view = tab.evaluate("lobule.view.view")
        clamped = 550 if not 60 < finding["l0_x"] < 1040 else finding["l0_x"]
        assert abs(view["x"] - finding["l0_x"]) < 40 or clamped == 550
        assert tab.evaluate("lobule.view.selected") == finding["number"]
    tab.keyboard.press("x")
    tab.wait_for_selector(".finding.chosen .verdict:text('✗')")
    tab.keyboard.press("N")
    tab.keyboard.press("a")
    tab.wait_for_selector(".finding.chosen .verdict:text('✓')")
    tab.keyboard.press("u")
    until(tab, "document.querySelectorAll('.verdict:not(:empty)').length === 1")
    lines = review_path(site.scene.root / "results", "one", "Key Board").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["action"] for entry in entries] == ["reject", "accept", "undo"]
    assert [entry.get("finding") for entry in entries[:2]] == [findings[1]["number"], findings[0]["number"]]


def test_keys_switch_move_and_zoom(tab, site: Site) -> None:
    open_slide_page(tab)
    change(tab, **PLAIN)
    look(tab, x=500, y=400, scale=1, rotation=0)
    before = tab.evaluate("lobule.view.view")
    tab.keyboard.press("ArrowRight")
    settle(tab)
    moved = tab.evaluate("lobule.view.view")
    width = tab.locator(".slide").bounding_box()["width"]
    assert moved["x"] - before["x"] == pytest.approx(0.2 * width, abs=2)
    tab.keyboard.press("+")
    settle(tab)
    assert tab.evaluate("lobule.view.view.scale") == pytest.approx(1 / 1.5, rel=0.01)
    tab.keyboard.press("2")  # 10× is 1 µm per pixel, and the slide has 0.5.
    settle(tab)
    assert tab.evaluate("lobule.view.view.scale") == pytest.approx(2, rel=0.01)
    tab.keyboard.press("r")
    settle(tab)
    assert tab.evaluate("lobule.view.view.rotation") == 90
    tab.keyboard.press("h")
    settle(tab)
    overlay = tab.evaluate("(() => { const c = lobule.view.canvas, g = c.getContext('webgl2'); const p = new Uint8Array(4*c.width*c.height);"
                           "g.readPixels(0,0,c.width,c.height,g.RGBA,g.UNSIGNED_BYTE,p); return p.reduce((a,b)=>a+b,0) })()")  # fmt: skip
    assert overlay == 0
    tab.keyboard.press("?")
    assert "heatmap" in tab.locator("[role=dialog]").inner_text()
    tab.keyboard.press("Escape")
    assert tab.locator("[role=dialog]").count() == 0


def test_the_address_restores_the_view(tab, site: Site) -> None:
    case = open_slide_page(tab)
    look(tab, x=300, y=500, scale=0.8, rotation=90)
    tab.evaluate("lobule.view.viewer.raiseEvent('animation-finish')")
    address = tab.url
    assert "x=300&y=500&s=0.8" in address
    tab.goto(address.partition("#")[0] + "#/")
    tab.goto(address)
    until(tab, f"window.lobule?.view?.detail?.id === '{case}' && lobule.view.viewer.isOpen()")
    until(tab, "Math.abs(lobule.view.view.scale - 0.8) < 0.01")
    view = tab.evaluate("lobule.view.view")
    assert (round(view["x"]), round(view["y"]), view["rotation"]) == (300, 500, 90)


def test_scale_bar_and_cursor_are_in_the_slides_units(tab, site: Site) -> None:
    open_slide_page(tab)
    change(tab, **PLAIN)
    look(tab, x=500, y=400, scale=2, rotation=0)
    until(tab, "lobule.view.layers[0].tiles.size > 0")
    bar = tab.locator(".scale-bar")
    um, width = float(bar.get_attribute("data-um")), bar.evaluate("(bar) => parseFloat(bar.style.width)")
    assert um == pytest.approx(width * 2 * 0.5, rel=0.01)  # CSS pixels · level-0 pixels per CSS pixel · µm/px
    box = tab.locator(".slide").bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    settle(tab)
    text = tab.locator(".coordinates").evaluate("(node) => node.textContent")
    x, y = (int(number) for number in text.removesuffix(" px").split(", "))
    assert abs(x - 500) <= 2 and abs(y - 400) <= 2
    readout = tab.locator(".readout").evaluate("(node) => node.textContent")
    cell = site.scene.scores[y // 16, x // 16]
    assert f"score {round(float(cell) * 255) / 255:.3f}" in readout


def test_two_results_are_shown_beside_each_other(tab, site: Site) -> None:
    open_slide_page(tab)
    change(tab, **PLAIN)
    tab.click("button:text('beside second')")
    until(tab, "lobule.beside?.viewer.isOpen() && lobule.beside.layers[0].tiles.size > 0")
    look(tab, x=32, y=32, scale=0.25, rotation=0)
    settle(tab)
    views = tab.evaluate("[lobule.view.view, lobule.beside.view]")
    assert views[0] == pytest.approx(views[1], abs=0.01)
    until(tab, "lobule.view.layers[0].tiles.size > 0")
    settle(tab)
    left, right = picture(tab, ".slide:not(.other)"), picture(tab, ".slide.other")
    middle = left.shape[0] // 2, left.shape[1] // 2
    assert left[middle][0] > 150 > left[middle][2]  # 0.9 in the first result is coloured yellow,
    assert np.abs(right[middle] - [40, 20, 120]).max() <= 8  # 0.1 in the second one is below the threshold.
    tab.click("button:text('beside second')")
    assert tab.locator(".slide.other").count() == 0


def test_a_running_scan_fills_in(tab, site: Site) -> None:
    open_slide_page(tab, "live")
    change(tab, **PLAIN)
    look(tab, x=256, y=256, scale=1, rotation=0)
    settle(tab)
    before = picture(tab, ".slide")
    center = before.shape[0] // 2 + 32, before.shape[1] // 2 + 32  # in the square at level 0 (256, 256)
    assert np.abs(before[center] - [40, 20, 120]).max() <= 8
    info = site.live.info
    cells = info.chunk_cells((0, 0))
    scores = site.scene.scores
    site.live.write_chunk((0, 0), np.stack([1 - scores, scores])[:, *cells], site.scene.states[cells])
    until(tab, "(lobule.view.layers[0]?.valueAt(280, 280)?.state ?? 0) === 2")
    settle(tab)
    shown = picture(tab, ".slide")[center]
    assert shown[0] > 150 and shown[2] < 120, shown


def test_the_list_sorts_searches_and_opens_by_keys(tab, site: Site) -> None:
    tab.goto(tab.url.partition("#")[0] + "#/")
    tab.wait_for_selector(".row")
    names = "[...document.querySelectorAll('.row .name')].map((cell) => cell.textContent)"
    assert sorted(tab.evaluate(names)) == ["exam", "live", "one", "one", "two"]
    tab.click(".head button:text('case')")
    assert tab.evaluate(names) == ["exam", "live", "one", "one", "two"]
    tab.click(".head button:text('case')")
    assert tab.evaluate(names) == ["two", "one", "one", "live", "exam"]
    tab.keyboard.press("/")
    tab.keyboard.type("ON complete results")
    until(tab, "document.querySelectorAll('.row').length === 1")
    assert tab.evaluate(names) == ["one"]
    assert tab.locator(".foot").inner_text().startswith("1 of 5 cases")
    one = case_id(tab, "one")
    tab.keyboard.press("Enter")
    tab.keyboard.press("Enter")
    until(tab, f"location.hash.startsWith('#/case/{one}')")


def test_without_webgl_the_overlay_is_the_same(tab, site: Site) -> None:
    open_slide_page(tab, suffix="?plain")
    assert tab.evaluate("lobule.view.renderer") == "canvas"
    assert "WebGL is not available" in tab.locator(".notices").evaluate("(node) => node.textContent")
    change(tab, **PLAIN)
    look(tab, x=32, y=32, scale=0.25, rotation=0)
    until(tab, "lobule.view.layers[0].tiles.size > 0")
    settle(tab)
    shown = picture(tab, ".slide")
    assert (
        np.abs(shown[shown.shape[0] // 2, shown.shape[1] // 2] - [189, 223, 38]).max() <= 5
    )  # viridis at 0.9


def test_a_lost_graphics_context_is_replaced(tab, site: Site) -> None:
    open_slide_page(tab)
    change(tab, **PLAIN)
    look(tab, x=32, y=32, scale=0.25, rotation=0)
    until(tab, "lobule.view.layers[0].tiles.size > 0")
    assert tab.evaluate("lobule.view.renderer") == "webgl"
    tab.evaluate("lobule.view.canvas.getContext('webgl2').getExtension('WEBGL_lose_context').loseContext()")
    until(tab, "lobule.view.renderer === 'canvas'")
    settle(tab)
    shown = picture(tab, ".slide")
    assert np.abs(shown[shown.shape[0] // 2, shown.shape[1] // 2] - [189, 223, 38]).max() <= 5


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed: run `npm ci` in web/")
def test_axe_finds_nothing_serious(tab, site: Site) -> None:
    for name in ("", "one", "exam"):
        tab.goto(tab.url.partition("#")[0] + (f"#/case/{case_id(tab, name)}" if name else "#/"))
        tab.wait_for_selector(".row" if not name else ".tabs")
        for theme in ("light", "dark"):
            tab.evaluate("(theme) => (document.documentElement.dataset.theme = theme)", theme)
            tab.evaluate(AXE.read_text())
            report = tab.evaluate("axe.run({ resultTypes: ['violations'] })")
            serious = {
                one["id"]: one["nodes"][0]["html"][:200]
                for one in report["violations"]
                if one["impact"] in ("serious", "critical")
            }
            assert serious == {}, (name, theme)


def open_exam(page) -> None:
    page.goto(page.url.partition("#")[0].partition("?")[0] + f"#/case/{case_id(page, 'exam')}")
    until(
        page,
        "window.lobule?.exam && [...lobule.exam.views.values()].every((view) => view.image || view.problem)",
    )
    page.add_style_tag(content=HIDE + ".pane { display: none }")
    settle(page)


def screen_position(page, view: str, column: float, row: float) -> tuple[int, int]:
    a, _, _, d, e, f = page.evaluate("(name) => lobule.exam.affine(name)", view)
    return round(a * column + e), round(d * row + f)


def test_exam_pixels_are_windowed_values_of_the_files(tab, site: Site) -> None:
    import pydicom

    tab.evaluate("fetch('api/cases')")
    open_exam(tab)
    for centre, width, inverted in ((2048, 4096, False), (1500, 1200, False), (1500, 1200, True)):
        tab.evaluate(
            "([c, w, i]) => { lobule.exam.inverted = i; lobule.exam.setWindow(c, w) }",
            [centre, width, inverted],
        )
        settle(tab)
        shown = picture(tab, ".exam")
        for view in ("L-CC", "R-CC", "L-MLO"):
            stored = pydicom.dcmread(site.exam / f"{view}.dcm").pixel_array.astype(int)
            for column, row in ((60, 150), (100, 120), (40, 200)):
                column = column if view.startswith("L") else EXAM[1] - column
                x, y = screen_position(tab, view, column + 0.5, row + 0.5)
                grey = np.clip((stored[row, column] - centre) / width + 0.5, 0, 1)
                expected = 255 * (1 - grey if inverted else grey)
                assert np.abs(shown[y, x] - expected).max() <= 5, (view, column, row, shown[y, x], expected)
    tab.evaluate("lobule.exam.inverted = false; lobule.exam.resetWindow()")


def test_exam_chest_walls_meet_and_missing_views_are_named(tab, site: Site) -> None:
    open_exam(tab)
    width = tab.locator(".exam").bounding_box()["width"]
    for view, wall in (("L-CC", 0), ("L-MLO", 0), ("R-CC", EXAM[1])):
        assert screen_position(tab, view, wall, 0)[0] == pytest.approx(width / 2, abs=1)
    nipples = [screen_position(tab, view, column, 0)[0] for view, column in (("R-CC", 0), ("L-CC", EXAM[1]))]
    assert nipples[0] < width / 2 < nipples[1]
    scales = {
        view: tab.evaluate("(name) => Math.abs(lobule.exam.affine(name)[0])", view)
        for view in ("L-CC", "R-CC", "L-MLO")
    }
    assert len({round(scale / MM, 6) for scale in scales.values()}) == 1  # Equal millimetres.
    assert "Missing: R-MLO." in tab.locator(".panel").inner_text()
    assert "0.650 to 0.770" in tab.locator(".panel").inner_text()


def test_exam_heatmaps_are_off_at_first_and_one_key_away(tab, site: Site) -> None:
    open_exam(tab)
    change(tab, opacity=1, threshold=0.5, colours="viridis", smooth=False, gamma=1)
    x, y = screen_position(tab, "L-CC", 100, 150)
    before = picture(tab, ".exam")[y, x]
    assert before[0] == before[1] == before[2]
    tab.keyboard.press("h")
    assert tab.evaluate("lobule.exam.heatmap") == "benign"
    tab.keyboard.press("h")
    until(tab, "lobule.exam.layers.get('L-CC').tiles.size > 0")
    settle(tab)
    shown = picture(tab, ".exam")[y, x]
    assert shown[0] > 190 and shown[2] < 90, shown  # The malignant map has 0.95 there, yellow in viridis.
    tab.keyboard.press("h")
    settle(tab)
    assert np.array_equal(picture(tab, ".exam")[y, x], before)


def test_exam_value_under_the_cursor_is_that_of_pydicom(tab, site: Site) -> None:
    import pydicom

    open_exam(tab)
    box = tab.locator(".exam").bounding_box()
    for view, column, row in (("L-CC", 77, 140), ("R-CC", 150, 160)):
        x, y = screen_position(tab, view, column + 0.5, row + 0.5)
        tab.mouse.move(box["x"] + x, box["y"] + y)
        settle(tab)
        at = tab.evaluate("lobule.exam.at(...lobule.exam.pointer)")
        stored = pydicom.dcmread(site.exam / f"{view}.dcm").pixel_array
        assert at["name"] == view
        assert at["value"] == stored[at["row"], at["column"]]
        assert int(tab.locator("[data-value]").get_attribute("data-value")) == at["value"]
        assert abs(at["column"] - column) <= 1 and abs(at["row"] - row) <= 1


def test_exam_zoom_is_linked(tab, site: Site) -> None:
    open_exam(tab)
    before = {
        view: tab.evaluate("(name) => lobule.exam.affine(name)", view) for view in ("L-CC", "R-CC", "L-MLO")
    }
    tab.keyboard.press("+")
    settle(tab)
    for view, affine in before.items():
        after = tab.evaluate("(name) => lobule.exam.affine(name)", view)
        assert after[3] / affine[3] == pytest.approx(1.3, rel=1e-6)
    tab.keyboard.press("0")
    settle(tab)
    assert tab.evaluate("lobule.exam.affine('L-CC')") == pytest.approx(before["L-CC"])


def test_themes_and_reviews_page(tab, site: Site) -> None:
    append_review(site.scene.root / "results", "one", "Key Board", Review("note", text="Seen."))
    tab.goto(tab.url.partition("#")[0] + "#/reviews")
    tab.wait_for_selector("table.plain")
    assert "Key Board" in tab.locator("table.plain").inner_text()
    colours = set()
    for _ in range(2):
        tab.keyboard.press("D")
        settle(tab)
        colours.add(tuple(picture(tab, "body")[400, 900].tolist()))
    assert {sum(colour) > 380 for colour in colours} == {True, False}  # One light and one dark page.
