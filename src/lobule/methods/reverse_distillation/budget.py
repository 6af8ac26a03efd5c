"""The label budget: which outlined slides, and which places on them, a training may learn from.

Decided before the training, by the seed and the names of the cases alone. The slides of a smaller budget are
among those of a larger one, so that a label-budget curve compares like with like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from lobule.methods.reverse_distillation.config import Config
from lobule.training.patch_sampling import NORMAL, TUMOUR, FixedPositions, Points, Pool, SlidePositions

BUDGET = 0xB0D6E7
"""Sets the choice of slides and places apart from other uses of the seed."""
IN_VAIN = 200
"""Places drawn one after another without a usable one, before a slide is taken to have no more."""


@dataclass(frozen=True, eq=False)
class Spent:
    """The budget as it was spent."""

    pool: Pool
    """The chosen slides, listing the chosen places."""
    counts: Mapping[str, tuple[int, int]]
    """Case → normal and tumour patches."""
    notes: tuple[str, ...] = ()

    @property
    def listed(self) -> FixedPositions:
        assert self.pool.fixed is not None
        return self.pool.fixed

    def total(self, label: int) -> int:
        return int((self.listed.labels == label).sum())

    def to_csv(self) -> str:
        """`case,class,l0_x,l0_y` a line: everything that the training saw."""
        lines = ["case,class,l0_x,l0_y"]
        for number, label, (x, y) in zip(
            self.listed.slides, self.listed.labels, self.listed.l0_points, strict=True
        ):
            name = self.pool.slides[number].case.id
            lines.append(f"{name},{'tumour' if label == TUMOUR else 'normal'},{x:.2f},{y:.2f}")
        return "\n".join(lines) + "\n"


def spend(config: Config, pool: Pool, seed: int) -> Spent:
    """Choose slides, then places: tumour evenly over them, and normal tissue of the same slides.

    `config.normal_slides` normal slides give normal patches as well. Where all of them have too little normal
    tissue (not exhaustively outlined, or none), further normal slides fill up.
    """
    notes: list[str] = []
    outlined = [pool.slides[number] for number in pool.usable(TUMOUR)]
    clean = [places for places in pool.slides if not places.count(TUMOUR) and places.count(NORMAL)]
    chosen = _first(outlined, config.slides, seed) if outlined else _first(clean, config.slides, seed)
    if len(outlined) < config.slides and outlined:
        notes.append(f"{config.slides} outlined slides were asked for, and there are {len(outlined)}")
    tumour = _places(chosen, TUMOUR, config.tumour_patches, config, seed) if outlined else {}
    chosen_names = {places.case.id for places in chosen}
    extra = _first(
        [places for places in clean if places.case.id not in chosen_names], config.normal_slides, seed
    )
    if len(extra) < config.normal_slides:
        notes.append(f"normal_slides is {config.normal_slides}, but only {len(extra)} slides are normal")
    normal = _places([*chosen, *extra], NORMAL, config.normal_patches, config, seed)
    missing = config.normal_patches - _size(normal)
    others = [places for places in clean if places.case.id not in normal]
    if missing > 0 and others:
        more = _places(_first(others, len(others), seed), NORMAL, missing, config, seed)
        normal |= more
        notes.append(f"{len(more)} normal slides give the {_size(more)} normal patches that were missing")
    return _spent(pool, normal, tumour, config, notes)


def _spent(
    pool: Pool, normal: dict[str, Points], tumour: dict[str, Points], config: Config, notes: list[str]
) -> Spent:
    for name, found, asked in (
        ("normal", normal, config.normal_patches), ("tumour", tumour, config.tumour_patches),
    ):  # fmt: skip
        if _size(found) < asked:
            notes.append(f"{asked} {name} patches were asked for, and {_size(found)} were found")
    names = sorted({*normal, *tumour})
    slides = tuple(places for places in pool.slides if places.case.id in names)
    number_of = {places.case.id: number for number, places in enumerate(slides)}
    numbers, labels, points = [], [], []
    for label, found in ((NORMAL, normal), (TUMOUR, tumour)):
        for name, own in found.items():
            numbers += [number_of[name]] * len(own)
            labels += [label] * len(own)
            points.append(own)
    listed = FixedPositions(
        np.array(numbers, np.int64), np.array(labels, np.int64), np.concatenate([np.empty((0, 2)), *points])
    )
    counts = {name: (len(normal.get(name, ())), len(tumour.get(name, ()))) for name in names}
    return Spent(replace(pool, slides=slides, hard={}, fixed=listed), counts, tuple(notes))


def _first(slides: Sequence[SlidePositions], count: int, seed: int) -> list[SlidePositions]:
    """The first of the slides in an order that the seed gives, whichever others there are."""
    return sorted(slides, key=lambda places: tuple(_generator(places, seed).random(2)))[:count]


def _generator(places: SlidePositions, seed: int, label: int = 2) -> np.random.Generator:
    return np.random.default_rng([seed, BUDGET, crc32(places.case.id.encode()), label])


def _size(found: Mapping[str, Points]) -> int:
    return sum(map(len, found.values()))


def _places(
    slides: Sequence[SlidePositions], label: int, total: int, config: Config, seed: int
) -> dict[str, Points]:
    """So many places of a class, one from each slide in turn, until the slides have no more."""
    turns = {places.case.id: _usable(places, label, config, seed) for places in slides}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    left = total
    while turns and left > 0:
        for name in list(turns):
            place = next(turns[name], None) if left else None
            if place is not None:
                found[name].append(place)
                left -= 1
            elif left:
                del turns[name]
    return {name: np.array(own, np.float64) for name, own in found.items() if own}


def _usable(places: SlidePositions, label: int, config: Config, seed: int) -> Iterator[tuple[float, float]]:
    """Places apart from each other, their patch of the class to its corners; of small lesions only, any."""
    half = config.patch * config.mpp / places.mpp / 2
    rng = _generator(places, seed, label)
    taken = np.empty((0, 2))
    for strict in (True, False):
        if not strict and len(taken):  # a slide of small lesions only is better than no tumour of it
            return
        vain = 0
        while vain < IN_VAIN:
            place = places.draw(label, rng)
            if place is None:
                return
            near = (np.abs(taken - place) < 2 * half * config.apart).all(axis=1).any()
            if near or (strict and not _whole(places, label, np.array(place), half)):
                vain += 1
                continue
            vain = 0
            taken = np.vstack([taken, place])
            yield place


def _whole(places: SlidePositions, label: int, place: NDArray[np.float64], half: float) -> bool:
    """Whether the corners of the patch are of the class too, and where that is normal, tissue."""
    corners = place + half * np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)], np.float64)
    size = places.l0_size
    if (corners < 0).any() or (corners >= (size.width, size.height)).any():
        return False
    if not (places.classes(corners) == label).all():
        return False
    if label == TUMOUR:
        return True
    cells = np.floor(corners / places.l0_cell).astype(np.int64)
    return all(int(y) * places.columns + int(x) in places.cells[NORMAL] for x, y in cells)
