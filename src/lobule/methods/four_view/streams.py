"""Where the random numbers of an exam begin: anew for each, or in one stream through the cohort as published.

Windows are drawn from NumPy's legacy generator and patch grids from Python's own; the two never mix.
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
"""Height and width of every cropped image of an exam, in the order of views."""


def windows_stream(config: Config, earlier: Iterable[Case]) -> np.random.RandomState:
    """The stream at the first window of an exam; what an exam draws depends on its files' number alone."""
    rng = np.random.RandomState(config.seed)
    if config.compat == "own":
        return rng
    for case in earlier:
        files = [len(case.views.get(view.lower().replace("-", "_"), ())) for view in VIEWS]
        if not all(files):  # refused, so it draws nothing
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
    """The stream at the first patch grid of an exam; an exam that cannot be read has drawn nothing."""
    rng = random.Random(config.seed)
    if config.compat == "nyu":
        for case in earlier:
            for shape in shapes_of(case):
                draw_grid(shape, rng, config)
    return rng


def draw_grid(shape: tuple[int, int], rng: random.Random, config: Config) -> PatchGrid:
    """The patches over a cropped image; rows are drawn first."""
    rows, columns = (
        draw_strides(length, rng, patch=config.patch, stride=config.patch_stride) for length in shape
    )
    return PatchGrid.of_strides(rows, columns, config.patch)
