"""The layout of a generated slide, computed from its seed: sections, lesions and zones of tissue."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import shapely
from scipy import ndimage

from lobule.annotations import Polygon, fill
from lobule.errors import ConfigError
from lobule.findings import lesion_class, longest_extent
from lobule.geometry import Box
from lobule.phantoms.noise import Reals, generator
from lobule.phantoms.outlines import Points, area, blob
from lobule.phantoms.ovals import Ovals
from lobule.phantoms.phantom import PATTERNS, Lesion, SlidePhantom
from lobule.phantoms.structures import ZONE_UM, structures


@dataclass(frozen=True)
class Layout:
    """Everything that is decided for the slide as a whole."""

    sections: list[Points]
    lesions: list[Lesion]
    ovals: dict[str, Ovals]
    depth: Reals
    """Distance inside the tissue's border (µm) on the zone lattice; 0 on glass."""
    zones: dict[str, Reals] = field(default_factory=dict)
    """Slow noise of unit spread on the zone lattice."""


def layout_of(phantom: SlidePhantom) -> Layout:
    sections = _sections(phantom)
    depth = _depth(phantom, sections)
    zones = {name: _slow(phantom, depth.shape, um, salt) for name, um, salt in _ZONES}
    ovals = structures(phantom, depth, zones)
    lesions = list(phantom.lesions) if phantom.lesions is not None else _lesions(phantom, sections, depth)
    return Layout(sections, lesions, ovals, depth, zones)


ROOM_UM = {"macro": 2900.0, "micro": 350.0, "itc": 60.0}
"""Width of tissue that a lesion of each class needs."""

ATTEMPTS = 120
"""Number of positions that are tried for one lesion before giving up."""

_ZONES = (
    ("architecture", 900.0, 1),
    ("fat", 1100.0, 2),
    ("hematoxylin", 1500.0, 3),
    ("eosin", 1300.0, 4),
    ("density", 500.0, 5),
)


def _slow(phantom: SlidePhantom, shape: tuple[int, ...], um: float, salt: int) -> Reals:
    rng = generator(phantom.seed, 0x20E, salt)
    sigma = um / ZONE_UM / 4
    margin = int(3 * sigma) + 1
    white = rng.standard_normal((shape[0] + 2 * margin, shape[1] + 2 * margin), np.float32)
    smooth: Reals = ndimage.gaussian_filter(white, sigma, mode="wrap")
    # the spread that white noise keeps after the filter, so that small slides are not stretched to fill
    smooth *= np.float32(2 * np.sqrt(np.pi) * sigma)
    return smooth[margin:-margin, margin:-margin]


def _sections(phantom: SlidePhantom) -> list[Points]:
    if phantom.tissue <= 0:
        return []
    width, height = float(phantom.width), float(phantom.height)
    if phantom.tissue >= 1:
        return [np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)]
    longest_um = max(phantom.size_um)
    count = phantom.sections or (1 if longest_um < 9000 else 2 if longest_um < 16000 else 3)
    across = max(1, round((count * width / height) ** 0.5))
    down = -(-count // across)
    rng = generator(phantom.seed, 0x5EC)
    cell_w, cell_h = width / across, height / down
    share = phantom.tissue * width * height / count
    um = phantom.mpp
    outlines = []
    for index in range(count):
        row, column = divmod(index, across)
        stretch = np.clip(cell_w / cell_h, 0.6, 1.7)
        perimeter_um = 4 * share**0.5 * um
        vertices = int(np.clip(perimeter_um / 6, 200, 6000))
        points = blob(rng, vertices=vertices, roughness=0.06, elongation=1.0, waves=40)
        points *= np.array([stretch**0.5, stretch**-0.5]) * share**0.5
        room = np.array([cell_w, cell_h]) * 0.97
        span = points.max(0) - points.min(0)
        points *= np.minimum(1.0, room / span)
        low, high = points.min(0), points.max(0)
        slack = np.maximum(room - (high - low), 0)
        corner = np.array([column * cell_w, row * cell_h]) + np.array([cell_w, cell_h]) * 0.015
        outlines.append(points - low + corner + slack * rng.uniform(0.2, 0.8, 2))
    return outlines


def _depth(phantom: SlidePhantom, sections: list[Points]) -> Reals:
    step = ZONE_UM / phantom.mpp
    columns = int(np.ceil(phantom.width / step)) + 2
    rows = int(np.ceil(phantom.height / step)) + 2
    if phantom.tissue >= 1:
        return np.full((rows, columns), 3000.0, np.float32)
    # Lattice points, not cells: the value at (i, j) belongs to the position (i, j) · step.
    inside = fill(
        [Polygon(points + step / 2) for points in sections], Fraction(step), Box(0, 0, columns, rows)
    )
    depth = ndimage.distance_transform_edt(inside) * ZONE_UM
    return np.asarray(ndimage.gaussian_filter(depth.astype(np.float32), 0.8))


# -- lesions ----------------------------------------------------------------------------------------------


def _lesions(phantom: SlidePhantom, sections: list[Points], depth: Reals) -> list[Lesion]:
    rng = generator(phantom.seed, 0x1E5)
    lesions: list[Lesion] = []
    for name, count in (("macro", phantom.macro), ("micro", phantom.micro), ("itc", phantom.itc)):
        for _ in range(count):
            lesions.append(_placed(phantom, name, sections, depth, lesions, rng))
    return lesions


def _placed(
    phantom: SlidePhantom,
    name: str,
    sections: list[Points],
    depth: Reals,
    earlier_lesions: list[Lesion],
    rng: np.random.Generator,
) -> Lesion:
    step = ZONE_UM / phantom.mpp
    most = 2 * float(depth.max(initial=0.0))
    tissue = shapely.MultiPolygon([shapely.Polygon(points).buffer(0) for points in sections]).buffer(0)
    occupied = [shapely.Polygon(lesion.outline).buffer(60 / phantom.mpp) for lesion in earlier_lesions]
    for attempt in range(ATTEMPTS):
        # each attempt is smaller, to fit the remaining room
        size_um = _drawn_size(name, most * (1 - attempt / ATTEMPTS), rng)
        # the distance to the border may shrink with each attempt, too
        room = depth >= min(size_um * 0.45, most / 2 - 1) * (1 - attempt / ATTEMPTS)
        candidates = np.argwhere(room & (depth > 0))
        if not len(candidates):
            continue
        row, column = candidates[rng.integers(len(candidates))] + rng.uniform(-0.5, 0.5, 2)
        points = _shape(name, size_um / phantom.mpp, rng, phantom.mpp) + np.array([column, row]) * step
        cut = shapely.Polygon(points).buffer(0).intersection(tissue)
        largest = max(shapely.get_parts(cut), key=shapely.area, default=None)
        if largest is None or largest.is_empty or any(largest.intersects(other) for other in occupied):
            continue
        outline = np.asarray(largest.exterior.coords, np.float64)[:-1]
        size = longest_extent(outline) * phantom.mpp
        if lesion_class(size) == name and area(outline) > 4:
            return drawn_lesion(outline, phantom.mpp, rng)
    raise _no_room(phantom, name, min(most, *phantom.size_um), len(earlier_lesions))


def _no_room(phantom: SlidePhantom, name: str, widest_um: float, placed: int) -> ConfigError:
    fitting_classes = [kind for kind, um in ROOM_UM.items() if um <= widest_um and kind != name]
    return ConfigError(
        f"no room for a lesion of class '{name}' on a generated slide",
        expected=f"tissue about {ROOM_UM[name] / 1000:g} mm wide and free of other lesions",
        actual=f"tissue {widest_um / 1000:.2g} mm wide, {placed} lesions already placed, on "
        f"{phantom.width} × {phantom.height} px of {phantom.mpp:g} µm, {phantom.tissue:.0%} of it tissue",
        remedy="Make the slide larger, ask for fewer lesions"
        + (f", or for {' or '.join(fitting_classes)} instead: that fits" if fitting_classes else ""),
    )


def drawn_lesion(outline: Points, mpp: float, rng: np.random.Generator) -> Lesion:
    """A lesion with this outline and a random appearance."""
    size_um = longest_extent(outline) * mpp
    pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
    return Lesion(
        outline,
        size_um,
        "solid" if lesion_class(size_um) == "itc" else pattern,
        dark=float(rng.uniform()),
        crowding=float(rng.uniform(0.7, 1.0)),
        eosin=float(rng.uniform(0.3, 1.05)),
    )


def _drawn_size(name: str, most_um: float, rng: np.random.Generator) -> float:
    if name == "macro":
        return float(rng.uniform(2080, min(6000, max(2300, most_um * 0.85))))
    if name == "micro":
        return float(np.exp(rng.uniform(np.log(230), np.log(min(1700, max(300, most_um * 0.5))))))
    return float(rng.uniform(35, 185))


def _shape(name: str, size_px: float, rng: np.random.Generator, mpp: float) -> Points:
    vertices = int(np.clip(size_px * mpp * 3 / 6, 24, 3000))
    points = blob(
        rng,
        vertices=vertices,
        roughness=0.19 if name != "itc" else 0.06,
        elongation=float(rng.uniform(1.0, 2.4)),
        waves=8 if name == "itc" else 36,
    )
    return points * (size_px / longest_extent(points))
