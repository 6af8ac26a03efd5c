"""The ROI masks of CBIS-DDSM: one for each lesion and view, beside a crop of the lesion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lobule.annotations import Polygon
from lobule.cohort import Cohort
from lobule.errors import AnnotationError, LobuleError
from lobule.findings import mask_outlines
from lobule.geometry import Size
from lobule.layouts.cbis_ddsm import PATHOLOGY, TABLE
from lobule.layouts.folders import files_under
from lobule.layouts.lesions import Lesion, images_of
from lobule.layouts.tables import read_table
from lobule.mammograms.dicom_header import read_dicom_header
from lobule.mammograms.record import require_size

_LESION = re.compile(r"(Calc|Mass)-(Training|Test)_(P_\d{5})_(LEFT|RIGHT)_(CC|MLO)_\d+", re.IGNORECASE)
SAME_SHAPE = 0.02
"""Largest relative difference of the aspect ratios of a mask and its image."""


def lesions(folder: str | Path, cohort: Cohort) -> Mapping[str, list[Lesion]]:
    """Return the lesions of each exam.

    The mask and the crop of a lesion are exchanged in part of the data set, so the larger file is the mask,
    and must have two values. A mask of another size than its image is scaled if it has the same shape.
    """
    grades: dict[str, str] = {}
    files: dict[str, list[Path]] = {}
    for file in files_under(folder):
        if TABLE.fullmatch(file.stem):
            for row in read_table(file):
                malignant = PATHOLOGY.get(row["pathology"].lower())
                of_row = row["roi mask file path"].replace("\\", "/").partition("/")[0].strip()
                if malignant is not None:
                    grades[of_row.lower()] = "malignant" if malignant else "benign"
        elif file.suffix.lower() == ".dcm" and (name := _lesion_name(file)):
            files.setdefault(name.lower(), []).append(file)
    images = {
        (case.patient.lower(), view): (case.id, view, path)
        for case in cohort
        for view, path in reversed(list(images_of(case)))
    }
    by_case: dict[str, list[Lesion]] = {}
    for name, of_lesion in sorted(files.items()):
        match = _LESION.fullmatch(name)
        assert match is not None
        key = (match[3], f"{match[4][0]}-{match[5]}".upper())
        image = images.get((key[0].lower(), key[1]))
        if image is not None and name in grades:
            case, view, path = image
            read = partial(mask_polygons, tuple(of_lesion))
            by_case.setdefault(case, []).append(Lesion(view, path, tuple(of_lesion), grades[name], read))
    return by_case


def _lesion_name(file: Path) -> str | None:
    """The name of the lesion to which a mask or a crop belongs: that of a folder, or the DICOM PatientID."""
    for folder in reversed(file.parts[:-1]):
        if folder.lower().startswith(("calc-", "mass-")):
            return folder if _LESION.fullmatch(folder) else None
    header = read_dicom_header(file)
    return header.patient if header and _LESION.fullmatch(header.patient) else None


def mask_polygons(files: tuple[Path, ...], size: Size) -> list[Polygon]:
    """Return the outlines of a lesion in pixels of its image.

    Raises:
        AnnotationError: No file is a mask, or its shape differs from that of the image.
    """
    headers = [header for header in map(_header, files) if header is not None]
    if not headers:
        raise AnnotationError("neither the mask nor the crop can be read", subject=files[0])
    path, header = max(headers, key=lambda pair: int(pair[1].Rows) * int(pair[1].Columns))
    shape = int(header.Rows), int(header.Columns)
    if shape[1] < size.width / 2:
        raise AnnotationError(
            "the mask is missing: the largest file of the lesion is a crop",
            subject=path, expected=f"about {size}", actual=f"{shape[1]} × {shape[0]} px",
        )  # fmt: skip
    if abs((shape[1] / shape[0]) / (size.width / size.height) - 1) > SAME_SHAPE:
        raise AnnotationError(
            "the mask does not have the shape of its image",
            subject=path, expected=f"the shape of {size}", actual=f"{shape[1]} × {shape[0]} px",
        )  # fmt: skip
    mask = _mask_values(path)
    outlines, _ = mask_outlines(mask)
    scale = size.width / shape[1], size.height / shape[0]
    scaled = [outline.scaled(*scale) for outline in outlines]
    return [Polygon(outline.exterior, holes=outline.holes) for outline in scaled]


def _header(path: Path) -> tuple[Path, Any] | None:
    from lobule.mammograms.dicom import read_header

    try:
        header = read_header(path)
    except LobuleError:
        return None
    return (path, header) if header.get("Rows") and header.get("Columns") else None


def _mask_values(path: Path) -> np.ndarray[Any, np.dtype[np.bool_]]:
    from lobule.mammograms.dicom import read_values

    values = read_values(path)
    require_size(path, values.shape[1], values.shape[0])
    present = np.unique(values)
    if len(present) > 2:
        raise AnnotationError(
            "the file is not a mask", subject=path, expected="two values", actual=f"{len(present)} values"
        )
    if len(present) < 2:
        raise AnnotationError("the mask outlines nothing", subject=path)
    return np.asarray(values == present[1])
