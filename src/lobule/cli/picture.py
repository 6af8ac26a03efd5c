"""Draw one picture of a slide: an overview with outlines, and enlarged regions below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter
from skimage.measure import find_contours

from lobule.files import write_atomic
from lobule.geometry import Box
from lobule.results.result import RESEARCH_USE
from lobule.slides.slide import Slide

Colour = tuple[int, int, int]
Points = NDArray[np.floating[Any]]

PAPER: Colour = (252, 251, 249)
INK: Colour = (38, 36, 44)
GREY: Colour = (122, 118, 130)
TISSUE: Colour = (0, 128, 110)
TRUTH: Colour = (255, 176, 0)
EXCLUDED: Colour = (200, 30, 30)
FRAME: Colour = (30, 90, 200)

WIDTH = 1200
MARGIN = 24
GAP = 18
TITLE_HEIGHT, LEGEND_HEIGHT, CAPTION_HEIGHT, FOOTER_HEIGHT = 84, 44, 34, 40
SMOOTH = 2
"""Pictures are drawn this many times larger and then reduced, so that lines are smooth."""


@dataclass(frozen=True)
class Zoom:
    """A square region of the slide that is shown enlarged, with a caption."""

    l0_box: Box
    caption: str


@dataclass(frozen=True)
class Outlines:
    """Closed lines in level-0 pixels, with their colour and their caption in the legend."""

    l0_points: Sequence[Points]
    colour: Colour
    caption: str


def trace_outlines(mask: NDArray[np.bool_], l0_step_x: float, l0_step_y: float) -> list[Points]:
    """Trace smooth closed outlines of a mask in level-0 pixels; the steps are the sides of a mask cell."""
    margin = 4
    soft = gaussian_filter(np.pad(mask, margin).astype(np.float32), 1.0)
    # Contours are relative to the centre of the first padded cell. Level-0 positions begin at the corner.
    offset = margin - 0.5
    return [
        np.stack([(line[:, 1] - offset) * l0_step_x, (line[:, 0] - offset) * l0_step_y], axis=1)
        for line in find_contours(soft, 0.5)
    ]


def draw_slide(
    slide: Slide,
    title: str,
    subtitle: str,
    outlines: Sequence[Outlines],
    zooms: Sequence[Zoom] = (),
    footer: str = "",
) -> Image.Image:
    """Draw the picture, `WIDTH` pixels wide.

    Args:
        slide: The slide.
        title: The first line.
        subtitle: The second line.
        outlines: Outlines to draw, each group with an entry in the legend.
        zooms: Regions to enlarge below the overview, in which they are framed and numbered.
        footer: Text at the bottom, before the note on research use.
    """
    inner = WIDTH - 2 * MARGIN
    overview = _draw_overview(slide, inner, outlines, zooms)
    side = (inner - GAP * (len(zooms) - 1)) // max(1, len(zooms))
    zoom_height = side + CAPTION_HEIGHT if zooms else 0
    height = TITLE_HEIGHT + overview.height + LEGEND_HEIGHT + zoom_height + FOOTER_HEIGHT
    page = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, 16), title, INK, font(26))
    pen.text((MARGIN, 50), subtitle, GREY, font(16))
    page.paste(overview, (MARGIN, TITLE_HEIGHT))
    y = TITLE_HEIGHT + overview.height
    _draw_legend(pen, outlines, y + 12)
    y += LEGEND_HEIGHT
    for index, zoom in enumerate(zooms):
        x = MARGIN + index * (side + GAP)
        page.paste(draw_zoom(slide, zoom, side, outlines), (x, y))
        pen.rectangle((x, y, x + side - 1, y + side - 1), outline=FRAME, width=2)
        pen.text((x, y + side + 8), f"{index + 1}   {zoom.caption}", INK, font(16))
    pen.text((MARGIN, height - 30), f"{footer} {RESEARCH_USE}".strip(), GREY, font(14))
    return page


def save(picture: Image.Image, path: str | Path) -> None:
    """Save a picture. The file is replaced only when the new one is complete."""
    with write_atomic(path) as temporary:
        picture.save(temporary, optimize=True)


def _draw_overview(
    slide: Slide, width: int, outlines: Sequence[Outlines], zooms: Sequence[Zoom]
) -> Image.Image:
    """Draw the whole slide with outlines, frames of the zooms and a scale bar."""
    scale = width / slide.size.width
    height = round(slide.size.height * scale)
    pixels = Image.fromarray(slide.thumbnail(max(width, height)))
    large = pixels.resize((width * SMOOTH, height * SMOOTH), Image.Resampling.BICUBIC)
    _draw_outlines(large, outlines, scale * SMOOTH, 0, 0, 2 * SMOOTH)
    pen = ImageDraw.Draw(large)
    for index, zoom in enumerate(zooms):
        box = zoom.l0_box
        corners = [value * scale * SMOOTH for value in (box.x, box.y, box.right, box.bottom)]
        pen.rectangle(tuple(corners), outline=FRAME, width=2 * SMOOTH)
        _draw_number(pen, str(index + 1), corners[0], corners[1])
    picture = large.resize((width, height), Image.Resampling.LANCZOS)
    _draw_scale_bar(ImageDraw.Draw(picture), slide, scale, width, height)
    return picture


def draw_zoom(slide: Slide, zoom: Zoom, side: int, outlines: Sequence[Outlines]) -> Image.Image:
    """Draw an enlarged region with outlines and a scale bar, as a square of `side` pixels."""
    box = zoom.l0_box
    steps = [float(slide.steps(index)[0]) for index in range(len(slide.levels))]
    # The coarsest level that is at least as fine as the picture.
    level = max(index for index, step in enumerate(steps) if step <= max(1.0, box.width / side))
    pixels = Image.fromarray(slide.read(box, level=level))
    large = pixels.resize((side * SMOOTH, side * SMOOTH), Image.Resampling.BICUBIC)
    _draw_outlines(large, outlines, side * SMOOTH / box.width, box.x, box.y, 3 * SMOOTH)
    picture = large.resize((side, side), Image.Resampling.LANCZOS)
    _draw_scale_bar(ImageDraw.Draw(picture), slide, side / box.width, side, side)
    return picture


def _draw_outlines(
    picture: Image.Image, outlines: Sequence[Outlines], scale: float, l0_x: int, l0_y: int, width: int
) -> None:
    """Draw outlines with a white border on a picture whose corner is at a level-0 position."""
    pen = ImageDraw.Draw(picture)
    for group in outlines:
        for points in group.l0_points:
            closed = np.concatenate([points, points[:2]])
            line = [(float((x - l0_x) * scale), float((y - l0_y) * scale)) for x, y in closed]
            pen.line(line, (255, 255, 255), width + 2 * SMOOTH, joint="curve")
            pen.line(line, group.colour, width, joint="curve")


def _draw_number(pen: ImageDraw.ImageDraw, text: str, x: float, y: float) -> None:
    """Draw the number of a zoom in a filled square above its frame."""
    size = 20 * SMOOTH
    pen.rectangle((x, y - size, x + size, y), fill=FRAME)
    pen.text((x + size / 2, y - size / 2), text, (255, 255, 255), font(15 * SMOOTH), anchor="mm")


def _draw_legend(pen: ImageDraw.ImageDraw, outlines: Sequence[Outlines], y: int) -> None:
    x = float(MARGIN)
    for group in outlines:
        pen.line((x, y + 10, x + 26, y + 10), group.colour, 4)
        pen.text((x + 34, y), group.caption, INK, font(16))
        x += 34 + pen.textlength(group.caption, font(16)) + 30


def _draw_scale_bar(pen: ImageDraw.ImageDraw, slide: Slide, scale: float, width: int, height: int) -> None:
    """Draw a scale bar of a round length, at most a sixth of the picture, if the slide has a µm/px."""
    if slide.stated_mpp is None:
        return
    um_per_px = slide.stated_mpp.mpp.x / scale
    longest_um = um_per_px * width / 6
    power = 10 ** np.floor(np.log10(longest_um))
    um = max(step * power for step in (1, 2, 5) if step * power <= longest_um)
    text = f"{um / 1000:g} mm"  # The built-in font of Pillow has no µ.
    right, bottom, length = width - 16, height - 16, um / um_per_px
    pen.rectangle((right - length, bottom - 5, right, bottom), fill=INK, outline=(255, 255, 255))
    text_position = (right - length / 2, bottom - 10)
    pen.text(text_position, text, INK, font(15), anchor="mb", stroke_width=3, stroke_fill=(255, 255, 255))


def font(size: int) -> ImageFont.FreeTypeFont:
    """Return the built-in font of Pillow, in a size in pixels."""
    built_in = ImageFont.load_default(size)
    assert isinstance(built_in, ImageFont.FreeTypeFont)
    return built_in
