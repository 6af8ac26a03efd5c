"""The gallery of a mining round: pictures of hard negatives for a person to review."""

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

MAX_PICTURES = 240
"""Maximum number of pictures, the highest scores first; such a page has about two megabytes."""
PICTURES_PER_SHEET = 60
"""Number of pictures in one collapsible section."""
PICTURE_SIDE = 160
"""Side of a picture in pixels."""
CONTEXT = 2
"""Side of a picture in windows of the model. The surroundings help to see whether the label is wrong."""
JPEG_QUALITY = 75

STYLE = f"""
body {{ font: 15px/1.45 system-ui, sans-serif; color: #26242c; background: #fcfbf9; margin: 2rem auto;
  max-width: 74rem; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; margin: 0 0 .3rem; }} p {{ max-width: 46rem; }}
summary {{ cursor: pointer; font-weight: 600; margin: 1.2rem 0 .6rem; }}
.sheet {{ display: grid; grid-template-columns: repeat(auto-fill, {PICTURE_SIDE}px); gap: 1.1rem .9rem; }}
figure {{ margin: 0; }} .crop {{ position: relative; width: {PICTURE_SIDE}px; height: {PICTURE_SIDE}px; }}
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
class HardNegative:
    """One position of normal tissue that the model scored as tumour."""

    slide: int
    """Index of the slide in the pool."""
    l0_x: float
    l0_y: float
    score: float


def write_gallery(
    path: Path,
    slides: Sequence[SlidePositions],
    negatives: Sequence[HardNegative],
    *,
    name: str,
    mpp: float,
    window: int,
) -> None:
    """Write a self-contained page with pictures, positions and counts of the hard negatives.

    A frame in each picture marks the model's input, which is `window` pixels wide at `mpp`.
    """
    shown = sorted(
        negatives, key=lambda negative: (-negative.score, negative.slide, negative.l0_y, negative.l0_x)
    )[:MAX_PICTURES]
    pictures = dict(_pictures(slides, shown, mpp, window))
    figures = [_figure(negative, slides[negative.slide].case.id, pictures[negative]) for negative in shown]
    sheets = [
        f"<details{' open' if start == 0 else ''}><summary>{start + 1} to "
        f"{min(start + PICTURES_PER_SHEET, len(figures))}"
        f"</summary><div class=sheet>{''.join(figures[start : start + PICTURES_PER_SHEET])}</div></details>"
        for start in range(0, len(figures), PICTURES_PER_SHEET)
    ]
    counts = Counter(slides[negative.slide].case.id for negative in negatives)
    write_text(path, _page(name, len(negatives), len(shown), counts, "".join(sheets)))


def _page(name: str, total: int, shown: int, counts: Mapping[str, int], body: str) -> str:
    rows = "".join(
        f"<tr><td>{escape(case)}</td><td>{count:,}</td></tr>"
        for case, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:40]
    )
    which = "all of them" if shown == total else f"the {shown} with the highest scores"
    text = (
        f"{total:,} positions of normal tissue on {len(counts)} slides that the model scored as tumour; here "
        f"are {which}. The next round trains on them. The frame marks the input of the model. If a picture "
        "shows tumour, its outline is missing: correct the annotation or remove the slide."
    )
    if not total:
        text, rows = "The model did not score any normal tissue as tumour.", ""
    table_by_slide = f"<details><summary>By slide</summary><table>{rows}</table></details>" if rows else ""
    title = escape(f"Hard negatives, {name}")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
        f"<h1>{title}</h1><p>{text}</p>{table_by_slide}{body}<footer>{escape(RESEARCH_USE)}</footer></html>\n"
    )


def _figure(negative: HardNegative, case: str, picture: str | None) -> str:
    image = "<p>cannot be read</p>" if picture is None else f"<img src='{picture}' alt='tissue'><i></i>"
    return (
        f"<figure><div class=crop>{image}</div><figcaption><b>{negative.score:.3f}</b> {escape(case)}<br>"
        f"x {round(negative.l0_x):,}, y {round(negative.l0_y):,} px</figcaption></figure>"
    )


def _pictures(
    slides: Sequence[SlidePositions], shown: Sequence[HardNegative], mpp: float, window: int
) -> Iterator[tuple[HardNegative, str | None]]:
    """The picture of each hard negative, slide by slide; None if the slide cannot be read any more."""
    for index in sorted({negative.slide for negative in shown}):
        slide_negatives = [negative for negative in shown if negative.slide == index]
        # Open a separate handle; the slides of the pool stay closed.
        with copy.copy(slides[index].slide) as slide:
            for negative in slide_negatives:
                try:
                    lattice = slide.lattice(mpp=mpp * CONTEXT)
                    x = round(negative.l0_x / float(lattice.step_x) - window / 2)
                    y = round(negative.l0_y / float(lattice.step_y) - window / 2)
                    yield (
                        negative,
                        inline_jpeg(slide.read_lattice(lattice, Box(x, y, window, window)), PICTURE_SIDE),
                    )
                except (LobuleError, OSError):  # a missing picture must not stop the training
                    yield negative, None


def inline_jpeg(pixels: RGB, side: int | None = None, quality: int = JPEG_QUALITY) -> str:
    """Encode a picture as a JPEG data URI, with `side` pixels along its longer side."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if side is not None and max(image.size) != side:
        scale = side / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(stored.getvalue()).decode()
