"""The viewer of slides in Chromium: values read from pixels of the screen, from files and from the API."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from lobule.reviews import Review, append_review, review_path
from tests.server.browsing import (
    AXE,
    NEEDS_BROWSER,
    PLAIN,
    WAIT_MS,
    Site,
    case_id,
    change,
    look,
    new_tab,
    open_slide_page,
    picture,
    settle,
    until,
)

pytestmark = NEEDS_BROWSER


NEAR = np.ones((3, 3), bool)
"""A pixel and its neighbours."""


def coloured_squares(overlaid: np.ndarray) -> np.ndarray:
    """Return where the map has coloured a square of the slide."""
    coloured = (overlaid[..., 0] > 150) & (overlaid[..., 2] < 120)
    assert coloured.sum() > 400
    return coloured


def outside_of_squares(slide: np.ndarray, coloured: np.ndarray) -> int:
    """Return the number of coloured pixels that are more than one pixel away from a dark square of the slide."""
    partly_dark = slide[..., 0] < 220  # Edges are smoothed, so pixels may be partly covered by a square.
    return int((coloured & ~binary_dilation(partly_dark, NEAR)).sum())


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
        coloured = coloured_squares(overlaid)
        assert outside_of_squares(slide, coloured) == 0, (ratio, scale, rotation, flip)
        # Where the map's last rows are glass, dark squares have no coloured ones above them.
        rows = np.flatnonzero(coloured.any(axis=1)) if rotation == 0 else np.arange(len(dark))
        if rotation == 0:
            inside = dark.copy()
            inside[rows[-1] - 1 :] = False
            only_slide = inside & ~binary_dilation(coloured, NEAR)
            failed = 0.02 * dark.sum()  # the failed cells, which have no colour
            assert only_slide.sum() <= failed, (ratio, scale, int(only_slide.sum()))
    context.close()


def test_a_moved_map_agrees_with_the_slide_and_is_painted_at_rest(tab, site: Site) -> None:
    open_slide_page(tab)
    change(tab, **PLAIN)
    look(tab, x=550, y=420, scale=1.7, rotation=0)
    until(tab, "lobule.view.layers[0].tiles.size > 0")
    settle(tab)
    paints = tab.evaluate("lobule.view.overlay.paints")
    # Panned by fractions of a pixel, zoomed, and rotated, while the graphics processor is still busy.
    tab.evaluate(
        "Object.defineProperty(lobule.view.overlay.painter, 'isBusy', { value: true, writable: true })"
    )
    tab.evaluate("lobule.view.overlay.repaint = () => {}")
    for view in ({"x": 550 + 63.2, "y": 420 - 37.9}, {"scale": 1.4}, {"rotation": 20}):
        tab.evaluate("(view) => lobule.view.setView(view, true)", view)
        until(tab, "lobule.view.viewer.world.getItemAt(0).getFullyLoaded()")
        tab.wait_for_timeout(200)
        coloured = coloured_squares(picture(tab, ".slide"))
        tab.evaluate("lobule.view.overlay.canvas.style.visibility = 'hidden'")
        slide = picture(tab, ".slide")
        tab.evaluate("lobule.view.overlay.canvas.style.visibility = ''")
        assert outside_of_squares(slide, coloured) == 0, view
        assert (slide[coloured][:, 0] < 140).mean() > 0.9, view
    assert tab.evaluate("lobule.view.overlay.paints") == paints
    assert not tab.evaluate("lobule.view.overlay.isSettled")
    tab.evaluate(
        "lobule.view.overlay.painter.isBusy = false; delete lobule.view.overlay.repaint; lobule.view.redraw()"
    )
    settle(tab)
    assert tab.evaluate("lobule.view.overlay.paints") > paints
    assert tab.evaluate("lobule.view.overlay.canvas.style.transform") == ""


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


def test_smoothing_is_the_weighted_mean_of_scored_cells(tab, site: Site) -> None:
    import matplotlib

    open_slide_page(tab)
    change(tab, **{**PLAIN, "smooth": True, "threshold": 0})
    # Between cells of 0.9 and 0.1; a quarter of a cell from there; beside the failed cells 20 to 23 of row 10.
    for x, y, expected in ((64, 32, 0.5), (68, 32, 0.3), (24 * 16 + 1, 10 * 16 + 8, 0.1)):
        look(tab, x=x, y=y, scale=0.1, rotation=0)
        until(tab, "lobule.view.layers[0].tiles.size > 0")
        settle(tab)
        shown = picture(tab, ".slide")
        colour = 255 * np.array(matplotlib.colormaps["viridis"](expected)[:3])
        assert np.abs(shown[shown.shape[0] // 2, shown.shape[1] // 2] - colour).max() <= 6, (x, y)


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


def test_a_slide_and_its_map_are_shown_before_its_findings(browser, site: Site) -> None:
    requests: list[Any] = []
    with new_tab(browser, site.url) as page:
        case = case_id(page, "one")
        page.route("**/findings?*", lambda route: requests.append(route))
        page.goto(site.url + f"/#/case/{case}")
        until(page, f"window.lobule?.view?.detail?.id === '{case}' && lobule.view.viewer.isOpen()")
        until(page, "lobule.view.layers[0].tiles.size > 0")
        until(page, "lobule.view.viewer.world.getItemAt(0).getFullyLoaded()")
        page.click("[role=tab]:text('findings')")
        assert "Loading the findings" in page.locator("[role=tabpanel]").inner_text()
        assert page.evaluate("lobule.view.inView.findings") == 0
        requests.pop().continue_()
        until(page, "!lobule.view.page.isPending")
        look(page, x=550, y=450, scale=1.7, rotation=0)
        until(page, "lobule.view.inView.findings > 0")
        for _ in range(100):
            page.wait_for_timeout(0 if requests else 50)
        (listing,) = requests
        assert "limit=200" in listing.request.url  # The findings are drawn; their list is still requested.
        assert page.locator(".finding").count() == 0
        page.keyboard.press("n")
        listing.continue_()
        until(page, "document.querySelectorAll('.finding').length > 0")
        assert page.locator(".finding").count() == page.evaluate("lobule.view.inView.findings")
        until(page, "lobule.view.selected !== null")  # The step that was waiting for the list.
        assert page.locator(".finding").first.get_attribute("aria-current") == "true"


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
    overlay = tab.evaluate("(() => { const c = lobule.view.overlay.canvas, g = c.getContext('webgl2'); const p = new Uint8Array(4*c.width*c.height);"
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
    tab.click("button:text('second')")
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
    tab.click("button:text('second')")
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
    assert tab.evaluate("lobule.view.overlay.renderer") == "canvas"
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
    assert tab.evaluate("lobule.view.overlay.renderer") == "webgl"
    tab.evaluate(
        "lobule.view.overlay.canvas.getContext('webgl2').getExtension('WEBGL_lose_context').loseContext()"
    )
    until(tab, "lobule.view.overlay.renderer === 'canvas'")
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
