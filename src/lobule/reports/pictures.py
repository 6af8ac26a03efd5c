"""Pictures of reports: fields, slides under their maps, and the views of an exam.

Colours get darker as scores rise, so that a map can be read in black and white, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lobule.exports.case import rings_of
from lobule.findings import Finding
from lobule.geometry import Box
from lobule.mammograms.dicom_codes import OVERRIDES
from lobule.mammograms.exams import read_view, view_named
from lobule.results import MapReader
from lobule.server.map_tiles import BLOCK_CELLS
from lobule.slides.slide import Slide, open_slide
from lobule.stitch import State, reduce_map

RGB = NDArray[np.uint8]
FIELD_PX, SLIDE_PX, VIEW_PX = 256, 640, 320
FIELD_UM = 200.0
"""Side of a shown field in µm, at least; a larger finding is shown completely up to `LARGEST_UM`."""
LARGEST_UM = 2000.0
MARK = (20, 60, 160)
OUTLINE = (255, 176, 0)
RAMP = np.array([[255, 246, 220], [254, 200, 120], [240, 110, 50], [190, 20, 50], [90, 0, 60]], np.float64)
"""Colours of the scores from 0 to 1, from light to dark."""


@dataclass(frozen=True)
class Field:
    """One location of a slide that a report shows, with its number on the slide."""

    number: int
    l0_x: int
    l0_y: int
    score: float
    finding: Finding | None = None


def field_picture(slide: Slide, field: Field) -> tuple[RGB, float]:
    """Return the surroundings of a field with the outline of its finding, and the width shown in µm."""
    mpp = slide.stated_mpp.mpp.mean if slide.stated_mpp else 0.5
    size_um = (field.finding.size_um or 0) if field.finding is not None else 0
    width_um = float(np.clip(1.4 * size_um, FIELD_UM, LARGEST_UM))
    side = max(8, round(width_um / mpp))
    box = Box(field.l0_x - side // 2, field.l0_y - side // 2, side, side)
    steps = [float(slide.steps(index)[0]) for index in range(len(slide.levels))]
    level = max(index for index, step in enumerate(steps) if step <= max(1.0, side / FIELD_PX))
    picture = Image.fromarray(slide.read(box, level=level)).resize(
        (FIELD_PX, FIELD_PX), Image.Resampling.BICUBIC
    )
    pen, scale = ImageDraw.Draw(picture), FIELD_PX / side
    for rings in rings_of(field.finding) if field.finding is not None else ():
        for ring in rings:
            line = [((x - box.x) * scale, (y - box.y) * scale) for x, y in [*ring.tolist(), ring[0].tolist()]]
            pen.line(line, (0, 0, 0), 4)
            pen.line(line, OUTLINE, 2)
    _scale_bar(pen, width_um / FIELD_PX, FIELD_PX, FIELD_PX)
    return np.asarray(picture), width_um


def slide_pictures(
    slide: Slide | None, reader: MapReader | None, size: tuple[int, int], fields: Sequence[Field]
) -> tuple[RGB | None, RGB | None]:
    """Return the slide, and its map with numbered fields; None for what is missing."""
    width, height = fit(size, SLIDE_PX)
    plain = None
    if slide is not None:
        plain = np.asarray(Image.fromarray(slide.thumbnail(SLIDE_PX)).convert("RGB").resize((width, height)))
    if reader is None:
        return plain, None if plain is None else _marked(plain, size, fields)
    base = np.full((height, width, 3), 255, np.uint8) if plain is None else plain
    return plain, _marked(overlay(base, reader, size), size, fields)


def fit(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return a width and a height with the ratio of `size` and this longest side."""
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def overlay(base: RGB, reader: MapReader, size: tuple[int, int]) -> RGB:
    """Return a picture of a slide in pale grey with the scores of the last class in colour."""
    height, width = base.shape[:2]
    scores, states = small_map(reader, 2 * max(width, height))
    info = reader.info
    covered = (
        round(info.columns * info.l0_stride[0] / size[0] * width),
        round(info.rows * info.l0_stride[1] / size[1] * height),
    )
    scaled = Image.fromarray(scores).resize(covered, Image.Resampling.BOX)
    is_scored = Image.fromarray((states == State.SCORED).astype(np.uint8) * 255).resize(
        covered, Image.Resampling.BOX
    )
    share = np.zeros((height, width), np.float32)
    scored_share = np.zeros((height, width), np.float32)
    rows, columns = min(height, covered[1]), min(width, covered[0])
    share[:rows, :columns] = np.asarray(scaled)[:rows, :columns]
    scored_share[:rows, :columns] = np.asarray(is_scored, np.float32)[:rows, :columns] / 255
    grey = 0.45 * base.mean(axis=2, keepdims=True) + 140
    strength = (scored_share * np.clip(0.35 + share, 0, 0.85))[..., None]
    return np.asarray((grey * (1 - strength) + ramp(share) * strength).clip(0, 255), np.uint8)


def ramp(share: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the colours of scores from 0 to 1."""
    positions = np.linspace(0, 1, len(RAMP))
    return np.stack([np.interp(share, positions, RAMP[:, channel]) for channel in range(3)], axis=-1)


def ramp_picture(width: int = 200, height: int = 12) -> RGB:
    """Return the legend of the colours: 0 on the left, 1 on the right."""
    return np.tile(ramp(np.linspace(0, 1, width, dtype=np.float32)[None]), (height, 1, 1)).astype(np.uint8)


def small_map(reader: MapReader, longest: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return a map with about at most `longest` cells per side: the maximum scores of the last class."""
    info = reader.info
    factor = max(1, max(info.rows, info.columns) // max(1, longest))
    shape = -(-info.rows // factor), -(-info.columns // factor)
    scores, states = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    block = max(1, BLOCK_CELLS // factor) * factor
    for top in range(0, info.rows, block):
        for left in range(0, info.columns, block):
            rows = slice(top, min(top + block, info.rows))
            columns = slice(left, min(left + block, info.columns))
            block_scores, block_states = reader.read(rows, columns)
            if factor > 1:
                block_scores, block_states = reduce_map(block_scores[-1:], block_states, factor)
            layer = np.where(block_states == State.SCORED, np.nan_to_num(block_scores[-1]), 0)
            target = np.s_[
                top // factor : top // factor + layer.shape[0],
                left // factor : left // factor + layer.shape[1],
            ]
            scores[target], states[target] = layer, block_states
    return scores.clip(0, 1), states


def _marked(picture: RGB, size: tuple[int, int], fields: Sequence[Field]) -> RGB:
    """Return a picture with a numbered ring at each field."""
    marked = Image.fromarray(picture)
    pen = ImageDraw.Draw(marked)
    scale = picture.shape[1] / size[0]
    font = ImageFont.load_default(15)
    for field in fields:
        x, y = field.l0_x * scale, field.l0_y * scale
        pen.ellipse((x - 8, y - 8, x + 8, y + 8), outline=(255, 255, 255), width=4)
        pen.ellipse((x - 7, y - 7, x + 7, y + 7), outline=MARK, width=2)
        anchor = "lm" if x < picture.shape[1] - 30 else "rm"
        offset = 11 if anchor == "lm" else -11
        pen.text(
            (x + offset, y), str(field.number), MARK, font, anchor=anchor, stroke_width=3, stroke_fill="white"
        )
    return np.asarray(marked)


def _scale_bar(pen: ImageDraw.ImageDraw, um_per_px: float, width: int, height: int) -> None:
    """Draw a scale bar of a round length, about a quarter of the picture. Its caption states the length."""
    length = bar_um(um_per_px * width) / um_per_px
    right, bottom = width - 10, height - 10
    pen.rectangle((right - length, bottom - 5, right, bottom), fill=(0, 0, 0), outline=(255, 255, 255))


def bar_um(width_um: float) -> float:
    """Return the length of the scale bar of a picture in µm."""
    power = 10 ** np.floor(np.log10(width_um / 4))
    return float(max(step * power for step in (1, 2, 5) if step * power <= width_um / 4))


def view_pictures(path: str, name: str, reader: MapReader | None) -> tuple[RGB, RGB | None]:
    """Return one view of an exam, and the same under its heatmap of malignancy."""
    view = view_named(name.partition(" ")[0])
    pixels = read_view(path, view=view, allow=OVERRIDES).pixels
    height, width = pixels.shape
    grey = (np.sqrt(pixels / max(1, int(pixels.max()))) * 255).astype(np.uint8)
    small = fit((width, height), round(VIEW_PX * max(width, height) / width))
    plain = np.asarray(Image.fromarray(grey).resize(small, Image.Resampling.BILINEAR).convert("RGB"))
    if reader is None:
        return plain, None
    scores, _ = small_map(reader, max(small))
    info = reader.info
    covered = (
        max(1, round(info.columns * info.l0_stride[0] / width * small[0])),
        max(1, round(info.rows * info.l0_stride[1] / height * small[1])),
    )
    share = np.zeros(plain.shape[:2], np.float32)
    scaled = np.asarray(Image.fromarray(scores).resize(covered, Image.Resampling.BILINEAR))
    rows, columns = min(len(share), covered[1]), min(plain.shape[1], covered[0])
    share[:rows, :columns] = scaled[:rows, :columns]
    strength = (0.8 * np.clip((share - 0.3) / 0.7, 0, 1) * (plain[..., 0] > 0))[..., None]
    red = np.array([255, 40, 30], np.float32)
    return plain, np.asarray((plain * (1 - strength) + red * strength).clip(0, 255), np.uint8)


def opened_slide(path: str | None, mpp: float | None) -> Slide | None:
    """Return the slide of a case, or None if its file is gone."""
    return None if path is None else open_slide(path, mpp=mpp)
