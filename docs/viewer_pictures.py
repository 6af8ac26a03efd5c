"""Take the pictures of docs/viewer.md, or every screen of the viewer at three sizes and in both themes.

    python docs/viewer_pictures.py DEMO            # docs/images/viewer/*.jpg
    python docs/viewer_pictures.py DEMO FOLDER     # every screen, as PNG files in FOLDER
    python docs/viewer_pictures.py DEMO FOLDER large,small slide,help    # some sizes and screens

DEMO is the folder of a finished `lobule demo` with that of `lobule demo exams` in its subfolder `exams`. The
pages must be built (`make viewer`), and Chromium must be installed. All pixels are generated.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

from lobule.cohort import Cohort, read_cohort
from lobule.results import MapReader, open_results
from lobule.results.maps import MapWriter
from lobule.reviews import Review, append_review
from lobule.server.app import create_app
from lobule.server.library import Library, Source
from lobule.stitch import State

TARGET = Path(__file__).parent / "images" / "viewer"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIZES = {"large": (1600, 950), "middle": (1200, 760), "small": (760, 900)}
LONGEST_WAIT = 60
SLIDES, EXAMS, SPECIAL = "slides", "exams", "special"
"""The servers: results with slides and truth, exams, and cases in which something is missing."""


def main() -> int:
    demo = Path(sys.argv[1])
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--enable-unsafe-swiftshader"]
        )
        libraries = prepare(demo, Path(temporary))
        with (
            serving(libraries[SLIDES]) as slides,
            serving(libraries[EXAMS]) as exams,
            serving(libraries[SPECIAL]) as special,
        ):
            urls = {SLIDES: slides, EXAMS: exams, SPECIAL: special}
            if folder is None:
                take_documented(browser, urls)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                take_all(browser, urls, folder)
        browser.close()
    return 0


def prepare(demo: Path, temporary: Path) -> dict[str, Library]:
    """Copy the results of the demo, with some reviews and with cases in which something is missing."""
    for name in ("results-scannet", "results-colour"):
        shutil.copytree(demo / name, temporary / name)
    shutil.copytree(demo / "exams/results", temporary / "exams")
    shutil.copytree(demo / "results-scannet", temporary / SPECIAL)
    damage(temporary / SPECIAL)
    scannet = temporary / "results-scannet"
    append_review(scannet, "test-01", "Ada", Review("accept", finding=0))
    append_review(scannet, "test-01", "Ada", Review("reject", finding=2))
    append_review(scannet, "test-01", "Ada", Review("relabel", finding=3, label="in situ"))
    append_review(
        scannet, "test-01", "Ada", Review("note", text="The second focus is an artefact of folding.")
    )
    append_review(scannet, "test-03", "Berta", Review("accept", finding=0))
    slides, cohort = demo / "slides", read_cohort(demo / "slides/cohort.csv", check_files=False)
    results = [Source(name, open_results(temporary / name)) for name in ("results-scannet", "results-colour")]
    return {
        SLIDES: Library(results, cohort, slides),
        EXAMS: Library(
            [Source("results", open_results(temporary / "exams"))], exam_cohort(demo), demo / "exams"
        ),
        SPECIAL: Library([Source("results", open_results(temporary / SPECIAL))], None, slides),
    }


def exam_cohort(demo: Path) -> Cohort:
    """The exams of the demo: the first two of one patient, and the third without one of its views."""
    rows = list(read_cohort(next((demo / "exams").rglob("cohort*.csv")), check_files=False))
    named = {row.id: row for row in rows}
    first, second, third, *_ = sorted(path.name for path in (demo / "exams/results/cases").iterdir())
    named[first] = replace(named[first], patient="one", attributes={"date": "20210412"})
    named[second] = replace(named[second], patient="one", attributes={"date": "20190327"})
    views = {name: paths for name, paths in named[third].views.items() if name != "r_mlo"}
    named[third] = replace(named[third], views=views)
    return Cohort(tuple(named.values()))


def damage(results: Path) -> None:
    """Make one case a running scan, one with failed fields, and one whose slide is not there."""
    running = results / "cases/test-03"
    rewrite_map(running, failed=False)
    for path in running.glob("[rf]*.*"):
        if path.name != "run.json":
            path.unlink()
    failed = results / "cases/test-01"
    rewrite_map(failed, failed=True)
    cause = "tile 1204: the JPEG stream ends too early"
    boxes = [[32 * 70 + 512 * n, 32 * 60, 512, 512] for n in range(2)]
    fields = [{"pass": "scan", "image": "slide", "l0_box": box, "cause": cause} for box in boxes]
    change_json(failed / "result.json", status="partial", failed=fields)
    gone = results / "cases/test-05"
    change_json(gone / "plan.json", input={"/moved/slide.tif": "sha256:" + "0" * 64})


def rewrite_map(case: Path, *, failed: bool) -> None:
    """Divide the map into chunks; leave out the lower half, or set some cells to failed."""
    path = next((case / "maps").iterdir())
    reader = MapReader(path)
    scores, states = reader.read()
    info = replace(reader.info, chunk=(32, 32))
    shutil.rmtree(path)
    writer = MapWriter(path, info)
    if failed:
        states[60:76, 70:102] = State.FAILED
        scores[:, states != State.SCORED] = 0
    for chunk in info.chunks:
        cells = info.chunk_cells(chunk)
        if failed or (chunk[0] * info.chunk[0] < info.rows / 2):
            writer.write_chunk(chunk, scores[:, *cells], states[cells])


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@contextmanager
def serving(library: Library) -> Iterator[str]:
    """Serve a library in a thread; yield the address."""
    config = uvicorn.Config(
        create_app(library), port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


class Screen:
    """One window of the browser and the addresses of the servers."""

    def __init__(self, page: Any, urls: dict[str, str]) -> None:
        self.page, self.urls = page, urls

    def until(self, expression: str) -> None:
        for _ in range(20 * LONGEST_WAIT):
            if self.page.evaluate(f"Boolean({expression})"):
                return
            self.page.wait_for_timeout(50)
        raise TimeoutError(expression)

    def cases(self, server: str, suffix: str = "#/") -> None:
        self.page.goto(self.urls[server] + "/" + suffix)
        self.page.wait_for_selector(".row, table, .empty")

    def slide(self, server: str, name: str, suffix: str = "") -> None:
        self.page.goto(self.urls[server] + "/" + suffix)
        self.page.wait_for_selector(".row")
        rows = self.page.evaluate("fetch('api/cases').then((answer) => answer.json())")
        case = next(row["id"] for row in rows if row["name"] == name)
        self.page.goto(f"{self.urls[server]}/{suffix}#/case/{case}")
        self.until(f"window.lobule?.view?.detail?.id === '{case}' && lobule.view.viewer.isOpen()")
        self.until("lobule.view.viewer.world.getItemAt(0).getFullyLoaded() && !lobule.view.page.isPending")
        self.page.wait_for_timeout(700)

    def exam(self, index: int) -> None:
        self.cases(EXAMS)
        rows = self.page.evaluate("fetch('api/cases').then((answer) => answer.json())")
        case = sorted(rows, key=lambda row: row["name"])[index]["id"]
        self.page.goto(f"{self.urls[EXAMS]}/#/case/{case}")
        self.until(f"window.lobule?.exam?.detail?.id === '{case}'")
        self.until("[...lobule.exam.views.values()].every((view) => view.image || view.problem)")
        self.page.wait_for_timeout(400)

    def press(self, *keys: str, wait: int = 700) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.page.wait_for_timeout(wait)

    def tab(self, name: str) -> None:
        self.page.click(f"[role=tab]:text('{name}')")
        self.page.wait_for_timeout(200)


def finding(screen: Screen) -> None:
    screen.slide(SLIDES, "test-01")
    screen.press("t", "n", wait=1500)


def gallery(screen: Screen) -> None:
    finding(screen)
    screen.press("g", wait=1500)


def difference(screen: Screen) -> None:
    screen.slide(SLIDES, "test-01")
    screen.press("s", wait=1500)
    screen.press("d", wait=1500)


def truth(screen: Screen) -> None:
    screen.slide(SLIDES, "test-01")
    screen.press("s", "s", wait=1500)


def viewed(screen: Screen) -> None:
    screen.slide(SLIDES, "test-01")
    screen.press("w", "T", "n", "n", "0")


def drawing(screen: Screen) -> None:
    screen.slide(SLIDES, "test-01")
    screen.press(
        "n",
        "e",
        " ",
        *12 * ["Shift+ArrowRight"],
        " ",
        *9 * ["Shift+ArrowDown"],
        " ",
        *6 * ["Shift+ArrowLeft"],
    )


def measuring(screen: Screen) -> None:
    screen.slide(SLIDES, "test-01")
    screen.press("n", "m", " ", *20 * ["Shift+ArrowRight"], " ")


def slide_tab(name: str) -> Callable[[Screen], None]:
    def go(screen: Screen) -> None:
        screen.slide(SLIDES, "test-01")
        screen.press("n", wait=300)
        screen.tab(name)

    return go


def exam(index: int, *keys: str) -> Callable[[Screen], None]:
    def go(screen: Screen) -> None:
        screen.exam(index)
        screen.press(*keys, wait=1000)

    return go


def vanished(screen: Screen) -> None:
    """The answers of a server whose results are gone."""
    screen.page.route(
        "**/api/cases/*",
        lambda route: route.fulfill(status=503, json={"error": "the results are not there: /data/results"}),
    )
    screen.cases(SLIDES, "#/case/" + "0" * 24)
    screen.page.wait_for_timeout(500)
    screen.page.unroute("**/api/cases/*")


def list_of_cases(screen: Screen) -> None:
    screen.cases(SLIDES)
    screen.page.wait_for_timeout(1500)


def failed_fields(screen: Screen) -> None:
    screen.slide(SPECIAL, "test-01")
    screen.tab("details")


def help_overlay(screen: Screen) -> None:
    screen.cases(SLIDES)
    screen.press("?", wait=200)


SCREENS: dict[str, Callable[[Screen], None]] = {
    "cases": list_of_cases,
    "slide": lambda screen: screen.slide(SLIDES, "test-01"),
    "finding": finding,
    "gallery": gallery,
    "details": slide_tab("details"),
    "review": slide_tab("review"),
    "drawing": drawing,
    "measuring": measuring,
    "difference": difference,
    "truth": truth,
    "seen": viewed,
    "running": lambda screen: screen.slide(SPECIAL, "test-03"),
    "failed": failed_fields,
    "missing": lambda screen: screen.slide(SPECIAL, "test-05"),
    "plain": lambda screen: screen.slide(SLIDES, "test-01", "?plain"),
    "exam": exam(0),
    "exam-heatmap": exam(0, "h", "h"),
    "exam-finding": exam(0, "h", "h", "n"),
    "exam-alone": exam(0, "2", "m", *6 * ["Shift+ArrowDown"]),
    "exam-review": exam(0, "q", "q", "e", " ", *8 * ["Shift+ArrowRight"], " ", *8 * ["Shift+ArrowDown"], " "),
    "exam-prior": exam(0, "s"),
    "exam-missing": exam(2),
    "reviews": lambda screen: screen.cases(SLIDES, "#/reviews"),
    "help": help_overlay,
    "unknown": lambda screen: screen.cases(SLIDES, "#/case/" + "0" * 24),
    "vanished": vanished,
}  # fmt: skip
"""How to reach each screen."""

DOCUMENTED = {
    "cases": ("light", (1200, 560)),
    "slide": ("dark", (1280, 760)),
    "gallery": ("light", (1280, 760)),
    "drawing": ("light", (1280, 760)),
    "difference": ("light", (1280, 760)),
    "seen": ("light", (1280, 760)),
    "running": ("dark", (1280, 760)),
    "exam-heatmap": ("dark", (1280, 800)),
    "exam-finding": ("dark", (1280, 800)),
    "exam-prior": ("dark", (1280, 800)),
    "help": ("light", (1280, 800)),
}
"""The theme and the size of the window of each picture in the documentation."""


def take_documented(browser: Any, urls: dict[str, str]) -> None:
    for name, (theme, size) in DOCUMENTED.items():
        with window(browser, urls, theme, size) as screen:
            SCREENS[name](screen)
            picture = Image.open(io.BytesIO(screen.page.screenshot())).convert("RGB")
        picture = picture.resize((960, round(960 * picture.height / picture.width)), Image.Resampling.LANCZOS)
        picture.save(TARGET / f"{name}-{theme}.jpg", quality=72, optimize=True, progressive=True)


def take_all(browser: Any, urls: dict[str, str], folder: Path) -> None:
    chosen = sys.argv[3].split(",") if len(sys.argv) > 3 else [*SIZES]
    names = sys.argv[4].split(",") if len(sys.argv) > 4 else [*SCREENS]
    for size in chosen:
        for theme in ("light", "dark"):
            for name in names:
                with window(browser, urls, theme, SIZES[size]) as screen:
                    SCREENS[name](screen)
                    screen.page.screenshot(path=str(folder / f"{name}-{size}-{theme}.png"))


@contextmanager
def window(browser: Any, urls: dict[str, str], theme: str, size: tuple[int, int]) -> Iterator[Screen]:
    viewport = dict(zip(("width", "height"), size, strict=True))
    context = browser.new_context(viewport=viewport, color_scheme=theme, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(1000 * LONGEST_WAIT)
    yield Screen(page, urls)
    context.close()


if __name__ == "__main__":
    sys.exit(main())
