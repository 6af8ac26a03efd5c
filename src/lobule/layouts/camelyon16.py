"""Camelyon16 in its published layouts: GigaDB, the public cloud bucket, and the folders of 2016."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lobule.cohort import Case, Cohort
from lobule.errors import DamagedFile
from lobule.layouts.folders import files_under, non_empty_cohort
from lobule.layouts.tables import csv_cells, rows_under_header

_SLIDE = re.compile(r"(normal|tumor|test)_(\d{3})", re.IGNORECASE)

_SECOND_SECTION = {15, 18, 20, 29, 33, 44, 46, 51, 54, 55, 79, 92, 95}
"""Tumour slides that show two consecutive sections, one of them annotated."""
_OUT_OF_FOCUS = {10, 25, 34, 56, 67, 85, 110}
"""Tumour slides whose out-of-focus regions are not annotated."""
_RUMC = {"normal": 100, "tumor": 70}
"""Training slides up to these numbers come from RUMC, the others from UMCU."""
_FORMER_NORMAL = "tumor_111"
"""The slide that was first released as normal_086, and so comes from RUMC."""
_CENTRES = {"0": "RUMC", "1": "UMCU"}
_MISLABELLED = {
    "normal_086": "mislabelled: contains tumour; later released as tumor_111",
    "normal_144": "reported as mislabelled by several groups; used neither as normal nor as tumour",
}
_CLASSES = {"negative": "normal", "normal": "normal", "micro": "tumor", "macro": "tumor", "tumor": "tumor"}


@dataclass
class _Files:
    """The files of a data set by the name of the slide, in lower case."""

    slides: dict[str, Path] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    reference: dict[str, Mapping[str, str]] = field(default_factory=dict)


def camelyon16(folder: str | Path) -> Cohort:
    """Camelyon16 in any of its published layouts. Slides, annotations, masks and reference match by name.

    A training slide is annotated by its outlines, and by its mask if it has no outlines. A test slide is
    annotated by its mask if it has one, because outlines rasterised again change the class of some isolated
    cells. A normal slide gets no annotation, and a mask never determines a label.

    Attributes: `exhaustive` is false if some tumour is not annotated (do not sample negatives there), `froc`
    is false if the organisers exclude the slide from the lesion score, `metastasis` is macro or micro, and
    `note` gives a reason.
    """
    files = _find_files(Path(folder).absolute())
    cases = [_case(name, files) for name in sorted(files.slides)]
    return non_empty_cohort(
        folder, cases, "Camelyon16", "files such as normal_001.tif, tumor_001.tif or test_001.tif"
    )


def _find_files(top: Path) -> _Files:
    files = _Files()
    packed: dict[str, str] = {}
    for file in files_under(top):
        suffix = file.suffix.lower()
        name, kind = _name_and_kind(file, top)
        if suffix == ".csv":
            files.reference |= _read_reference(file)
        elif suffix == ".zip" and "annotation" in file.stem.lower():
            packed |= _packed_annotations(file)
        elif name is None:
            continue
        elif suffix == ".xml":
            files.annotations.setdefault(name, str(file))
        elif suffix == ".tif" and kind == "slide":
            files.slides[name] = _larger(file, files.slides.get(name))
        elif suffix in (".tif", ".png") and kind == "mask":
            files.masks.setdefault(name, file)
    files.annotations = packed | files.annotations
    return files


def _name_and_kind(file: Path, top: Path) -> tuple[str | None, str]:
    """The slide to which a file belongs, and whether it is the slide, its mask or another image.

    Some copies have folders of tissue or background masks whose files have the names of the slides.
    """
    stem = file.stem.lower()
    folders = "/".join(file.relative_to(top).parts[:-1]).lower()
    name = re.sub(r"_(evaluation_mask|mask|tissue)$", "", stem)
    if _SLIDE.fullmatch(name) is None:
        return None, "other"
    if stem.endswith("_tissue") or "tissue" in folders or "background" in folders:
        return name, "other"
    return name, "mask" if stem != name or "mask" in folders else "slide"


def _larger(file: Path, other: Path | None) -> Path:
    """Of two files with the name of a slide the larger one: slides have gigabytes, masks megabytes."""
    return file if other is None or _size(file) > _size(other) else other


def _size(file: Path) -> int:
    """The size of a file; 0 for a link to a file that is not there."""
    return file.stat().st_size if file.exists() else 0


def _packed_annotations(file: Path) -> dict[str, str]:
    """URLs of the annotations in a zip archive, which are read without unpacking it."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = sorted(archive.namelist())
    except zipfile.BadZipFile as error:
        raise DamagedFile(
            f"the archive of annotations cannot be read: {error}",
            subject=file,
            remedy="Download it again, or unpack it yourself and remove it",
        ) from error
    stems = {member: Path(member).stem.lower() for member in members if member.lower().endswith(".xml")}
    return {stem: f"zip://{member}::{file}" for member, stem in stems.items() if _SLIDE.fullmatch(stem)}


def _read_reference(file: Path) -> dict[str, Mapping[str, str]]:
    """The fields `label`, `metastasis` and `site` of each slide that a reference table lists.

    The table of the cloud bucket has the header `image,class,type,center`. The one of GigaDB has no header:
    `test_001,Tumor,IDC,Macro`.
    """
    lines = [row for row in csv_cells(file) if any(cell.strip() for cell in row)]
    has_header = bool(lines) and {"image", "class"} <= {cell.strip().lower() for cell in lines[0]}
    centres = [row.get("center", "") for row in rows_under_header(lines, file)] if has_header else []
    reference: dict[str, Mapping[str, str]] = {}
    for index, cells in enumerate(lines[1:] if has_header else lines):
        name = Path(cells[0].strip()).stem.lower()
        words = [cell.strip().lower() for cell in cells[1:]]
        label = next((_CLASSES[word] for word in words if word in _CLASSES), None)
        if _SLIDE.fullmatch(name) and label is not None:
            size = next((word for word in words if word in ("macro", "micro")), "")
            site = _CENTRES.get(centres[index], "") if centres else ""
            reference[name] = {"label": label, "metastasis": size, "site": site}
    return reference


def _case(name: str, files: _Files) -> Case:
    group, _, digits = name.partition("_")
    number = int(digits)
    reference = files.reference.get(name, {})
    outline, mask = files.annotations.get(name), files.masks.get(name)
    label: str | None = group
    if group == "test":
        label = reference.get("label") or ("tumor" if outline else None)
    attributes = _attributes(name, group, number)
    if reference.get("metastasis"):
        attributes["metastasis"] = reference["metastasis"]
    site = reference.get("site")
    if not site and group != "test":
        site = "RUMC" if number <= _RUMC[group] or name == _FORMER_NORMAL else "UMCU"
    mask_path = None if mask is None else str(mask)
    annotation = (mask_path or outline) if group == "test" else (outline or mask_path)
    file = files.slides[name]
    return Case(
        file.stem,
        file.stem,  # one slide per patient
        "slide",
        path=str(file),
        split=None if name in _MISLABELLED else "test" if group == "test" else "train",
        label=None if name in _MISLABELLED else label,
        site=site or None,
        annotation=None if label == "normal" else annotation,
        attributes=attributes,
    )


def _attributes(name: str, group: str, number: int) -> dict[str, str]:
    """The attributes `exhaustive`, `froc` and `note` of a slide."""
    if name in _MISLABELLED:
        return {"exhaustive": "false", "note": _MISLABELLED[name]}
    if group == "tumor" and number in _SECOND_SECTION:
        return {"exhaustive": "false", "note": "of two consecutive sections one is annotated"}
    if group == "tumor" and number in _OUT_OF_FOCUS:
        return {"exhaustive": "false", "note": "out-of-focus regions are not annotated"}
    if name == "test_049":
        return {"froc": "false", "note": "duplicate; excluded from FROC by the organisers"}
    if name == "test_114":
        note = "incompletely annotated; excluded from FROC by the organisers"
        return {"froc": "false", "exhaustive": "false", "note": note}
    return {} if group == "test" else {"exhaustive": "true"}
