"""The windows and patch grids of an exam, from one random stream per exam or per cohort.

In the published code, one stream runs through a whole list of exams. Windows use NumPy's legacy generator and
patch grids use Python's `random`; the two are independent.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from lobule.cohort import Case
from lobule.mammograms.exam_views import BrokenView, ExamView, Frame, OpenViews, files_of_views, readable
from lobule.mammograms.published.crop import Window
from lobule.mammograms.published.patches import PatchGrid, draw_grid
from lobule.mammograms.published.windows import draw, plan_exam, plan_image
from lobule.mammograms.views import VIEWS, angle_of, is_mirrored
from lobule.methods.four_view.config import Config

Shapes = Mapping[str, tuple[int, int]]
"""Height and width of every readable, cropped image of an exam, by name."""


@dataclass(frozen=True)
class PlannedImage:
    """One image of an exam and the windows that are read from it."""

    name: str
    image: ExamView | BrokenView
    windows: Mapping[int, Window]
    """Windows in the cropped, right-pointing view, by epoch."""


def plan_images(images: OpenViews, config: Config, earlier: Iterable[Case]) -> list[PlannedImage]:
    """Plan the windows of every image of an exam.

    Args:
        images: The images of the exam.
        config: Number of windows and their random variation.
        earlier: The exams before this one in the cohort.
    """
    windows: dict[str, dict[int, Window]] = {name: {} for name in images}
    if config.architecture.joins_views:
        names: dict[str, list[str]] = {view: [] for view in VIEWS}
        for name, image in images.items():
            names[image.view].append(name)
        exam = plan_exam(
            {view: [images[name] for name in names[view]] for view in VIEWS}, windows_stream(config, earlier),
            epochs=config.reading.windows, augmentation=config.variation, size=config.architecture.window,
        )  # fmt: skip
        for epoch, chosen in enumerate(exam):
            for view, (index, plan) in chosen.items():
                windows[names[view][index]][epoch] = plan.unpadded
    else:  # Each image has a separate stream.
        for name, image in images.items():
            plans = plan_image(
                image, image.view, epochs=config.reading.windows, augmentation=config.variation,
                seed=config.reading.seed, size=config.view_options.size(image.view),
            )  # fmt: skip
            windows[name] = {epoch: plan.unpadded for epoch, plan in enumerate(plans)}
    return [PlannedImage(name, image, windows[name]) for name, image in images.items()]


def windows_stream(config: Config, earlier: Iterable[Case]) -> np.random.RandomState:
    """Return the stream at the first window of an exam.

    How many numbers an earlier exam consumed depends only on its number of files.
    """
    rng = np.random.RandomState(config.reading.seed)
    for case in earlier if config.reading.compat == "nyu" else ():
        files = files_of_views(case)
        if not all(files.values()):  # The scan refuses this exam, so it consumes no random numbers.
            continue
        for _ in range(config.reading.windows):
            for paths in files.values():
                if config.reading.augmentation:
                    rng.randint(0, len(paths))
                draw(rng, config.variation)
    return rng


def shapes_of(images: Mapping[str, object]) -> Shapes:
    return {name: image.shape for name, image in readable(images).items()}


def patch_grids(shapes: Shapes, config: Config, earlier: Iterable[Shapes] = ()) -> dict[str, PatchGrid]:
    """Draw the patch grid of each image of an exam.

    All images share one random stream, except in a model that scores each view alone.

    Args:
        shapes: The images of the exam.
        config: Size and stride of the patches, and the seed.
        earlier: The images of exams that use the same stream before this one.
    """
    architecture, seed = config.architecture, config.reading.seed
    stream = random.Random(seed)

    def grids_of(exam: Shapes) -> dict[str, PatchGrid]:
        grids = {}
        for name, shape in exam.items():
            rng = stream if architecture.joins_views else random.Random(seed)
            grids[name] = draw_grid(shape, rng, patch=architecture.patch, stride=architecture.patch_stride)
        return grids

    for exam in earlier:
        grids_of(exam)
    return grids_of(shapes)


def patch_frame(image: ExamView, config: Config) -> Frame:
    """Return the frame in which patches are cut.

    It points right, except for single right views with `quirks="reference"`: the published tool for single
    images ignores the side.
    """
    ignores_side = not config.architecture.joins_views and config.reading.quirks == "reference"
    view = angle_of(image.view) if ignores_side else image.view
    return Frame(image.crop.window, is_mirrored(view, image.mammogram.horizontal_flip))
