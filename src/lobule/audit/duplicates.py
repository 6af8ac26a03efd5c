"""Look up copies of pictures: cropped, rotated, mirrored, rescaled or compressed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lobule.audit.picture import (
    ORIENTATIONS,
    WINDOWS,
    Picture,
    Plane,
    Sums,
    Window,
    averaged,
    oriented,
    oriented_window,
    summed,
)
from lobule.cohort import SPLITS

LEAST_COSINE = 0.4
"""Pairs of vectors below this cosine are not compared."""
CANDIDATES = 4
"""Number of pictures that each picture is compared with."""
LEAST_CORRELATION = 0.8
"""Pictures that correlate at least this much, after alignment, show the same pixels."""
HOPELESS = 0.25
"""An alignment below this correlation after its first steps is given up."""
SAMPLES = 72
"""Rows and columns of the samples over which pictures are correlated."""
STEPS = (0.04, 0.02, 0.01, 0.005, 0.0025)
"""Successive steps of the edges of a window in an alignment."""
_MOVES = ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 0), (0, 0, 1, 1))
MOVES = tuple((sign * a, sign * b, sign * c, sign * d) for sign in (1, -1) for a, b, c, d in _MOVES)
"""Edges that move together: each alone, and opposite ones."""
LEAST_SPAN = 0.7
"""Smallest width and height of a window."""
FLAT = 1.0
"""A picture whose grey values have a smaller length than this shows nothing."""
BLOCK = 32
"""Number of pictures whose windows are looked up at once."""


@dataclass(frozen=True)
class NearDuplicate:
    """Two pictures that show the same pixels."""

    first: Picture
    second: Picture
    correlation: float
    window: Window
    """The part of the first picture that the second one shows: left, right, top, bottom."""
    mirrored: bool
    turns: int
    """Quarter turns, counterclockwise, from the first picture to the second one."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the two pictures, in the order train, val, test."""
        return tuple(name for name in SPLITS if name in (self.first.split, self.second.split))


def near_duplicates(pictures: Sequence[Picture]) -> list[NearDuplicate]:
    """Every pair of pictures of different cases that show the same pixels, with its best alignment."""
    best: dict[tuple[int, int], NearDuplicate] = {}
    for first, second, view in _candidates(pictures):
        window = WINDOWS[view // len(ORIENTATIONS)]
        mirrored, turns = ORIENTATIONS[view % len(ORIENTATIONS)]
        correlation, aligned = align(
            oriented(pictures[first].fine, mirrored, turns),
            pictures[second].fine,
            oriented_window(window, mirrored, turns),
        )
        if correlation >= LEAST_CORRELATION:
            key = (min(first, second), max(first, second))
            pair = NearDuplicate(pictures[first], pictures[second], correlation, aligned, mirrored, turns)
            if key not in best or correlation > best[key].correlation:
                best[key] = pair
    return [best[key] for key in sorted(best)]


def _candidates(pictures: Sequence[Picture]) -> Iterator[tuple[int, int, int]]:
    """Pairs worth a comparison: first picture, second picture, and the index of the first one's view.

    A view is a window in an orientation. Every picture is looked up among all others, so that of a picture
    and its crop either may be the first one.
    """
    if len(pictures) < 2:
        return
    vectors = np.stack([picture.vector() for picture in pictures])
    names = np.unique([picture.case for picture in pictures], return_inverse=True)[1]
    views = len(WINDOWS) * len(ORIENTATIONS)
    for start in range(0, len(pictures), BLOCK):
        block = pictures[start : start + BLOCK]
        windows = np.concatenate([picture.window_vectors() for picture in block])
        cosines = (windows @ vectors.T).reshape(len(block), views, len(pictures))
        best_views = cosines.argmax(axis=1)
        scores = cosines.max(axis=1)
        scores[names[start : start + len(block), None] == names[None, :]] = -1
        nearest = np.argsort(-scores, axis=1, kind="stable")[:, :CANDIDATES]
        for row, columns in enumerate(nearest):
            for column in columns:
                if scores[row, column] >= LEAST_COSINE:
                    yield start + row, int(column), int(best_views[row, column])


def align(source: Plane, target: Plane, window: Window) -> tuple[float, Window]:
    """Move the edges of a window of the source until it correlates most with the whole target."""
    sums = summed(source)
    goal = _standardised(averaged(summed(target), SAMPLES, SAMPLES))
    best = _correlation(sums, window, goal)
    for number, step in enumerate(STEPS):
        improved = True
        while improved:
            improved = False
            for move in MOVES:
                moved = tuple(
                    min(1.0, max(0.0, edge + step * direction))
                    for edge, direction in zip(window, move, strict=True)
                )
                left, right, top, bottom = moved
                if moved == window or right - left < LEAST_SPAN or bottom - top < LEAST_SPAN:
                    continue
                correlation = _correlation(sums, (left, right, top, bottom), goal)
                if correlation > best:
                    best, window, improved = correlation, (left, right, top, bottom), True
        if number == 1 and best < HOPELESS:
            break
    return best, window


def _correlation(sums: Sums, window: Window, goal: Plane) -> float:
    return float((_standardised(averaged(sums, SAMPLES, SAMPLES, window)) * goal).sum())


def _standardised(cells: Plane) -> Plane:
    """Cells with mean 0 and length 1, so that the sum of a product is a correlation."""
    centred = cells - cells.mean()
    length = float(np.linalg.norm(centred))
    return centred / length if length > FLAT else np.zeros_like(centred)
