"""The site and the browser that the tests of the viewer share, once per file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lobule.results import open_results
from lobule.server.library import Library, Source
from tests.server.browsing import CHROMIUM, GL, Site, new_tab, serving, write_exam
from tests.server.feature_site import FeatureSite, feature_site
from tests.server.support import begin, build_scene, write_case


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
    assert cells == (57, 69)
    with serving(library) as url:
        yield Site(url, scene, live, exam, open_results(root / "results"))


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=GL)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def tab(browser, site: Site):
    with new_tab(browser, site.url) as page:
        yield page


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureSite]:
    with feature_site(tmp_path_factory.mktemp("features")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(browser, features: FeatureSite):
    """A tab with the site of the features that may use the clipboard."""
    with new_tab(browser, features.url, permissions=["clipboard-read", "clipboard-write"]) as opened:
        yield opened
