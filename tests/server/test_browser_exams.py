"""The viewer of exams in Chromium: values read from pixels of the screen and compared with the files."""

from __future__ import annotations

import numpy as np
import pytest

from tests.server.browsing import (
    EXAM,
    MM,
    NEEDS_BROWSER,
    Site,
    change,
    open_exam,
    picture,
    screen_position,
    settle,
    until,
)

pytestmark = NEEDS_BROWSER


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
