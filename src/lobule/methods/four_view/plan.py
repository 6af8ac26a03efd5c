"""Opening the images of an exam, drawing their windows, and the passes over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Case
from lobule.errors import BlankMammogram, LobuleError, NotAMammogram, NothingToScore
from lobule.mammograms.exams import exam_of_files
from lobule.mammograms.views import VIEWS, is_mirrored
from lobule.methods.four_view.config import Config
from lobule.methods.four_view.crop import Window
from lobule.methods.four_view.images import BrokenView, ExamView, Frame, ViewConfig, open_view
from lobule.methods.four_view.patches import PatchGrid, view_for_patches
from lobule.methods.four_view.streams import Shapes, windows_stream
from lobule.methods.four_view.windows import ViewImage, WindowPlan, plan_exam, plan_image
from lobule.results.tables import TableReader
from lobule.scanning.contract import Fields, ImageSource, OpenCase, Steps, fill_table


@dataclass(frozen=True)
class PlannedImage:
    """One image of an exam and the windows that are read from it."""

    name: str
    image: ExamView | BrokenView
    epochs: tuple[int, ...]
    windows: tuple[Window, ...]
    """In the cropped, right-pointing view."""


def open_views(case: Case, config: ViewConfig) -> dict[str, ImageSource]:
    files = {view: case.views.get(view.lower().replace("-", "_"), ()) for view in VIEWS}
    images: dict[str, ImageSource] = {}
    errors: list[Exception] = []
    for view in VIEWS:
        for index, path in enumerate(files[view] if config.reads_exams else files[view][:1]):
            name = view if index == 0 else f"{view} {index + 1}"
            try:
                images[name] = open_view(path, view, config)
            except (LobuleError, OSError) as error:
                images[name] = BrokenView(view, error, config)
                errors.append(error)
    _check_views(case, images, errors, config)
    exam_views = [image for image in images.values() if isinstance(image, ExamView)]
    # This raises an error if the files of one exam belong to several patients.
    exam_of_files(
        {
            view: [view_image.mammogram.heading.path for view_image in exam_views if view_image.view == view]
            for view in VIEWS
        }
    )
    return images


def _check_views(
    case: Case, images: Mapping[str, ImageSource], errors: Sequence[Exception], config: ViewConfig
) -> None:
    """Raise an error if all views are blank, or if a view that the model needs is missing or unreadable."""
    missing = [view for view in VIEWS if view not in images]
    if all(isinstance(image, BrokenView) and image.is_blank for image in images.values()):
        reason = f"no view of the exam shows a breast (blank: {', '.join(images) or 'none'}"
        raise NothingToScore(
            reason + (f"; missing: {', '.join(missing)})" if missing else ")"), subject=case.id
        )
    if missing and config.reads_exams:
        raise NotAMammogram(
            "a model that joins views needs all four of them",
            subject=case.id,
            actual=f"an exam without {', '.join(missing)}",
            remedy="Scan exams that lack a view with an image-wise bundle, or convert one that has both",
        )
    if errors and (config.reads_exams or len(errors) == len(images)):
        raise next((error for error in errors if not isinstance(error, BlankMammogram)), errors[0])


def cropped_shapes(images: Mapping[str, ImageSource]) -> Shapes:
    return [image.crop.window.shape for image in images.values() if isinstance(image, ExamView)]


def plan_images(case: OpenCase, config: Config) -> list[PlannedImage]:
    """Return every image of an exam with its windows, in the order in which patch grids are drawn."""
    if not config.reads_exams:
        return plan_images_separately(case, config)
    images = {name: i for name, i in case.images.items() if isinstance(i, ExamView | BrokenView)}
    plans: dict[str, list[tuple[int, WindowPlan]]] = {name: [] for name in images}
    rng = windows_stream(config, case.earlier())
    names: dict[str, list[str]] = {view: [] for view in VIEWS}
    for name, image in images.items():
        names[image.view].append(name)
    view_images: dict[str, Sequence[ViewImage]] = {
        view: [_readable(images[name]).for_windows for name in names[view]] for view in VIEWS
    }
    exam = plan_exam(
        view_images, rng, epochs=config.windows, augmentation=config.variation, size=config.window
    )
    for epoch, chosen in enumerate(exam):
        for view in VIEWS:
            index, plan = chosen[view]
            plans[names[view][index]].append((epoch, plan))
    return [_planned_image(name, image, plans[name]) for name, image in images.items()]


def plan_images_separately(case: OpenCase, config: ViewConfig) -> list[PlannedImage]:
    """Return every image of an exam with its windows, each drawn independently of the other images."""
    images = {name: i for name, i in case.images.items() if isinstance(i, ExamView | BrokenView)}
    return [
        _planned_image(name, i, list(enumerate(_plan_separately(i, config)))) for name, i in images.items()
    ]


def _planned_image(
    name: str, image: ExamView | BrokenView, plans: Sequence[tuple[int, WindowPlan]]
) -> PlannedImage:
    epochs = tuple(epoch for epoch, _ in plans)
    return PlannedImage(name, image, epochs, tuple(_unpadded(plan) for _, plan in plans))


def _readable(image: ExamView | BrokenView) -> ExamView:
    assert isinstance(image, ExamView), "a view-wise exam has no broken view"
    return image


def _plan_separately(image: ExamView | BrokenView, config: ViewConfig) -> list[WindowPlan]:
    """Plan the windows of one image. Reading a window of a broken view raises the cause."""
    size = config.size(image.view)
    view_image = (
        image.for_windows if isinstance(image, ExamView) else ViewImage(size, (size[0] // 2, size[1] // 2))
    )
    return plan_image(
        view_image,
        image.view,
        epochs=config.windows,
        augmentation=config.variation,
        seed=config.seed,
        size=size,
    )


def _unpadded(plan: WindowPlan) -> Window:
    """Return the window in the image before padding; it may extend past the image."""
    window, top = plan.window, plan.padding.top
    return Window(window.top - top, window.bottom - top, window.left, window.right)


def fill_windows(
    key: Any, name: str, planned: PlannedImage, config: ViewConfig, sources: Mapping[str, ImageSource]
) -> Steps[TableReader]:
    """Fill a table with one row for each window of an image."""
    boxes = np.empty((len(planned.windows), 4), np.int64)
    for index, window in enumerate(planned.windows):
        if isinstance(planned.image, ExamView):
            box = planned.image.frame.to_l0(window)
            boxes[index] = box.x, box.y, box.width, box.height
        else:
            boxes[index] = 0, 0, planned.image.size.width, planned.image.size.height
    height, width = config.input_size(planned.image.view)
    sizes = np.tile(np.array([[width, height]], np.int64), (len(boxes), 1))
    # A window is expensive, so each is stored as soon as it is computed.
    return fill_table(key, name, fields_of(planned, boxes, sizes), chunk_rows=1, sources=sources)


def fields_of(
    planned: PlannedImage, boxes: NDArray[np.int64], sizes: NDArray[np.int64] | None = None
) -> Fields:
    images = np.zeros(len(boxes), np.int16)
    return Fields((planned.name,), (planned.image.lattice(),), images, boxes, sizes=sizes)


def patch_frame(image: ExamView, config: Config) -> Frame:
    """Return the frame in which patches are cut.

    It points right, except for single right views with `quirks="reference"`.
    """
    alone = not config.reads_exams
    view = view_for_patches(image.view, single_image=alone, compat=config.quirks)
    return Frame(image.crop.window, is_mirrored(view, image.mammogram.horizontal_flip))


def distinct_patches(grid: PatchGrid, pixels: NDArray[np.uint16]) -> tuple[list[int], NDArray[np.int64]]:
    """Return the patches to compute, and for every patch of the grid the index of the one that it equals.

    Blank patches are all equal, so only one of them is computed.
    """
    rows: list[int] = []
    row_of = np.empty(len(grid), np.int64)
    blank = -1
    for index, (top, left) in enumerate(grid.corners()):
        if pixels[top : top + grid.patch, left : left + grid.patch].any():
            row_of[index] = len(rows)
            rows.append(index)
            continue
        if blank < 0:
            blank = len(rows)
            rows.append(index)
        row_of[index] = blank
    return rows, row_of
