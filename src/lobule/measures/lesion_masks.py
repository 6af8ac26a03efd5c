"""The lesions of a Camelyon16 slide as a labelled mask, exactly as the organisers' script computes it.

Masks use level 5, where a pixel covers 32 level-0 pixels. Every slide is assumed to have 0.243 µm per
level-0 pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lobule.errors import AnnotationError, CaseError
from lobule.findings import LesionClass
from lobule.measures.estimate import Floats

STEP = 32
PIXEL_UM = 0.243
ITC_LIMIT = 275 / (PIXEL_UM * STEP)
"""Major axis in level-5 pixels below which a lesion is isolated tumour cells: 200 µm + 75 µm dilation."""
MACRO_LIMIT = (2000 + 75) / (PIXEL_UM * STEP)
"""Major axis in level-5 pixels above which a lesion is a macrometastasis: 2000 µm + 75 µm dilation."""
MARGIN = 5
"""Level-5 pixels around the tumour: the dilation reaches 4 (squared distance <= 20), plus one."""


@dataclass(frozen=True, eq=False)
class EvaluationMask:
    """The lesions of a tumour slide: tumour dilated by 37.5 µm, holes filled, 8-connected, labels from 1."""

    shape: tuple[int, int]
    """Rows and columns of the whole level-5 image."""
    row: int
    column: int
    labels: NDArray[np.int32]
    """The labels of the rectangle around all lesions; its first pixel is at (row, column)."""
    areas: NDArray[np.int64]
    centroids: Floats
    """(lesions, 2): row and column in the whole image."""
    major_axes: Floats
    """The length of each lesion in level-5 pixels."""

    @property
    def itc(self) -> NDArray[np.bool_]:
        """Which lesions are isolated tumour cells; the first entry belongs to label 1."""
        return self.major_axes < ITC_LIMIT

    @property
    def lesions(self) -> int:
        """The number of lesions without isolated tumour cells."""
        return int(np.count_nonzero(~self.itc))

    def lesion_classes(self) -> list[LesionClass]:
        return [
            "itc" if axis < ITC_LIMIT else "macro" if axis > MACRO_LIMIT else "micro"
            for axis in self.major_axes.tolist()
        ]

    def labels_at(self, l0_x: NDArray[np.int64], l0_y: NDArray[np.int64]) -> NDArray[np.int64]:
        """The label at each level-0 point, 0 for none.

        Raises:
            CaseError: A point is outside the image.
        """
        x, y = l0_x // STEP, l0_y // STEP
        outside = (x < 0) | (y < 0) | (x >= self.shape[1]) | (y >= self.shape[0])
        if outside.any():
            first = int(np.argmax(outside))
            raise CaseError(
                f"detection {first + 1} lies outside the slide",
                expected=f"level-0 pixels within {self.shape[1] * STEP} × {self.shape[0] * STEP}",
                actual=f"({l0_x[first]}, {l0_y[first]})",
            )
        row, column = y - self.row, x - self.column
        near = (row >= 0) & (column >= 0) & (row < self.labels.shape[0]) & (column < self.labels.shape[1])
        point_labels = np.zeros(len(x), dtype=np.int64)
        point_labels[near] = self.labels[row[near], column[near]]
        return point_labels


def evaluation_mask(truth: NDArray[np.bool_] | NDArray[np.uint8]) -> EvaluationMask:
    """Create the evaluation mask of a level-5 ground truth: bool, or 8-bit with 255 for tumour."""
    tumour = np.asarray(truth, dtype=bool) if truth.dtype == np.bool_ else np.asarray(truth == 255)
    if truth.any() and not tumour.any():
        raise AnnotationError(
            "the ground-truth mask contains no tumour value",
            expected="255 for tumour, or a mask of bool",
            actual=f"values up to {truth.max()}",
        )
    height, width = tumour.shape
    rows, columns = np.nonzero(tumour.any(axis=1))[0], np.nonzero(tumour.any(axis=0))[0]
    if len(rows) == 0:
        none = np.zeros(0)
        return EvaluationMask(
            (height, width), 0, 0, np.zeros((0, 0), np.int32), none.astype(np.int64), np.zeros((0, 2)), none
        )
    top, left = max(0, rows[0] - MARGIN), max(0, columns[0] - MARGIN)
    window = tumour[top : rows[-1] + 1 + MARGIN, left : columns[-1] + 1 + MARGIN]
    labels, count = ndimage.label(ndimage.binary_fill_holes(_dilated(window)), np.ones((3, 3)))
    areas, centroids, axes = _measures(labels, count)
    centroids += np.array([top, left])
    return EvaluationMask(
        (height, width), int(top), int(left), labels.astype(np.int32), areas, centroids, axes
    )


def _dilated(tumour: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Dilate by a disc: all pixels with a squared distance to tumour of at most 20."""
    padded = np.pad(tumour.astype(np.uint8), ((4, 4), (0, 0)))
    dilated = np.zeros_like(padded)
    for half_width, offsets in ((4, (0, 1, 2)), (3, (3,)), (2, (4,))):
        run = ndimage.maximum_filter1d(padded, 2 * half_width + 1, axis=1, mode="constant")
        for offset in offsets:
            dilated |= np.roll(run, offset, axis=0) | np.roll(run, -offset, axis=0)
    return dilated[4:-4].astype(bool)


def _measures(labels: NDArray[np.integer], count: int) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Area, centroid and major axis (4 times the root of the larger eigenvalue of the covariance)."""
    row, column = np.nonzero(labels)
    label = labels[row, column] - 1
    area = np.bincount(label, minlength=count)
    mean_row, mean_column = (np.bincount(label, axis, count) / area for axis in (row, column))
    dr, dc = row - mean_row[label], column - mean_column[label]
    a, b, c = (np.bincount(label, product, count) / area for product in (dr * dr, dc * dc, dr * dc))
    larger = (a + b) / 2 + np.sqrt(((a - b) / 2) ** 2 + c**2)
    return area, np.column_stack([mean_row, mean_column]), 4 * np.sqrt(larger)
