"""The positions at which patches may be drawn: for each slide and class, stored as runs of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from lobule.annotations import Annotation, Polygon, classes_of_tumour_value, fill, inside, read_annotation
from lobule.cohort import Case
from lobule.cohort.labels import is_false, polarity
from lobule.color import Normalisation
from lobule.errors import AnnotationError
from lobule.geometry import Box, Size
from lobule.grid import Cells, cells_in_box
from lobule.scanning.contract import EngineSettings, ScanOptions
from lobule.scanning.open_case import OpenedCase
from lobule.slides.normalised import with_normalisation
from lobule.slides.slide import Slide, open_slide
from lobule.tissue import TissueConfig

NORMAL, TUMOUR, NEITHER = 0, 1, -1
"""The class of a point. Points in exclusions, or about which nothing is known, are neither."""

SMALL_CELLS = 3
"""A lesion of at most this many cells per side is sampled separately, because most points of its cells lie
outside it."""

TRIES = 1000
PROBES = 32

Points = NDArray[np.float64]
"""(n, 2): x and y in level-0 pixels."""


@dataclass(frozen=True, eq=False)
class Runs:
    """The cells of a mask, stored as runs along its rows, which takes little memory even for large slides."""

    first: NDArray[np.int64]
    """The flat index of the first cell of each run."""
    total: NDArray[np.int64]
    """For each run, the number of cells in it and in all runs before it."""

    @classmethod
    def of(cls, mask: Cells) -> Runs:
        flat = np.concatenate([[False], mask.ravel(), [False]]).astype(np.int8)
        change = np.diff(flat)
        first, stop = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
        return cls(first, np.cumsum(stop - first))

    def __len__(self) -> int:
        return int(self.total[-1]) if len(self.total) else 0

    def pick(self, number: int) -> int:
        """Return the flat index of the cell with this number."""
        run = int(np.searchsorted(self.total, number, side="right"))
        before = int(self.total[run - 1]) if run else 0
        return int(self.first[run]) + number - before

    def contains(self, cells: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each flat cell index, whether the cell belongs to the mask."""
        if not len(self.first):
            return np.zeros(len(cells), np.bool_)
        run = np.searchsorted(self.first, cells, side="right") - 1
        length = np.diff(self.total, prepend=0)
        return np.asarray((run >= 0) & (cells < self.first[run] + length[run]), np.bool_)

    def __contains__(self, cell: int) -> bool:
        run = int(np.searchsorted(self.first, cell, side="right")) - 1
        before = int(self.total[run - 1]) if run > 0 else 0
        return run >= 0 and cell < int(self.first[run]) + int(self.total[run]) - before


@dataclass(frozen=True, eq=False)
class Outlined:
    """An annotation that determines the class of any point from the polygons near it."""

    polygons: tuple[Polygon, ...]
    boxes: NDArray[np.float64]
    """(n, 4): left, top, right, bottom."""

    @classmethod
    def of(cls, annotation: Annotation) -> Outlined:
        polygons = annotation.of_kind("tumour", "exclusion")
        boxes = [
            [*ring.min(axis=0), *ring.max(axis=0)] for p in polygons for ring in [np.concatenate(p.rings)]
        ]
        return cls(polygons, np.array(boxes, np.float64).reshape(-1, 4))

    def of_kind(self, kind: str) -> tuple[Polygon, ...]:
        return tuple(polygon for polygon in self.polygons if polygon.kind == kind)

    def classes(self, l0_points: Points) -> NDArray[np.int8]:
        """Return the classes: TUMOUR in tumour outside exclusions, NEITHER in exclusions, else NORMAL."""
        low, high = l0_points.min(axis=0), l0_points.max(axis=0)
        near = ((self.boxes[:, :2] <= high) & (self.boxes[:, 2:] >= low)).all(axis=1)
        close = [polygon for polygon, is_near in zip(self.polygons, near, strict=True) if is_near]
        tumour = inside([p for p in close if p.kind == "tumour"], l0_points)
        excluded = inside([p for p in close if p.kind == "exclusion"], l0_points)
        return np.where(excluded, NEITHER, np.where(tumour, TUMOUR, NORMAL)).astype(np.int8)


@dataclass(frozen=True, eq=False)
class SlidePositions:
    """The positions on one slide at which patches of each class may be centred."""

    case: Case
    slide: Slide
    """The slide, closed. Each worker opens a separate copy."""
    l0_size: Size
    mpp: float
    """µm/px of level 0."""
    l0_cell: tuple[float, float]
    columns: int
    cells: tuple[Runs, Runs]
    """For each class, the cells that contain or may contain points of it."""
    unsure: Runs
    """Cells at an outline, in which the class has to be determined for each point."""
    small: tuple[Polygon, ...] = ()
    """Lesions too small for cells; each counts as one cell."""
    outlined: Outlined | None = None
    """The outlines; None if the whole slide is normal."""

    def count(self, label: int) -> int:
        return len(self.cells[label]) + (len(self.small) if label == TUMOUR else 0)

    def classes(self, l0_points: Points) -> NDArray[np.int8]:
        if self.outlined is None:
            return np.full(len(l0_points), NORMAL, np.int8)
        return self.outlined.classes(l0_points)

    def certain_classes(self, l0_points: Points) -> NDArray[np.int8]:
        """Return the classes of points, but NEITHER for points near an outline or without a usable class.

        Points without a usable class lie on glass, in exclusions, or in normal tissue of slides whose tumour
        is not outlined exhaustively.
        """
        columns, rows = np.floor(l0_points / self.l0_cell).astype(np.int64).T
        cells = np.where((columns >= 0) & (columns < self.columns), rows * self.columns + columns, -1)
        classes = np.full(len(cells), NEITHER, np.int8)
        for label in (NORMAL, TUMOUR):
            classes[self.cells[label].contains(cells)] = label
        classes[self.unsure.contains(cells)] = NEITHER
        return classes

    def draw(self, label: int, rng: np.random.Generator) -> tuple[float, float] | None:
        """Draw a point of a class, uniformly over its area; each small lesion counts as one cell.

        Returns None if no point was found after many tries.
        """
        for _ in range(TRIES if self.count(label) else 0):
            number = int(rng.integers(self.count(label)))
            if number >= len(self.cells[label]):
                points = _in_box(self.small[number - len(self.cells[label])].l0_box, rng)
            else:
                cell = self.cells[label].pick(number)
                corner = np.array([cell % self.columns, cell // self.columns])
                points = ((corner + rng.random(2)) * self.l0_cell)[None]
                if cell not in self.unsure:
                    return self._inside_slide(points[0])
            right = self.classes(points) == label
            if right.any():
                return self._inside_slide(points[int(right.argmax())])
        return None

    def _inside_slide(self, point: NDArray[np.float64]) -> tuple[float, float]:
        # The last cells extend beyond the edge of the slide.
        size = self.l0_size
        return min(float(point[0]), size.width - 0.5), min(float(point[1]), size.height - 0.5)


@dataclass(frozen=True, eq=False)
class FixedPositions:
    """Positions chosen in advance, for a training that uses each of them once per epoch."""

    slides: NDArray[np.int64]
    """For each position, the number of its slide in the pool."""
    labels: NDArray[np.int64]
    l0_points: Points

    def __len__(self) -> int:
        return len(self.slides)

    @cached_property
    def slides_by_class(self) -> tuple[list[int], list[int]]:
        """For each class, the numbers of the slides with positions of it."""
        normal, tumour = (np.unique(self.slides[self.labels == label]).tolist() for label in (NORMAL, TUMOUR))
        return normal, tumour


@dataclass(frozen=True, eq=False)
class Pool:
    """All positions of a cohort, and the positions in normal tissue that a model mistook for tumour."""

    slides: tuple[SlidePositions, ...]
    hard: Mapping[int, Points] = field(default_factory=dict)
    """For slides by number, the positions in normal tissue that a model mistook for tumour."""
    notes: tuple[str, ...] = ()
    """One sentence for each case or class of patches that was left out, with the reason."""
    fixed: FixedPositions | None = None
    """If given, only these positions are used."""

    def usable(self, label: int) -> list[int]:
        """Return the numbers of the slides that have positions of a class."""
        return self._usable[label]

    @property
    def has_both_classes(self) -> bool:
        return bool(self.usable(NORMAL) and self.usable(TUMOUR))

    @cached_property
    def _usable(self) -> tuple[list[int], list[int]]:
        slides = list(enumerate(self.slides))
        normal = [number for number, positions in slides if positions.count(NORMAL)]
        return normal, [number for number, positions in slides if positions.count(TUMOUR)]

    def with_hard(self, hard: Mapping[int, Points]) -> Pool:
        return replace(self, hard=dict(hard))


def find_positions(
    case: Case, tissue: TissueConfig | None, stains: Normalisation = "none"
) -> tuple[SlidePositions, list[str]]:
    """Return the positions on one slide, and notes about it.

    With a normalisation of `stains`, the slide of the positions is read with normalised stains.

    Raises:
        CaseError: The slide or its annotation cannot be used.
    """
    assert case.path is not None, "patches are drawn from slides"
    slide = with_normalisation(open_slide(case.path, mpp=case.mpp), stains)
    opened = OpenedCase(case, {"slide": slide}, ScanOptions(tissue=tissue), EngineSettings())
    detected = opened.tissue()
    notes: list[str] = list(detected.notes)
    if not detected.mask.any():
        notes.append("no tissue was found")
    outlined = _outlined(case, slide.size, notes)
    blank = np.zeros_like(detected.mask)
    masks = (blank, blank)
    unsure = blank
    small: tuple[Polygon, ...] = ()
    if outlined is not None:
        masks, unsure, small = _by_outlines(case, outlined, detected.mask, detected.l0_step)
    elif case.label is not None and polarity(case.label) is False:
        masks = (detected.mask, blank)
    else:
        notes.append(_why_unusable(case))
    if outlined is not None and _not_exhaustive(case):
        masks = (blank, masks[1])
        notes.append("not all its tumour is outlined, so no normal patches are drawn from it")
    positions = SlidePositions(
        case,
        slide,
        slide.size,
        slide.mpp.mean,
        detected.l0_step,
        detected.mask.shape[1],
        (Runs.of(masks[0]), Runs.of(masks[1])),
        Runs.of(unsure),
        small,
        outlined,
    )
    slide.close()
    return _without_empty_classes(positions), notes


def _why_unusable(case: Case) -> str:
    """Return the reason why no patches are drawn from a slide without an annotation."""
    if case.label is None:
        return "it has neither an annotation nor a label, so no patches are drawn from it"
    if polarity(case.label):
        return (
            f"its label '{case.label}' means that it contains tumour, but no annotation outlines the tumour, "
            "so no patches are drawn from it"
        )
    return (
        f"it has no annotation, and Lobule does not know whether its label '{case.label}' means tumour or "
        "normal tissue, so no patches are drawn from it; label it 'normal' or 'tumour', or outline its tumour"
    )


def _outlined(case: Case, l0_size: Size, notes: list[str]) -> Outlined | None:
    if case.annotation is None:
        return None
    stated = case.mask_tumour
    classes = None if stated is None else classes_of_tumour_value(stated)
    annotation = read_annotation(case.annotation, l0_size=l0_size, classes=classes)
    if (
        stated is None
        and not annotation.of_kind("tumour")
        and case.label is not None
        and polarity(case.label)
    ):
        # ASAP's script for Camelyon16 writes tumour as 1 into a mask that has no other value.
        annotation = read_annotation(case.annotation, l0_size=l0_size, classes={1: "tumour"})
    notes += annotation.warnings
    if tumours := annotation.of_kind("tumour"):
        slide_box = Box(0, 0, l0_size.width, l0_size.height)
        beyond = [polygon for polygon in tumours if polygon.l0_box.intersect(slide_box).empty]
        if len(beyond) == len(
            tumours
        ):  # of another slide or scale: taken for normal, tumour would be learned
            raise AnnotationError(
                "its outlines lie outside the slide",
                subject=case.annotation,
                expected=f"level-0 pixels of {l0_size.width} × {l0_size.height}",
                actual=f"tumour from x {tumours[0].l0_box.x}, y {tumours[0].l0_box.y}",
                remedy="Check that it is this slide's, and in level-0 pixels",
            )
        if beyond:
            notes.append(f"{len(beyond)} of {len(tumours)} outlines lie outside the slide")
        if case.label is not None and polarity(case.label) is False:
            notes.append(
                f"its label '{case.label}' means no tumour, but its annotation outlines tumour: "
                "the annotation is used"
            )
        return Outlined.of(annotation)
    if case.label is not None and polarity(case.label) is not False:
        raise AnnotationError(
            f"the case is labelled '{case.label}', but its annotation contains no tumour outline",
            subject=case.annotation,
            expected="at least one tumour outline, or a label that means no tumour, such as 'normal' or '0'",
            remedy="Correct the label, or outline the tumour",
        )
    notes.append("its annotation contains no tumour outline: all its tissue is used as normal tissue")
    return Outlined.of(annotation)


def _not_exhaustive(case: Case) -> bool:
    return is_false(case.attributes.get("exhaustive", "true"))


def _without_empty_classes(positions: SlidePositions) -> SlidePositions:
    """Remove the cells of a class that has no points, such as a tumour that lies entirely in exclusions."""
    rng = np.random.default_rng(0)
    cells = list(positions.cells)
    for label in (NORMAL, TUMOUR):
        if positions.count(label) and positions.draw(label, rng) is None:
            cells[label] = Runs.of(np.zeros((1, 1), np.bool_))
    return replace(positions, cells=(cells[0], cells[1]))


def _by_outlines(
    case: Case, outlined: Outlined, tissue: Cells, l0_cell: tuple[float, float]
) -> tuple[tuple[Cells, Cells], Cells, tuple[Polygon, ...]]:
    """Return the cells of normal tissue and of tumour, the cells at outlines, and the small lesions."""
    step = Fraction(l0_cell[0]), Fraction(l0_cell[1])
    mask_box = Box(0, 0, tissue.shape[1], tissue.shape[0])
    tumour, excluded = outlined.of_kind("tumour"), outlined.of_kind("exclusion")
    small = [polygon for polygon in tumour if _is_small(polygon, l0_cell)]
    large = [polygon for polygon in tumour if not _is_small(polygon, l0_cell)]
    out = fill(excluded, step, mask_box)
    lesion = fill(large, step, mask_box)
    edge = _edges(large, tissue.shape, l0_cell)
    unsure = edge | _edges([*excluded, *small], tissue.shape, l0_cell)
    bare = [polygon for polygon in large if not (fill([polygon], step, mask_box) & tissue).any()]
    allowed = tissue | (fill(bare, step, mask_box) | _edges(bare, tissue.shape, l0_cell))
    if case.l0_box is not None:  # The tissue ends at the region, and so must the lesions.
        allowed &= cells_in_box(tissue.shape, l0_cell, case.l0_box)
        small = [polygon for polygon in small if case.l0_box.contains(polygon.l0_box)]
    is_tumour = ((lesion & (~out | unsure)) | edge) & allowed
    is_normal = ((~lesion & ~out) | unsure) & tissue
    usable_small = tuple(polygon for polygon in small if _has_points(outlined, polygon))
    return (is_normal, is_tumour), unsure, usable_small


def _is_small(polygon: Polygon, l0_cell: tuple[float, float]) -> bool:
    box = polygon.l0_box
    return box.width <= SMALL_CELLS * l0_cell[0] and box.height <= SMALL_CELLS * l0_cell[1]


def _has_points(outlined: Outlined, polygon: Polygon) -> bool:
    rng = np.random.default_rng(0)
    return any((outlined.classes(_in_box(polygon.l0_box, rng)) == TUMOUR).any() for _ in range(16))


def _in_box(box: Box, rng: np.random.Generator) -> Points:
    points: Points = (box.x, box.y) + rng.random((PROBES, 2)) * (box.width, box.height)
    return points


def _edges(polygons: Sequence[Polygon], shape: tuple[int, ...], l0_cell: tuple[float, float]) -> Cells:
    """Return the cells that an outline passes through, and their neighbours."""
    mask = np.zeros(shape, np.bool_)
    for polygon in polygons:
        for ring in polygon.rings:
            start = ring / l0_cell
            reach = np.roll(start, -1, axis=0) - start
            # With two points per cell and the neighbours added, no cell that the edge touches is missed.
            count = np.ceil(2 * np.abs(reach).max(axis=1)).astype(np.int64) + 1
            edge = np.repeat(np.arange(len(start)), count)
            fraction = (np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)) / count[edge]
            x, y = np.floor(start[edge] + fraction[:, None] * reach[edge]).astype(np.int64).T
            on = (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0])
            mask[y[on], x[on]] = True
    return np.asarray(binary_dilation(mask, np.ones((3, 3), np.bool_)), np.bool_)
