"""Class-mask rasters: a PNG or TIFF whose values are classes, at any rational scale of the slide."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lobule.annotations.outline import Annotation, Collector, Kind, Polygon
from lobule.errors import AnnotationError, TooLarge
from lobule.findings import mask_outlines
from lobule.geometry import Size, level_step

CLASSES: dict[int, Kind] = {1: "normal", 2: "tumour", 255: "tumour"}
"""Default meaning of the values of a mask; 0 is background."""

MAX_MASK_PIXELS = 1 << 28


def classes_of_tumour_value(value: int) -> dict[int, Kind]:
    """The meaning of the values of a mask in which `value` is tumour; 1 and 2 are otherwise normal tissue."""
    return {1: "normal", 2: "normal", value: "tumour"}


@dataclass(frozen=True, eq=False)
class ClassMask:
    """Class values of cells of `step_x` by `step_y` level-0 pixels, starting at level-0 (0, 0)."""

    values: NDArray[np.integer]
    step_x: Fraction
    step_y: Fraction

    def polygons(self, classes: Mapping[int, Kind]) -> list[Polygon]:
        """The exact outlines of every class, along the edges of its pixels."""
        polygons = []
        for value, kind in classes.items():
            outlines, _ = mask_outlines(self.values == value)
            for outline in outlines:
                scaled = outline.scaled(float(self.step_x), float(self.step_y))
                polygons.append(Polygon(scaled.exterior, kind, f"class {value}", "", scaled.holes))
        return polygons


def read_mask(data: bytes, source: str, l0_size: Size | None = None) -> ClassMask:
    """Read the values of a mask. Its scale follows from the size of the slide's level 0."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            values = _values(Image.open(io.BytesIO(data)), source)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = "the file is not a readable mask image"
        raise AnnotationError(problem, subject=source, actual=str(error)) from None
    if values.dtype.kind not in "iu":
        raise AnnotationError("the mask does not contain integers", subject=source, actual=str(values.dtype))
    if values.ndim == 3:
        values = _single_channel(values, source)
    width, height = values.shape[1], values.shape[0]
    if l0_size is None:
        return ClassMask(values, Fraction(1), Fraction(1))
    step_x, step_y = level_step(l0_size.width, width), level_step(l0_size.height, height)
    if abs(step_x / step_y - 1) > Fraction(2, min(width, height)) + Fraction(1, 50):
        raise AnnotationError(
            "the mask does not have the shape of its slide",
            subject=source,
            expected=f"a reduction of {l0_size}",
            actual=f"{width} × {height} px",
            remedy="Check that the mask belongs to this slide and is not cropped",
        )
    return ClassMask(values, step_x, step_y)


def _values(image: Image.Image, source: str) -> NDArray[np.integer]:
    """The first page of the file that is small enough: the levels of a pyramid are pages, largest first."""
    for page in range(getattr(image, "n_frames", 1)):
        image.seek(page)
        if image.width * image.height <= MAX_MASK_PIXELS:
            values = np.asarray(image)
            return values.astype(np.uint8) if values.dtype == bool else values
    raise TooLarge(
        f"the mask declares {image.width} × {image.height} px",
        subject=source,
        expected=f"at most {MAX_MASK_PIXELS} px",
        remedy="Save the mask at a lower resolution",
    )


def _single_channel(values: NDArray[np.integer], source: str) -> NDArray[np.integer]:
    colours = values[..., :3] if values.shape[2] >= 3 else values[..., :1]
    if (colours != colours[..., :1]).any():
        raise AnnotationError(
            "the file is a colour image, not a mask",
            subject=source,
            expected="one number per pixel",
            remedy="Save the classes as a grey or palette image",
        )
    return values[..., 0]


def mask_annotation(
    mask: ClassMask, source: str, classes: Mapping[int, Kind] | None = None, scale_known: bool = True
) -> Annotation:
    """The outlines of a mask as an annotation."""
    collector = Collector(source)
    present = [int(value) for value in np.unique(mask.values) if value != 0]
    meaning = dict(CLASSES if classes is None else classes)
    if unknown := [value for value in present if value not in meaning]:
        shown = ", ".join(map(str, unknown[:8])) + (", …" if len(unknown) > 8 else "")
        collector.warn(f"pixels of the values {shown} have no meaning and are left out")
    if present == [1] and classes is None:
        collector.warn("the only value is 1, which is read as normal; a tumour mask contains 2 or 255")
    if not scale_known:
        problem = "the size of the slide is not known"
        collector.warn(f"{problem}, so a mask pixel is treated as one pixel of level 0")
    collector.polygons += mask.polygons({value: meaning[value] for value in present if value in meaning})
    return collector.annotation()
