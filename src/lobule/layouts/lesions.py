"""Outlines of lesions in public mammograms: ROI masks of CBIS-DDSM, and XML files of INbreast.

Each exam gets one GeoJSON file in pixels of the stored images, in which the name of a feature is its view and
its class is malignant or benign, as the trainings of four_view read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

import numpy as np

from lobule.annotations import Annotation, Polygon, write_annotation
from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, DamagedFile, LobuleError
from lobule.files import case_folder_name, make_folder
from lobule.geometry import Size

LESIONS: Mapping[str, str] = {
    "cbis-ddsm": "lobule.layouts.cbis_ddsm_lesions:lesions",
    "inbreast": "lobule.layouts.inbreast_lesions:lesions",
}
"""The layouts with outlines, and the function that finds those of a cohort."""


@dataclass(frozen=True)
class Lesion:
    """One outlined lesion of one image, and the function that reads its outlines."""

    view: str
    """Name of the image: `L-CC`, or `L-CC 2` for the second image of a view."""
    image: str
    """The file of the image."""
    sources: tuple[Path, ...]
    """The files with the outlines; the first one names the lesion in reports."""
    grade: str
    """malignant or benign."""
    read: Callable[[Size], list[Polygon]]
    """Returns the outlines in pixels of an image of this size."""


@dataclass(frozen=True)
class LesionReport:
    """The cohort with its annotations, and what could not be used."""

    cohort: Cohort
    outlined: int
    """Number of exams with at least one outline."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """The reason for each file that was left out."""


def write_lesions(
    layout: str,
    folder: str | Path,
    cohort: Cohort,
    out: str | Path,
    progress: Callable[[int], None] = lambda cases: None,
) -> LesionReport:
    """Convert the outlines of lesions of a data set, one GeoJSON file for each exam.

    Files of an earlier call that are newer than their sources are used again.

    Args:
        layout: A name of `LESIONS`.
        folder: The folder of the data set.
        cohort: The cohort that `read_layout` returned for it.
        out: Folder for the converted outlines.
        progress: Called with 1 after each exam.

    Raises:
        ConfigError: The layout has no outlines of lesions.
    """
    if layout not in LESIONS:
        raise ConfigError(
            f"the layout {layout} has no outlines of lesions that can be read", expected=", ".join(LESIONS)
        )
    module, _, function = LESIONS[layout].partition(":")
    find: Callable[[str | Path, Cohort], Mapping[str, list[Lesion]]] = getattr(
        import_module(module), function
    )
    lesions = find(folder, cohort)
    target, left_out, cases = make_folder(out).absolute(), dict[str, str](), list[Case]()
    for case in cohort:
        path = target / f"{case_folder_name(case.id)}.geojson"
        of_case = lesions.get(case.id, [])
        if of_case and not _is_current(path, of_case):
            polygons = tuple(_outlines(of_case, left_out))
            path.unlink(missing_ok=True)
            if polygons:
                write_annotation(path, Annotation(polygons))
        cases.append(replace(case, annotation=str(path)) if of_case and path.exists() else case)
        progress(1)
    outlined = sum(case.annotation is not None for case in cases)
    return LesionReport(replace(cohort, cases=tuple(cases)), outlined, left_out)


def _is_current(path: Path, lesions: list[Lesion]) -> bool:
    newest = max(source.stat().st_mtime_ns for lesion in lesions for source in lesion.sources)
    return path.exists() and path.stat().st_mtime_ns >= newest


def _outlines(lesions: list[Lesion], left_out: dict[str, str]) -> Iterator[Polygon]:
    sizes: dict[str, Size] = {}
    for lesion in lesions:
        try:
            if lesion.image not in sizes:
                sizes[lesion.image] = size_of_image(lesion.image)
            polygons = lesion.read(sizes[lesion.image])
        except (LobuleError, OSError) as error:
            left_out[str(lesion.sources[0])] = str(error)
            continue
        for polygon in polygons:
            yield replace(polygon, kind="other", name=lesion.view, group=lesion.grade)


def size_of_image(path: str) -> Size:
    """Return the size that the header of a DICOM file states. Raises `DamagedFile` if it states none."""
    from lobule.mammograms.dicom import examine_dicom

    heading = examine_dicom(path)
    if heading.width <= 0 or heading.height <= 0:
        raise DamagedFile("the header does not state the size of the image", subject=path)
    return Size(heading.width, heading.height)


def images_of(case: Case) -> Iterator[tuple[str, str]]:
    """Yield the name and the file of each image of an exam."""
    for view, files in case.views.items():
        name = view.upper().replace("_", "-")
        for number, file in enumerate(files, 1):
            yield (name if number == 1 else f"{name} {number}"), file


def inside_image(polygon: Polygon, size: Size) -> bool:
    """Whether at least half of the points of an outline lie inside the image."""
    within = (polygon.points >= 0) & (polygon.points <= np.array([size.width, size.height]))
    return bool(within.all(axis=1).mean() >= 0.5)
