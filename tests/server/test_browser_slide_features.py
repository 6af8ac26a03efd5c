"""The view and the display of a slide by mouse and by keyboard alone, checked by pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.server.browsing import NEEDS_BROWSER, PLAIN, change, look, settle, until
from tests.server.feature_checks import (
    BY,
    OFF,
    STORED,
    by_switch,
    by_tab,
    centre,
    clipboard,
    message,
    near,
    viridis,
    whole_slide,
)
from tests.server.feature_site import (
    Step,
    assert_view,
    click,
    click_image,
    colour_at,
    drag,
    level_0_to_screen,
    middle,
    open_case,
    run_steps,
    shown,
    slide_to,
)

pytestmark = NEEDS_BROWSER


# The view of a slide


def shows(x: float, y: float, scale: float, rotation: float = 0, *, flip: bool = False):
    return lambda page, by: assert_view(page, x, y, scale, rotation, flip=flip)


def moved_right(page: Any, by: str) -> None:
    width = page.locator(".slide").bounding_box()["width"]
    assert_view(page, 400 + (0.2 * width if by == "keyboard" else 90), 330, 1)
    look(page, x=400, y=330, scale=1)


def zoomed(page: Any, by: str) -> None:
    assert_view(page, 400, 330, 1 / (1.5 if by == "keyboard" else 1.2))


def full_screen(page: Any, by: str) -> None:
    until(page, "document.fullscreenElement === document.documentElement")
    page.evaluate("document.exitFullscreen()")
    until(page, "!document.fullscreenElement")
    look(page, x=400, y=330, scale=1)


def copied(page: Any, by: str) -> None:
    message(page, "Copied")
    x, y = (int(value) for value in clipboard(page).split(", "))
    assert abs(x - 410) <= 1 and abs(y - 330) <= 1, (x, y)
    column, row = level_0_to_screen(page, x, y)
    width, height = page.evaluate("lobule.view.size")
    assert abs(column - width / 2 - 10) <= 2 and abs(row - height / 2) <= 2


def measured(page: Any, by: str) -> None:
    assert page.locator(".readout strong").text_content() == "50 µm"  # 100 px of 0.5 µm
    pixels = shown(page)
    line = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2 + 20 : pixels.shape[1] // 2 + 80]
    near(line, 255, 10)


SLIDE_VIEW = [
    Step("move", ["ArrowRight"], drag(-90, 0), moved_right),
    Step("zoom", ["+"], lambda page: (page.mouse.move(*middle(page, ".slide")), page.mouse.wheel(0, -100)), zoomed),
    Step("magnification", ["3"], click("[aria-label='Zoom to 20×']"), shows(400, 330, 1)),
    Step("rotate", ["r"], click("[aria-label=Rotate]"), shows(400, 330, 1, 90)),
    Step("rotate back", ["R"], click(*3 * ["[aria-label=Rotate]"]), shows(400, 330, 1)),
    Step("flip", ["f"], click("[aria-label=Flip]"), shows(400, 330, 1, flip=True)),
    Step("flip back", ["f"], click("[aria-label=Flip]"), shows(400, 330, 1)),
    Step("whole slide", ["0"], click("[aria-label='Whole slide']"), whole_slide),
    Step("full screen", ["F"], click("[aria-label='Full screen']"), full_screen),
    Step("coordinates", ["Shift+ArrowLeft", "Shift+ArrowRight", "y"], click_image((10, 0), button="right"), copied),
    Step("measure", ["Shift+ArrowLeft", "m", " ", *10 * ["Shift+ArrowRight"], " "],
         lambda page: (click("[aria-label=Measure]")(page), click_image((0, 0), (100, 0))(page)), measured),
]  # fmt: skip


@BY
def test_the_view_of_a_slide(page: Any, by: str) -> None:
    open_case(page, "slide", "view")
    change(page, **OFF)
    look(page, x=400, y=330, scale=1, rotation=0)
    run_steps(page, SLIDE_VIEW, by)


# The display of a slide. The middle of the screen is a square with the score 0.9.


def opacity(page: Any, by: str) -> None:
    share = int(page.locator(".slider:has-text('Opacity') output").text_content().removesuffix(" %")) / 100
    assert 0.3 < share < 0.8
    centre(viridis(0.902, share))(page, by)


def gamma(page: Any, by: str) -> None:
    value = float(page.locator(".slider:has-text('Gamma') output").text_content())
    assert value > 2.5
    centre(viridis(0.902**value))(page, by)


def at(x: float, y: float, expected: Any, limit: float = 6):
    def check(page: Any, by: str) -> None:
        look(page, x=x, y=y, scale=0.25)
        near(colour_at(page, x, y), expected, limit)
        look(page, x=32, y=32, scale=0.25)

    return check


def failed_cells(pattern: bool):
    def check(page: Any, by: str) -> None:
        look(page, x=22 * 16, y=11 * 16, scale=0.25)
        pixels = shown(page)
        row, column = pixels.shape[0] // 2, pixels.shape[1] // 2
        block = pixels[row - 40 : row + 40, column - 60 : column + 60]
        pink = (block[..., 0] > 190) & (block[..., 1] < 130) & (block[..., 2] > 140)
        assert (0.2 < pink.mean() < 0.8) if pattern else not pink.any(), pink.mean()
        look(page, x=32, y=32, scale=0.25)

    return check


def tissue(page: Any, by: str) -> None:
    look(page, x=400, y=49 * 16, scale=0.5)
    pixels = shown(page)
    violet = np.abs(pixels - [225, 200, 255]).max(axis=2) < 25
    rows = np.flatnonzero(violet[:, 50:-50].mean(axis=1) > 0.9)
    assert len(rows) and abs(rows.mean() - pixels.shape[0] / 2) <= 1.5, rows  # Rows from 49 on are glass.
    look(page, x=32, y=32, scale=0.25)


def truth(on: bool):
    def check(page: Any, by: str) -> None:
        look(page, x=300, y=460, scale=0.5)
        pixels = shown(page)
        column = pixels.shape[1] // 2
        edge = pixels[100:-100, column - 2 : column + 3]
        green = (edge[..., 1] > 180) & (edge[..., 0] < 120) & (edge[..., 2] < 170)
        assert (0.3 < green.any(axis=1).mean() < 0.8) if on else not green.any()  # A dashed line.
        look(page, x=32, y=32, scale=0.25)

    return check


def outlines(on: bool):
    def check(page: Any, by: str) -> None:
        look(page, x=100, y=400, scale=0.5)
        if on:
            until(page, "lobule.view.outlines.size > 0")
            settle(page)
        near(colour_at(page, 80, 400), [0, 200, 255] if on else [245, 245, 245], 30)
        look(page, x=32, y=32, scale=0.25)

    return check


def viewed(page: Any, by: str) -> None:
    caption = page.locator(".seen figcaption")
    assert int(caption.get_attribute("data-viewed")) > 0
    assert int(caption.get_attribute("data-magnified")) > 0  # The tests have looked at 40× and more.


SLIDE_DISPLAY = [
    Step("heatmap off", ["h"], by_switch("Heatmap"), centre(STORED)),
    Step("heatmap on", ["h"], by_switch("Heatmap"), centre(viridis(0.902))),
    Step("opacity", 4 * ["["], slide_to("Opacity", 0.6), opacity),
    Step("opacity back", 6 * ["]"], slide_to("Opacity", 0.999), centre(viridis(0.902))),
    Step("threshold", 9 * ["."], slide_to("Threshold", 0.97), centre(STORED)),
    Step("threshold back", 9 * [","], slide_to("Threshold", 0.5), centre(viridis(0.902))),
    Step("gamma", ["Tab:input[aria-label=Gamma]", "End"], slide_to("Gamma", 0.98), gamma),
    Step("gamma back", ["Tab:input[aria-label=Gamma]", "Home", *14 * ["ArrowRight"]],
         lambda page: change(page, gamma=1), centre(viridis(0.902))),
    Step("colours", ["c"], lambda page: page.select_option("label:has-text('Colours') select", "magma"), centre(viridis(0.902, 1, "magma"))),
    Step("colours again", ["c", "c"], lambda page: page.select_option("label:has-text('Colours') select", "viridis"), centre(viridis(0.902))),
    Step("class", ["k"], lambda page: page.select_option("label:has-text('Class') select", "normal"), centre(STORED)),
    Step("class again", ["k"], lambda page: page.select_option("label:has-text('Class') select", "tumour"), centre(viridis(0.902))),
    Step("smooth", by_tab("Smooth"), by_switch("Smooth"), at(60, 32, viridis(0.902 - 0.25 * 0.8), 12)),
    Step("not smooth", by_tab("Smooth"), by_switch("Smooth"), at(60, 32, viridis(0.902))),
    Step("cells without a score", ["v"], by_switch("Cells without"), failed_cells(True)),
    Step("without patterns", ["v"], by_switch("Cells without"), failed_cells(False)),
    Step("points", ["p"], by_switch("Findings"), at(180, 400, viridis(0.9), 12)),
    Step("no points", ["p"], by_switch("Findings"), at(180, 400, [245, 245, 245], 12)),
    Step("outlines", ["o"], by_switch("Outlines"), outlines(True)),
    Step("no outlines", ["o"], by_switch("Outlines"), outlines(False)),
    Step("truth", ["t"], by_switch("Truth"), truth(True)),
    Step("no truth", ["t"], by_switch("Truth"), truth(False)),
    Step("tissue", ["T"], by_switch("Tissue"), tissue),
    Step("no tissue", ["T"], by_switch("Tissue"), centre(viridis(0.902))),
    Step("viewed area", ["w"], by_switch("Viewed"), viewed),
]  # fmt: skip


@BY
def test_the_display_of_a_slide(page: Any, by: str) -> None:
    open_case(page, "slide", "view")
    change(page, **PLAIN, profile=False)
    look(page, x=32, y=32, scale=0.25, rotation=0)
    run_steps(page, SLIDE_DISPLAY, by)


# Drawing and loading that go wrong


def test_the_overlay_is_painted_when_openseadragon_and_the_graphics_processor_never_rest(page: Any) -> None:
    open_case(page, "slide", "view")
    change(page, **{**OFF, "heatmap": True, "threshold": 0.95})
    look(page, x=32, y=32, scale=0.25, rotation=0)
    centre(STORED)(page, "")
    page.evaluate("""() => {
        const { overlay, viewer } = lobule.view;
        viewer.addHandler("update-viewport", () => viewer.forceRedraw());
        viewer.forceRedraw();
        const gl = overlay.canvas.getContext("webgl2");
        gl.getSyncParameter = () => gl.UNSIGNALED;
    }""")
    change(page, threshold=0.5)
    centre(viridis(0.902))(page, "")


def test_tiles_whose_requests_have_failed_are_requested_again(page: Any) -> None:
    failed: set[str] = set()

    def fail_once(route: Any) -> None:
        if route.request.url in failed:
            route.continue_()
        else:
            failed.add(route.request.url)
            route.fulfill(status=503, body="The server is busy.")

    kinds = ("/tiles/", "/map?", "/finding-tile?")
    for kind in kinds:
        page.route(lambda url, kind=kind: kind in url, fail_once)
    try:
        open_case(page, "slide", "view")
        change(page, **{**OFF, "heatmap": True, "points": True})
        look(page, x=160, y=260, scale=0.5, rotation=0)
        page.evaluate("lobule.view.showFindings('lymphoid')")
        until(page, "lobule.view.viewer.world.getItemAt(0).lastDrawn.some((one) => one.level === 1)")
        until(page, "lobule.view.inView.findings === 6")
        settle(page)
        near(colour_at(page, 288, 288), viridis(0.902))
        near(colour_at(page, 100, 400), viridis(0.95), 12)
        change(page, heatmap=False)
        near(colour_at(page, 288, 288), STORED)
    finally:
        page.unroute_all()
    assert all(any(kind in url for url in failed) for kind in kinds)
