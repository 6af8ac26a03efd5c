"""axe-core on every screen of the viewer in both themes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lobule.files import write_json
from lobule.results import Results
from lobule.server.library import Library, Source
from lobule.stitch import State
from tests.server.browsing import AXE, NEEDS_BROWSER, case_id, serving, settle, until
from tests.server.feature_site import FeatureSite, open_case
from tests.server.support import begin, square_scores, squares, write_case, write_jpeg_slide

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


DAMAGED: dict[str, tuple[str, str]] = {
    "running": ("running", ""),
    "failed fields": ("failed", ""),
    "missing slide": ("missing", ""),
    "without WebGL": ("failed", "?plain"),
}
"""The case in which something is missing, and what its address ends with."""


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a running scan, a slide with failed fields, and a case without its slide."""
    root = tmp_path_factory.mktemp("damaged")
    slide = write_jpeg_slide(root / "slide.tif", [squares(1100, 900)])
    results = begin(root, ["running", "failed", "missing"])
    scores = square_scores(57, 69)
    states = np.full(scores.shape, State.SCORED, np.uint8)
    write_case(results, "running", slide, scores, states, [], finished=False)
    write_case(results, "missing", Path("/moved/slide.tif"), scores, states, [])
    states[10:20, 10:30] = State.FAILED
    write_case(results, "failed", slide, scores, states, [])
    fail_fields(results)
    with serving(Library([Source("results", results)])) as url:
        yield url


def fail_fields(results: Results) -> None:
    path = results.case_folder("failed").path / "result.json"
    cause = "tile 1204: the JPEG stream ends too early"
    fields = [
        {"pass": "scan", "image": "slide", "l0_box": [160 + 160 * n, 160, 160, 160], "cause": cause}
        for n in range(2)
    ]
    write_json(path, json.loads(path.read_text()) | {"status": "partial", "failed": fields})


def assert_nothing_serious(page: Any) -> None:
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
    assert_nothing_serious(page)


@pytest.mark.parametrize("screen", DAMAGED)
def test_nothing_serious_where_something_is_missing(page: Any, damaged: str, screen: str) -> None:
    name, suffix = DAMAGED[screen]
    page.goto(f"{damaged}/{suffix}")
    page.wait_for_selector(".row")
    case = case_id(page, name)
    page.goto(f"{damaged}/{suffix}#/case/{case}")
    until(page, f"window.lobule?.view?.detail?.id === '{case}' && lobule.view.viewer.isOpen()")
    until(page, "!lobule.view.page.isPending")
    if name == "failed":
        page.click("[role=tab]:text('details')")
    settle(page)
    page.wait_for_selector(".notice" if screen != "failed fields" else "[role=tabpanel][aria-label=details]")
    assert_nothing_serious(page)


def test_nothing_serious_where_the_results_have_vanished(page: Any, features: FeatureSite) -> None:
    error = {"error": "the results are not there: /data/results"}
    page.route("**/api/cases/*", lambda route: route.fulfill(status=503, json=error))
    try:
        page.goto(features.url + "/#/case/" + "0" * 24)
        page.reload()
        page.wait_for_selector("[role=alert]")
        assert_nothing_serious(page)
    finally:
        page.unroute_all()
