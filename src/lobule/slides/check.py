"""Check a slide for problems: its µm/px, sampled tiles of every level, and the alignment of the levels."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, uniform_filter
from skimage.registration import phase_cross_correlation

from lobule.errors import CaseError, DamagedTile
from lobule.geometry import Box, Size
from lobule.slides.slide import READERS, Slide, open_slide

WINDOW = 128
"""Side, in pixels of the coarser level, of a window in which two levels are compared."""

CANDIDATES = 48
WINDOWS_COMPARED = 5
"""Of `CANDIDATES` windows, the `WINDOWS_COMPARED` with the most structure are compared."""

LEAST_CONTRAST = 4.0
"""A window whose grey values have a smaller standard deviation shows too little structure to compare."""

MAX_SHIFT = 1.0
"""Largest acceptable shift between two levels, in pixels of the coarser level."""

MAX_TILE_READ = Size(2048, 2048)
"""Larger tiles (untiled images) are sampled in pieces of this size."""


@dataclass(frozen=True)
class FailedTile:
    """A tile that could not be read, and the cause."""

    column: int
    row: int
    cause: str


@dataclass(frozen=True)
class LevelReport:
    """One level and the result of reading a sample of its tiles."""

    level: int
    width: int
    height: int
    tile_width: int
    tile_height: int
    tiles: int
    tried: int
    blank: int
    """Pure white tiles among those tried: missing or erased. Scanned glass is never perfectly uniform."""
    failed: tuple[FailedTile, ...]


@dataclass(frozen=True)
class Alignment:
    """Shift of a level against the next finer one, in its own pixels; None without enough structure."""

    level: int
    places: int
    shift_x: float | None
    shift_y: float | None

    @property
    def aligned(self) -> bool | None:
        if self.shift_x is None or self.shift_y is None:
            return None
        return bool(np.hypot(self.shift_x, self.shift_y) <= MAX_SHIFT)


@dataclass(frozen=True)
class SlideReport:
    """The report of `lobule doctor` on a slide. `problems` contains one sentence per problem."""

    path: str
    backend: str
    format: str
    mpp_x: float | None
    mpp_y: float | None
    mpp_source: str | None
    bounds: tuple[int, int, int, int] | None
    """x, y, width and height at level 0, if the file declares them."""
    associated: dict[str, tuple[int, int] | None]
    levels: tuple[LevelReport, ...]
    alignments: tuple[Alignment, ...]
    problems: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """The report as plain dictionaries, lists and numbers."""
        return asdict(self)


def check_slide(path: str, samples: int = 64, *, mpp: float | None = None) -> SlideReport:
    """Open a slide and check up to `samples` tiles of each level, spread evenly over the level.

    Args:
        path: The slide.
        samples: Number of tiles to read per level.
        mpp: µm/px of level 0, which replaces the value in the file.

    Raises:
        LobuleError: The file cannot be opened at all.
    """
    with open_slide(path, mpp=mpp) as slide:
        stated_mpp, declared = slide.stated_mpp, slide.backend.bounds
        levels = tuple(check_level(slide, level, samples) for level in range(len(slide.levels)))
        alignments = tuple(check_alignment(slide, level) for level in range(1, len(slide.levels)))
        return SlideReport(
            path=str(path),
            backend=_backend_name(slide),
            format=slide.format,
            mpp_x=stated_mpp.mpp.x if stated_mpp else None,
            mpp_y=stated_mpp.mpp.y if stated_mpp else None,
            mpp_source=stated_mpp.source if stated_mpp else None,
            bounds=(declared.x, declared.y, declared.width, declared.height) if declared else None,
            associated={n: (s.width, s.height) if s else None for n, s in slide.associated.items()},
            levels=levels,
            alignments=alignments,
            problems=tuple(_problems(slide, levels, alignments)),
        )


# -- tiles ------------------------------------------------------------------------------------------------


def check_level(slide: Slide, level: int, samples: int) -> LevelReport:
    """Read `samples` tiles spread evenly over a level, or all of them if there are fewer."""
    size, tile = slide.levels[level].size, slide.levels[level].tile
    side = Size(min(tile.width, MAX_TILE_READ.width), min(tile.height, MAX_TILE_READ.height))
    columns, rows = -(-size.width // side.width), -(-size.height // side.height)
    count = min(samples, columns * rows)
    blank, failed = 0, []
    for index in np.linspace(0, columns * rows - 1, count).round().astype(np.int64).tolist():
        column, row = index % columns, index // columns
        tile_box = Box(column * side.width, row * side.height, *side).intersect(Box(0, 0, *size))
        try:
            blank += bool(slide.read_level(level, tile_box).min() == 255)
        except CaseError as error:
            cause = error.cause if isinstance(error, DamagedTile) else error.problem
            failed.append(FailedTile(column, row, cause))
    return LevelReport(
        level, size.width, size.height, side.width, side.height, columns * rows, count, blank, tuple(failed)
    )


# -- alignment of levels ----------------------------------------------------------------------------------


def check_alignment(slide: Slide, level: int) -> Alignment:
    """The median shift of a level against the next finer one over several windows with structure."""
    shifts = []
    for box in _windows_with_structure(slide, level):
        try:
            coarse, fine = _grey(slide.read_level(level, box)), _finer(slide, level, box)
        except CaseError:  # `check_level` counts damaged tiles
            continue
        window = np.outer(np.hanning(box.height), np.hanning(box.width))
        levelled = [(pixels - pixels.mean()) * window for pixels in (coarse, fine)]
        shifts.append(phase_cross_correlation(*levelled, upsample_factor=10, normalization=None)[0])
    if not shifts:
        return Alignment(level, 0, None, None)
    shift_y, shift_x = np.median(np.array(shifts), axis=0).tolist()
    return Alignment(level, len(shifts), shift_x, shift_y)


def _windows_with_structure(slide: Slide, level: int) -> list[Box]:
    """The windows of a level with the highest contrast, best first."""
    size = slide.levels[level].size
    side = Size(min(WINDOW, size.width), min(WINDOW, size.height))
    across = max(1, min(size.width // side.width, round((CANDIDATES * size.width / size.height) ** 0.5)))
    down = max(1, min(size.height // side.height, CANDIDATES // across))
    ranked = []
    for y in np.linspace(0, size.height - side.height, down).astype(np.int64).tolist():
        for x in np.linspace(0, size.width - side.width, across).astype(np.int64).tolist():
            box = Box(x, y, *side)
            try:
                contrast = float(_grey(slide.read_level(level, box)).std())
            except CaseError:
                continue
            if contrast >= LEAST_CONTRAST:
                ranked.append((-contrast, box))
    return [box for _, box in sorted(ranked)[:WINDOWS_COMPARED]]


def _finer(slide: Slide, level: int, box: Box) -> NDArray[np.float64]:
    """The next finer level, averaged to the pixel grid of a box of this level."""
    step, finer_step = slide.steps(level), slide.steps(level - 1)
    ratio_x, ratio_y = step[0] / finer_step[0], step[1] / finer_step[1]
    margin = int(max(ratio_x, ratio_y)) + 2
    left, top = int(box.x * ratio_x) - margin, int(box.y * ratio_y) - margin
    right, bottom = int(box.right * ratio_x) + margin, int(box.bottom * ratio_y) + margin
    pixels = _grey(slide.read_level(level - 1, Box.of_edges(left, top, right, bottom)))
    smooth = uniform_filter(pixels, (max(1, round(ratio_y)), max(1, round(ratio_x))))
    y = _centres(box.y, box.height, ratio_y, top)
    x = _centres(box.x, box.width, ratio_x, left)
    return np.asarray(map_coordinates(smooth, np.meshgrid(y, x, indexing="ij"), order=1))


def _centres(start: int, count: int, ratio: Fraction, origin: int) -> NDArray[np.float64]:
    """Positions of pixel centres in pixels of the finer level.

    The average of an even number of pixels is centred half a pixel before the middle of its window.
    """
    even = 0.5 if max(1, round(ratio)) % 2 == 0 else 0.0
    index = np.arange(start, start + count, dtype=np.float64)
    return (index + 0.5) * float(ratio) - origin - 0.5 + even


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.asarray(pixels.mean(axis=2, dtype=np.float64))


# -- sentences --------------------------------------------------------------------------------------------


def _problems(slide: Slide, levels: tuple[LevelReport, ...], alignments: tuple[Alignment, ...]) -> list[str]:
    problems = []
    if slide.stated_mpp is None:
        problems.append(
            "The file does not say its µm/px: give it with --slide-mpp, or in the cohort's mpp column."
        )
    for level in levels:
        if level.failed:
            first = level.failed[0]
            problems.append(
                f"Level {level.level}: {len(level.failed)} of {level.tried} sampled tiles cannot be read; "
                f"the first is at column {first.column}, row {first.row}: {first.cause}."
            )
        if level.tried > 1 and level.blank == level.tried:
            problems.append(f"Level {level.level}: all {level.tried} sampled tiles are blank.")
    for alignment in alignments:
        if alignment.aligned is False:
            problems.append(
                f"Level {alignment.level} is shifted by ({alignment.shift_x:+.1f}, {alignment.shift_y:+.1f}) "
                "px against the next finer level: results of the two levels will not match in position."
            )
    return problems


def _backend_name(slide: Slide) -> str:
    module = type(slide.backend).__module__
    return next((name for name, reader in READERS.items() if reader == module), module)
