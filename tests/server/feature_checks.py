"""What the tests of the viewer's features read from the screen, the clipboard and the files."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pytest

from tests.server.browsing import PLAIN, until
from tests.server.feature_site import FeatureSite, assert_view, click, shown

BY = pytest.mark.parametrize("by", ["keyboard", pytest.param("mouse", marks=pytest.mark.campaign)])
STORED = np.array([40, 20, 120])
"""The colour of a square as the file stores it."""
OFF = {**PLAIN, "heatmap": False, "profile": False}


def clipboard(page: Any) -> str:
    return str(page.evaluate("navigator.clipboard.readText()"))


def readout(page: Any) -> str:
    return str(page.locator(".readout").text_content())


def message(page: Any, text: str) -> None:
    until(page, f"document.querySelector('.notices').textContent.includes({text!r})")


def near(actual: np.ndarray, expected: Any, limit: float = 6) -> None:
    assert np.abs(actual - np.asarray(expected)).max() <= limit, (actual, expected)


def viridis(score: float, opacity: float = 1, name: str = "viridis") -> np.ndarray:
    return opacity * 255 * np.array(matplotlib.colormaps[name](score)[:3]) + (1 - opacity) * STORED


def whole_slide(page: Any, by: str) -> None:
    box = page.locator(".slide").bounding_box()
    assert_view(page, 550, 450, max(1100 / box["width"], 900 / box["height"]))


def centre(expected: Any):
    def check(page: Any, by: str) -> None:
        pixels = shown(page)
        near(pixels[pixels.shape[0] // 2, pixels.shape[1] // 2], expected)

    return check


def by_switch(name: str):
    return click(f".switch:has-text('{name}') input")


def by_tab(name: str) -> list[str]:
    return [f"Tab:label:has-text('{name}') input", " "]


def profile_is_applied(on: bool):
    def check(page: Any, by: str) -> None:
        for _ in range(1200):
            pixels = shown(page)
            colour = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]
            if (np.abs(colour - STORED).max() <= 6) != on:
                break
            page.wait_for_timeout(50)
        assert (colour[0] > colour[2]) == on, colour  # The profile swaps red and blue.

    return check


def reviewed(site: FeatureSite, case: str, **expected: Any):
    """The last line of the review file."""

    def check(page: Any, by: str) -> None:
        for _ in range(1200):
            lines = site.entries(case)
            if lines and all(lines[-1].get(name) == value for name, value in expected.items()):
                return
            page.wait_for_timeout(50)
        raise AssertionError(lines[-1:])

    return check


def write(field: str, text: str, button: str):
    return lambda page: (page.fill(field, text), page.click(f"button:text('{button}')"))
