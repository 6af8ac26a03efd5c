"""Create cohorts from folders in the layouts of public data sets."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lobule.cohort.case import Case, Cohort, Kind
from lobule.cohort.manifest import IMAGE_SUFFIXES, SLIDE_SUFFIXES
from lobule.cohort.rows import ids_of_paths
from lobule.errors import CohortError, NotReadable
from lobule.files import open_url


def files_under(folder: str | Path) -> Iterator[Path]:
    """Every file below a folder in a fixed order. Links are followed, except cycles."""
    top = Path(folder).absolute()
    if not top.is_dir():
        raise NotReadable("there is no such folder", subject=folder, remedy="Check the path")
    visited: set[str] = set()
    for directory, folders, names in os.walk(top, followlinks=True):
        real = os.path.realpath(directory)
        folders[:] = [] if real in visited else sorted(name for name in folders if not name.startswith("."))
        if real not in visited:
            visited.add(real)
            yield from (Path(directory, name) for name in sorted(names) if not name.startswith("."))


def _cohort(folder: str | Path, cases: list[Case], expected: str) -> Cohort:
    if not cases:
        raise CohortError(folder, [f"nothing there looks like {expected}"])
    return Cohort(tuple(cases))


# -- Camelyon16 ---------------------------------------------------------------------------------------------

_SLIDE = re.compile(r"(normal|tumor|test)_(\d{3})", re.IGNORECASE)

_SECOND_SECTION = {15, 18, 20, 29, 33, 44, 46, 51, 54, 55, 79, 92, 95}
"""Tumour slides that show two consecutive sections, one of them annotated."""
_OUT_OF_FOCUS = {10, 25, 34, 56, 67, 85, 110}
"""Tumour slides whose out-of-focus regions are not annotated."""
_RUMC = {"normal": 100, "tumor": 70}
"""Training slides up to these numbers come from RUMC, the others from UMCU."""


def camelyon16(folder: str | Path) -> Cohort:
    """Camelyon16 in any of its published layouts. Slides, annotations, masks and reference match by name.

    Attributes: `exhaustive` is false if some tumour is not annotated (do not sample negatives there), `froc`
    is false if the organisers exclude the slide from the lesion score, and `note` gives the reason.
    """
    slides: dict[str, Path] = {}
    annotations: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    reference: dict[str, list[str]] = {}
    for file in files_under(folder):
        stem, suffix = file.stem.lower(), file.suffix.lower()
        name = stem.removesuffix("_mask").removesuffix("_evaluation")
        if suffix == ".csv":
            reference |= _camelyon16_reference(file)
        elif _SLIDE.fullmatch(name):
            kinds = {".xml": annotations, ".tif": masks if _is_mask(file) else slides}
            kinds.get(suffix, {}).setdefault(name, file)
    cases = []
    for name, file in sorted(slides.items()):
        outline = annotations.get(name) or masks.get(name)
        cases.append(_camelyon16_case(name, file, outline, reference.get(name)))
    return _cohort(folder, cases, "Camelyon16: no normal_001.tif, tumor_001.tif or test_001.tif")


def _is_mask(file: Path) -> bool:
    return file.stem.lower().endswith("_mask") or "mask" in file.parent.name.lower()


def _camelyon16_reference(file: Path) -> dict[str, list[str]]:
    """Rows of the test set's reference by slide: `test_001,Tumor,IDC,Macro`, in any order of columns."""
    with open_url(file, "r") as text:
        rows = [[cell.strip() for cell in row] for row in csv.reader(text) if row]
    reference = {}
    for row in rows:
        name = Path(row[0]).stem.lower()
        if _SLIDE.fullmatch(name) and {cell.lower() for cell in row[1:]} & {"tumor", "normal"}:
            reference[name] = row[1:]
    return reference


def _camelyon16_case(name: str, file: Path, outline: Path | None, reference: list[str] | None) -> Case:
    group, _, digits = name.partition("_")
    number = int(digits)
    split: str | None = "test" if group == "test" else "train"
    label: str | None = group
    attributes: dict[str, str] = {}
    if group == "test":
        reference_cells = [cell.lower() for cell in reference or ()]
        label = next(
            (cell for cell in reference_cells if cell in ("tumor", "normal")), "tumor" if outline else None
        )
        size = next((cell for cell in reference_cells if cell in ("macro", "micro")), None)
        attributes |= {"metastasis": size} if size else {}
    else:
        attributes["exhaustive"] = "true"
    if name == "normal_086":
        label = split = None
        attributes |= {
            "note": "mislabelled: contains tumour; later released as tumor_111",
            "exhaustive": "false",
        }
    elif group == "tumor" and number in _SECOND_SECTION:
        attributes |= {"exhaustive": "false", "note": "of two consecutive sections one is annotated"}
    elif group == "tumor" and number in _OUT_OF_FOCUS:
        attributes |= {"exhaustive": "false", "note": "out-of-focus regions are not annotated"}
    elif name == "test_049":
        attributes |= {"froc": "false", "note": "duplicate; excluded from FROC by the organisers"}
    elif name == "test_114":
        attributes |= {"froc": "false", "exhaustive": "false"}
        attributes["note"] = "incompletely annotated; excluded from FROC by the organisers"
    site = None if group == "test" else "RUMC" if number <= _RUMC[group] else "UMCU"
    return Case(
        file.stem,
        file.stem,  # one slide per patient
        "slide",
        path=str(file),
        split=split,
        label=label,
        site=site,
        annotation=str(outline) if outline else None,
        attributes=attributes,
    )


# -- BACH ---------------------------------------------------------------------------------------------------

BACH_CLASSES = {"normal": "normal", "benign": "benign", "insitu": "in situ", "invasive": "invasive"}
BACH_MPP = 0.42


def bach(folder: str | Path) -> Cohort:
    """The BACH (ICIAR 2018) photographs: class folders, or `microscopy_ground_truth.csv`, or both.

    The patients of the photographs are not published, so each photograph counts as a separate patient. Images
    without a class are the test set.
    """
    truth: dict[str, str] = {}
    images: list[Path] = []
    for file in files_under(folder):
        if file.name.lower() == "microscopy_ground_truth.csv":
            with open_url(file, "r") as text:
                truth |= {
                    row[0].strip().lower(): _bach_class(row[1]) for row in csv.reader(text) if len(row) > 1
                }
        elif file.suffix.lower() in (".tif", ".tiff", ".png") and not _is_whole_slide(file):
            images.append(file)
    cases = []
    for case_id, file in zip(ids_of_paths([str(file) for file in images]), images, strict=True):
        label = truth.get(file.name.lower()) or _bach_class(file.parent.name)
        split = "train" if label else "test"
        cases.append(
            Case(case_id, case_id, "image", path=str(file), mpp=BACH_MPP, label=label or None, split=split)
        )
    return _cohort(folder, cases, "BACH: no Photos/Normal/n001.tif and the like")


def _bach_class(text: str) -> str:
    return BACH_CLASSES.get(re.sub(r"[^a-z]", "", text.lower()), "")


def _is_whole_slide(file: Path) -> bool:
    return any(folder.lower() == "wsi" for folder in file.parts)


# -- a folder -----------------------------------------------------------------------------------------------


def plain_folder(folder: str | Path) -> Cohort:
    """Slides and images of a folder. Each sub-folder is a label; files in the folder itself have no label."""
    top = Path(folder).absolute()
    suffixes = SLIDE_SUFFIXES + IMAGE_SUFFIXES
    files = [file for file in files_under(top) if file.suffix.lower() in suffixes]
    kinds: set[Kind] = {_kind_of(file) for file in files}
    if len(kinds) > 1:
        raise CohortError(
            folder, ["slides and plain images are mixed there; make one manifest for each kind of file"]
        )
    cases = []
    for case_id, file in zip(ids_of_paths([str(file) for file in files]), files, strict=True):
        inside = file.relative_to(top).parts[:-1]
        cases.append(
            Case(case_id, case_id, _kind_of(file), path=str(file), label=inside[0] if inside else None)
        )
    return _cohort(folder, cases, "slides or images")


def _kind_of(file: Path) -> Kind:
    return "image" if file.suffix.lower() in IMAGE_SUFFIXES else "slide"


LAYOUTS: Mapping[str, Callable[[str | Path], Cohort]] = {
    "camelyon16": camelyon16,
    "bach": bach,
    "folder": plain_folder,
}
"""Layouts that are recognised by file names. `lobule cohort` handles DICOM, whose files need to be opened."""
