"""Exams by mouse and by keyboard alone, checked by pixels, files and the review file."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tests.server.browsing import EXAM, NEEDS_BROWSER, change, settle, until
from tests.server.feature_checks import (
    BY,
    near,
    readout,
    reviewed,
    write,
)
from tests.server.feature_site import (
    FeatureSite,
    Step,
    click,
    click_image,
    drag,
    middle,
    open_case,
    run_steps,
    shown,
    slide_to,
)

pytestmark = NEEDS_BROWSER


# Exams


def stored_value(features: FeatureSite, view: str, column: int, row: int) -> int:
    import pydicom

    return int(pydicom.dcmread(features.root / f"exams/{view}.dcm").pixel_array[row, column])


def screen_of(page: Any, view: str, column: float, row: float) -> tuple[float, float]:
    a, _, _, d, e, f = page.evaluate("(name) => lobule.exam.affine(name)", view)
    return a * column + e, d * row + f


def grey_at(page: Any, view: str, column: int, row: int) -> np.ndarray:
    x, y = screen_of(page, view, column + 0.5, row + 0.5)
    return shown(page, ".exam:not(.other)")[int(y), int(x)]


def windowed(features: FeatureSite, *, inverted: bool = False):
    """The pixel shows the file's value in the window that the page states."""

    def check(page: Any, by: str) -> None:
        level, width = map(float, re.match(r"level (\d+), width (\d+)", readout(page)).groups())
        value = stored_value(features, "L-CC", 100, 120)
        grey = np.clip((value - level) / width + 0.5, 0, 1)
        near(grey_at(page, "L-CC", 100, 120), 255 * (1 - grey if inverted else grey), 5)

    return check


def heat(on: bool):
    def check(page: Any, by: str) -> None:
        if on:
            until(
                page, "lobule.exam.heatmap === 'malignant' && lobule.exam.layers.get('L-CC').tiles.size > 0"
            )
            settle(page)
        colour = grey_at(page, "L-CC", 100, 150)
        assert (colour.max() - colour.min() > 60) == on, colour  # Colour, or grey alone.

    return check


def value_under_pointer(features: FeatureSite):
    def check(page: Any, by: str) -> None:
        shown_value = page.locator("[data-value]")
        text = page.locator(".coordinates").text_content()
        view, column, row = (
            text.split()[0],
            int(text.split()[2].rstrip(",")),
            int(text.split()[4].rstrip(":")),
        )
        assert int(shown_value.get_attribute("data-value")) == stored_value(features, view, column, row) > 0

    return check


def magnified(page: Any, by: str) -> None:
    x, y = page.evaluate("lobule.exam.pointer")
    pixels = shown(page, ".exam:not(.other)")
    ring = pixels[int(y), int(x) + 90 : int(x) + 120]
    assert (ring.max(axis=1) - ring.min(axis=1)).max() > 60  # The ring of the magnifier is coloured.


def zoom(factor: float | None):
    def check(page: Any, by: str) -> None:
        zoomed = 1.3 if by == "keyboard" else 1.2
        assert page.evaluate("lobule.exam.zoom") == pytest.approx(factor or zoomed)
        near(grey_at(page, "L-CC", 100, 120), grey_at(page, "L-CC", 100, 120))

    return check


def single(page: Any, by: str) -> None:
    left, top = screen_of(page, "L-CC", 0, 0)
    right, bottom = screen_of(page, "L-CC", EXAM[1], EXAM[0])
    box = page.locator(".exam").bounding_box()
    assert (left + right) / 2 == pytest.approx(box["width"] / 2, abs=1)  # The view is in the middle
    assert bottom - top == pytest.approx(
        min(box["height"], box["width"] * EXAM[0] / EXAM[1]), rel=0.01
    )  # and fills the screen.


def chosen_finding(page: Any, by: str) -> None:
    x, y = screen_of(page, "L-CC", 60, 150)
    box = page.locator(".exam").bounding_box()
    assert (x, y) == pytest.approx(
        (0.75 * box["width"], 0.25 * box["height"]), abs=2
    )  # the middle of its pane
    yellow = np.abs(shown(page, ".exam:not(.other)") - [255, 217, 0]).max(axis=2) < 40
    assert yellow.sum() > 100


def prior(page: Any, by: str) -> None:
    until(
        page,
        "lobule.besideExam && [...lobule.besideExam.views.values()].every((view) => view.image || view.problem)",
    )
    settle(page)
    main, other = page.evaluate("[lobule.exam.affine('L-CC')[3], lobule.besideExam.affine('L-CC')[3]]")
    assert main == pytest.approx(other)
    left, right = shown(page, ".exam:not(.other)"), shown(page, ".exam.other")
    assert (
        np.abs(left - right)[60:, 10:-10].max(axis=2).mean() < 30
    )  # The phantoms of both exams are the same.
    assert "prior 2018-01-01" in page.locator(".exam-name").inner_text()


def true_size(page: Any, by: str) -> None:
    # 280 px of the bar were measured as 40 mm; a pixel of the file is .1 mm.
    left, right = screen_of(page, "L-CC", 0, 0), screen_of(page, "L-CC", 100, 0)
    assert right[0] - left[0] == pytest.approx(7 * 10, rel=0.001)


def exam_outline(features: FeatureSite):
    def check(page: Any, by: str) -> None:
        view = "R-CC" if by == "keyboard" else "L-CC"  # The cross begins in the middle of the first view.
        reviewed(features, "exam", action="draw", image=view)(page, by)
        corners = np.array(features.entries("exam")[-1]["polygon"])
        a = page.evaluate("lobule.exam.affine('L-CC')[0]")
        sides = np.abs(np.diff(corners, axis=0)).max(axis=1) * a
        assert sides == pytest.approx([60, 40], abs=2 * a)

    return check


@BY
def test_an_exam(page: Any, features: FeatureSite, by: str) -> None:
    open_case(page, "exam", "exam")
    page.evaluate("localStorage.removeItem('lobule-px-per-mm')")
    change(page, opacity=1, threshold=0.5, smooth=False)
    in_pane = {"selector": ".exam:not(.other)"}
    at_breast = tuple(
        np.subtract(
            screen_of(page, "L-CC", 60, 150),
            np.divide(
                page.evaluate("[lobule.exam.element.clientWidth, lobule.exam.element.clientHeight]"), 2
            ),
        )
    )
    point_at = lambda page: page.mouse.move(*np.add(middle(page, ".exam:not(.other)"), at_breast))  # noqa: E731
    steps = [
        Step("off at opening", [], [], heat(False)),
        Step("heatmap", ["h", "h"], click("button:text('malignant')"), heat(True)),
        Step("opacity", 10 * ["["], slide_to("Opacity", 0.01), heat(False)),
        Step("opacity back", 10 * ["]"], slide_to("Opacity", 0.99), heat(True)),
        Step("threshold", 10 * ["."], slide_to("Threshold", 0.99), heat(False)),
        Step("threshold back", 10 * [","], slide_to("Threshold", 0.5), heat(True)),
        Step("heatmap off", ["h"], click("button:text('off')"), heat(False)),
        Step("window", ["w", "l"], drag(40, 30, button="right", at=at_breast, **in_pane), windowed(features)),
        Step("invert", ["i"], click(".switch:has-text('Invert')"), windowed(features, inverted=True)),
        Step("not inverted", ["i"], click(".switch:has-text('Invert')"), windowed(features)),
        Step("value", 2 * ["Shift+ArrowLeft"], point_at, value_under_pointer(features)),
        Step("magnifier", ["m"], lambda page: (click(".switch:has-text('Magnifier')")(page), point_at(page)), magnified),
        Step("no magnifier", ["m"], click(".switch:has-text('Magnifier')"), windowed(features)),
        Step("zoom", ["+"], lambda page: (point_at(page), page.mouse.wheel(0, -100)), zoom(None)),
        Step("whole", ["0"], click("button:text('Whole views')"), zoom(1)),
        Step("one view", ["2"], lambda page: (page.mouse.dblclick(*np.add(middle(page, ".exam:not(.other)"), at_breast))), single),
        Step("all views", ["2"], click("button:text('Whole views')"), zoom(1)),
        Step("finding", ["n"], click("[role=tab]:has-text('findings')", ".finding"), chosen_finding),
        Step("accept", ["a"], click("[role=tab]:has-text('review')", "button:text('Accept')"), reviewed(features, "exam", action="accept", finding=0)),
        Step("note", ["M", "type:Seen", "Tab", "Enter"], write("#review-note", "Seen", "Add note"), reviewed(features, "exam", action="note", text="Seen")),
        Step("draw", ["0", "e", " ", *6 * ["Shift+ArrowRight"], " ", *4 * ["Shift+ArrowDown"], " ", "Enter"],
             lambda page: (page.keyboard.press("0"), click("button:text('Draw')")(page), click_image(at_breast, (at_breast[0] + 60, at_breast[1]), (at_breast[0] + 60, at_breast[1] + 40), **in_pane)(page), page.keyboard.press("Enter")),
             exam_outline(features)),
        Step("undo", ["u"], click("button:text('Undo')"), reviewed(features, "exam", action="undo")),
        Step("calibrate", ["B", "type:40", "Enter", "b"],
             lambda page: (click("[role=tab]:has-text('scores')")(page), page.fill("#calibration", "40"), click("button:text('Calibrate')", "button:text('Show true size')")(page)), true_size),
        Step("prior", ["0", "s"], lambda page: (page.keyboard.press("0"), click("button:text('prior')")(page)), prior),
        Step("no prior", ["s"], click("button:text('prior')"), zoom(1)),
    ]  # fmt: skip
    run_steps(page, steps, by)
