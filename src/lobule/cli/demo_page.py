"""The page of `lobule demo`: one HTML file with its pictures inside, to be read from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from lobule.cli.demo_picture import Place, close_up, heat, sorted_out
from lobule.cli.demo_story import METHODS, Story
from lobule.cohort.labels import polarity
from lobule.files import write_text

if TYPE_CHECKING:
    from lobule.cohort import Case

THUMBNAIL, CLOSE_UP = 420, 380
SHOWN = 5
"""Close-ups of a kind."""
COLOURS = {"scannet": "#0072b2", "colour": "#d55e00"}
"""Okabe and Ito's, which colour-blind readers tell apart."""
RATES = ("0.25", "0.5", "1", "2", "4", "8")

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #26242c; background: #fcfbf9; margin: 2.5rem auto;
  max-width: 66rem; padding: 0 1.2rem; }
h1 { font-size: 1.9rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; }
p { max-width: 44rem; margin: .5rem 0; } .note, figcaption { color: #6a6672; font-size: 13px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
td, th { padding: .3rem 1.1rem .3rem 0; text-align: left; border-bottom: 1px solid #e4e0da; }
th { font-weight: 600; font-size: 14px; } td small { color: #6a6672; }
.slides { display: grid; grid-template-columns: repeat(auto-fill, minmax(29rem, 1fr)); gap: 1.6rem 2rem; }
.close { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; }
.pair { display: flex; gap: .5rem; } .pair img { width: calc(50% - .25rem); border-radius: 4px; }
.close img { display: block; width: 190px; height: 190px; border-radius: 4px; }
.dot { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .5em; }
code { background: #f0ede7; padding: .1em .35em; border-radius: 3px; font-size: 14px; }
svg text { font: 12px system-ui, sans-serif; fill: #26242c; }
footer { margin-top: 3rem; border-top: 1px solid #e4e0da; padding-top: .8rem;
  color: #6a6672; font-size: 14px; }
@media (max-width: 34rem) { .slides { grid-template-columns: 1fr; } }
"""


def write_page(story: Story) -> None:
    """Write the page of a story that is told."""
    cards, places = _cards(story)
    counts, lesions = story.data["slides"], story.data["lesions"]
    parts = [
        "<h1>Lobule demo</h1>",
        "<p>Generated lymph-node slides, no patient's pixels. A small net learned metastases from the "
        f"outlines on {counts['train']} slides, and was then asked about {counts['test']} others from "
        "hospitals, and so with stains and scanners, that it had never met. Half of them hold no tumour; the "
        f"others hold metastases under 2&nbsp;mm ({lesions['micro']} in all) and groups of isolated cells "
        f"({lesions['itc']}). All hold normal places that look like tumour.</p>",
        "<h2>How well it does</h2>",
        _table(story),
        f"<div class=close>{_curve(story)}</div>",
        f"<p class=note>{_explained(story)}</p>",
        "<h2>Every unseen slide</h2>",
        "<p class=note>Left the slide, right the map: the redder, the surer. Yellow is what was painted.</p>",
        f"<div class=slides>{''.join(cards)}</div>",
        *places,
        "<h2>How long it took</h2>",
        _times(story),
        "<h2>Go on</h2>",
        _commands(story),
        "<footer>Research use only: not a medical device, not for diagnosis.</footer>",
    ]
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><style>{STYLE}</style>"
    body = "\n".join(parts)
    write_text(
        story.page, f"<!doctype html><html lang=en><title>Lobule demo</title>{head}\n{body}\n</html>\n"
    )


# -- numbers ------------------------------------------------------------------------------------------------


def _table(story: Story) -> str:
    from lobule.evaluation.summary import number

    head = "".join(f"<th>at {rate}</th>" for rate in RATES)
    rows = []
    for method, name in METHODS.items():
        found = story.data["evaluation"][method]
        at = found["sensitivity_at"] or {}
        cells = "".join(f"<td>{number(at.get(rate), 2)}</td>" for rate in RATES)
        rows.append(
            f"<tr><td><span class=dot style='background:{COLOURS[method]}'></span>{escape(name)}</td>"
            f"<td>{_estimate(found['froc'])}</td>{cells}<td>{_estimate(found['slide_auc'])}</td></tr>"
        )
    return (
        f"<table><tr><th>model</th><th>FROC</th>{head}<th>slide AUC</th></tr>{''.join(rows)}"
        f"{_difference(story)}</table>"
    )


def _difference(story: Story) -> str:
    """The row that compares both on the same slides."""
    assert story.evaluation is not None
    assert story.evaluation.lesions is not None
    froc = story.evaluation.lesions["against"]["all"]["froc"]["difference"]
    (task,) = story.evaluation.tasks.values()
    auc = task["against"]["all"]["auroc"]["difference"]
    return (
        f"<tr><td>difference</td><td>{_estimate(froc)}</td><td colspan={len(RATES)}></td>"
        f"<td>{_estimate(auc)}</td></tr>"
    )


def _estimate(found: dict[str, Any]) -> str:
    from lobule.evaluation.summary import number

    interval = ""
    if found["value"] is not None and found.get("low") is not None:
        interval = f" <small>{number(found['low'], 2)} to {number(found['high'], 2)}</small>"
    return number(found["value"], 2) + interval


def _explained(story: Story) -> str:
    found = story.data["evaluation"]["scannet"]
    return (
        f"FROC is the official score of Camelyon16 over {found['lesions']} lesions: the mean of the "
        "sensitivities at 0.25 to 8 false positives a slide. Lesions within 75&nbsp;µm of one another count "
        f"as one, and isolated cells ({found['isolated_tumour_cells']} groups here) do not count. "
        "Slide AUC: the area under the ROC curve of tumour against normal slides. In small type "
        "95&nbsp;% intervals, patients resampled. Colour alone is a logistic regression on mean and spread "
        "of red, green and blue in windows of "
        "64&nbsp;µm, learned from the same slides and judged the same way."
    )


def _curve(story: Story, width: int = 430, height: int = 250) -> str:
    """Sensitivity over false positives a slide, both models, as SVG."""
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
        marks.append(f"<line x1={x:.0f} x2={width - 12} y1={y:.0f} y2={y:.0f} stroke='#e4e0da' />")
        marks.append(f"<text x={x - 6:.0f} y={y + 4:.0f} text-anchor=end>{share:g}</text>")
    for method, colour in COLOURS.items():
        curve = story.data["evaluation"][method]["curve"]
        if curve["sensitivity"] is None:
            continue
        every = sorted(zip(curve["false_positives"], curve["sensitivity"], strict=True))
        pairs = [pair for pair in every if pair[0] <= most]
        # as the official score reads it: between points a line, beyond the last one nothing more is found
        rates, found = np.array(every, np.float64).T
        pairs.append((most, float(np.interp(most, rates, found))))
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*pair) for pair in pairs))
        marks.append(f"<polyline points='{line}' fill=none stroke='{colour}' stroke-width=2.5 />")
    middle = left + across / 2
    marks.append(
        f"<text x={middle:.0f} y={height - 3} text-anchor=middle>false positives a slide</text>"
        f"<text transform='translate(12 {12 + up / 2:.0f}) rotate(-90)' text-anchor=middle>sensitivity</text>"
    )
    return f"<svg width={width} height={height} role=img aria-label='FROC curves'>{''.join(marks)}</svg>"


def _times(story: Story) -> str:
    rows = [
        f"<tr><td>{escape(title)}</td><td>{spent:.0f} s</td></tr>" for title, spent in story.seconds.items()
    ]
    total = sum(story.seconds.values())
    return f"<table>{''.join(rows)}<tr><td><b>in all</b></td><td><b>{total:.0f} s</b></td></tr></table>"


def _commands(story: Story) -> str:
    bundle, cohort = story.bundle("scannet"), story.data["cohort"]
    lines = [
        f"lobule scan {bundle} {story.unseen[0].path} --out finer --stride 8",
        f"lobule evaluate {story.results('scannet')} {cohort} --split test --by site",
        f"lobule train scannet {cohort} --out bundle --set trunk=tiny --set mpp=1 --rounds 1",
    ]
    return "".join(f"<p><code>{escape(line)}</code></p>" for line in lines)


# -- pictures -----------------------------------------------------------------------------------------------


def _cards(story: Story) -> tuple[list[str], list[str]]:
    """A card a slide, and the close-ups of what was found, wrongly found and missed on all of them."""
    from lobule.results.folder import open_results
    from lobule.slides.slide import open_slide

    results = open_results(story.results("scannet"))
    cards: list[str] = []
    kinds: list[list[tuple[Place, Callable[[], str]]]] = [[], [], []]
    for case in story.unseen:
        assert case.path is not None
        folder, truth = results.case_folder(case.id), story.truths[case.id]
        columns = folder.findings()
        findings = list(zip(columns["l0_x"], columns["l0_y"], columns["score"], strict=True))
        sorted_places = sorted_out(case.id, truth, findings)
        (reader,) = folder.maps.values()
        with open_slide(case.path) as slide:
            thumbnail = slide.thumbnail(THUMBNAIL)
            pictures = [_image(thumbnail), _image(np.asarray(heat(reader, thumbnail, truth)))]
        result = folder.result
        assert result is not None
        cards.append(_card(case, result["scores"]["tumour"], [len(own) for own in sorted_places], pictures))
        for kind, own in zip(kinds, sorted_places, strict=True):
            kind += [(place, _taking(story, case, place)) for place in own]
    return cards, list(_close_ups(kinds))


def _taking(story: Story, case: Case, place: Place) -> Callable[[], str]:
    """The close-up of a place, taken only where it is shown."""
    from lobule.slides.slide import open_slide

    def take() -> str:
        assert case.path is not None
        with open_slide(case.path) as slide:
            return _image(np.asarray(close_up(slide, place, story.truths[case.id], CLOSE_UP)))

    return take


def _card(case: Case, score: float, counts: Sequence[int], pictures: Sequence[str]) -> str:
    found, wrong, missed = counts
    truth = (
        "without tumour"
        if polarity(case.label or "") is False
        else f"{found} of {found + missed} metastases found"
    )
    images = "".join(f"<img src='{picture}' alt=''>" for picture in pictures)
    where = f"<b>{escape(case.id)}</b>, {escape(case.site or '')}"
    told = f"{where}: {truth}, {wrong} false, slide score {score:.3f}"
    return f"<figure><div class=pair>{images}</div><figcaption>{told}</figcaption></figure>"


def _close_ups(kinds: Sequence[Sequence[tuple[Place, Callable[[], str]]]]) -> Iterator[str]:
    titles = ("Found", "Taken for tumour", "Missed")
    for title, own in zip(titles, kinds, strict=True):
        ordered = sorted(own, key=lambda item: -(item[0].score or item[0].size_um))
        if title == "Found":
            ordered.sort(key=lambda item: item[0].size_um)
        yield f"<h2>{title}: {len(own)}</h2>"
        if not own:
            yield "<p class=note>None.</p>"
            continue
        which = {"Found": "the smallest", "Taken for tumour": "the surest", "Missed": "the largest"}[title]
        if len(own) > SHOWN:
            yield f"<p class=note>Here are {which}.</p>"
        yield "<div class=close>"
        for place, take in ordered[:SHOWN]:
            size = "" if title == "Taken for tumour" else f", {place.size_um:.0f} µm"
            score = "" if place.score is None else f", score {place.score:.3f}"
            yield (
                f"<figure><img src='{take()}' alt=''><figcaption>{escape(place.case_id)}{size}{score}"
                "</figcaption></figure>"
            )
        yield "</div>"


def _image(pixels: Any) -> str:
    from lobule.methods.scannet.gallery import inline_jpeg

    return inline_jpeg(pixels, quality=80)
