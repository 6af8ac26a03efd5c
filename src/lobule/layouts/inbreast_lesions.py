"""The outlines of INbreast: Apple property lists, one for each image with lesions."""

from __future__ import annotations

import plistlib
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np

from lobule.annotations import Polygon
from lobule.cohort import Cohort
from lobule.errors import AnnotationError
from lobule.geometry import Size
from lobule.layouts.folders import files_under
from lobule.layouts.inbreast import FILE, SUSPICIOUS, read_rows
from lobule.layouts.lesions import Lesion, images_of, inside_image
from lobule.layouts.tables import whole_number

_POINT = re.compile(r"\(\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*\)")
FEWEST_POINTS = 3
"""Lesions of one or two points are marks of single calcifications without an outline."""
LARGEST_FILE = 64 << 20


def lesions(folder: str | Path, cohort: Cohort) -> Mapping[str, list[Lesion]]:
    """Return the lesions of each exam. BI-RADS 4 to 6 of the image makes them malignant, 1 to 3 benign.

    Lesions of images without a category have no grade and are left out.
    """
    files = {file.stem: file for file in files_under(folder) if file.suffix.lower() == ".xml"}
    rows = read_rows(folder)
    by_case: dict[str, list[Lesion]] = {}
    for case in cohort:
        for view, path in images_of(case):
            match = FILE.fullmatch(Path(path).stem)
            source = files.get(match[1]) if match else None
            category = whole_number(rows.get(match[1], {}).get("bi-rads", "")) if match else ""
            if source is not None and category:
                grade = "malignant" if category[0] in SUSPICIOUS else "benign"
                read = partial(outlines_of, source)
                by_case.setdefault(case.id, []).append(Lesion(view, path, (source,), grade, read))
    return by_case


def outlines_of(path: Path, size: Size) -> list[Polygon]:
    """Return the outlined lesions of a file in pixels of its image.

    Raises:
        AnnotationError: The file is not a property list of outlines, or it belongs to another image.
    """
    polygons = []
    for region in _regions(path):
        points = [_POINT.search(str(text)) for text in region.get("Point_px") or ()]
        if any(point is None for point in points):
            raise AnnotationError(
                "a point is not two numbers", subject=path, expected="text such as (120, 88)"
            )
        ring = np.array([[float(p[1]), float(p[2])] for p in points if p is not None], np.float64)
        if len(ring) >= FEWEST_POINTS:
            polygons.append(Polygon(ring))
    outside = [polygon for polygon in polygons if not inside_image(polygon, size)]
    if outside:
        raise AnnotationError(
            f"{len(outside)} of {len(polygons)} outlines lie outside the image", subject=path,
            expected=f"points inside {size}", remedy="Check that the file belongs to this image",
        )  # fmt: skip
    return polygons


def _regions(path: Path) -> list[dict[str, Any]]:
    if path.stat().st_size > LARGEST_FILE:
        raise AnnotationError("the file is too large", subject=path, expected=f"at most {LARGEST_FILE} bytes")
    try:
        document = plistlib.loads(path.read_bytes(), fmt=plistlib.FMT_XML)
        regions = [region for image in document["Images"] for region in image["ROIs"]]
        if all(isinstance(region, dict) for region in regions):
            return regions
        raise TypeError("a region is not a dictionary")
    except (
        plistlib.InvalidFileException,
        ExpatError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise AnnotationError(
            "the file is not a property list of outlines", subject=path,
            expected="Images with ROIs, as released by INbreast", actual=str(error),
        ) from error  # fmt: skip
