"""The label budget: the outlined slides, and the patches on them, that a training learns from.

The choice is made before the training and depends only on the seed and the names of the cases. The slides of
a smaller budget are a subset of those of a larger one, so that the points of a label-budget curve are
comparable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from lobule.methods.reverse_distillation.config import Config
from lobule.training.patch_sampling import NORMAL, TUMOUR, FixedPositions, Points, Pool, SlidePositions

BUDGET_STREAM = 0xB0D6E7
"""Separates the random stream of the choice of slides and patches from other uses of the seed."""
MAX_FAILED_DRAWS = 200
"""After this many unusable draws in a row, a slide counts as exhausted."""


@dataclass(frozen=True, eq=False)
class PatchBudget:
    """The slides and patches that were chosen within the label budget."""

    pool: Pool
    """The chosen slides with the chosen patch positions."""
    counts: Mapping[str, tuple[int, int]]
    """For each case, the number of normal and of tumour patches."""
    notes: tuple[str, ...] = ()

    @property
    def positions(self) -> FixedPositions:
        assert self.pool.fixed is not None
        return self.pool.fixed

    def total(self, label: int) -> int:
        return int((self.positions.labels == label).sum())

    def summary(self) -> dict[str, Any]:
        """Return the numbers of slides and patches for the bundle."""
        return {
            "slides": sum(1 for _, tumour in self.counts.values() if tumour),
            "normal_patches": self.total(NORMAL),
            "tumour_patches": self.total(TUMOUR),
            "of": {name: list(counts) for name, counts in self.counts.items()},
        }

    def to_csv(self) -> str:
        """Every patch position of the training as CSV with the columns `case,class,l0_x,l0_y`."""
        lines = ["case,class,l0_x,l0_y"]
        for number, label, (x, y) in zip(
            self.positions.slides, self.positions.labels, self.positions.l0_points, strict=True
        ):
            name = self.pool.slides[number].case.id
            lines.append(f"{name},{'tumour' if label == TUMOUR else 'normal'},{x:.2f},{y:.2f}")
        return "\n".join(lines) + "\n"


def choose_patches(config: Config, pool: Pool, seed: int) -> PatchBudget:
    """Choose slides, then patches: tumour evenly from the slides, and normal tissue from the same slides.

    `config.normal_slides` normal slides also provide normal patches. If all these slides together have too
    little normal tissue, for example because their outlines are not exhaustive, further normal slides are
    used.
    """
    notes: list[str] = []
    outlined = [pool.slides[number] for number in pool.usable(TUMOUR)]
    clean = [slide for slide in pool.slides if not slide.count(TUMOUR) and slide.count(NORMAL)]
    chosen = (
        _first_slides(outlined, config.slides, seed)
        if outlined
        else _first_slides(clean, config.slides, seed)
    )
    if len(outlined) < config.slides and outlined:
        notes.append(f"slides is {config.slides}, but only {len(outlined)} slides have outlines")
    tumour = _draw_points(chosen, TUMOUR, config.tumour_patches, config, seed) if outlined else {}
    chosen_names = {slide.case.id for slide in chosen}
    normal_slides = _first_slides(
        [slide for slide in clean if slide.case.id not in chosen_names], config.normal_slides, seed
    )
    if len(normal_slides) < config.normal_slides:
        notes.append(
            f"normal_slides is {config.normal_slides}, but only {len(normal_slides)} slides are normal"
        )
    normal = _draw_points([*chosen, *normal_slides], NORMAL, config.normal_patches, config, seed)
    missing = config.normal_patches - _count_points(normal)
    other_slides = [slide for slide in clean if slide.case.id not in normal]
    if missing > 0 and other_slides:
        added = _draw_points(
            _first_slides(other_slides, len(other_slides), seed), NORMAL, missing, config, seed
        )
        normal |= added
        notes.append(
            f"{len(added)} additional normal slides provide the {_count_points(added)} missing normal patches"
        )
    return patch_budget(pool, normal, tumour, config, notes)


def patch_budget(
    pool: Pool, normal: dict[str, Points], tumour: dict[str, Points], config: Config, notes: list[str]
) -> PatchBudget:
    """Return the budget of chosen patches, by class and case, with a note if there are too few."""
    for name, points_by_case, requested in (
        ("normal", normal, config.normal_patches), ("tumour", tumour, config.tumour_patches),
    ):  # fmt: skip
        if _count_points(points_by_case) < requested:
            notes.append(
                f"{requested} {name} patches were requested, but only {_count_points(points_by_case)} "
                "are available"
            )
    names = sorted({*normal, *tumour})
    slides = tuple(slide for slide in pool.slides if slide.case.id in names)
    index_of = {slide.case.id: index for index, slide in enumerate(slides)}
    slide_indices, labels, points = [], [], []
    for label, points_by_case in ((NORMAL, normal), (TUMOUR, tumour)):
        for name, case_points in points_by_case.items():
            slide_indices += [index_of[name]] * len(case_points)
            labels += [label] * len(case_points)
            points.append(case_points)
    positions = FixedPositions(
        np.array(slide_indices, np.int64),
        np.array(labels, np.int64),
        np.concatenate([np.empty((0, 2)), *points]),
    )
    counts = {name: (len(normal.get(name, ())), len(tumour.get(name, ()))) for name in names}
    return PatchBudget(replace(pool, slides=slides, hard={}, fixed=positions), counts, tuple(notes))


def _first_slides(slides: Sequence[SlidePositions], count: int, seed: int) -> list[SlidePositions]:
    """The first slides in a random order in which the rank of a slide does not depend on the other slides."""
    return sorted(slides, key=lambda slide: tuple(_generator(slide, seed).random(2)))[:count]


def _generator(slide: SlidePositions, seed: int, label: int = 2) -> np.random.Generator:
    return np.random.default_rng([seed, BUDGET_STREAM, crc32(slide.case.id.encode()), label])


def _count_points(points_by_case: Mapping[str, Points]) -> int:
    return sum(map(len, points_by_case.values()))


def _draw_points(
    slides: Sequence[SlidePositions], label: int, total: int, config: Config, seed: int
) -> dict[str, Points]:
    """Draw up to `total` patch centres of a class, one from each slide in turn."""
    iterators = {slide.case.id: _usable_points(slide, label, config, seed) for slide in slides}
    points_by_case: dict[str, list[tuple[float, float]]] = {name: [] for name in iterators}
    remaining = total
    while iterators and remaining > 0:
        for name in list(iterators):
            point = next(iterators[name], None) if remaining else None
            if point is not None:
                points_by_case[name].append(point)
                remaining -= 1
            elif remaining:
                del iterators[name]
    return {name: np.array(points, np.float64) for name, points in points_by_case.items() if points}


def _usable_points(
    slide: SlidePositions, label: int, config: Config, seed: int
) -> Iterator[tuple[float, float]]:
    """Yield patch centres that keep their distance, with the corners of the patch in the class as well.

    If a slide has no such patch, because its lesions are small, any patch whose centre is in the class is
    used.
    """
    half = config.patch * config.mpp / slide.mpp / 2
    rng = _generator(slide, seed, label)
    chosen = np.empty((0, 2))
    for strict in (True, False):
        # The second round is only for slides without any patch inside one class.
        if not strict and len(chosen):
            return
        failed_draws = 0
        while failed_draws < MAX_FAILED_DRAWS:
            point = slide.draw(label, rng)
            if point is None:
                return
            near = (np.abs(chosen - point) < 2 * half * config.apart).all(axis=1).any()
            if near or (strict and not _corners_match(slide, label, np.array(point), half)):
                failed_draws += 1
                continue
            failed_draws = 0
            chosen = np.vstack([chosen, point])
            yield point


def _corners_match(slide: SlidePositions, label: int, point: NDArray[np.float64], half: float) -> bool:
    """Whether the corners of the patch have the same class and, for normal patches, lie on tissue."""
    corners = point + half * np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)], np.float64)
    size = slide.l0_size
    if (corners < 0).any() or (corners >= (size.width, size.height)).any():
        return False
    if not (slide.classes(corners) == label).all():
        return False
    if label == TUMOUR:
        return True
    cells = np.floor(corners / slide.l0_cell).astype(np.int64)
    return all(int(y) * slide.columns + int(x) in slide.cells[NORMAL] for x, y in cells)
