"""The viewer in Chromium: how soon a case, the next field, many findings and a new chunk are on the screen.

The browser draws with software GL, and the server runs as `lobule view` on the same processor. Limits are
those of the literature and of the project: a case within 1 s, the next field within 50 ms, a million findings
within 1 s and 3 MB and at 30 frames per second, a threshold within one frame, and a chunk that a scan has
written within 500 ms with twelve tabs open.

    python benchmarks/viewer.py            a million findings, ten cases
    python benchmarks/viewer.py --quick    a tenth of the findings, two cases, three chunks, under 45 s
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from measure import arguments, report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SOFTWARE = ["--no-sandbox", "--enable-unsafe-swiftshader"]
"""How Chromium draws without a graphics processor: WebGL by SwiftShader, the page by Skia."""
SIDE, STRIDE, CHUNK = 4096, 16, 128
FINDINGS = 8
MILLION_SIDE = 100_000
TABS = 12
LIST_CASES = 1000

SCRIPT = """
window.bench = {
  frame: () => new Promise((done) => requestAnimationFrame(() => done(performance.now()))),
  async until(test, limit = 20000) {
    const start = performance.now();
    while (!test()) {
      if (performance.now() - start > limit) throw new Error("never true: " + test);
      await bench.frame();
    }
    return performance.now();
  },
  loaded: () => lobule.view.viewer.world.getItemAt(0)?.getFullyLoaded() ?? false,
  drawn: (id) => window.lobule?.view?.detail?.id === id && lobule.view.viewer.isOpen() && bench.loaded()
    && lobule.view.layers.every((layer) => layer.tiles.size > 0),
  async openCase(id) {
    const start = performance.now();
    location.hash = "#/case/" + id;
    await bench.until(() => bench.drawn(id));
    return (await bench.frame()) - start;
  },
  async press(key) {
    const start = performance.now();
    dispatchEvent(new KeyboardEvent("keydown", { key }));
    await bench.frame();
    await bench.until(bench.loaded);
    return (await bench.frame()) - start;
  },
};
"""


def begin(root: Path, names: list[str]) -> Any:
    from lobule.results.folder import begin_results

    bundle = {"method": "scannet", "fingerprint": "ab" * 32, "classes": ["normal", "tumour"]}
    return begin_results(root / "results", {"bundle": bundle, "options": {"stride": STRIDE}, "cases": names})


def map_writer(results: Any, name: str, side: int, stride: int) -> Any:
    from lobule.results.maps import MapInfo, MapWriter

    cells = -(-side // stride)
    info = MapInfo(
        "tumour", "slide", ("normal", "tumour"), cells, cells, (stride, stride), None, (CHUNK, CHUNK)
    )
    return MapWriter(results.case_folder(name).map_path("tumour"), info)


def fill(writer: Any, chunks: list[tuple[int, int]]) -> None:
    from lobule.stitch import State

    rng = np.random.default_rng(0)
    for chunk in chunks:
        rows, columns = writer.info.chunk_cells(chunk)
        shape = rows.stop - rows.start, columns.stop - columns.start
        scores = rng.random(shape).astype(np.float32)
        writer.write_chunk(chunk, np.stack([1 - scores, scores]), np.full(shape, State.SCORED, np.uint8))


def write_result(
    results: Any, name: str, slide: Path | None, side: int, findings: int, finished: bool
) -> None:
    from lobule.results.result import FORMAT
    from lobule.results.writing import map_summaries

    folder = results.case_folder(name)
    folder.path.mkdir(parents=True, exist_ok=True)  # Without waiting for the disk, as writing results does.
    inputs = {} if slide is None else {str(slide): "sha256:" + "0" * 64}
    plan = {"case": name, "input": inputs, "mpp": None, "l0_box": None, "views": {}}
    (folder.path / "plan.json").write_text(json.dumps(plan))
    if not finished:
        return
    result = {
        "format": FORMAT, "case": name, "patient": name, "status": "complete", "scores": {"slide": 0.9},
        "maps": map_summaries(folder), "tables": [], "findings": {"count": findings}, "notes": [],
        "error": None, "bundle": results.settings["bundle"], "input": inputs, "failed": [],
        "images": {"slide": {"path": "", "size": [side, side], "mpp": [0.5, 0.5]}},
    }  # fmt: skip
    (folder.path / "result.json").write_text(json.dumps(result))


def write_cases(root: Path, count: int) -> None:
    """Write slides with a map and some findings each, and one whose scan has just begun."""
    from lobule.findings import Finding
    from lobule.phantoms.slides import SlidePhantom, write_slide
    from lobule.results.writing import write_findings

    names = [f"case {number}" for number in range(count)]
    results = begin(root, [*names, "running", "million"])
    slide = root / "slide.tif"
    write_slide(SlidePhantom(width=SIDE, height=SIDE, mpp=0.5, seed=3), slide)
    rng = np.random.default_rng(1)
    for name in names:
        copy = root / f"{name}.tif"
        copy.hardlink_to(slide)
        writer = map_writer(results, name, SIDE, STRIDE)
        fill(writer, list(writer.info.chunks))
        findings = [
            Finding(int(x), int(y), float(score), label="tumour")
            for x, y, score in zip(
                *rng.integers(500, SIDE - 500, (2, FINDINGS)), rng.random(FINDINGS), strict=True
            )
        ]
        write_findings(results.case_folder(name).path, findings)
        write_result(results, name, copy, SIDE, len(findings), finished=True)
    map_writer(results, "running", SIDE, STRIDE)
    write_result(results, "running", slide, SIDE, 0, finished=False)


def write_million(root: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Write a case with many outlined findings; return their positions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lobule.results.findings_table import COLUMNS
    from lobule.results.folder import open_results

    results = open_results(root / "results")
    folder = results.case_folder("million").path
    writer = map_writer(results, "million", MILLION_SIDE, 256)
    fill(writer, list(writer.info.chunks))
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, MILLION_SIDE, (2, count))
    schema = pa.schema(list(COLUMNS.items()))
    with pq.ParquetWriter(folder / "findings.parquet", schema, compression="zstd") as parquet:
        for first in range(0, count, 50_000):
            xs, ys = x[first : first + 50_000].tolist(), y[first : first + 50_000].tolist()
            n = len(xs)
            outlines = [
                f"[[[[{a},{b}],[{a + 16},{b}],[{a + 16},{b + 16}],[{a},{b + 16}]]]]"
                for a, b in zip(xs, ys, strict=True)
            ]
            columns = {
                "l0_x": xs, "l0_y": ys, "score": rng.random(n).tolist(), "kind": ["polygon"] * n,
                "label": ["tumour"] * n, "size_um": [5.7] * n, "area_um2": [16.0] * n,
                "lesion_class": ["itc"] * n,
                "cells": [1] * n, "box": [None] * n, "polygon": outlines, "image": ["slide"] * n,
            }  # fmt: skip
            parquet.write_table(pa.table(columns, schema=schema))
    write_result(results, "million", None, MILLION_SIDE, count, finished=True)
    return x, y


def write_list(root: Path) -> Path:
    """Write a results folder with many cases that have scores only."""
    names = [f"case {number:04}" for number in range(LIST_CASES)]
    (root / "list").mkdir()
    results = begin(root / "list", names)
    for name in names:
        write_result(results, name, None, SIDE, 0, finished=True)
    return Path(results.path)


@contextmanager
def served(results: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "lobule", "view", str(results), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        if " cases at " not in line:
            raise RuntimeError(line + process.stderr.read())
        yield line.partition(" cases at ")[2].strip()
    finally:
        process.terminate()
        process.wait()


def new_page(browser: Any, url: str) -> Any:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.add_init_script(SCRIPT)
    page.goto(url)
    page.wait_for_selector(".row")
    return page


def ids_of(page: Any) -> dict[str, str]:
    rows = page.evaluate("fetch('api/cases').then((answer) => answer.json())")
    return {row["name"]: row["id"] for row in rows}


def measure_list(browser: Any, url: str) -> float:
    """Return the seconds from opening the viewer to the first rows of the list."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.add_init_script(SCRIPT)
    page.goto(url, wait_until="commit")
    milliseconds = page.evaluate("bench.until(() => document.querySelectorAll('.row').length > 5)")
    caption = page.locator(".foot").inner_text()
    assert caption.startswith(f"{LIST_CASES:,} cases"), caption
    page.close()
    return float(milliseconds) / 1000


def measure_cases(browser: Any, url: str, count: int) -> tuple[float, float, float]:
    """Return seconds to a case, milliseconds to the next field, and frames until a threshold is drawn."""
    page = new_page(browser, url)
    ids = ids_of(page)
    first = [
        page.evaluate("(id) => bench.openCase(id)", ids[f"case {number}"]) / 1000 for number in range(count)
    ]
    for _ in range(FINDINGS):
        page.evaluate("bench.press('n')")
    fields = [page.evaluate("bench.press('n')") for _ in range(FINDINGS)]
    shown = {
        "heatmap": True,
        "opacity": 1,
        "threshold": 0,
        "states": False,
        "points": False,
        "outlines": False,
    }
    page.evaluate("(shown) => lobule.change(shown)", shown)
    page.wait_for_timeout(300)
    frames = page.evaluate("""(async () => {
      const canvas = lobule.view.overlay.canvas, gl = canvas.getContext("webgl2");
      const pixels = new Uint8Array(4 * canvas.width * canvas.height);
      const covered = () => {
        gl.readPixels(0, 0, canvas.width, canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
        let sum = 0;
        for (let i = 3; i < pixels.length; i += 4) sum += pixels[i] > 0;
        return sum;
      };
      await bench.frame();
      const before = covered();
      lobule.change({ threshold: 0.7 });
      for (let frames = 1; frames < 100; frames++) {
        await bench.frame();
        if (covered() < before) return frames;
      }
      return 100;
    })()""")
    page.context.close()
    return statistics.median(first), statistics.median(fields), frames


def measure_million(
    browser: Any, url: str, x: np.ndarray, y: np.ndarray, pan_seconds: float
) -> dict[str, float]:
    page = new_page(browser, url)
    case = ids_of(page)["million"]
    page.goto("about:blank")
    sizes: list[float] = []
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.goto(f"{url}#/case/{case}")
    seconds = (
        page.evaluate(
            """(id) => bench.until(() => window.lobule?.view?.detail?.id === id && lobule.view.viewer.isOpen()
      && !lobule.view.page.isPending
      && lobule.view.inView.findings === lobule.view.page.total && lobule.view.layers[0].tiles.size > 0)""",
            case,
        )
        / 1000
    )
    megabytes = sum(sizes) / 1e6
    wrong = 0
    for scale in (128, 64, 32, 16, 8, 4, 2, 1, 0.5):
        page.evaluate("(scale) => lobule.view.setView({ x: 50000, y: 50000, scale }, true)", scale)
        page.evaluate(
            """bench.frame().then(() => bench.until(() => lobule.view.findings.loading.size === 0))"""
        )
        page.evaluate("lobule.view.redraw()")
        page.evaluate("bench.frame().then(bench.frame)")
        tiles = page.evaluate(
            "lobule.view.findingTiles.map((tile) => ({ area: tile.area, findings: tile.findings }))"
        )
        assert tiles, scale
        for tile in tiles:
            left, top, side = tile["area"]
            stored = int(((x >= left) & (x < left + side) & (y >= top) & (y < top + side)).sum())
            wrong += abs(stored - tile["findings"])
    rates = []
    for scale in (100, 8, 0.5):
        page.evaluate("(scale) => lobule.view.setView({ x: 50000, y: 50000, scale }, true)", scale)
        page.wait_for_timeout(500)
        rates.append(
            page.evaluate(
                """async (seconds) => {
          const start = await bench.frame();
          let frames = 0, now = start;
          while (now - start < 1000 * seconds) {
            const { x, y, scale } = lobule.view.view;
            lobule.view.setView({ x: x + 4 * scale, y: y + 2 * scale }, true);
            now = await bench.frame();
            frames++;
          }
          return 1000 * frames / (now - start);
        }""",
                pan_seconds,
            )
        )
    page.context.close()
    return {"first_picture": seconds, "megabytes": megabytes, "frames": min(rates), "wrong": float(wrong)}


def measure_chunks(browser: Any, url: str, root: Path, chunks: int) -> float:
    """Return milliseconds from a chunk on disk to its cells on the screen, with twelve tabs open.

    Playwright shows all tabs at once. In a person's browser, one tab is visible: the other eleven pages read
    that their document is hidden.
    """
    from lobule.results.folder import open_results
    from lobule.results.maps import MapWriter

    first = new_page(browser, url)
    case = ids_of(first)["running"]
    pages = [first] + [first.context.new_page() for _ in range(TABS - 1)]
    for page in pages:
        page.set_default_timeout(120_000)
        if page is not first:
            page.add_init_script("Object.defineProperty(document, 'hidden', { get: () => true })")
        page.goto(f"{url}#/case/{case}", wait_until="commit")  # The tabs load beside each other.
    for page in pages:
        page.wait_for_selector(".tabs")
    first.bring_to_front()
    first.evaluate(
        "(id) => bench.until(() => window.lobule?.view?.detail?.id === id && lobule.view.viewer.isOpen())",
        case,
    )
    first.wait_for_timeout(1000)
    folder = open_results(root / "results").case_folder("running")
    info = folder.maps["tumour"].info
    writer = MapWriter(folder.map_path("tumour"), info)
    times = []
    for chunk in list(info.chunks)[:chunks]:
        rows, columns = info.chunk_cells(chunk)
        x, y = (columns.start + 20) * STRIDE, (rows.start + 20) * STRIDE
        loaded = f"bench.until(() => lobule.view.layers[0]?.valueAt({x}, {y})?.state === 2)"
        first.evaluate(f"window.shown = {loaded}.then(bench.frame).then(() => Date.now()); undefined")
        fill(writer, [chunk])
        written = time.time()
        times.append(first.evaluate("window.shown") - 1000 * written)
        first.wait_for_timeout(150)
    first.context.close()
    return float(statistics.median(times))


def main() -> None:
    quick = arguments(__doc__ or "").quick
    if CHROMIUM is None:
        raise SystemExit("This benchmark needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    cases, findings, chunks, pan_seconds = (2, 100_000, 3, 0.5) if quick else (10, 1_000_000, 8, 1.5)
    with tempfile.TemporaryDirectory(prefix="lobule-viewer-") as name, sync_playwright() as playwright:
        root = Path(name)
        write_cases(root, cases)
        x, y = write_million(root, findings)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE)
        with served(write_list(root)) as url:
            # The first time, the browser and the server have just started.
            first_list_seconds, list_seconds = measure_list(browser, url), measure_list(browser, url)
        with served(root / "results") as url:
            first_view, next_field, frames = measure_cases(browser, url, cases)
            million = measure_million(browser, url, x, y, pan_seconds)
            chunk = measure_chunks(browser, url, root, chunks)
        browser.close()
    figures = {
        "first_list_of_1000_s": first_list_seconds,
        "list_of_1000_s": list_seconds,
        "first_view_s": first_view,
        "next_field_ms": next_field,
        "threshold_frames": frames,
        "findings": float(findings),
        "findings_first_picture_s": million["first_picture"],
        "findings_megabytes": million["megabytes"],
        "findings_frames_per_second": million["frames"],
        "findings_count_errors": million["wrong"],
        "chunk_to_screen_ms": chunk,
        "tabs": float(TABS),
    }
    print(json.dumps(figures, indent=1))
    report("viewer", figures)


if __name__ == "__main__":
    main()
