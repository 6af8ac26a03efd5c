"""Make docs/img/demo.jpg: a slide of `lobule demo`, the map of its model, and the views of a generated exam.

    python docs/make_picture.py [FOLDER]

FOLDER is that of a finished `lobule demo`; without it, the demo runs first. All pixels are generated.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lobule.annotations import read_annotation
from lobule.cli import ABOUT, COMMANDS
from lobule.cli.base import LazyGroup, run
from lobule.cli.picture import INK, PAPER, TRUTH, Colour, Outlines, Zoom, draw_zoom, font
from lobule.cohort import Case, read_cohort
from lobule.geometry import Box
from lobule.mammograms.exams import read_view, view_named
from lobule.phantoms.exams import write_exams
from lobule.results import open_results
from lobule.slides import open_slide

TARGET = Path(__file__).parent / "img" / "demo.jpg"
SLIDE = "test-01"
WIDTH, GAP, CAPTION = 1200, 12, 30
VIEWS = ("r_cc", "l_cc", "r_mlo", "l_mlo")
"""The order in which readers view them: the right breast on the left."""
BENIGN: Colour = (95, 190, 255)
SMOOTH = 3
"""Pictures are drawn this many times larger and then reduced, so that lines are smooth."""


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        demo = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary) / "demo"
        if len(sys.argv) == 1:
            status = run(LazyGroup("lobule", COMMANDS, help=ABOUT), ["demo", "--out", str(demo)])
            if status:
                return status
        exams = write_exams(Path(temporary) / "exams", exams=3, size=(1040, 762), seed=5)
        page = draw(demo, exams)
    TARGET.parent.mkdir(exist_ok=True)
    page.save(TARGET, quality=80, optimize=True, progressive=True)
    return 0


def draw(demo: Path, exams: Path) -> Image.Image:
    """Draw the slide and its map above, and a part of the slide and an exam below."""
    case = next(case for case in read_cohort(demo / "slides" / "cohort.csv") if case.id == SLIDE)
    exam = next(case for case in read_cohort(exams) if any_malignant(case))
    assert case.path is not None and case.annotation is not None
    rings = [np.asarray(polygon.points) for polygon in read_annotation(case.annotation).polygons]
    half = (WIDTH - GAP) // 2
    with open_slide(case.path) as slide:
        height = round(half * slide.size.height / slide.size.width)
        everything = Zoom(Box(0, 0, *slide.size), "")
        pixels = Image.fromarray(slide.thumbnail(SMOOTH * half)).convert("RGB")
        middle = min(rings, key=lambda ring: abs(np.ptp(ring, axis=0).max() - 500)).mean(axis=0)
        side = 1000
        zoom = Zoom(Box(int(middle[0]) - side // 2, int(middle[1]) - side // 2, side, side), "")
        row = 300
        close_up = draw_zoom(slide, zoom, row, [Outlines(rings, TRUTH, "")])
        scale = SMOOTH * half / everything.l0_box.width
    scores = next(iter(open_results(demo / "results-scannet").case_folder(SLIDE).maps.values())).read()[0][0]
    page = Image.new("RGB", (WIDTH, height + row + 2 * CAPTION + GAP), PAPER)
    page.paste(outlined(pixels, rings, scale, (half, height)), (0, 0))
    page.paste(outlined(under_heat(pixels, scores), rings, scale, (half, height)), (half + GAP, 0))
    page.paste(close_up, (0, height + CAPTION + GAP))
    views = [view_picture(exam, view, row) for view in VIEWS]
    step = (WIDTH - row - GAP) // len(views)
    for index, view in enumerate(views):
        page.paste(view, (row + GAP + index * step, height + CAPTION + GAP))
    pen = ImageDraw.Draw(page)
    pen.text((2, height + 6), "Generated slide, tumours outlined", INK, font(18))
    pen.text((half + GAP + 2, height + 6), "Map of a model that was trained in minutes", INK, font(18))
    below = height + CAPTION + GAP + row + 6
    pen.text((2, below), "A tumour, enlarged", INK, font(18))
    caption = "Generated exam: malignant lesion outlined in orange, benign in blue"
    pen.text((row + GAP + 2, below), caption, INK, font(18))
    return page


def any_malignant(case: Case) -> bool:
    return any(value for name, value in case.breast_labels.items() if name.endswith("malignant"))


def outlined(
    large: Image.Image, rings: list[NDArray[Any]], scale: float, size: tuple[int, int], colour: Colour = TRUTH
) -> Image.Image:
    """Draw closed lines on an enlarged picture and reduce it to its size."""
    picture = large.copy()
    pen = ImageDraw.Draw(picture)
    for ring in rings:
        line = [(float(x) * scale, float(y) * scale) for x, y in [*ring, *ring[:2]]]
        pen.line(line, colour, 2 * SMOOTH, joint="curve")
    return picture.resize(size, Image.Resampling.LANCZOS)


def under_heat(pixels: Image.Image, scores: NDArray[np.float32]) -> Image.Image:
    """Lay a map in red over the grey slide."""
    layer = Image.fromarray((255 * scores).astype(np.uint8)).resize(pixels.size, Image.Resampling.BILINEAR)
    share = np.asarray(layer, np.float32)[..., None] / 255
    grey = 0.35 * np.asarray(pixels, np.float32).mean(axis=2, keepdims=True) + 160
    red = np.array([200, 20, 40], np.float32)
    return Image.fromarray((grey * (1 - share) + red * share).clip(0, 255).astype(np.uint8))


def view_picture(exam: Case, view: str, height: int) -> Image.Image:
    """One view of an exam with its outlined lesions."""
    name = view.upper().replace("_", "-")
    pixels = read_view(exam.views[view][0], view=view_named(name)).pixels
    grey = np.sqrt(pixels / max(int(pixels.max()), 1)).astype(np.float32) * 255
    width = round(height * pixels.shape[1] / pixels.shape[0])
    picture = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    large = picture.resize((SMOOTH * width, SMOOTH * height), Image.Resampling.BILINEAR)
    scale = SMOOTH * height / pixels.shape[0]
    polygons = read_annotation(exam.annotation).polygons if exam.annotation else ()
    for group, colour in (("malignant", TRUTH), ("benign", BENIGN)):
        rings = [np.asarray(p.points) for p in polygons if p.name == name and p.group == group]
        large = outlined(large, rings, scale, large.size, colour)
    return large.resize((width, height), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    sys.exit(main())
