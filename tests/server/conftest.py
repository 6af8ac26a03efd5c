"""The site and the browser that the tests of the viewer share, once per file."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from lobule.results import open_results
from lobule.server.app import create_app
from lobule.server.library import Library, Source
from tests.server.browsing import CHROMIUM, GL, WAIT_MS, Site, write_exam
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
