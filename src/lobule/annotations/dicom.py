"""DICOM bulk annotations and segmentations as annotations, in level-0 pixels of the slide."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lobule.annotations.outline import Annotation, Collector, Kind, Ring, kind_of_group
from lobule.errors import MissingExtra
from lobule.findings import mask_outlines

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

ANNOTATIONS = "1.2.840.10008.5.1.4.1.1.91.1"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LARGEST_MATRIX = 1 << 29
"""Largest number of pixels of a segmentation."""


def is_dicom(data: bytes) -> bool:
    return data[128:132] == b"DICM"


def read_dicom_annotation(
    data: bytes,
    source: str,
    groups: Mapping[str, Kind] | None = None,
    l0_mpp: tuple[float, float] | None = None,
) -> Annotation:
    """Read the outlines of bulk annotations, or of the segments of a segmentation.

    Args:
        data: The bytes of the file.
        source: Its path, for messages.
        groups: The kinds of additional group labels and segment labels.
        l0_mpp: µm/px of the slide. Coordinates in mm, as those of segmentations, need it.

    Raises:
        AnnotationError: The file is another DICOM object, or it is damaged.
        MissingExtra: highdicom is not installed.
    """
    try:
        import highdicom  # noqa: F401
        import pydicom
    except ImportError as error:
        raise MissingExtra("dicom", "Reading DICOM annotations") from error
    from lobule.slides.dicom_series import no_warnings

    collector = Collector(source)
    try:
        with no_warnings():
            dataset = pydicom.dcmread(io.BytesIO(data))
            shapes = list(_shapes(dataset, collector, l0_mpp))
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, EOFError) as error:
        raise collector.error(
            "the DICOM file is damaged", actual=f"{type(error).__name__}: {error}"
        ) from None
    for label, rings, location in shapes:
        collector.add(rings, kind_of_group(label, groups), "", label, location)
    return collector.annotation()


def _shapes(
    dataset: Dataset, collector: Collector, l0_mpp: tuple[float, float] | None
) -> Iterator[tuple[str, list[Ring], str]]:
    """Yield the label, the rings and the location in the file of each outline."""
    if dataset.SOPClassUID == ANNOTATIONS:
        yield from _bulk_annotations(dataset, collector)
    elif dataset.SOPClassUID == SEGMENTATION:
        yield from _segments(dataset, collector, l0_mpp)
    else:
        raise collector.error(
            "the DICOM object is not an annotation",
            expected="bulk simple annotations or a segmentation",
            actual=dataset.SOPClassUID.name,
        )


def _bulk_annotations(dataset: Dataset, collector: Collector) -> Iterator[tuple[str, list[Ring], str]]:
    from highdicom.ann import MicroscopyBulkSimpleAnnotations

    opened = MicroscopyBulkSimpleAnnotations.from_dataset(dataset, copy=False)
    if opened.AnnotationCoordinateType != "2D":
        raise collector.error(
            "the annotations are in mm of the slide, which the file does not relate to pixels",
            expected="two-dimensional coordinates in pixels",
        )
    for group in opened.get_annotation_groups():
        label = str(group.label)
        if group.graphic_type.value not in ("POLYGON", "RECTANGLE", "POLYLINE"):
            collector.warn(
                f"group '{label}' has {group.graphic_type.value} annotations, which outline no area here"
            )
            continue
        for number, points in enumerate(group.get_graphic_data(opened.AnnotationCoordinateType), 1):
            yield label, [np.asarray(points, np.float64)], f"annotation {number} of group '{label}'"


def _segments(
    dataset: Dataset, collector: Collector, l0_mpp: tuple[float, float] | None
) -> Iterator[tuple[str, list[Ring], str]]:
    from highdicom.seg import Segmentation

    size = int(dataset.TotalPixelMatrixRows) * int(dataset.TotalPixelMatrixColumns)
    if size > LARGEST_MATRIX:
        raise collector.error("the segmentation is too large", actual=f"{size:,} pixels")
    opened = Segmentation.from_dataset(dataset, copy=False)
    spacing = opened.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    mpp = _required(l0_mpp, collector)
    step = np.array([float(spacing[1]) * 1000, float(spacing[0]) * 1000]) / mpp
    corner = _first_corner(opened, step, mpp, collector)
    for number in opened.segment_numbers:
        label = str(opened.get_segment_description(number).segment_label)
        pixels: NDArray[Any] = opened.get_total_pixel_matrix(
            segment_numbers=[number], combine_segments=True, relabel=True
        )
        outlines, _ = mask_outlines(pixels > 0)
        for index, outline in enumerate(outlines, 1):
            rings = [ring * step + corner for ring in (outline.exterior, *outline.holes)]
            yield label, rings, f"outline {index} of segment '{label}'"


def _first_corner(
    dataset: Dataset, step: NDArray[np.float64], mpp: NDArray[np.float64], collector: Collector
) -> NDArray[np.float64]:
    """Return the level-0 position of the corner of the first pixel of a segmentation."""
    if [float(value) for value in dataset.ImageOrientationSlide] != [1, 0, 0, 0, 1, 0]:
        collector.warn(
            "the slide coordinate system is rotated; the segmentation is taken to start at the corner"
        )
        return np.zeros(2)
    origin = dataset.TotalPixelMatrixOriginSequence[0]
    # The origin is the centre of the first pixel, and level-0 pixel (0, 0) has its centre at 0 mm.
    centre_mm = [float(origin.XOffsetInSlideCoordinateSystem), float(origin.YOffsetInSlideCoordinateSystem)]
    return np.asarray(np.array(centre_mm) * 1000 / mpp + 0.5 - step / 2)


def _required(l0_mpp: tuple[float, float] | None, collector: Collector) -> NDArray[np.float64]:
    if l0_mpp is None:
        raise collector.error(
            "the positions are in mm, and the µm/px of the slide is not known",
            remedy="Read the annotation together with its slide: lobule import",
        )
    return np.array(l0_mpp, np.float64)
