"""Draw the windows and the patch grids of an exam.

The random numbers come from a stream that belongs to one exam or, as in the published code, to a whole list
of exams. Windows use NumPy's legacy generator and patch grids use Python's `random`; the two are independent.

Each window of an image has a number, which the published code calls its epoch.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from lobule.cohort import Case
from lobule.mammograms.exam_views import (
    BrokenView,
    ExamView,
    Frame,
    OpenViews,
    files_of_views,
    readable_views,
)
from lobule.mammograms.published.crop import Window
from lobule.mammograms.published.patches import PatchGrid, draw_grid
from lobule.mammograms.published.windows import draw_numbers, plan_exam, plan_image
from lobule.mammograms.views import VIEWS, angle_of, is_mirrored
from lobule.methods.four_view.config import Config

ImageShapes = Mapping[str, tuple[int, int]]
"""Height and width of the readable, cropped images of an exam, by name."""


@dataclass(frozen=True)
class PlannedImage:
    """One image of an exam and the windows that are read from it."""

    name: str
    image: ExamView | BrokenView
    windows: Mapping[int, Window]
    """Windows in the cropped, right-pointing view, by epoch. An image that an epoch does not use has none."""


def plan_exam_windows(images: OpenViews, config: Config, earlier: Iterable[Case]) -> list[PlannedImage]:
    """Plan the windows of every image of an exam.

    A model that joins the views uses one image of each view in each epoch. Other models use every image.

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
        plans_by_epoch = plan_exam(
            {view: [images[name] for name in names[view]] for view in VIEWS},
            window_stream_after(earlier, config),
            epochs=config.reading.windows, augmentation=config.variation, size=config.architecture.window,
        )  # fmt: skip
        for epoch, plans in enumerate(plans_by_epoch):
            for view, (index, plan) in plans.items():
                windows[names[view][index]][epoch] = plan.unpadded
    else:  # Each image has a separate stream.
        for name, image in images.items():
            image_plans = plan_image(
                image, image.view, epochs=config.reading.windows, augmentation=config.variation,
                seed=config.reading.seed, size=config.view_options.size(image.view),
            )  # fmt: skip
            windows[name] = {epoch: plan.unpadded for epoch, plan in enumerate(image_plans)}
    return [PlannedImage(name, image, windows[name]) for name, image in images.items()]


def window_stream_after(earlier: Iterable[Case], config: Config) -> np.random.RandomState:
    """Return the random stream of windows, advanced past the exams that come before an exam.

    Earlier exams share the stream only with `compat="nyu"`. How many numbers they consume depends only on
    their numbers of files, so their images are not read.
    """
    rng = np.random.RandomState(config.reading.seed)
    for case in earlier if config.reading.compat == "nyu" else ():
        files = files_of_views(case)
        if not all(files.values()):  # The scan refuses this exam, so it consumes no random numbers.
            continue
        for _ in range(config.reading.windows):
            for paths in files.values():
                if config.reading.augmentation:
                    rng.randint(0, len(paths))  # The choice of an image of the view.
                draw_numbers(rng, config.variation)
    return rng


def image_shapes_of(images: Mapping[str, object]) -> ImageShapes:
    """Return the height and width of each readable image of an exam, which determine its patch grid."""
    return {name: image.shape for name, image in readable_views(images).items()}


def draw_patch_grids(
    shapes: ImageShapes, config: Config, earlier: Iterable[ImageShapes] = ()
) -> dict[str, PatchGrid]:
    """Draw the patch grid of each image of an exam.

    All images share one random stream, except in a model that scores each view alone.

    Args:
        shapes: The images of the exam.
        config: Size and stride of the patches, and the seed.
        earlier: The images of the exams that come first in the same stream.
    """
    architecture, seed = config.architecture, config.reading.seed
    stream = random.Random(seed)

    def grids_of(exam: ImageShapes) -> dict[str, PatchGrid]:
        grids = {}
        for name, shape in exam.items():
            rng = stream if architecture.joins_views else random.Random(seed)
            grids[name] = draw_grid(shape, rng, patch=architecture.patch, stride=architecture.patch_stride)
        return grids

    for exam in earlier:
        grids_of(exam)  # Only advances the stream.
    return grids_of(shapes)


def patch_frame(image: ExamView, config: Config) -> Frame:
    """Return the frame from which patches are cut.

    The breast points right in it, with one exception. With `quirks="reference"`, a model that scores each
    view alone reads a right view without mirroring it, because the published tool for single images ignores
    the side.
    """
    ignores_side = not config.architecture.joins_views and config.reading.quirks == "reference"
    view = angle_of(image.view) if ignores_side else image.view
    return Frame(image.crop.window, is_mirrored(view, image.mammogram.horizontal_flip))
