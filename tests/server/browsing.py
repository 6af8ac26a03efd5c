"""A site with slides and an exam, and what the tests of the viewer do in Chromium."""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from lobule.files import write_json
from lobule.phantoms._mammogram_dicom import dicom_dataset, write_dicom
from lobule.results import Results
from lobule.results.maps import MapInfo, MapWriter
from lobule.results.result import FORMAT
from lobule.results.writing import map_summaries
from lobule.server.app import STATIC, create_app
from lobule.server.library import Library
from lobule.stitch import State
from tests.server.support import Scene, begin

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_BROWSER = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
    pytest.mark.skipif(
        not (STATIC / "index.html").is_file(), reason="the pages are not built: run `make viewer`"
    ),
]
"""Marks of a test that opens the pages in a browser."""

AXE = Path(__file__).parents[2] / "web/node_modules/axe-core/axe.min.js"
GL = ["--no-sandbox", "--enable-unsafe-swiftshader"]
WAIT_MS = 60_000
HIDE = (
    ".readout, .scale-bar, .notices, .navigator, .seen, .gallery, .tools, .cross { display: none !important }"
)
MM = 0.1
EXAM = (300, 220)


@dataclass
class Site:
    url: str
    scene: Scene
    live: MapWriter
    exam: Path
    results: Results


@contextmanager
def serving(library: Library) -> Iterator[str]:
    """Serve a library in a thread; yield the address."""
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
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@contextmanager
def new_tab(browser, url: str, **options: object) -> Iterator[Any]:
    """Open the list of cases in a new browser context; fail if a script of the page failed."""
    settings = {
        "viewport": {"width": 1000, "height": 700},
        "color_scheme": "light",
        "reduced_motion": "reduce",
    }
    context = browser.new_context(**{**settings, **options})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(url)
    page.wait_for_selector(".row")
    yield page
    assert page.problems == []
    context.close()


def view_pixels(view: str) -> np.ndarray:
    """A half disc of increasing values at the chest wall; left breasts are stored pointing right."""
    height, width = EXAM
    y, x = np.mgrid[:height, :width]
    inside = (x / (0.8 * width)) ** 2 + ((y - height / 2) / (0.45 * height)) ** 2 < 1
    values = np.where(inside, 400 + 9 * x + 4 * y, 0).astype(np.uint16)
    return values if view.startswith("L") else values[:, ::-1].copy()


def write_exam(root: Path, name: str = "exams") -> Path:
    """An exam of three views (R-MLO is missing) with a heatmap per view."""
    folder = root / name
    folder.mkdir()
    bundle = {"method": "four_view", "fingerprint": "cd" * 32}
    results = begin(folder, ["exam"])
    case = results.case_folder("exam")
    views = {}
    for view in ("L-CC", "R-CC", "L-MLO"):
        path = folder / f"{view}.dcm"
        pixels = view_pixels(view)
        write_dicom(path, dicom_dataset(pixels, view, MM, seed=0, patient="PHANTOM", horizontal_flip="NO"))
        views[view.lower().replace("-", "_")] = [str(path)]
        rows, columns = -(-EXAM[0] // 10), -(-EXAM[1] // 10)
        info = MapInfo(
            f"heatmap {view}",
            view,
            ("benign", "malignant"),
            rows,
            columns,
            (10.0, 10.0),
            None,
            (rows, columns),
        )
        scores = np.zeros((2, rows, columns), np.float32)
        scores[1, 10:20, 5:15] = 0.95
        MapWriter(case.map_path(info.name), info).write_chunk(
            (0, 0), scores, np.full((rows, columns), State.SCORED, np.uint8)
        )
    paths = {file: "sha256:" + "0" * 64 for files in views.values() for file in files}
    write_json(
        case.path / "plan.json", {"case": "exam", "input": paths, "mpp": None, "l0_box": None, "views": views}
    )
    result = {
        "format": FORMAT, "case": "exam", "patient": "x", "status": "complete", "scores": {"left_malignant": 0.71},
        "maps": map_summaries(case), "tables": [], "findings": {"count": 0}, "notes": [], "error": None, "bundle": bundle,
        "input": paths, "failed": [], "spread": {"left_malignant": {"std": 0.02, "least": 0.65, "greatest": 0.77}},
    }  # fmt: skip
    write_json(case.path / "result.json", result)
    return folder


def until(page, expression: str) -> None:
    """Wait until a JavaScript expression is true. The page's policy forbids Playwright's own way to wait."""
    for _ in range(WAIT_MS // 50):
        if page.evaluate(f"Boolean({expression})"):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


def case_id(page, name: str) -> str:
    rows = page.evaluate("fetch('api/cases').then((answer) => answer.json())")
    return next(row["id"] for row in rows if row["name"] == name)


def open_slide_page(page, name: str = "one", suffix: str = "") -> str:
    case = case_id(page, name)
    page.goto(page.url.partition("#")[0].partition("?")[0] + f"{suffix}#/case/{case}")
    until(page, f"window.lobule?.view?.detail?.id === '{case}' && lobule.view.viewer.isOpen()")
    until(page, "!lobule.view.page.isPending")
    page.add_style_tag(content=HIDE)
    return case


def look(page, **view: float) -> None:
    """Go to a view at once and wait until its tiles are drawn."""
    page.evaluate("(view) => lobule.view.setView(view, true)", view)
    until(page, "lobule.view.viewer.world.getItemAt(0).getFullyLoaded()")
    settle(page)


OVERLAY_STATE = """() => {
    const { overlay, viewer } = lobule.view;
    const { isStale, scheduled, resting, refreshing, paints, renderer, reach } = overlay;
    const image = viewer.world.getItemAt(0);
    return { isStale, scheduled, resting, refreshing, paints, renderer, reach, isBusy: overlay.painter.isBusy,
             isConnected: overlay.element.isConnected, affine: lobule.view.affine, needsDraw: viewer.world.needsDraw(),
             drawn: image?.lastDrawn.length, isLoaded: image?.getFullyLoaded(), isHidden: document.hidden };
}"""
"""Why an overlay does not settle."""


def settle(page) -> None:
    """Wait until the overlay is painted at its exact position, and for the frames that show it."""
    frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 60))))"
    page.evaluate(frames)
    if not page.evaluate("window.lobule?.view?.overlay.isSettled ?? true"):
        try:
            until(page, "lobule.view.overlay.isSettled")
        except AssertionError as error:
            raise AssertionError(f"{error} {page.evaluate(OVERLAY_STATE)}") from error
        page.evaluate(frames)


def change(page, **values: object) -> None:
    """Change display settings as the panel does, and wait for the next frame."""
    page.evaluate("(values) => lobule.change(values)", values)
    settle(page)


def picture(page, selector: str = ".stage") -> np.ndarray:
    data = page.locator(selector).screenshot()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


PLAIN = {"heatmap": True, "opacity": 1, "threshold": 0.5, "gamma": 1, "colours": "viridis", "states": False, "smooth": False,
         "points": False, "outlines": False, "truth": False}  # fmt: skip


def open_exam(page) -> None:
    page.goto(page.url.partition("#")[0].partition("?")[0] + f"#/case/{case_id(page, 'exam')}")
    until(
        page,
        "window.lobule?.exam && [...lobule.exam.views.values()].every((view) => view.image || view.problem)",
    )
    page.add_style_tag(content=HIDE + ".pane { display: none }")
    settle(page)


def screen_position(page, view: str, column: float, row: float) -> tuple[int, int]:
    a, _, _, d, e, f = page.evaluate("(name) => lobule.exam.affine(name)", view)
    return round(a * column + e), round(d * row + f)
