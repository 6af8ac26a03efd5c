"""Exams as training reads them: breasts are located once, pixels are cached, outlines are converted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lobule.annotations import Polygon, read_annotation
from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, LobuleError
from lobule.mammograms.breasts import GRADES
from lobule.mammograms.dicom_codes import OVERRIDES
from lobule.mammograms.exam_views import ExamView, Frame, Heatmaps, open_views, readable_views
from lobule.mammograms.exams import read_view
from lobule.mammograms.views import View
from lobule.methods.four_view.config import Config
from lobule.methods.four_view.heatmaps import stored_heatmaps
from lobule.methods.four_view.planning import draw_patch_grids, patch_frame
from lobule.nets.four_view import TARGETS
from lobule.nets.published import PATCH_CLASSES
from lobule.results.folder import Results
from lobule.slides.cache import TileCache

UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class TrainView:
    """One image of an exam, with the data needed to read its breast again and to sample from it."""

    name: str
    """The view, followed by a number if the exam has several images of it."""
    view: View
    path: str
    frame: Frame
    centre: tuple[int, int]
    mean: float
    spread: float
    """Mean and standard deviation of the whole cropped view; patches are standardised with them."""
    patches_mirrored: bool
    """Whether a scan cuts the patches of this image from the left-pointing view."""
    outlines: tuple[tuple[int, Polygon], ...]
    """Index in `PATCH_CLASSES` and outline, in the cropped, right-pointing view."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.frame.crop.shape


@dataclass(frozen=True, eq=False)
class TrainExam:
    """An exam with at least one readable image of each view that it has."""

    case: Case
    images: Mapping[str, TrainView]
    """By name, in the order of the exam."""

    def of_view(self, view: str) -> list[TrainView]:
        return [image for image in self.images.values() if image.view == view]

    @property
    def labels(self) -> NDArray[np.int64]:
        """(4,) labels in the order of `TARGETS`: 0, 1 or `UNKNOWN`."""
        breast_labels = self.case.breast_labels
        return np.array(
            [int(breast_labels[name]) if name in breast_labels else UNKNOWN for name in TARGETS], np.int64
        )

    def is_healthy(self, view: str) -> bool:
        """Whether the breast of a view is labelled neither malignant nor benign."""
        side = "left" if view.startswith("L") else "right"
        return not any(self.case.breast_labels.get(f"{side}_{grade}", True) for grade in GRADES)


@dataclass(frozen=True, eq=False)
class ExamPool:
    """Exams to sample from, with notes on the exams that could not be read."""

    exams: tuple[TrainExam, ...]
    config: Config
    cache: TileCache
    notes: tuple[str, ...] = ()
    patch_scores: Results | None = None
    """Results with the scores of every patch, from which heatmaps are computed."""

    def pixels(self, image: TrainView) -> NDArray[np.uint16]:
        """Return the cropped, right-pointing view (H, W)."""

        def read() -> NDArray[np.uint16]:
            # The exam was accepted when it was opened.
            pixels = self.config.reading.pixels
            stored = read_view(image.path, view=image.view, pixels=pixels, allow=OVERRIDES).pixels
            return np.ascontiguousarray(image.frame.of(stored))

        return self.cache.get(("pixels", image.path), read)

    def heatmaps(self, exam: TrainExam, image: TrainView) -> Heatmaps | None:
        """Return the heatmaps of the cropped, right-pointing view; None if the classifier reads none."""
        if self.patch_scores is None:
            return None
        scores = self.patch_scores.case_folder(exam.case.id)

        def compute() -> Heatmaps:
            grid = draw_patch_grids({name: i.shape for name, i in exam.images.items()}, self.config)[
                image.name
            ]
            maps = stored_heatmaps(scores, image.name, grid, self.pixels(image), image.patches_mirrored)
            return np.ascontiguousarray(maps)

        return self.cache.get(("heatmaps", image.path), compute)

    def without(self, failed: Collection[str], patch_scores: Results) -> ExamPool:
        """Return the pool without some cases, with the scores of every patch of the others."""
        exams = tuple(exam for exam in self.exams if exam.case.id not in failed)
        return replace(self, exams=exams, patch_scores=patch_scores)

    @property
    def cases(self) -> list[Case]:
        return [exam.case for exam in self.exams]


def gather_exams(cohort: Cohort, config: Config, cache: TileCache, *, workers: int = 1) -> ExamPool:
    """Open all exams and locate their breasts.

    Exams that cannot be read are left out and listed in the notes.
    """

    def read_exam(case: Case) -> TrainExam | str:
        try:
            return _read_exam(case, config, cache)
        except (LobuleError, OSError) as error:
            return f"{case.id}: left out: {error}"

    with ThreadPoolExecutor(workers, thread_name_prefix="exams") as threads:
        outcomes = list(threads.map(read_exam, cohort))
    exams = tuple(exam for exam in outcomes if isinstance(exam, TrainExam))
    notes = tuple(note for note in outcomes if isinstance(note, str))
    if not exams:
        raise ConfigError(
            "none of the training exams can be read",
            subject=cohort.path,
            actual="; ".join(notes[:3]) or "none",
        )
    return ExamPool(exams, config, cache, notes)


def _read_exam(case: Case, config: Config, cache: TileCache) -> TrainExam:
    outlines: Sequence[Polygon] = ()
    if case.annotation is not None:
        outlines = read_annotation(case.annotation).polygons
    images: dict[str, TrainView] = {}
    opened = open_views(case, config.view_options, joined=config.architecture.joins_views)
    for name, image in readable_views(opened).items():
        images[name] = _train_view(name, image, config, outlines)
        pixels = np.ascontiguousarray(image.pixels)
        cache.get(("pixels", images[name].path), lambda pixels=pixels: pixels)  # type: ignore[misc]
    return TrainExam(case, images)


def _train_view(name: str, image: ExamView, config: Config, outlines: Sequence[Polygon]) -> TrainView:
    values = image.pixels.astype(np.float64)
    return TrainView(
        name,
        image.view,
        image.mammogram.heading.path,
        image.frame,
        image.centre,
        float(values.mean()),
        max(float(values.std()), 1e-5),
        patch_frame(image, config).mirrored != image.frame.mirrored,
        tuple(
            (PATCH_CLASSES.index(grade), _to_view_frame(polygon, image.frame))
            for polygon in outlines
            if polygon.name.strip() == name and (grade := polygon.group.strip().lower()) in GRADES
        ),
    )


def _to_view_frame(polygon: Polygon, frame: Frame) -> Polygon:
    """Convert an outline from the stored image to the cropped, right-pointing view."""
    x, y = polygon.points.T
    columns = frame.crop.right - x if frame.mirrored else x - frame.crop.left
    return replace(polygon, points=np.stack([columns, y - frame.crop.top], axis=1), holes=())
