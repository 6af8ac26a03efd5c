"""Data sets of histology images: BACH, BRACS and BreakHis."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from lobule.cohort import Case, Cohort
from lobule.cohort.rows import ids_of_paths
from lobule.errors import NotReadable
from lobule.layouts.folders import files_under, non_empty_cohort
from lobule.layouts.splits import one_split_per_patient
from lobule.layouts.tables import csv_cells, read_table

# -- BACH ---------------------------------------------------------------------------------------------------

BACH_CLASSES = {"normal": "normal", "benign": "benign", "insitu": "in situ", "invasive": "invasive"}
BACH_MPP = 0.42


def bach(folder: str | Path) -> Cohort:
    """Read the photographs of BACH (ICIAR 2018).

    Their classes are the names of their folders, or stated in `microscopy_ground_truth.csv`. The patients of
    the photographs are not published, so each photograph counts as a separate patient. Photographs without a
    class are the test set.
    """
    top = Path(folder).absolute()
    truth: dict[str, str] = {}
    images: list[Path] = []
    for file in files_under(folder):
        if file.name.lower() == "microscopy_ground_truth.csv":
            truth |= {row[0].strip().lower(): _bach_class(row[1]) for row in csv_cells(file) if len(row) > 1}
        elif file.suffix.lower() in (".tif", ".tiff", ".png") and not _is_whole_slide(file, top):
            images.append(file)
    cases = []
    for case_id, file in zip(ids_of_paths([str(file) for file in images]), images, strict=True):
        label = truth.get(file.name.lower()) or _bach_class(file.parent.name)
        split = "train" if label else "test"
        cases.append(
            Case(case_id, case_id, "image", path=str(file), mpp=BACH_MPP, label=label or None, split=split)
        )
    return non_empty_cohort(folder, cases, "BACH", "files such as Photos/Normal/n001.tif")


def _bach_class(text: str) -> str:
    """The class that a folder or a cell of the table names, or an empty string."""
    return BACH_CLASSES.get(re.sub(r"[^a-z]", "", text.lower()), "")


def _is_whole_slide(file: Path, top: Path) -> bool:
    """Whether a file lies in the folder of the whole slides of BACH, which are not photographs."""
    return any(folder.lower() == "wsi" for folder in file.relative_to(top).parts)


# -- BRACS --------------------------------------------------------------------------------------------------

BRACS_CLASSES = ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")
BRACS_MPP = 0.25
_BRACS_SPLITS = ("train", "val", "test")
_BRACS_SLIDE = re.compile(r"BRACS_\d+", re.IGNORECASE)
_BRACS_ROI = re.compile(r"(BRACS_\d+)_(N|PB|UDH|FEA|ADH|DCIS|IC)_\d+", re.IGNORECASE)


def bracs(folder: str | Path) -> Cohort:
    """Read the whole slides of BRACS with the official split. Each has one of seven classes as its label.

    The patients are listed only in `BRACS.xlsx`, which the folder must contain; its sheet `WSI_Information`
    as a CSV file is enough. A patient who occurs in several official splits is assigned to one of them.
    """
    top = Path(folder).absolute()
    patients = _bracs_patients(top)
    cases = []
    for file, split in _bracs_files(top, ".svs"):
        class_name = file.parent.name.lower().removeprefix("type_").upper()
        if _BRACS_SLIDE.fullmatch(file.stem) and class_name in BRACS_CLASSES:
            patient = patients.get(file.stem.lower())
            cases.append(_bracs_case(file, split, class_name, patient, file.stem))
    expected = "files such as train/Group_BT/Type_N/BRACS_1.svs"
    return non_empty_cohort(folder, one_split_per_patient(cases), "BRACS", expected)


def bracs_roi(folder: str | Path) -> Cohort:
    """Read the regions of interest of BRACS, which have 0.25 µm/px, with the official split.

    The split is that of the latest version. Files in `previous_versions` have another split and are left out.
    """
    top = Path(folder).absolute()
    patients = _bracs_patients(top)
    cases = []
    for file, split in _bracs_files(top, ".png"):
        match = _BRACS_ROI.fullmatch(file.stem)
        if match and "previous_versions" not in file.relative_to(top).parts:
            slide = match[1]
            cases.append(_bracs_case(file, split, match[2].upper(), patients.get(slide.lower()), slide))
    expected = "files such as latest_version/train/0_N/BRACS_1_N_1.png"
    return non_empty_cohort(folder, one_split_per_patient(cases), "BRACS", expected)


def _bracs_files(top: Path, suffix: str) -> Iterator[tuple[Path, str]]:
    """Find the files with a suffix in the folders of the official splits, each with its split."""
    for file in files_under(top):
        splits = [folder for folder in map(str.lower, file.relative_to(top).parts) if folder in _BRACS_SPLITS]
        if splits and file.suffix.lower() == suffix:
            yield file, splits[-1]


def _bracs_patients(top: Path) -> Mapping[str, str]:
    """Return the patient of each slide, from the sheet `WSI_Information`; the slides are in lower case."""
    for file in files_under(top):
        if file.suffix.lower() in (".xlsx", ".csv") and file.stem.lower() in ("bracs", "wsi_information"):
            rows = read_table(file, "WSI_Information" if file.suffix.lower() == ".xlsx" else None)
            return {row["wsi filename"].lower().removesuffix(".svs"): row["patient id"] for row in rows}
    raise NotReadable(
        "the table of patients is missing",
        subject=top,
        expected="BRACS.xlsx, as the data set contains it",
        remedy="Copy BRACS.xlsx into the folder; without it, a patient could be in two splits",
    )


def _bracs_case(file: Path, split: str, label: str, patient: str | None, slide: str) -> Case:
    is_region = file.suffix.lower() == ".png"
    attributes = {"slide_name": slide} if is_region else {}
    if not patient:
        attributes["note"] = "the table does not list this slide; it counts as a separate patient"
    return Case(
        file.stem,
        patient or slide,
        "image" if is_region else "slide",
        path=str(file),
        mpp=BRACS_MPP if is_region else None,
        split=split,
        label=label,
        attributes=attributes,
    )


# -- BreakHis -----------------------------------------------------------------------------------------------

BREAKHIS_TYPES = {
    "A": "adenosis", "F": "fibroadenoma", "PT": "phyllodes tumor", "TA": "tubular adenoma",
    "DC": "ductal carcinoma", "LC": "lobular carcinoma", "MC": "mucinous carcinoma",
    "PC": "papillary carcinoma",
}  # fmt: skip
_BREAKHIS_FILE = re.compile(
    r"SOB_([BM])_(A|F|PT|TA|DC|LC|MC|PC)-(\d{2})-(\d+)([A-Z]*)-(40|100|200|400)-(\d{3})", re.IGNORECASE
)
_PATIENT_WITH_TWO_DIAGNOSES = "13412"
"""The patient of slide 14-13412, whose images occur both as ductal and as lobular carcinoma."""


def breakhis(folder: str | Path) -> Cohort:
    """Read BreakHis: images labelled benign or malignant, with the type and the magnification as attributes.

    The digits of a slide number identify the patient: slides 22549AB and 22549CD belong to one patient. The
    images of slide 14-13412 occur twice, as ductal and as lobular carcinoma; those named ductal carcinoma get
    no label. The data set has no split and does not state its µm/px.
    """
    cases = []
    for file in files_under(folder):
        match = _BREAKHIS_FILE.fullmatch(file.stem)
        if match is None or file.suffix.lower() != ".png":
            continue
        class_letter, type_code, year, patient, letters, magnification, _ = match.groups()
        attributes = {
            "type": BREAKHIS_TYPES[type_code.upper()],
            "magnification": magnification,
            "slide_name": f"{year}-{patient}{letters.upper()}",
        }
        label: str | None = "malignant" if class_letter.upper() == "M" else "benign"
        if patient == _PATIENT_WITH_TWO_DIAGNOSES and type_code.upper() == "DC":
            label = None
            attributes["note"] = "the same image also occurs as lobular carcinoma; this copy has no label"
        cases.append(Case(file.stem, patient, "image", path=str(file), label=label, attributes=attributes))
    return non_empty_cohort(folder, cases, "BreakHis", "files such as SOB_B_TA-14-3411F-40-001.png")
