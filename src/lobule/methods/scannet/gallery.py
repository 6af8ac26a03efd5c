"""The gallery of a mining round: what the model took for tumour for a person to look through."""

from __future__ import annotations

import base64
import copy
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from lobule.color import RGB
from lobule.errors import LobuleError
from lobule.files import write_text
from lobule.geometry import Box
from lobule.results.result import RESEARCH_USE
from lobule.training.patch_sampling import SlidePositions

MOST = 240
"""Places shown, the highest scores first; a page of them is about two megabytes."""
SHEET = 60
"""Places that are open at once."""
SIDE = 160
"""Pixels a side of a picture."""
CONTEXT = 2
"""The picture is so many windows wide: what lies about a place tells whether the label is wrong."""
QUALITY = 75

STYLE = f"""
body {{ font: 15px/1.45 system-ui, sans-serif; color: #26242c; background: #fcfbf9; margin: 2rem auto;
  max-width: 74rem; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; margin: 0 0 .3rem; }} p {{ max-width: 46rem; }}
summary {{ cursor: pointer; font-weight: 600; margin: 1.2rem 0 .6rem; }}
.sheet {{ display: grid; grid-template-columns: repeat(auto-fill, {SIDE}px); gap: 1.1rem .9rem; }}
figure {{ margin: 0; }} .crop {{ position: relative; width: {SIDE}px; height: {SIDE}px; }}
.crop img {{ display: block; width: 100%; height: 100%; border-radius: 3px; }}
.crop i {{ position: absolute; inset: {50 - 50 / CONTEXT:g}%; border: 1.5px solid #ffb000;
  box-shadow: 0 0 0 1px #0006; }}
figcaption {{ font-size: 12px; line-height: 1.35; margin-top: .3rem; overflow-wrap: anywhere; }}
figcaption b {{ font-variant-numeric: tabular-nums; }}
table {{ border-collapse: collapse; font-size: 13px; }}
td, th {{ padding: .15rem .9rem .15rem 0; text-align: left; }}
footer {{ margin-top: 2.5rem; color: #7a7682; font-size: 13px; }}
"""


@dataclass(frozen=True)
class Mined:
    """One hard place."""

    slide: int
    """Its number in the pool."""
    l0_x: float
    l0_y: float
    score: float


def write_gallery(
    path: Path,
    slides: Sequence[SlidePositions],
    mined: Sequence[Mined],
    *,
    name: str,
    mpp: float,
    window: int,
) -> None:
    """Write one self-contained page: pictures of the strongest places, where they are, how many there are.

    `window` are the pixels of `mpp` that the model saw; they are framed in each picture.
    """
    shown = sorted(mined, key=lambda one: (-one.score, one.slide, one.l0_y, one.l0_x))[:MOST]
    pictures = dict(_pictures(slides, shown, mpp, window))
    figures = [_figure(one, slides[one.slide].case.id, pictures[one]) for one in shown]
    sheets = [
        f"<details{' open' if start == 0 else ''}><summary>{start + 1} to {min(start + SHEET, len(figures))}"
        f"</summary><div class=sheet>{''.join(figures[start : start + SHEET])}</div></details>"
        for start in range(0, len(figures), SHEET)
    ]
    counts = Counter(slides[one.slide].case.id for one in mined)
    write_text(path, _page(name, len(mined), len(shown), counts, "".join(sheets)))


def _page(name: str, found: int, shown: int, counts: Mapping[str, int], body: str) -> str:
    rows = "".join(
        f"<tr><td>{escape(case)}</td><td>{count:,}</td></tr>"
        for case, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:40]
    )
    which = "all of them" if shown == found else f"the {shown} with the highest scores"
    text = (
        f"{found:,} places of normal tissue that the model took for tumour, on {len(counts)} slides; here "
        f"are {which}. The next round draws from them. The frame is what the model saw. A picture of tumour "
        "here is one that nobody outlined: mend the annotation, or leave the slide out."
    )
    if not found:
        text, rows = "The model took no normal place for tumour.", ""
    listed = f"<details><summary>By slide</summary><table>{rows}</table></details>" if rows else ""
    title = escape(f"Hard negatives, {name}")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
        f"<h1>{title}</h1><p>{text}</p>{listed}{body}<footer>{escape(RESEARCH_USE)}</footer></html>\n"
    )


def _figure(one: Mined, case: str, picture: str | None) -> str:
    image = "<p>cannot be read</p>" if picture is None else f"<img src='{picture}' alt='tissue'><i></i>"
    return (
        f"<figure><div class=crop>{image}</div><figcaption><b>{one.score:.3f}</b> {escape(case)}<br>"
        f"x {round(one.l0_x):,}, y {round(one.l0_y):,} px</figcaption></figure>"
    )


def _pictures(
    slides: Sequence[SlidePositions], shown: Sequence[Mined], mpp: float, window: int
) -> Iterator[tuple[Mined, str | None]]:
    """Each place's picture, slide by slide; None where the slide gives none any more."""
    for number in sorted({one.slide for one in shown}):
        own = [one for one in shown if one.slide == number]
        # the pool's slides stay closed: this is a handle of its own
        with copy.copy(slides[number].slide) as slide:
            for one in own:
                try:
                    lattice = slide.lattice(mpp=mpp * CONTEXT)
                    x = round(one.l0_x / float(lattice.step_x) - window / 2)
                    y = round(one.l0_y / float(lattice.step_y) - window / 2)
                    yield one, inline_jpeg(slide.read_lattice(lattice, Box(x, y, window, window)), SIDE)
                except (LobuleError, OSError):  # a picture less is no reason to stop a training
                    yield one, None


def inline_jpeg(pixels: RGB, side: int | None = None, quality: int = QUALITY) -> str:
    """A picture as a data URI, its longer side so many pixels."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if side is not None and max(image.size) != side:
        scale = side / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(stored.getvalue()).decode()
