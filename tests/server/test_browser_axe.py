"""axe-core on every screen of the viewer in both themes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.browsing import AXE, NEEDS_BROWSER, settle, until
from tests.server.feature_site import FeatureSite, open_case

pytestmark = [
    pytest.mark.campaign,
    *NEEDS_BROWSER,
    pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed: run `npm ci` in web/"),
]

SCREENS: dict[str, tuple[str, list[str]]] = {
    "list": ("#/", []),
    "nothing found": ("#/", ["/", *"zzz"]),
    "help": ("#/", ["?"]),
    "reviews": ("#/reviews", []),
    "unknown case": ("#/case/" + "0" * 24, []),
    "slide": ("slide", ["T", "t", "w"]),
    "findings": ("slide", ["n"]),
    "gallery": ("slide", ["n", "g"]),
    "review": ("slide", ["n", "q", "e", " "]),
    "reviewed": ("slide", ["n", "a", "q"]),
    "details": ("slide", ["Q"]),
    "measure": ("slide", ["m", " ", "Shift+ArrowLeft", " "]),
    "difference": ("slide", ["s", "d"]),
    "truth": ("slide", ["s", "s"]),
    "exam": ("exam", ["h", "h"]),
    "exam findings": ("exam", ["n", "p"]),
    "exam review": ("exam", ["n", "q", "e", " "]),
    "exam details": ("exam", ["Q"]),
    "prior": ("exam", ["s"]),
    "one view": ("exam", ["2", "m"]),
}
"""The case or address of each screen, and the keys that lead to it."""


@pytest.mark.parametrize("screen", SCREENS)
def test_nothing_serious_on_any_screen(page: Any, features: FeatureSite, screen: str) -> None:
    where, keys = SCREENS[screen]
    if where.startswith("#"):
        page.goto(features.url + "/" + where)
        page.reload()
        page.wait_for_selector(".row, .page, [role=alert]")
    else:
        open_case(page, where, "exam" if where == "exam" else "view")
    for key in keys:
        page.keyboard.press(key)
        settle(page)
    if "difference" in screen or "truth" in screen:
        until(page, "lobule.beside?.viewer.isOpen()")
    page.evaluate(AXE.read_text())
    for theme in ("light", "dark"):
        page.evaluate("(theme) => (document.documentElement.dataset.theme = theme)", theme)
        page.wait_for_timeout(300)
        report = page.evaluate("axe.run({ resultTypes: ['violations'] })")
        serious = {
            one["id"]: one["nodes"][0]["html"][:200]
            for one in report["violations"]
            if one["impact"] in ("serious", "critical")
        }
        assert serious == {}, theme
