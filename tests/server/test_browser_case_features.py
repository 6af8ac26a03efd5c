"""Findings, reviews, comparisons, addresses and lists by mouse and by keyboard alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.server.browsing import NEEDS_BROWSER, PLAIN, change, look, new_tab, settle, until
from tests.server.feature_checks import (
    BY,
    OFF,
    STORED,
    by_switch,
    centre,
    clipboard,
    message,
    near,
    profile_is_applied,
    reviewed,
    viridis,
    whole_slide,
    write,
)
from tests.server.feature_site import (
    PERSON,
    FeatureSite,
    Step,
    click,
    click_image,
    colour_at,
    middle,
    open_case,
    run_steps,
    shown,
)

pytestmark = NEEDS_BROWSER


# Findings and reviews of a slide


def at_finding(rank: int):
    def check(page: Any, by: str) -> None:
        until(
            page,
            f"document.querySelectorAll('.finding')[{rank - 1}]?.getAttribute('aria-current') === 'true'",
        )
        near(
            colour_at(page, 100 + 80 * (rank - 1), 400), [255, 217, 0], 12
        )  # The yellow ring of the chosen finding.

    return check


def third_field(page: Any, by: str) -> None:
    until(page, "Math.hypot(lobule.view.view.x - 260, lobule.view.view.y - 400) < 2")
    settle(page)
    near(colour_at(page, 260, 400), [255, 217, 0], 12)


def one_class(page: Any, by: str) -> None:
    until(page, "document.querySelectorAll('.finding').length === 6")
    look(page, x=220, y=400, scale=0.5)
    until(page, "lobule.view.inView.findings === 6")
    settle(page)
    near(colour_at(page, 100, 400), viridis(0.95), 12)  # Lymphoid is shown,
    near(colour_at(page, 180, 400), [245, 245, 245], 12)  # tumour is not.


def is_outlined(site: FeatureSite, page: Any) -> None:
    reviewed(site, "slide", action="draw", image="slide")(page, "")
    corners = np.array(site.entries("slide")[-1]["polygon"])
    x, y = round(page.evaluate("lobule.view.view.x")), round(page.evaluate("lobule.view.view.y"))
    assert np.abs(corners - [[x, y], [x + 60, y], [x + 60, y + 60]]).max() <= 1, corners
    near(colour_at(page, x + 30, y), [255, 110, 180], 30)


@BY
def test_findings_and_reviews_of_a_slide(page: Any, features: FeatureSite, by: str) -> None:
    open_case(page, "slide", "view")
    change(page, **{**OFF, "profile": True, "points": True})
    look(page, x=32, y=32, scale=0.25, rotation=0)
    corner = "Shift+ArrowRight", "Shift+ArrowDown"
    steps = [
        Step("profile off", ["i"], by_switch("Colour profile"), profile_is_applied(False)),
        Step("profile on", ["i"], by_switch("Colour profile"), profile_is_applied(True)),
        Step("profile off again", ["i"], by_switch("Colour profile"), profile_is_applied(False)),
        Step("next finding", ["n"], click("[role=tab]:has-text('findings')", ".finding"), at_finding(1)),
        Step("second finding", ["n"], click("li:nth-child(2) .finding"), at_finding(2)),
        Step("previous finding", ["N"], click(".finding"), at_finding(1)),
        Step("gallery", ["g", "ArrowRight", "ArrowRight", "Enter", "Escape"],
             click("[aria-label^=Gallery]", ".strip button:nth-child(3)", ".gallery header button"), third_field),
        Step("accept", ["a"], click("[role=tab]:has-text('review')", "button:text('Accept')"), reviewed(features, "slide", action="accept", finding=2)),
        Step("reject", ["x"], click("button:text('Reject')"), reviewed(features, "slide", action="reject", finding=2)),
        Step("relabel", ["L", "type:in situ", "Enter"], write("#review-relabel", "in situ", "Relabel"),
             reviewed(features, "slide", action="relabel", finding=2, label="in situ")),
        Step("undo", ["u"], click("button:text('Undo')"), reviewed(features, "slide", action="undo")),
        Step("note", ["M", "type:An artefact", "Control+Enter"], write("#review-note", "An artefact", "Add note"),
             reviewed(features, "slide", action="note", text="An artefact")),
        Step("draw", ["0", "3", "Shift+ArrowLeft", "e", " ", *6 * corner[:1], " ", *6 * corner[1:], " ", " ", "Backspace", "Enter"],
             lambda page: (click("[aria-label='Whole slide']", "[aria-label='Zoom to 20×']", "button:text('Draw')")(page),
                           click_image((0, 0), (60, 0), (60, 60))(page), page.keyboard.press("Enter")), lambda page, by: is_outlined(features, page)),
        Step("class", ["Q", "Tab:.panel select", "ArrowDown"],
             lambda page: (click("[role=tab]:has-text('findings')")(page), page.select_option(".panel select", "lymphoid")), one_class),
    ]  # fmt: skip
    run_steps(page, steps, by)


def details(page: Any, by: str) -> None:
    case = page.evaluate("lobule.view.detail.id")
    detail = page.evaluate(f"fetch('api/cases/{case}').then((answer) => answer.json())")
    panel = page.locator("[role=tabpanel]")
    assert (
        panel.locator("code[title]").first.get_attribute("title")
        == detail["provenance"]["bundle"]["fingerprint"]
    )
    assert "A note." in panel.inner_text()
    until(page, "document.querySelector('.tab').scrollTop > 100")
    panel_box, last_box = panel.bounding_box(), panel.locator("dd").last.bounding_box()
    assert last_box["y"] + last_box["height"] <= panel_box["y"] + panel_box["height"]  # The end is in view.


def scroll_details(page: Any) -> None:
    page.click("[role=tab]:has-text('details')")
    page.mouse.move(*middle(page, "[role=tabpanel]"))
    page.mouse.wheel(0, 5000)


@BY
def test_the_details_are_one_step_away(page: Any, by: str) -> None:
    open_case(page, "slide", "view")
    run_steps(page, [Step("details", ["Q", "Tab:[role=tabpanel]", "End"], scroll_details, details)], by)


# Two results, the truth, and the address of a view


def both_show(left: Any, right: Any):
    """The middle of both halves, which show the same position."""

    def check(page: Any, by: str) -> None:
        until(
            page,
            "lobule.beside?.viewer.isOpen() && (lobule.beside.overrides.heatmap === false || lobule.beside.layers[0].tiles.size > 0)",
        )
        look(page, x=32, y=32, scale=0.25)
        until(
            page,
            "lobule.beside.viewer.world.getItemAt(0).getFullyLoaded() && lobule.view.layers[0].tiles.size > 0",
        )
        settle(page)
        for selector, expected in ((".slide:not(.other)", left), (".slide.other", right)):
            pixels = shown(page, selector)
            near(pixels[pixels.shape[0] // 2, pixels.shape[1] // 2], expected)

    return check


def alone(page: Any, by: str) -> None:
    assert page.locator(".slide.other").count() == 0
    look(page, x=32, y=32, scale=0.25)
    centre(viridis(0.902))(page, by)


def whole_in_both(page: Any, by: str) -> None:
    until(page, "lobule.beside?.viewer.isOpen()")
    box = page.locator(".slide:not(.other)").bounding_box()
    until(page, f"Math.abs(lobule.view.view.scale - {max(1100 / box['width'], 900 / box['height'])}) < 0.02")
    pixels = shown(page, ".slide.other")
    assert (pixels[pixels.shape[0] // 2, [8, -9]].min(axis=-1) > 200).all()  # The slide ends within the half.


COMPARING = [
    Step("whole slide", ["0"], click("[aria-label='Whole slide']"), whole_slide),
    Step("the whole slide in half of the width", ["s"], click("button:text('second')"), whole_in_both),
    Step("second result", ["h"], by_switch("Heatmap"), both_show(viridis(0.902), STORED)),
    Step("difference", ["d"], click("button:text('Difference')"), both_show(255 * np.array([0.851, 0.282, 0.004]), STORED)),
    Step("scores again", ["d"], click("button:text('Difference')"), both_show(viridis(0.902), STORED)),
    Step("truth", ["s"], click("button:text('truth')"), both_show(viridis(0.902), STORED)),
    Step("one result", ["s"], click("button:text('truth')"), alone),
]  # fmt: skip


@BY
def test_comparisons_of_a_slide(page: Any, by: str) -> None:
    open_case(page, "slide", "view")
    change(page, **{**PLAIN, "heatmap": False, "profile": False, "threshold": 0.3})
    run_steps(page, COMPARING, by)


@BY
def test_the_copied_address_shows_the_same_picture_to_a_colleague(
    browser: Any, page: Any, features: FeatureSite, by: str
) -> None:
    case = open_case(page, "slide", "view")
    change(
        page, **{**PLAIN, "profile": False, "colours": "cividis", "opacity": 0.7, "gamma": 1.4, "truth": True}
    )
    look(page, x=420, y=380, scale=0.8, rotation=0)
    for key in ("k", "r", "n"):
        page.keyboard.press(key)
    until(page, "lobule.view.selected === 0 && lobule.view.layers[0].tiles.size > 0")
    page.keyboard.press("Y") if by == "keyboard" else click("[aria-label^='Copy the address']")(page)
    message(page, "was copied")
    address = clipboard(page)
    settle(page)
    before = shown(page)
    with new_tab(browser, features.url) as other:
        other.goto(address)
        until(other, f"window.lobule?.view?.detail?.id === '{case}' && lobule.view.viewer.isOpen()")
        until(
            other,
            "lobule.view.viewer.world.getItemAt(0).getFullyLoaded() && lobule.view.layers[0].tiles.size > 0",
        )
        until(other, "!lobule.view.page.isPending && lobule.view.truth.length && lobule.view.selected === 0")
        settle(other)
        assert other.evaluate("lobule.view.className") == "normal"
        differing = np.abs(shown(other) - before).max(axis=2) > 12
    assert differing.mean() < 0.002, differing.mean()


# The list of cases and the table of reviews

NAMES = "[...document.querySelectorAll('.row .name')].map((cell) => cell.textContent)"


def lists(*names: str):
    def check(page: Any, by: str) -> None:
        until(page, f"JSON.stringify({NAMES}) === JSON.stringify({list(names)})")

    return check


def opened(page: Any, by: str) -> None:
    until(page, "location.hash.startsWith('#/case/')")
    until(page, "window.lobule?.exam?.detail?.name === 'older'")
    page.goto(page.url.partition("#")[0] + "#/")
    page.wait_for_selector(".row")


def table(page: Any, by: str) -> None:
    page.wait_for_selector("table.plain td")
    answer = page.evaluate("fetch('api/reviews').then((answer) => answer.json())")
    (row,) = [one for one in answer if one["case"] == "slide"]
    cells = page.locator("tbody tr", has_text="slide").locator("td").all_inner_texts()
    counts = [str(row[name]) for name in ("accept", "reject", "relabel", "draw", "note")]
    assert cells == ["slide", PERSON, *counts, row["last"][:16].replace("T", " ")]
    assert row["note"] >= 1


def dark(on: bool):
    def check(page: Any, by: str) -> None:
        colour = shown(page, "body")[-100, -300]
        assert (colour.sum() < 380) == on, colour

    return check


LIST = [
    Step("sort by case", ["s"], click(".head button:text('case')"), lists("exam", "older", "slide", "slide")),
    Step("reverse", ["S"], click(".head button:text('case')"), lists("slide", "slide", "older", "exam")),
    Step("search", ["/", "type:older complete exams", "Enter"], lambda page: page.fill("input[type=search]", "older complete exams"), lists("older")),
    Step("open", ["Enter"], click(".row"), opened),
    Step("status", ["f"], lambda page: page.select_option("select[aria-label=Status]", "complete"), lists("slide", "slide", "exam", "older")),
    Step("dark", ["D"], click("[aria-label='Dark theme']"), dark(True)),
    Step("light", ["D"], click("[aria-label='Light theme']"), dark(False)),
    Step("reviews", ["R"], click("a:text('Reviews')"), table),
]  # fmt: skip


@BY
def test_the_list_of_cases(page: Any, features: FeatureSite, by: str) -> None:
    case = open_case(page, "slide", "view")
    body = {"person": PERSON, "action": "note", "text": "Seen."}
    headers = {"content-type": "application/json", "x-lobule": "1", "origin": features.url}
    page.request.post(f"{features.url}/api/cases/{case}/reviews", data=body, headers=headers)
    page.goto(features.url + "/#/")
    page.wait_for_selector(".row")
    run_steps(page, LIST, by)
