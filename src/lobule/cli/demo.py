"""`lobule demo`: the story on a generated slide, step by step, ending in one picture."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lobule.cli.frame import Answer, answers, facts, note, progress
from lobule.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from lobule.cli.picture import Zoom
    from lobule.phantoms.phantom import SlidePhantom
    from lobule.phantoms.truth import SlideTruth
    from lobule.results.maps import MapReader

UM_PER_PX = 0.5
SMALLEST, LARGEST = 1024, 65536
LESSONS = 4
"""Slides that the demo trains on; the last has no tumour."""
MODEL_MPP = 1.0
STRIDE = 16
STEPS_LEAST, STEPS_MOST = 12, 120
MIXES = ((1, 1, 2), (0, 2, 2), (0, 1, 2), (0, 1, 1), (0, 0, 1), (0, 0, 0))
"""Macrometastases, micrometastases and groups of isolated cells, from the most varied down."""


@dataclass
class Story:
    """What the steps of the demo made so far, each adding to it."""

    folder: Path
    side: int
    seed: int
    lines: list[tuple[str, str]] = field(default_factory=list)
    """What to tell, by step."""
    data: dict[str, Any] = field(default_factory=dict)
    truth: SlideTruth | None = None
    tissue: list[Any] = field(default_factory=list)
    """Outlines of the tissue that was found, in level-0 pixels."""
    map: MapReader | None = None
    """What the trained model says of the slide."""

    @property
    def slide(self) -> Path:
        return self.folder / "slide.tif"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def steps(self) -> int:
        """Of training: fewer for a smaller slide, which has less to show."""
        return max(STEPS_LEAST, STEPS_MOST * min(self.side, 6144) ** 2 // 6144**2)

    @property
    def picture(self) -> Path:
        return self.folder / "demo.png"


@answers("lobule demo")
@click.option(
    "--out", default="lobule-demo", show_default=True, metavar="DIR", help="Where to put what it makes."
)
@click.option(
    "--side", default=6144, show_default=True, help="Width of the slide in pixels; smaller is faster."
)
@click.option("--seed", default=11, show_default=True, help="Another seed is another slide.")
def command(out: str, side: int, seed: int) -> Answer:
    """Generate slides, train on some, scan another, and show what was found beside the truth in one picture.

    Everything is made on this machine in a few minutes; no patient's data and no network are needed. The
    model is tiny and has seen four small slides: it shows the way, not what can be reached.
    """
    from lobule.files import make_folder

    if not SMALLEST <= side <= LARGEST:
        raise UsageError(f"--side {side} is too small or too large", expected=f"{SMALLEST} to {LARGEST}")
    story = Story(make_folder(out), side, seed)
    for title, step in STEPS:
        note(f"{title} …")
        step(story)
    story.lines.append(("look at", str(story.picture)))
    story.lines.append(("go on with", f"lobule scan {story.bundle} {story.slide} --out finer --stride 8"))
    text = facts(story.lines) + "\n\nResearch use only: not a medical device, not for diagnosis."
    return Answer(story.data | {"picture": str(story.picture)}, text)


# -- the steps ----------------------------------------------------------------------------------------------


def generate(story: Story) -> None:
    """A lymph node with metastases of every size that has room, and places that only look like them."""
    from lobule.phantoms.slides import write_slide

    phantom = phantom_with_room(story.seed, story.side)
    with progress("painting", 1.0) as advance:
        done = [0.0]

        def report(part: int, whole: int) -> None:
            advance(part / whole - done[0])
            done[0] = part / whole

        story.truth = write_slide(phantom, story.slide, progress=report)
    sizes = ", ".join(f"{o.lesion_class} {o.size_um / 1000:.2f} mm" for o in story.truth.outlines)
    story.lines.append(("slide", f"{story.slide} ({phantom.width:,} × {phantom.height:,} px)"))
    story.lines.append(("tumours", sizes))
    story.data["slide"] = str(story.slide)
    story.data["lesions"] = [{"class": o.lesion_class, "size_um": o.size_um} for o in story.truth.outlines]


def phantom_with_room(seed: int, side: int) -> SlidePhantom:
    """The most varied of `MIXES` that fits on a slide of this size."""
    from lobule.errors import ConfigError
    from lobule.phantoms.phantom import SlidePhantom
    from lobule.phantoms.slides import truth_of

    for macro, micro, itc in MIXES:
        phantom = SlidePhantom(
            seed, side, side * 2 // 3, UM_PER_PX, tissue=0.55, macro=macro, micro=micro, itc=itc, mimics=2
        )
        with suppress(ConfigError):
            truth_of(phantom)
            break
    return phantom


def describe(story: Story) -> None:
    """What the file says of itself, as `lobule info` tells it."""
    from lobule.cli.info import slide_facts
    from lobule.slides.slide import open_slide

    with open_slide(story.slide) as slide:
        found = slide_facts(slide)
        story.lines.append(("read as", f"{slide.format}, {len(slide.levels)} levels, {slide.mpp}"))
    story.data["info"] = found


def find_tissue(story: Story) -> None:
    """Where the tissue is, compared with where it was painted."""
    from lobule.cli.picture import contours
    from lobule.cli.tissue import measure
    from lobule.phantoms.truth import GLASS
    from lobule.slides.slide import open_slide

    assert story.truth is not None
    with open_slide(story.slide) as slide:
        measured = measure(slide)
    true_mm2 = float((story.truth.mask(16) != GLASS).sum()) * (16 * UM_PER_PX / 1000) ** 2
    found_mm2 = measured.found.area_mm2
    story.tissue = contours(measured.mask, *measured.l0_step)
    story.lines.append(("tissue", f"{found_mm2:.2f} mm² found, {true_mm2:.2f} mm² painted"))
    story.data["tissue"] = {"found_mm2": found_mm2, "painted_mm2": true_mm2}


def teach(story: Story) -> None:
    """A small dense model trained on other generated slides, with the outlines of their tumours."""
    import lobule
    from lobule.cohort import Case, Cohort
    from lobule.files import make_folder
    from lobule.phantoms.phantom import SlidePhantom
    from lobule.phantoms.slides import write_slide
    from lobule.phantoms.truth import write_annotation_files

    folder, side = make_folder(story.folder / "lessons"), min(story.side, 2560)
    cases = []
    for number in range(LESSONS):
        many = (2, 1) if number < LESSONS - 1 else (0, 0)
        seed = 1000 * story.seed + number
        phantom = SlidePhantom(seed, side, side, UM_PER_PX, tissue=0.6, micro=many[0], itc=many[1], mimics=3)
        place = folder / f"lesson_{number + 1}.tif"
        truth = write_slide(phantom, place)
        outlines = place.with_suffix(".xml") if truth.outlines else None
        if outlines is not None:
            write_annotation_files(truth, outlines)
        cases.append(
            Case(
                place.stem,
                f"patient-{number + 1}",
                "slide",
                str(place),
                mpp=UM_PER_PX,
                label="tumor" if outlines else "normal",
                annotation=None if outlines is None else str(outlines),
            )
        )
    settings = {
        "trunk": "tiny", "mpp": MODEL_MPP, "steps": story.steps, "batch": 16, "rate": 0.03,
        "schedule": "cosine", "rounds": 0, "evaluate_every": story.steps, "stride": STRIDE,
        # all demo slides are stained alike, so there is no colour to become immune to
        "augment.brightness": 0, "augment.contrast": 0, "augment.saturation": 0, "augment.hue": 0,
        "augment.scale": 0,
    }  # fmt: skip
    bundle = lobule.train(
        "scannet", Cohort(tuple(cases)), story.bundle, settings=settings, val=None, fresh=True
    )
    story.lines.append(("model", f"{story.bundle}, {story.steps * 16:,} patches of {LESSONS} other slides"))
    story.data["bundle"] = str(bundle.path)


def look(story: Story) -> None:
    """The model over the slide it never saw, measured against what was painted."""
    import numpy as np

    import lobule
    from lobule.phantoms.truth import GLASS, TUMOUR
    from lobule.results.folder import open_results
    from lobule.stitch import State

    assert story.truth is not None
    report = lobule.scan(story.bundle, [story.slide], story.results, fresh=True)
    folder = open_results(story.results).case_folder(story.slide.stem)
    (story.map,) = folder.maps.values()
    scores, states = story.map.read()
    painted = story.truth.mask(round(story.map.info.l0_stride[0]))
    painted = painted[: states.shape[0], : states.shape[1]]
    states, found = states[: painted.shape[0], : painted.shape[1]], scores[0] > 0.5
    scored = (states == State.SCORED) & (painted != GLASS)
    tumour = scored & (painted == TUMOUR)
    found = found[: painted.shape[0], : painted.shape[1]]
    hit, wrong = _share(found, tumour), _share(found, scored & ~tumour)
    story.lines.append(("found", f"{hit} of the tumour's cells, and {wrong} of the others taken for it"))
    story.data["scan"] = {
        "results": str(story.results),
        "cells": int(np.count_nonzero(scored)),
        "tumour_found": None if not tumour.any() else float(found[tumour].mean()),
        "normal_found": None if not (scored & ~tumour).any() else float(found[scored & ~tumour].mean()),
        "seconds": round(report.seconds, 1),
    }


def _share(found: Any, of: Any) -> str:
    return f"{100 * float(found[of].mean()):.1f} %" if of.any() else "none"


def draw(story: Story) -> None:
    """The picture: the whole slide with tissue and truth outlined, and three places larger."""
    from lobule.cli import picture
    from lobule.slides.slide import open_slide

    assert story.truth is not None
    lesions = [outline.points for outline in story.truth.outlines]
    groups = [
        picture.Outlines(story.tissue, picture.TISSUE, "tissue found"),
        picture.Outlines(lesions, picture.TRUTH, "tumour, as painted"),
    ]
    subtitle = (
        f"a generated lymph node, {story.truth.width:,} x {story.truth.height:,} pixels, seed {story.seed}"
    )
    with open_slide(story.slide) as slide:
        page = picture.draw_slide(
            slide, "lobule demo", subtitle, groups, zooms_of(story.truth), "Generated pixels, no patient."
        )
        page = beside(page, _heat(story, slide.thumbnail(1152)))
    picture.save(page, story.picture)


def _heat(story: Story, thumbnail: Any) -> Image:
    """The map over the slide, red where the model sees tumour, with the true outlines."""
    import numpy as np
    from PIL import Image, ImageDraw

    from lobule.cli.picture import TRUTH

    assert story.map is not None
    assert story.truth is not None
    scores, _ = story.map.read()
    height, width = thumbnail.shape[:2]
    small = Image.fromarray((255 * scores[0]).astype(np.uint8)).resize((width, height))
    heat = np.asarray(small, np.float32)[..., None] / 255
    grey = 0.35 * thumbnail.mean(axis=2, keepdims=True) + 160
    red = np.array([200, 20, 40], np.float32)
    picture = Image.fromarray((grey * (1 - heat) + red * heat).clip(0, 255).astype(np.uint8))
    pen, scale = ImageDraw.Draw(picture), width / story.truth.width
    for outline in story.truth.outlines:
        points = np.asarray(outline.points) * scale
        pen.line([(x, y) for x, y in [*points, points[0]]], TRUTH, 3, joint="curve")
    return picture


def beside(page: Image, heat: Image) -> Image:
    """The page with the map below the truth, at the same scale."""
    from PIL import Image, ImageDraw

    from lobule.cli.picture import INK, MARGIN, PAPER, _font

    both = Image.new("RGB", (page.width, page.height + heat.height + 70), PAPER)
    both.paste(page, (0, 0))
    caption = "What the model found: the redder, the surer; outlined is what was painted"
    ImageDraw.Draw(both).text((MARGIN, page.height + 4), caption, INK, _font(18))
    both.paste(heat, (MARGIN, page.height + 36))
    return both


STEPS: tuple[tuple[str, Callable[[Story], None]], ...] = (
    ("Generating a slide", generate),
    ("Reading it", describe),
    ("Finding its tissue", find_tissue),
    ("Training a small model on four others", teach),
    ("Scanning the slide with it", look),
    ("Drawing the picture", draw),
)
"""Each step takes the story on; a new one is a function and a line here."""


def zooms_of(truth: SlideTruth) -> list[Zoom]:
    """Up to three places: the edge of the largest lesion, a middling one, and the smallest."""
    import numpy as np

    from lobule.cli.picture import Zoom
    from lobule.geometry import Box

    captions = {
        "macro": "Macrometastasis: over 2 mm",
        "micro": "Micrometastasis: 0.2 to 2 mm",
        "itc": "Isolated tumour cells: under 0.2 mm",
    }
    ordered = sorted(truth.outlines, key=lambda outline: -outline.size_um)
    chosen = {outline.lesion_class: outline for outline in reversed(ordered)}
    middle = np.array([truth.width / 2, truth.height / 2])
    zooms = []
    for outline in sorted(chosen.values(), key=lambda outline: -outline.size_um):
        points = np.asarray(outline.points)
        extent = float(np.ptp(points, axis=0).max())
        centre = points.mean(axis=0)
        if outline.lesion_class == "macro":  # its edge, away from the glass
            centre = points[np.hypot(*(points - middle).T).argmin()]
        side = min(int(np.clip(1.6 * extent, 400, 1200)), truth.width, truth.height)
        x, y = (int(value) - side // 2 for value in centre)
        x, y = max(0, min(x, truth.width - side)), max(0, min(y, truth.height - side))
        zooms.append(Zoom(Box(x, y, side, side), captions[outline.lesion_class]))
    return zooms
