"""The page of `lobule demo exams`: one HTML file with its pictures inside, to be read from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lobule.cli.demo_lesions import TOP_SHARE, read_heatmaps
from lobule.cli.demo_story import Story
from lobule.cli.picture import TRUTH, Colour
from lobule.files import write_text
from lobule.phantoms._breast import FIELD_MM
from lobule.reports.page import commands, estimate_cell, html_page, image, seconds_table, table

if TYPE_CHECKING:
    from lobule.annotations import Polygon
    from lobule.cohort import Case
    from lobule.results.folder import CaseFolder

VIEWS = ("R-CC", "L-CC", "R-MLO", "L-MLO")
"""The order in which readers view them: the right breast on the left."""
BENIGN: Colour = (95, 190, 255)
HEAT: Colour = (255, 40, 30)
HEAT_FROM = 0.3
"""Heat from here to 1 is coloured more and more strongly; below, the breast is shown as it is."""
VIEW_PX = 300
"""Width of a view on the page."""
SMOOTH = 3
"""Outlines are drawn this many times larger and reduced, so that they are smooth."""

STYLE = """
.views { display: grid; grid-template-columns: repeat(4, 1fr); gap: .4rem; margin: .6rem 0; }
.views img { width: 100%; } .views figcaption { margin: .1rem 0 .3rem; }
.exam { margin: 1.6rem 0 3rem; } h3 { font-size: 1rem; margin: 0 0 .2rem; }
.bar { display: inline-block; width: 7rem; height: .6rem; border-radius: 3px; background: var(--line);
  margin-right: .6rem; } .bar span { display: block; height: 100%; border-radius: 3px; }
.yes { font-weight: 600; }
"""


def write_page(story: Story) -> None:
    """Write the page after all steps are done."""
    counts = story.data["exams"]
    sections = [
        "<p>Generated mammograms, no patient's pixels. Each exam has four views, two of each breast. A small "
        f"four-view classifier was trained on {counts['train']} exams with outlined lesions and then scored "
        f"{counts['test']} exams that it had never seen. Research use only: the lesions are easier to see "
        "than those of patients, so the figures below say nothing about patients.</p>",
        "<h2>How well it does</h2>",
        _table(story),
        f"<p class=note>{_explanation()}</p>",
        "<h2>Some of the unseen exams</h2>",
        "<p class=note>The first exams of the test with a malignant breast, with benign lesions only, and "
        "without lesions; none was picked by its scores. Above: the views with the true outlines of lesions, "
        f"<span style='color:{_css(TRUTH)};background:#333;padding:0 .3em'>malignant</span> or "
        f"<span style='color:{_css(BENIGN)};background:#333;padding:0 .3em'>benign</span>. Below: the same "
        f"views with the heatmap of malignancy in red, from {HEAT_FROM} (clear) to 1 (full). The bars are "
        "the scores of each breast, from 0 to 1. A score ranks breasts; it is not a probability.</p>",
        *_exams(story),
        "<h2>Settings</h2>",
        _settings(story),
        "<h2>How long it took</h2>",
        seconds_table(story.seconds),
        "<h2>Next steps</h2>",
        commands([
            f"lobule evaluate {story.data['results']} {story.data['cohort']} --split test --by site",
            f"lobule report {story.data['results']} --cohort {story.data['cohort']} --out pages",
            f"lobule train four-view {story.data['cohort']} --out my-bundle --dry-run",
        ]),
    ]  # fmt: skip
    write_text(story.page, html_page("Lobule demo: exams", sections, STYLE))


# -- numbers ------------------------------------------------------------------------------------------------


def _table(story: Story) -> str:
    rows = []
    for grade, area in story.data["auc"].items():
        breasts, lesions = story.data["breasts"][grade], story.data["lesions"][grade]
        share, chance = "–", "–"
        if lesions["lesions"]:
            share = f"{lesions['share']:.0%} <small>{lesions['pointed_at']} of {lesions['lesions']}</small>"
            chance = f"{lesions['chance']:.0%}"
        with_them = f"{breasts['positive']} of {breasts['breasts']}"
        rows.append((grade, estimate_cell(area), with_them, share, chance))
    header = ("lesions", "AUC over breasts", "breasts with them", "heatmap points at them", "by chance")
    return table(header, rows)


def _explanation() -> str:
    return (
        "AUC: the area under the ROC curve of breasts with such a lesion against all other breasts, where .5 "
        "is chance; in small type its 95&nbsp;% interval, patients resampled. A heatmap points at a lesion "
        f"if the lesion's centre lies in the highest {TOP_SHARE:.0%} of its view; each lesion is outlined in "
        "both views of its breast and counts twice. By chance: how often a random position in the breast "
        "would lie there."
    )


def _settings(story: Story) -> str:
    settings, counts = story.data["settings"], story.data["exams"]
    architecture, training = settings["architecture"], settings["training"]
    lesions = story.data["lesion_settings"]
    height, width = story.data["size"]
    rows = {
        "views": f"{width} × {height} px of {FIELD_MM / height:.3g} mm",
        "exams": f"{counts['train']} to train on, {counts['test']} to test; seed {story.seed}",
        "lesions": f"{lesions['lesion_contrast']:g} times the contrast of the default generated exams; "
        f"malignant: {', '.join(lesions['malignant_kinds'])}",
        "patch classifier": f"{training['patch_steps']:,} steps of {training['patch_batch']} patches, "
        f"{architecture['patch']} px wide; a patch every {architecture['patch_stride']} px for the heatmaps",
        "exam classifier": f"{training['steps']:,} steps of {training['batch']} exams, views and heatmaps "
        f"at 1/{architecture['shrink']} of the resolution; variant {architecture['variant']}",
    }
    return table((), [(name, escape(value)) for name, value in rows.items()])


# -- pictures -----------------------------------------------------------------------------------------------


def _exams(story: Story) -> Iterator[str]:
    from lobule.results import open_results

    results = open_results(story.data["results"])
    for case in _examples(list(story.unseen)):
        yield _exam(story, case, results.case_folder(case.id))


def _examples(cases: list[Case]) -> list[Case]:
    """Select two exams with a malignant breast, one with only benign lesions and one without lesions."""

    def grade(case: Case) -> str:
        present = {name.partition("_")[2] for name, is_present in case.breast_labels.items() if is_present}
        return "malignant" if "malignant" in present else "benign" if present else "none"

    by_grade = {
        name: [case for case in cases if grade(case) == name] for name in ("malignant", "benign", "none")
    }
    return by_grade["malignant"][:2] + by_grade["benign"][:1] + by_grade["none"][:1]


def _exam(story: Story, case: Case, folder: CaseFolder) -> str:
    result = folder.result
    assert result is not None
    plain, heated = [], []
    for view in VIEWS:
        picture, under_heat = _view_pictures(case, view, folder)
        outlined = " and ".join(
            f"a {polygon.group} lesion outlined" for polygon in _outlines(case) if polygon.name == view
        )
        description = f"{view} view of {case.id}, {outlined or 'no lesion'}"
        plain.append(f"<figure>{image(picture, description)}<figcaption>{view}</figcaption></figure>")
        heated.append(f"<figure>{image(under_heat, f'{description}, under its heatmap')}</figure>")
    return (
        f"<div class=exam><h3>{escape(case.id)}: {describe_lesions(case.breast_labels)}</h3>"
        f"<div class=views>{''.join(plain)}{''.join(heated)}</div>{_scores(case, result['scores'])}</div>"
    )


def describe_lesions(breast_labels: Mapping[str, bool]) -> str:
    """Describe the true lesions of an exam in words."""
    descriptions = []
    for grade in ("malignant", "benign"):
        sides = [side for side in ("right", "left") if breast_labels.get(f"{side}_{grade}")]
        if len(sides) == 2:
            descriptions.append(f"{grade} lesions in both breasts")
        elif sides:
            descriptions.append(f"a {grade} lesion in the {sides[0]} breast")
    return ", ".join(descriptions) or "no lesion"


def _scores(case: Case, scores: dict[str, float]) -> str:
    """Build a table with the scores of both breasts beside the truth."""
    rows = []
    for side in ("right", "left"):
        cells = [f"{side} breast"]
        for grade, colour in (("malignant", HEAT), ("benign", BENIGN)):
            score, is_present = scores[f"{side}_{grade}"], case.breast_labels.get(f"{side}_{grade}")
            bar = f"<span style='width:{score:.0%};background:{_css(colour)}'></span>"
            truth = "<span class=yes>present</span>" if is_present else "absent"
            cells += [f"<span class=bar>{bar}</span>{score:.2f}", truth]
        rows.append(cells)
    return table(("", "malignant: score", "truth", "benign: score", "truth"), rows)


def _outlines(case: Case) -> tuple[Polygon, ...]:
    from lobule.annotations import read_annotation

    return tuple(read_annotation(case.annotation).polygons) if case.annotation else ()


def _view_pictures(case: Case, view: str, folder: CaseFolder) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A view with its outlined lesions, and the same under the heatmap of malignancy."""
    from lobule.mammograms.exams import read_view, view_named

    path = case.views[view.lower().replace("-", "_")][0]
    pixels = read_view(path, view=view_named(view)).pixels
    height, width = pixels.shape
    grey = np.sqrt(pixels / max(int(pixels.max()), 1)).astype(np.float32) * 255
    heat, cell = read_heatmaps(folder, view)
    # Reduced to the page's size by Pillow, the cells of the heatmap become a smooth layer.
    layer = Image.fromarray(heat[1]).resize(
        (heat.shape[2] * cell, heat.shape[1] * cell), Image.Resampling.BILINEAR
    )
    above = (np.asarray(layer, np.float32)[:height, :width, None] - HEAT_FROM) / (1 - HEAT_FROM)
    strength = np.float32(0.8) * above.clip(0, 1) * (pixels > 0)[..., None]
    plain = np.repeat(grey[..., None], 3, axis=2)
    red = plain * (1 - strength) + np.asarray(HEAT, np.float32) * strength
    lesions = [polygon for polygon in _outlines(case) if polygon.name == view]
    return _outlined(plain, lesions), _outlined(red, lesions)


def _outlined(pixels: NDArray[np.float32], lesions: list[Polygon]) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    size = VIEW_PX, round(VIEW_PX * height / width)
    scale = SMOOTH * VIEW_PX / width
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize(
        (SMOOTH * size[0], SMOOTH * size[1]), Image.Resampling.BILINEAR
    )
    pen = ImageDraw.Draw(picture)
    for polygon in lesions:
        ring = [(float(x) * scale, float(y) * scale) for x, y in [*polygon.points, *polygon.points[:2]]]
        pen.line(ring, TRUTH if polygon.group == "malignant" else BENIGN, round(1.6 * SMOOTH), joint="curve")
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))


def _css(colour: Colour) -> str:
    return "#" + "".join(f"{value:02x}" for value in colour)
