"""The page of `lobule demo`: one HTML file with embedded pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape

import numpy as np

from lobule.cli.demo_picture import Location, close_up, draw_heatmap, match_findings
from lobule.cli.demo_story import METHODS, Story
from lobule.cohort import Case
from lobule.cohort.labels import polarity
from lobule.files import write_text
from lobule.reports.comparison import comparison_table
from lobule.reports.page import commands, html_page, image, seconds_table

THUMBNAIL, CLOSE_UP = 420, 380
SHOWN = 5
"""Maximum number of close-ups of each kind."""
KINDS: tuple[tuple[str, str, Callable[[Location], tuple[float, float]]], ...] = (
    ("Found", "the smallest", lambda location: (location.size_um, -(location.score or 0))),
    ("Taken for tumour", "the surest", lambda location: (-(location.score or 0), 0)),
    ("Missed", "the largest", lambda location: (-location.size_um, 0)),
)
"""The kinds of close-ups in the order of `match_findings`: title, those shown first, and their order."""
COLOURS = {"scannet": "var(--first)", "colour": "var(--second)"}

STYLE = """
.slides { display: grid; grid-template-columns: repeat(auto-fill, minmax(29rem, 1fr)); gap: 1.6rem 2rem; }
.close { display: flex; flex-wrap: wrap; gap: 1rem; }
.pair { display: flex; gap: .5rem; } .pair img { width: calc(50% - .25rem); }
.close img { width: 190px; height: 190px; }
@media (max-width: 34rem) { .slides { grid-template-columns: 1fr; } }
"""


def write_page(story: Story) -> None:
    """Write the page after all steps are done."""
    cards, locations = _cards(story)
    counts, lesions = story.data["slides"], story.data["lesions"]
    bundle, cohort = story.bundle("scannet"), story.data["cohort"]
    sections = [
        "<p>Generated lymph-node slides, no patient data. A small network was trained on the "
        f"outlines of {counts['train']} slides and then scored {counts['test']} other slides from "
        "unseen hospitals, with unseen stains and scanners. Half of these have no tumour; the "
        f"others have metastases under 2&nbsp;mm ({lesions['micro']} in all) and groups of isolated cells "
        f"({lesions['itc']}). All have normal regions that look like tumour.</p>",
        "<h2>How well it does</h2>",
        _table(story),
        f"<div class=close>{_curve(story)}</div>",
        f"<p class=note>{_explanation(story)}</p>",
        "<h2>Every unseen slide</h2>",
        "<p class=note>Left the slide, right the map, where red means tumour. Yellow: the truth.</p>",
        f"<div class=slides>{''.join(cards)}</div>",
        *_close_ups(story, locations),
        "<h2>How long it took</h2>",
        seconds_table(story.seconds),
        "<h2>Next steps</h2>",
        commands([
            f"lobule scan {bundle} {story.unseen.cases[0].path} --out finer --stride 8",
            f"lobule evaluate {story.results('scannet')} {cohort} --split test --by site",
            f"lobule report {story.results('scannet')} --cohort {cohort} --out pages",
            f"lobule export {story.results('scannet')} --to qupath --out overlays",
            f"lobule train scannet {cohort} --out bundle --set trunk=tiny --set weights=random --set mpp=1",
        ]),
    ]  # fmt: skip
    write_text(story.page, html_page("Lobule demo", sections, STYLE))


# -- numbers ------------------------------------------------------------------------------------------------


def _table(story: Story) -> str:
    """Build the table of both models, which is that of the reports."""
    first = next(iter(story.evaluations.values()))
    return comparison_table(
        {METHODS[method]: evaluation.data for method, evaluation in story.evaluations.items()},
        difference=first.data,
        colours={METHODS[method]: colour for method, colour in COLOURS.items()},
    )


def _explanation(story: Story) -> str:
    measured = story.data["evaluation"]["scannet"]
    return (
        f"FROC is the official score of Camelyon16 over {measured['lesions']} lesions: the mean of the "
        "sensitivities at 0.25 to 8 false positives a slide. Lesions within 75&nbsp;µm of one another count "
        f"as one, and isolated cells ({measured['isolated_tumour_cells']} groups here) do not count. "
        "AUC: the area under the ROC curve of tumour against normal slides. In small type "
        "95&nbsp;% intervals, patients resampled. Colour alone is a logistic regression on mean and spread "
        "of red, green and blue in windows of "
        "64&nbsp;µm, trained and evaluated on the same slides."
    )


def _curve(story: Story, width: int = 430, height: int = 250) -> str:
    """Draw sensitivity over false positives per slide of both models as SVG."""
    left, bottom, most = 44, 34, 8.0
    across, up = width - left - 12, height - bottom - 12

    def at(x: float, y: float) -> tuple[float, float]:
        return left + across * x / most, 12 + up * (1 - y)

    marks = []
    for tick in (0, 2, 4, 6, 8):
        x, y = at(tick, 0)
        marks.append(f"<text x={x:.0f} y={y + 16:.0f} text-anchor=middle>{tick}</text>")
    for share in (0, 0.5, 1):
        x, y = at(0, share)
        marks.append(f"<line x1={x:.0f} x2={width - 12} y1={y:.0f} y2={y:.0f} stroke='var(--line)' />")
        marks.append(f"<text x={x - 6:.0f} y={y + 4:.0f} text-anchor=end>{share:g}</text>")
    for method, colour in COLOURS.items():
        curve = story.data["evaluation"][method]["curve"]
        if curve["sensitivity"] is None:
            continue
        points = sorted(zip(curve["false_positives"], curve["sensitivity"], strict=True))
        pairs = [pair for pair in points if pair[0] <= most]
        # As in the official score, interpolate between points and continue the last value.
        rates, sensitivities = np.array(points, np.float64).T
        pairs.append((most, float(np.interp(most, rates, sensitivities))))
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*pair) for pair in pairs))
        marks.append(f"<polyline points='{line}' fill=none style='stroke:{colour}' stroke-width=2.5 />")
    middle = left + across / 2
    marks.append(
        f"<text x={middle:.0f} y={height - 3} text-anchor=middle>false positives a slide</text>"
        f"<text transform='translate(12 {12 + up / 2:.0f}) rotate(-90)' text-anchor=middle>sensitivity</text>"
    )
    return f"<svg width={width} height={height} role=img aria-label='FROC curves'>{''.join(marks)}</svg>"


# -- pictures -----------------------------------------------------------------------------------------------


def _cards(story: Story) -> tuple[list[str], list[list[Location]]]:
    """Build a card per slide. Also return the locations of each kind in `KINDS`, over all slides."""
    from lobule.results.folder import open_results
    from lobule.slides.slide import open_slide

    results = open_results(story.results("scannet"))
    cards: list[str] = []
    locations: list[list[Location]] = [[], [], []]
    for case in story.unseen:
        assert case.path is not None
        folder, truth = results.case_folder(case.id), story.truths[case.id]
        columns = folder.findings()
        findings = list(zip(columns["l0_x"], columns["l0_y"], columns["score"], strict=True))
        of_slide = match_findings(case.id, truth, findings)
        (reader,) = folder.maps.values()
        with open_slide(case.path) as slide:
            thumbnail = slide.thumbnail(THUMBNAIL)
            pictures = [
                image(thumbnail, f"Thumbnail of {case.id}"),
                image(np.asarray(draw_heatmap(reader, thumbnail, truth)), f"{case.id} under its tumour map"),
            ]
        result = folder.result
        assert result is not None
        cards.append(_card(case, result["scores"]["tumour"], list(map(len, of_slide)), pictures))
        locations = [earlier + new for earlier, new in zip(locations, of_slide, strict=True)]
    return cards, locations


def _card(case: Case, score: float, counts: Sequence[int], pictures: Sequence[str]) -> str:
    hits, false_positives, missed = counts
    is_normal = polarity(case.label or "") is False
    truth = "without tumour" if is_normal else f"{hits} of {hits + missed} metastases found"
    heading = f"<b>{escape(case.id)}</b>, {escape(case.site or '')}"
    caption = f"{heading}: {truth}, {false_positives} false, slide score {score:.3f}"
    return f"<figure><div class=pair>{''.join(pictures)}</div><figcaption>{caption}</figcaption></figure>"


def _close_ups(story: Story, locations: Sequence[Sequence[Location]]) -> Iterator[str]:
    from lobule.slides.slide import open_slide

    for (title, first, order), of_kind in zip(KINDS, locations, strict=True):
        yield f"<h2>{title}: {len(of_kind)}</h2>"
        if len(of_kind) == 0 or len(of_kind) > SHOWN:
            yield f"<p class=note>{f'Here are {first}.' if of_kind else 'None.'}</p>"
        yield "<div class=close>"
        for location in sorted(of_kind, key=order)[:SHOWN]:
            size = "" if title == "Taken for tumour" else f", {location.size_um:.0f} µm"
            score = "" if location.score is None else f", score {location.score:.3f}"
            caption = f"{location.case_id}{size}{score}"
            with open_slide(story.cohort[location.case_id].path or "") as slide:
                pixels = close_up(slide, location, story.truths[location.case_id], CLOSE_UP)
            picture = image(np.asarray(pixels), f"{title}, enlarged: {caption}")
            yield f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"
        yield "</div>"
