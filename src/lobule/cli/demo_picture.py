"""The pictures of `lobule demo`: maps over slides, and close-ups of lesions and findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from PIL import Image, ImageDraw

from lobule.cli.picture import INK, MARGIN, PAPER, TRUTH, Outlines, Zoom, draw_zoom, font
from lobule.geometry import Box
from lobule.phantoms.truth import SlideTruth

if TYPE_CHECKING:
    from lobule.results.maps import MapReader
    from lobule.slides.slide import Slide

REACH_UM = 37.5
"""A finding hits a lesion within this distance, as in the official measure."""
SMALLEST_UM = 250.0
"""Smallest lesion size that determines the width of a close-up."""


@dataclass(frozen=True)
class Location:
    """Position and size of a lesion or a finding that is shown enlarged."""

    case_id: str
    l0_x: float
    l0_y: float
    size_um: float
    score: float | None
    """Score of the finding; None for a missed lesion."""


def match_findings(
    case_id: str, truth: SlideTruth, findings: Sequence[tuple[float, float, float]]
) -> tuple[list[Location], list[Location], list[Location]]:
    """Match findings to lesions.

    Isolated tumour cells count neither as lesions nor as false positives.

    Args:
        case_id: The case.
        truth: Ground truth of the slide.
        findings: (x, y, score) of each finding, in level-0 pixels.

    Returns:
        The lesions that were found, each at its best finding; the false positives; and the missed lesions.
    """
    zones = [shapely.Polygon(outline.points).buffer(REACH_UM / truth.mpp) for outline in truth.outlines]
    best: dict[int, Location] = {}
    false_positives: list[Location] = []
    for x, y, score in sorted(findings, key=lambda finding: -finding[2]):
        hit = next((i for i, zone in enumerate(zones) if zone.covers(shapely.Point(x, y))), None)
        if hit is None:
            false_positives.append(Location(case_id, x, y, SMALLEST_UM, score))
        else:
            best.setdefault(hit, Location(case_id, x, y, truth.outlines[hit].size_um, score))
    counted = [i for i, outline in enumerate(truth.outlines) if outline.lesion_class != "itc"]
    missed = []
    for outline in (truth.outlines[i] for i in counted if i not in best):
        x, y = outline.points.mean(axis=0).tolist()
        missed.append(Location(case_id, x, y, outline.size_um, None))
    return [best[i] for i in counted if i in best], false_positives, missed


def draw_heatmap(reader: MapReader, thumbnail: Any, truth: SlideTruth, line: int = 2) -> Image.Image:
    """Draw a map over its slide in red, with the true outlines."""
    scores, _ = reader.read()
    height, width = thumbnail.shape[:2]
    small = Image.fromarray((255 * scores[0]).astype(np.uint8)).resize((width, height))
    share = np.asarray(small, np.float32)[..., None] / 255
    grey = 0.35 * thumbnail.mean(axis=2, keepdims=True) + 160
    red = np.array([200, 20, 40], np.float32)
    picture = Image.fromarray((grey * (1 - share) + red * share).clip(0, 255).astype(np.uint8))
    pen, scale = ImageDraw.Draw(picture), width / truth.width
    for outline in truth.outlines:
        points = np.asarray(outline.points) * scale
        pen.line([(x, y) for x, y in [*points, points[0]]], TRUTH, line, joint="curve")
    return picture


def close_up(slide: Slide, location: Location, truth: SlideTruth, side: int) -> Image.Image:
    """Read a location with its surroundings and draw the true outlines."""
    width = int(np.clip(1.7 * location.size_um, 1.7 * SMALLEST_UM, 900) / truth.mpp)
    x, y = int(location.l0_x) - width // 2, int(location.l0_y) - width // 2
    return draw_zoom(slide, Zoom(Box(x, y, width, width), ""), side, [painted_tumours(truth)])


def painted_tumours(truth: SlideTruth) -> Outlines:
    return Outlines([outline.points for outline in truth.outlines], TRUTH, "tumour, as painted")


def append_map(page: Image.Image, below: Image.Image) -> Image.Image:
    """Append the map below the page, at the same scale."""
    both = Image.new("RGB", (page.width, page.height + below.height + 70), PAPER)
    both.paste(page, (0, 0))
    caption = "Map of the model: red means tumour; the true tumours are outlined"
    ImageDraw.Draw(both).text((MARGIN, page.height + 4), caption, INK, font(18))
    both.paste(below, (MARGIN, page.height + 36))
    return both


def zooms_of(truth: SlideTruth) -> list[Zoom]:
    """Choose up to three lesions to enlarge: the largest, a medium one and the smallest."""
    names = {"macro": "Macrometastasis", "micro": "Micrometastasis", "itc": "Isolated tumour cells"}
    ordered = sorted(truth.outlines, key=lambda outline: -outline.size_um)
    count = len(ordered)
    zooms = []
    for index in sorted({0, count // 2, count - 1} if count else set()):
        points = np.asarray(ordered[index].points)
        extent = float(np.ptp(points, axis=0).max())
        side = min(int(np.clip(1.6 * extent, 400, 1600)), truth.width, truth.height)
        x, y = (int(value) - side // 2 for value in (points.min(0) + points.max(0)) / 2)
        x, y = max(0, min(x, truth.width - side)), max(0, min(y, truth.height - side))
        name = names[ordered[index].lesion_class]
        zooms.append(Zoom(Box(x, y, side, side), f"{name}, {ordered[index].size_um / 1000:.2f} mm"))
    return zooms
