"""A site with every feature of the viewer, and how the tests act on it by mouse and by keyboard alone."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lobule.annotations import Polygon, write_annotation
from lobule.annotations.outline import Annotation
from lobule.cohort import Case, Cohort
from lobule.files import write_json
from lobule.findings import Finding, Outline
from lobule.results import open_results
from lobule.results.writing import write_findings
from lobule.server.library import Library, Source
from lobule.stitch import State
from tests.server.browsing import case_id, serving, settle, until, write_exam
from tests.server.support import begin, square_scores, squares, swapped_profile, write_case, write_jpeg_slide

OVERLAYS = (
    ".readout, .scale-bar, .notices, .navigator, .seen, .gallery, .tools, .cross, .pane"
    " { opacity: 0 !important }"
)
WIDTH, HEIGHT = 1100, 900
TRUTH = np.array([[300, 300], [620, 300], [620, 620], [300, 620]], float)
PERSON = "Key Board"


@dataclass
class FeatureSite:
    url: str
    root: Path

    def entries(self, case: str) -> list[dict[str, Any]]:
        """The lines of the review file of a case."""
        paths = self.root.glob(f"**/results/reviews/{case}/*.jsonl")
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def ring(x: float, y: float, side: float) -> np.ndarray:
    half = side / 2
    return np.array([[x - half, y - half], [x + half, y - half], [x + half, y + half], [x - half, y + half]])


@contextmanager
def feature_site(root: Path) -> Iterator[FeatureSite]:
    """One slide with two results, truth, profile, classes and outlines, and two exams of one patient."""
    slide = write_jpeg_slide(root / "slide.tif", [squares(WIDTH, HEIGHT)], profile=swapped_profile())
    scores = square_scores(57, 69)
    states = np.full(scores.shape, State.SCORED, np.uint8)
    states[-8:] = State.GLASS
    states[10:12, 20:24] = State.FAILED
    findings = [
        Finding(100 + 80 * n, 400, 0.95 - 0.05 * n, "polygon", "tumour" if n % 2 else "lymphoid", polygon=(Outline(ring(100 + 80 * n, 400, 40)),), size_um=20.0)
        for n in range(12)
    ]  # fmt: skip
    results = begin(root, ["slide"])
    write_case(results, "slide", slide, scores, states, findings)
    (root / "second").mkdir()
    second = begin(root / "second", ["slide"])
    write_case(second, "slide", slide, 1 - scores, states, [])
    write_annotation(root / "truth.geojson", Annotation((Polygon(TRUTH, "tumour", "", "Tumor"),)))
    rows = [Case("slide", "p", "slide", path=str(slide), annotation=str(root / "truth.geojson"))]
    exams = write_exam(root)
    (write_exam(root, "older") / "results/cases/exam").rename(exams / "results/cases/older")
    folder = exams / "results/cases/exam"
    write_findings(
        folder,
        [
            Finding(60, 150, 0.9, label="malignant", image="L-CC"),
            Finding(150, 120, 0.7, label="benign", image="R-CC"),
        ],
    )
    write_json(
        folder / "result.json", json.loads((folder / "result.json").read_text()) | {"findings": {"count": 2}}
    )
    for name, source, date in (("exam", exams, "20210101"), ("older", root / "older", "20180101")):
        views = {
            view.lower().replace("-", "_"): (str(source / f"{view}.dcm"),)
            for view in ("L-CC", "R-CC", "L-MLO")
        }
        rows.append(Case(name, "x", "exam", views=views, attributes={"date": date}))
    paths = {"first": root / "results", "second": second.path, "exams": exams / "results"}
    library = Library([Source(name, open_results(path)) for name, path in paths.items()], Cohort(tuple(rows)))
    with serving(library) as url:
        yield FeatureSite(url, root)


def shown(page: Any, selector: str = ".slide:not(.other)") -> np.ndarray:
    """The pixels of the image and its overlay, without the buttons and texts over them."""
    page.evaluate(
        "(css) => document.head.insertAdjacentHTML('beforeend', `<style id=hidden>${css}</style>`)", OVERLAYS
    )
    data = page.locator(selector).screenshot()
    page.evaluate("document.querySelector('#hidden').remove()")
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def open_case(page: Any, name: str, kind: str) -> str:
    """Open a slide (`view`) or an exam as the tests begin: with a name for reviews, and the panel's first tab."""
    page.goto(page.url.partition("#")[0] + "#/")
    page.wait_for_selector(".row")
    page.evaluate("localStorage.setItem('lobule-settings', JSON.stringify({ person: 'Key Board' }))")
    page.reload()
    page.wait_for_selector(".row")
    case = case_id(page, name)
    page.goto(page.url.partition("#")[0] + f"#/case/{case}")
    until(page, f"window.lobule?.{kind}?.detail?.id === '{case}'")
    if kind == "view":
        until(page, "lobule.view.viewer.isOpen() && !lobule.view.page.isPending")
        until(
            page,
            "lobule.view.viewer.world.getItemAt(0).getFullyLoaded() && lobule.view.layers[0].tiles.size > 0",
        )
    else:
        until(page, "[...lobule.exam.views.values()].every((view) => view.image || view.problem)")
    settle(page)
    return case


def tab_to(page: Any, selector: str, *, limit: int = 60) -> None:
    """Press Tab until an element has the focus."""
    target = page.locator(selector).first
    for _ in range(limit):
        if target.evaluate("(element) => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {selector}")


Action = Sequence[str] | Callable[[Any], None]


@dataclass(frozen=True)
class Step:
    """A feature: how the keyboard and the mouse use it, and what is on the screen, in a file or in an answer then.

    A key with `Tab:` goes to an element by Tab; one with `type:` types a text.
    """

    name: str
    keys: Action
    mouse: Action
    check: Callable[[Any, str], None]


def act(page: Any, action: Action) -> None:
    if callable(action):
        action(page)
        return
    for key in action:
        if key.startswith("Tab:"):
            tab_to(page, key.removeprefix("Tab:"))
        elif key.startswith("type:"):
            until(page, "/^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName)")
            page.keyboard.type(key.removeprefix("type:"))
        else:
            page.keyboard.press(key)


def run_steps(page: Any, steps: Sequence[Step], by: str) -> None:
    """Use each feature by keyboard or by mouse, in this order, and check it."""
    for step in steps:
        try:
            act(page, step.keys if by == "keyboard" else step.mouse)
            settle(page)
            step.check(page, by)
        except AssertionError as error:
            raise AssertionError(f"{step.name} by {by}: {error}") from error


def click(*selectors: str) -> Callable[[Any], None]:
    def go(page: Any) -> None:
        for selector in selectors:
            page.locator(selector).first.click()

    return go


def click_image(
    *points: tuple[float, float], button: str = "left", selector: str = ".slide:not(.other)"
) -> Callable[[Any], None]:
    """Click at positions relative to the middle of the image."""

    def go(page: Any) -> None:
        for dx, dy in points:
            x, y = middle(page, selector)
            page.mouse.click(x + dx, y + dy, button=button)
            if len(points) > 1:
                page.wait_for_timeout(320)  # Two clicks in a short time are a double click.

    return go


def drag(
    dx: float,
    dy: float,
    *,
    button: str = "left",
    selector: str = ".slide:not(.other)",
    at: tuple[float, float] = (0, 0),
) -> Callable[[Any], None]:
    def go(page: Any) -> None:
        x, y = middle(page, selector)
        page.mouse.move(x + at[0], y + at[1])
        page.mouse.down(button=button)
        page.mouse.move(x + at[0] + dx, y + at[1] + dy, steps=4)
        page.wait_for_timeout(150)  # A pointer that rests before it is released does not throw the slide.
        page.mouse.up(button=button)

    return go


def middle(page: Any, selector: str) -> tuple[float, float]:
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def slide_to(name: str, share: float) -> Callable[[Any], None]:
    """Click on a slider."""

    def go(page: Any) -> None:
        box = page.locator(f"input[aria-label='{name}']").bounding_box()
        page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)

    return go


def level_0_to_screen(page: Any, x: float, y: float) -> tuple[int, int]:
    a, b, c, d, e, f = page.evaluate("lobule.view.affine")
    return int(a * x + c * y + e), int(b * x + d * y + f)


def colour_at(page: Any, x: float, y: float) -> np.ndarray:
    """The colour of the slide and its overlay at a level-0 position."""
    column, row = level_0_to_screen(page, x, y)
    return shown(page)[row, column]


def assert_view(
    page: Any, x: float, y: float, scale: float, rotation: float = 0, *, flip: bool = False
) -> None:
    """Compare the pixels of the screen with where the dark squares of the slide must be in this view."""
    pixels = shown(page)
    height, width = pixels.shape[:2]
    points = np.random.default_rng(0).uniform((0, 0), (WIDTH, HEIGHT), (1500, 2))
    phase = points % 256
    edge = np.minimum(np.abs(phase), np.abs(phase - 64)).min(axis=1) / scale
    far = (edge > 5) & (256 - phase.max(axis=1) > 5 * scale)
    dx, dy = ((points - (x, y)) / scale).T
    angle = np.deg2rad(rotation)
    right = (dx * np.cos(angle) - dy * np.sin(angle)) * (-1 if flip else 1)
    columns, rows = (
        np.round(width / 2 + right).astype(int),
        np.round(height / 2 + dx * np.sin(angle) + dy * np.cos(angle)).astype(int),
    )
    used = far & (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    expected = (phase < 64).all(axis=1)[used]
    dark = pixels[rows[used], columns[used]].max(axis=1) < 200
    assert expected.sum() >= 8 and (~expected).sum() >= 8
    assert (dark == expected).mean() > 0.995, (
        (dark != expected).sum(),
        len(dark),
        page.evaluate("lobule.view.view"),
    )
