"""`lobule demo exams`: generated mammograms from painting them to one page of what was found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobule.cli.frame import Answer, facts, note

if TYPE_CHECKING:
    from PIL.Image import Image

    from lobule.cohort import Case, Cohort

EXAMS, EXAMS_LEAST = 140, 12
SIZE = (300, 220)
"""Height and width of a view; a hospital's are ten times as large."""
SPLITS = (("train", 0.6), ("val", 0.1), ("test", 0.3))
STEPS, STEPS_LEAST = 260, 6
PATCH_STEPS = 900
SETTINGS: dict[str, Any] = {
    "heatmaps": True, "epochs": 3, "window": (276, 172), "move": (8, 8), "resize": 8, "crop_iterations": 6,
    "crop_buffer": 4, "widths": (8, 8, 16, 16, 32), "patch": 48, "patch_stride": 20, "patch_growth": 8,
    "patch_blocks": (2, 2, 2, 2), "patch_first_width": 16, "heatmap_cell": 4, "batch": 6, "rate": 0.004,
    "trunk_rate": 0.004, "patch_batch": 24, "patch_rate": 0.01, "val_patches": 240, "birads_steps": 0,
    "schedule": "cosine", "positive_share": 0.7, "malignant_share": 0.8,
}  # fmt: skip
VIEW_PX, GAP = 300, 12


@dataclass
class Story:
    """What the steps made so far."""

    folder: Path
    share: float
    """How much of the full demo: 1, or less where it should be quick."""
    seed: int
    lines: list[tuple[str, str]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    cohort: Cohort | None = None

    @property
    def unseen(self) -> Cohort:
        assert self.cohort is not None
        return self.cohort.split("test")


def demo_exams(out: str, share: float, seed: int) -> Answer:
    """Generate exams, train a small four-view classifier on some, scan and judge it on the others."""
    from lobule.files import make_folder

    story = Story(make_folder(Path(out) / "exams"), share, seed)
    seconds = {}
    for title, step in STEPS_OF_STORY:
        note(f"{title} …")
        began = time.perf_counter()
        step(story)
        seconds[title] = round(time.perf_counter() - began, 1)
    story.data |= {"seed": seed, "seconds": seconds}
    text = facts(story.lines)
    return Answer(story.data, text + "\n\nResearch use only: not a medical device, not for diagnosis.")


# -- the steps ----------------------------------------------------------------------------------------------


def generate(story: Story) -> None:
    """Exams of four views with benign and malignant lesions, each outlined in both views of its breast."""
    from lobule.cohort import read_cohort
    from lobule.phantoms.exams import write_exams

    count = max(EXAMS_LEAST, round(EXAMS * story.share))
    manifest = write_exams(story.folder / "images", exams=count, seed=story.seed, size=SIZE, splits=SPLITS)
    story.cohort = read_cohort(manifest)
    parts = {name: len(story.cohort.split(name)) for name, _ in SPLITS}
    told = ", ".join(f"{number} to {name}" for name, number in parts.items())
    story.lines.append(("exams", f"{count} of {SIZE[1]} × {SIZE[0]} px a view: {told}"))
    story.data |= {"cohort": str(manifest), "exams": parts}


def teach(story: Story) -> None:
    """The patch classifier from the outlines, its heatmaps, then the four-view classifier from the labels."""
    import lobule

    steps = max(STEPS_LEAST, round(STEPS * story.share))
    patch_steps = max(STEPS_LEAST, round(PATCH_STEPS * story.share))
    looks = {"steps": steps, "patch_steps": patch_steps, "evaluate_every": max(2, steps // 5)}
    assert story.cohort is not None
    bundle = lobule.train(
        "four_view", story.cohort, story.folder / "bundle", settings=SETTINGS | looks, seed=story.seed,
        fresh=True,
    )  # fmt: skip
    story.lines.append(("model", f"{bundle.path}: {patch_steps} steps of patches, {steps} of whole exams"))
    story.data["bundle"] = str(bundle.path)


def look(story: Story) -> None:
    """The exams that the training never met."""
    import lobule

    report = lobule.scan(story.folder / "bundle", story.unseen, story.folder / "results", fresh=True)
    story.data["results"] = str(report.path)


def judge(story: Story) -> None:
    """How well malignant and benign breasts are told from the others, with intervals over patients."""
    import lobule

    found = lobule.evaluate(
        story.folder / "results", story.unseen, to=story.folder / "evaluation", plots=False
    )
    story.data["auc"] = {}
    for name, report in found.tasks.items():
        area = report["all"]["auroc"]
        story.data["auc"][name] = area
        value = "undefined" if area["value"] is None else f"{area['value']:.3f}"
        if area.get("low") is not None:
            value += f" ({area['low']:.3f} to {area['high']:.3f})"
        counted = f"{report['all']['positive']} of {report['all']['breasts']} breasts"
        story.lines.append((f"AUC, {name}", f"{value}, {counted}, on unseen exams"))


def draw(story: Story) -> None:
    """One page: an exam with cancer, what was painted, and where the model sees malignancy."""
    case = _with_cancer(story.unseen)
    picture = story.folder / "exam.png"
    page_of(case, story.folder).save(picture)
    story.lines.append(("look at", str(picture)))
    story.lines.append(
        ("go on with", f"lobule evaluate {story.data['results']} {story.data['cohort']} --by site")
    )
    story.data["picture"] = str(picture)


STEPS_OF_STORY: tuple[tuple[str, Callable[[Story], None]], ...] = (
    ("Painting exams", generate),
    ("Training on some of them", teach),
    ("Scanning the others", look),
    ("Judging what was found", judge),
    ("Drawing one of them", draw),
)


# -- the page -----------------------------------------------------------------------------------------------


def _with_cancer(cohort: Cohort) -> Case:
    sick = [case for case in cohort if any(
        case.breast_labels[f"{side}_malignant"] for side in ("left", "right")
    )]  # fmt: skip
    return (sick or list(cohort))[0]


def page_of(case: Case, folder: Path) -> Image:
    """The four views in a row, below them the malignancy heatmaps, with outlines and scores."""
    from PIL import Image, ImageDraw

    from lobule.cli.picture import FAINT, INK, MARGIN, PAPER, RESEARCH_USE, font
    from lobule.results import open_results

    opened = open_results(folder / "results").case_folder(case.id)
    result = opened.result
    assert result is not None
    height = round(VIEW_PX * SIZE[0] / SIZE[1])
    page = Image.new("RGB", (4 * VIEW_PX + 3 * GAP + 2 * MARGIN, 2 * height + 190), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, 14), f"lobule demo exams: {case.id}, which the training never met", INK, font(24))
    for number, view in enumerate(("R-CC", "L-CC", "R-MLO", "L-MLO")):
        left = MARGIN + number * (VIEW_PX + GAP)
        image, heated = _shown(case, view, opened)
        pen.text((left, 54), view, INK, font(18))
        for row, drawn in enumerate((image, heated)):
            page.paste(drawn.resize((VIEW_PX, height)), (left, 80 + row * (height + GAP)))
    below = 80 + 2 * height + GAP
    for number, side in enumerate(("right", "left")):
        said = ", ".join(
            f"{grade} {result['scores'][f'{side}_{grade}']:.2f}"
            f" ({'is' if case.breast_labels[f'{side}_{grade}'] else 'is not'})"
            for grade in ("malignant", "benign")
        )
        pen.text((MARGIN, below + 8 + 26 * number), f"{side} breast: {said}", INK, font(18))
    pen.text(
        (MARGIN, below + 66), f"Outlined: what was painted. Red: malignancy. {RESEARCH_USE}", FAINT, font(16)
    )
    return page


def _shown(case: Case, view: str, opened: Any) -> tuple[Image, Image]:
    """A view with its outlines, and the same under the malignancy heatmap."""
    import numpy as np
    from PIL import Image

    from lobule.mammograms.exams import read_view, view_named

    pixels = read_view(case.views[view.lower().replace("-", "_")][0], view=view_named(view)).pixels
    grey = np.sqrt(pixels / max(int(pixels.max()), 1)).astype(np.float32) * 255
    scores, _ = opened.maps[f"heatmap {view}"].read()
    cell = round(opened.maps[f"heatmap {view}"].info.l0_stride[0])
    heat = np.nan_to_num(scores[1]).repeat(cell, axis=0).repeat(cell, axis=1)
    heat = heat[: grey.shape[0], : grey.shape[1], None] * (pixels > 0)[..., None]
    plain = np.repeat(grey[..., None], 3, axis=2)
    red = plain * (1 - 0.7 * heat) + np.array([235, 30, 40], np.float32) * 0.7 * heat
    return tuple(_outlined(Image.fromarray(layer.astype(np.uint8)), case, view) for layer in (plain, red))  # type: ignore[return-value]


def _outlined(picture: Image, case: Case, view: str) -> Image:
    from PIL import ImageDraw

    from lobule.annotations import read_annotation
    from lobule.cli.picture import TRUTH

    drawn = picture.resize((4 * picture.width, 4 * picture.height))
    pen = ImageDraw.Draw(drawn)
    polygons = read_annotation(case.annotation).polygons if case.annotation else ()
    for polygon in polygons:
        if polygon.name == view:
            ring = 4 * polygon.points
            points = [(float(x), float(y)) for x, y in [*ring, ring[0]]]
            pen.line(points, TRUTH if polygon.group == "malignant" else (120, 200, 255), 5, joint="curve")
    return drawn
