"""Annotations of other software for a cohort: matched by name, converted and listed in a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lobule.annotations import Annotation, Kind, read_annotation, write_annotation
from lobule.annotations.outline import KINDS
from lobule.cohort import Case, Cohort, write_cohort
from lobule.errors import ConfigError, LobuleError, UsageError
from lobule.files import case_folder_name, make_folder
from lobule.geometry import Size
from lobule.slides.slide import Slide, open_slide

CROPPED_SUFFIXES = (".geojson", ".geojson.gz")
"""Files of QuPath, whose coordinates are relative to the bounds of the slide."""
SUFFIXES = (*CROPPED_SUFFIXES, ".xml", ".json", ".ann.dcm", ".seg.dcm", ".dcm", ".png", ".tif")
MANIFEST = "cohort.csv"


def import_annotations(
    cohort: Cohort,
    folder: str | Path,
    out: str | Path,
    *,
    uncropped: bool = False,
    groups: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Convert the annotations of a folder and write a manifest of the cohort with them.

    Args:
        cohort: The cases.
        folder: Files that are named like the cases, with a suffix of `SUFFIXES`.
        out: Folder for one GeoJSON file per case, in level-0 pixels of the whole slide, and `cohort.csv`.
        uncropped: GeoJSON is not relative to the bounds of the slide.
        groups: The kinds of additional classes: tumour, exclusion, normal or other.

    Returns:
        The manifest, the cases with and without a new annotation, and the warnings of each file.

    Raises:
        UsageError: The folder does not exist, or has no annotation of any case.
        AnnotationError: An annotation is damaged.
    """
    kinds = _checked_kinds(groups or {})
    if not Path(folder).is_dir():
        raise UsageError("there is no such folder with annotations", subject=folder, remedy="Check the path")
    files = {case.id: _file_of(case, Path(folder)) for case in cohort}
    if not any(files.values()):
        raise UsageError(
            "the folder has no annotation of a case",
            subject=folder,
            expected=f"files named like the cases, such as {case_folder_name(cohort.cases[0].id)}.geojson",
        )
    target = make_folder(out)
    cases, warnings = [], {}
    for case in cohort:
        path = files[case.id]
        if path is not None:
            annotation = read_for_case(case, path, uncropped, kinds)
            stored = target / f"{case_folder_name(case.id)}.geojson"
            write_annotation(stored, annotation)
            case = replace(case, annotation=str(stored.absolute()))
            warnings[case.id] = list(annotation.warnings)
        cases.append(case)
    write_cohort(Cohort(tuple(cases)), target / MANIFEST)
    return {
        "manifest": str(target / MANIFEST),
        "imported": [case.id for case in cohort if files[case.id]],
        "without": [case.id for case in cohort if not files[case.id]],
        "warnings": {case: lines for case, lines in warnings.items() if lines},
    }


def read_for_case(
    case: Case, path: Path, uncropped: bool = False, groups: Mapping[str, Kind] | None = None
) -> Annotation:
    """Read one annotation of a case in level-0 pixels of the whole slide."""
    offset, mpp, size = _frame(case)
    is_cropped = not uncropped and path.name.lower().endswith(CROPPED_SUFFIXES)
    return read_annotation(
        path,
        groups=groups,
        l0_offset=offset if is_cropped else (0, 0),
        l0_mpp=mpp,
        l0_size=size,
        image=case.id,
    )


def _frame(case: Case) -> tuple[tuple[float, float], tuple[float, float] | None, Size | None]:
    """Return the bounds, the µm/px and the size of a case's slide; without them if it cannot be read."""
    if case.path is None:
        return (0, 0), None, None
    try:
        with open_slide(case.path, mpp=case.mpp) as slide:
            return _bounds(slide), _mpp(slide), slide.size
    except LobuleError as error:
        raise UsageError(
            "the slide is needed to place the annotation, and it cannot be read",
            subject=case.path,
            actual=error.problem,
        ) from error


def _bounds(slide: Slide) -> tuple[float, float]:
    return float(slide.bounds.x), float(slide.bounds.y)


def _mpp(slide: Slide) -> tuple[float, float] | None:
    return None if slide.stated_mpp is None else (slide.mpp.x, slide.mpp.y)


def _file_of(case: Case, folder: Path) -> Path | None:
    names = [f"{case_folder_name(case.id)}{suffix}" for suffix in SUFFIXES]
    files = [folder / name for name in names if (folder / name).is_file()]
    if len(files) > 1:
        raise UsageError(
            "there are several annotations of one case", subject=folder,
            actual=", ".join(file.name for file in files), remedy="Keep one of them in the folder",
        )  # fmt: skip
    return files[0] if files else None


def _checked_kinds(groups: Mapping[str, str]) -> dict[str, Kind]:
    checked: dict[str, Kind] = {}
    for name, kind in groups.items():
        match = next((candidate for candidate in KINDS if candidate == kind), None)
        if match is None:
            raise ConfigError(f"'{kind}' is not a kind", subject=name, expected=", ".join(KINDS))
        checked[name] = match
    return checked
