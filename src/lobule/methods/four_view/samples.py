"""Samplers for training: windows of whole exams with the labels of their breasts, and patches by class."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from torch import Tensor

from lobule.annotations import Polygon, inside
from lobule.cohort import Cohort
from lobule.errors import CaseError, ConfigError
from lobule.mammograms.published.windows import NO_AUGMENTATION, network_input, plan_window, shrunk
from lobule.mammograms.views import VIEWS
from lobule.methods.four_view.training_exams import UNKNOWN, ExamPool, TrainExam, TrainView
from lobule.nets.published import PATCH_CLASSES

OUTSIDE, NEGATIVE = PATCH_CLASSES.index("outside"), PATCH_CLASSES.index("negative")
PROBES = 200
"""Number of random positions that are tried for one patch."""

Members = TypeVar("Members", list[int], list[tuple[int, TrainView]])


# -- exams --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ExamSample:
    inputs: dict[str, NDArray[np.float32]]
    """Network input (C, h, w) of each view."""
    labels: NDArray[np.int64]
    """(4,) in the order of `TARGETS`."""
    grades: NDArray[np.int64]
    """(2,) BI-RADS class of the left and the right breast, or `UNKNOWN`."""


@dataclass(frozen=True, eq=False)
class ExamBatch:
    """Exams as tensors.

    A view contains only the exams that have it; `rows` gives their indices in the batch.
    """

    views: dict[str, Tensor]
    rows: dict[str, Tensor]
    labels: Tensor
    grades: Tensor

    def grades_of(self, view: str) -> Tensor:
        """Return the BI-RADS class of the breast of a view, for the exams that have the view."""
        return self.grades[self.rows[view], 0 if view.startswith("L") else 1]

    def to(self, device: torch.device) -> ExamBatch:
        return ExamBatch(
            {view: x.to(device, non_blocking=True) for view, x in self.views.items()},
            {view: rows.to(device) for view, rows in self.rows.items()},
            self.labels.to(device),
            self.grades.to(device),
        )


def collate_exams(samples: Sequence[ExamSample]) -> ExamBatch:
    views: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    for view in VIEWS:
        exam_rows = [number for number, sample in enumerate(samples) if view in sample.inputs]
        if exam_rows:
            views[view] = torch.from_numpy(np.stack([samples[number].inputs[view] for number in exam_rows]))
            rows[view] = torch.tensor(exam_rows)
    return ExamBatch(
        views,
        rows,
        torch.from_numpy(np.stack([sample.labels for sample in samples])),
        torch.from_numpy(np.stack([sample.grades for sample in samples])),
    )


@dataclass(eq=False)
class ExamSampler:
    """Samples exams from a pool so that exams with a finding are a fixed share, however rare they are."""

    pool: ExamPool
    birads: tuple[str, str] | None = None
    """Columns of the left and the right breast. With them, all graded exams are sampled with equal
    probability."""
    categories: tuple[str, ...] = ()
    strata: tuple[tuple[float, list[int]], ...] = field(init=False)

    def __post_init__(self) -> None:
        training, exams = self.pool.config.training, self.pool.exams
        labels = np.stack([exam.labels for exam in exams])
        if self.birads is not None:
            graded = [i for i, exam in enumerate(exams) if (self.grades(exam) != UNKNOWN).any()]
            self.strata = ((1.0, graded),)
            return
        positive = training.positive_share
        malignant, benign = (labels[:, 2:] == 1).any(axis=1), (labels[:, :2] == 1).any(axis=1)
        usable = (labels != UNKNOWN).any(axis=1)
        candidates = (
            (positive * training.malignant_share, malignant),
            (positive * (1 - training.malignant_share), benign & ~malignant),
            (1 - positive, usable & ~malignant & ~benign),
        )
        self.strata = strata_of((share, np.flatnonzero(mask).tolist()) for share, mask in candidates)
        if not self.strata:
            raise ConfigError(
                "no exam has a label to learn from", expected="the columns left_benign … right_malignant"
            )

    @property
    def has_exams(self) -> bool:
        """Whether there is an exam to draw; without the grades of BI-RADS, there always is."""
        return bool(self.strata[0][1])

    def draw(self, index: int, rng: np.random.Generator) -> ExamSample:
        sample = self.sample(self.pool.exams[draw_member(self.strata, index, rng)], rng)
        return swap_breasts(sample) if self.pool.config.training.swap_sides and rng.random() < 0.5 else sample

    def sample(self, exam: TrainExam, rng: np.random.Generator | None) -> ExamSample:
        """Return the windows of an exam.

        Without `rng` they are at the best centre of each view's first image.
        """
        inputs: dict[str, NDArray[np.float32]] = {}
        for view in VIEWS:
            images = exam.of_view(view)
            if images:
                image = images[int(rng.integers(len(images))) if rng is not None else 0]
                inputs[view] = self._window(exam, image, rng)
        return ExamSample(inputs, exam.labels, self.grades(exam))

    def _window(
        self, exam: TrainExam, image: TrainView, rng: np.random.Generator | None
    ) -> NDArray[np.float32]:
        config = self.pool.config
        variation = NO_AUGMENTATION if rng is None else config.variation
        window_rng = None if rng is None else np.random.RandomState(int(rng.integers(2**32)))
        size = config.view_options.size(image.view)
        plan = plan_window(image.shape, image.view, size, image.centre, variation, window_rng)
        heatmaps = self.pool.heatmaps(exam, image)
        channels = network_input(self.pool.pixels(image), plan.unpadded, plan.size, heatmaps)
        return shrunk(channels, config.architecture.shrink)

    def grades(self, exam: TrainExam) -> NDArray[np.int64]:
        if self.birads is None:
            return np.full(2, UNKNOWN, np.int64)
        values = [exam.case.value(column) for column in self.birads]
        if self.pool.config.training.birads_classes == "published":
            values = [published_category(value) for value in values]
        return np.array(
            [self.categories.index(value) if value in self.categories else UNKNOWN for value in values]
        )


def published_category(value: str | None) -> str | None:
    """Return 0, 1 or 2 for a value such as "2", "2.0" or "BI-RADS 2"; None for any other category."""
    match = re.fullmatch(r"(?:bi-?rads[ _:-]*)?([012])(?:\.0+)?", (value or "").strip().lower())
    return match[1] if match else None


def birads_categories(values: Iterable[str | None], classes: str) -> tuple[str, ...]:
    """Return the categories that a cohort's values have, in order."""
    if classes == "published":
        values = map(published_category, values)
    return tuple(sorted({value for value in values if value}))


def other_categories(values: Iterable[str | None]) -> tuple[str, ...]:
    """Return the values that are not published categories."""
    return tuple(sorted({value for value in values if value and published_category(value) is None}))


def birads_columns(cohort: Cohort, name: str) -> tuple[str, str] | None:
    """Return the BI-RADS columns of the left and the right breast, or twice the column of the whole exam."""
    for columns in ((f"left_{name}", f"right_{name}"), (name, name)):
        if any(case.value(column) is not None for case in cohort for column in columns):
            return columns
    return None


def swap_breasts(sample: ExamSample) -> ExamSample:
    """Exchange the left and the right breast of an exam."""
    swapped_view = {view: ("R" if view.startswith("L") else "L") + view[1:] for view in sample.inputs}
    return ExamSample(
        {swapped_view[view]: x for view, x in sample.inputs.items()},
        sample.labels[[1, 0, 3, 2]],
        sample.grades[::-1].copy(),
    )


def strata_of(candidates: Iterable[tuple[float, Members]]) -> tuple[tuple[float, Members], ...]:
    """Return the strata that have a share and members; their shares sum to 1."""
    present = [(share, members) for share, members in candidates if share > 0 and members]
    total = sum(share for share, _ in present)
    return tuple((share / total, members) for share, members in present)


def draw_member(strata: Sequence[tuple[float, list[Any]]], index: int, rng: np.random.Generator) -> Any:
    """Draw a member of the stratum of a sample."""
    members = strata[choose_stratum(index, [share for share, _ in strata])][1]
    return members[int(rng.integers(len(members)))]


def choose_stratum(index: int, shares: Sequence[float]) -> int:
    """Return the stratum of a sample. Any run of consecutive samples has close to the given shares."""
    # Multiples of the golden ratio fill the unit interval evenly, whatever the first index.
    position = (index * (math.sqrt(5) - 1) / 2) % 1.0
    for number, share in enumerate(shares):
        position -= share
        if position < 0:
            return number
    return len(shares) - 1


# -- patches ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class PatchSampler:
    """Samples patches of outlined lesions and of other tissue, each class with its share."""

    pool: ExamPool
    augmented: bool = True
    strata: tuple[tuple[float, list[tuple[int, TrainView]]], ...] = field(init=False)
    """Share of each class, and the class with each image that contains it."""

    def __post_init__(self) -> None:
        members: list[list[tuple[int, TrainView]]] = [[] for _ in PATCH_CLASSES]
        for exam in self.pool.exams:
            for image in exam.images.values():
                grades = {grade for grade, _ in image.outlines}
                for grade in grades:
                    members[grade].append((grade, image))
                if grades:
                    members[OUTSIDE].append((OUTSIDE, image))
                elif exam.is_healthy(image.view):
                    members[NEGATIVE].append((NEGATIVE, image))
        if not members[0]:
            raise ConfigError(
                "no view has a lesion outlined as malignant",
                expected="GeoJSON in the column annotation: features named L-CC, R-CC, L-MLO or R-MLO and "
                "classified malignant or benign",
                remedy="Train without heatmaps, or name a trained patch network with training.patch_weights",
            )
        self.strata = strata_of(zip(self.pool.config.training.patch_shares, members, strict=True))

    @property
    def missing(self) -> tuple[int, ...]:
        present = {members[0][0] for _, members in self.strata}
        return tuple(label for label in range(len(PATCH_CLASSES)) if label not in present)

    def draw(self, index: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], int]:
        """Return a patch (1, patch, patch) and its class."""
        label, image = draw_member(self.strata, index, rng)
        pixels = self.pool.pixels(image)
        top, left = self._corner(image, label, pixels, rng)
        patch_pixels = self._cut(pixels, top, left, rng)
        patch_pixels = (patch_pixels - image.mean) / image.spread
        if self.augmented:  # a lesion has no preferred orientation
            symmetry = int(rng.integers(8))
            patch_pixels = np.rot90(patch_pixels[:, ::-1] if symmetry & 4 else patch_pixels, symmetry & 3)
        return np.ascontiguousarray(patch_pixels[None], np.float32), label

    def _cut(
        self, pixels: NDArray[np.uint16], top: int, left: int, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Return the patch at a corner, rotated and resized around its centre if the settings say so."""
        patch, training = self.pool.config.architecture.patch, self.pool.config.training
        if self.augmented and (training.patch_rotation or training.patch_resize):
            swing = rng.uniform(-1, 1, 2)
            turn = math.radians(training.patch_rotation * swing[0])
            return turned_patch(pixels, top, left, patch, turn, (1 + training.patch_resize) ** swing[1])
        patch_pixels = np.zeros((patch, patch), np.float64)
        cropped = pixels[top : top + patch, left : left + patch]
        patch_pixels[: cropped.shape[0], : cropped.shape[1]] = cropped
        return patch_pixels

    def _corner(
        self, image: TrainView, label: int, pixels: NDArray[np.uint16], rng: np.random.Generator
    ) -> tuple[int, int]:
        patch = self.pool.config.architecture.patch
        last_corner = tuple(max(0, length - patch) for length in image.shape)
        if label < OUTSIDE:
            outlines = [polygon for grade, polygon in image.outlines if grade == label]
            column, row = _point_in(outlines[int(rng.integers(len(outlines)))], rng)
            # Choose the patch so that the point lies in its middle half.
            shift = patch / 2 + (rng.random(2) - 0.5) * patch / 2
            corner = np.rint((row, column) - shift).astype(int)
            return int(np.clip(corner[0], 0, last_corner[0])), int(np.clip(corner[1], 0, last_corner[1]))
        for _ in range(PROBES):
            top, left = (int(rng.integers(end + 1)) for end in last_corner)
            has_tissue = pixels[top : top + patch : 4, left : left + patch : 4].any()
            if has_tissue and not any(_overlaps(polygon, top, left, patch) for _, polygon in image.outlines):
                return top, left
        raise CaseError("no patch with tissue was found outside the outlines", subject=image.path)


def turned_patch(
    pixels: NDArray[Any], top: int, left: int, patch: int, turn: float, zoom: float
) -> NDArray[np.float64]:
    """Return a patch turned counter-clockwise by radians and enlarged, with zeros outside the image."""
    middle = (patch - 1) / 2
    rows, columns = np.mgrid[:patch, :patch] - middle
    cosine, sine = math.cos(turn) / zoom, math.sin(turn) / zoom
    positions = np.stack(
        [top + middle + cosine * rows + sine * columns, left + middle - sine * rows + cosine * columns]
    )
    return np.asarray(
        map_coordinates(pixels.astype(np.float32), positions, order=1, mode="constant"), np.float64
    )


def _point_in(polygon: Polygon, rng: np.random.Generator) -> NDArray[np.float64]:
    low, high = polygon.points.min(axis=0), polygon.points.max(axis=0)
    points = low + rng.random((PROBES, 2)) * (high - low)
    hits = points[inside([polygon], points)]
    chosen: NDArray[np.float64] = hits[0] if len(hits) else polygon.points.mean(axis=0)
    return chosen


def _overlaps(polygon: Polygon, top: int, left: int, patch: int) -> bool:
    x, y = polygon.points.min(axis=0)
    right, bottom = polygon.points.max(axis=0)
    return bool(x < left + patch and right > left and y < top + patch and bottom > top)
