"""The random streams of an exam: a new stream for each exam, or one stream for the whole cohort as published.

Windows use NumPy's legacy generator and patch grids use Python's `random`; the two are independent.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import numpy as np

from lobule.cohort import Case
from lobule.mammograms.views import VIEWS
from lobule.methods.four_view.config import Config
from lobule.methods.four_view.patches import PatchGrid, draw_strides
from lobule.methods.four_view.windows import draw

Shapes = list[tuple[int, int]]
"""Height and width of every cropped image of an exam, in the order of its views."""


def windows_stream(config: Config, earlier: Iterable[Case]) -> np.random.RandomState:
    """Return the stream at the first window of an exam.

    How many numbers an earlier exam consumed depends only on its number of files.
    """
    rng = np.random.RandomState(config.seed)
    if config.compat == "own":
        return rng
    for case in earlier:
        files = [len(case.views.get(view.lower().replace("-", "_"), ())) for view in VIEWS]
        if not all(files):  # The scan refuses this exam, so it consumes no random numbers.
            continue
        for _ in range(config.windows):
            for count in files:
                if config.augmentation:
                    rng.randint(0, count)
                draw(rng, config.variation)
    return rng


def patches_stream(
    config: Config, earlier: Iterable[Case], shapes_of: Callable[[Case], Shapes]
) -> random.Random:
    """Return the stream at the first patch grid of an exam. Exams that cannot be read do not advance it."""
    rng = random.Random(config.seed)
    if config.compat == "nyu":
        for case in earlier:
            for shape in shapes_of(case):
                draw_grid(shape, rng, config)
    return rng


def draw_grid(shape: tuple[int, int], rng: random.Random, config: Config) -> PatchGrid:
    """Draw the patch grid of a cropped image. Rows are drawn first."""
    rows, columns = (
        draw_strides(length, rng, patch=config.patch, stride=config.patch_stride) for length in shape
    )
    return PatchGrid.of_strides(rows, columns, config.patch)
