"""Data sets of histology images: BACH, BRACS and BreakHis."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from lobule.cohort import Case, Cohort
from lobule.cohort.rows import ids_of_paths
from lobule.errors import NotReadable
from lobule.files import open_url
from lobule.layouts.folders import cohort_of, files_under
from lobule.layouts.splits import one_split_per_patient
from lobule.layouts.tables import read_table

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
    return cohort_of(folder, cases, "BACH: no Photos/Normal/n001.tif and the like")


def _bach_class(text: str) -> str:
    return BACH_CLASSES.get(re.sub(r"[^a-z]", "", text.lower()), "")


def _is_whole_slide(file: Path) -> bool:
    return any(folder.lower() == "wsi" for folder in file.parts)


# -- BRACS --------------------------------------------------------------------------------------------------

BRACS_CLASSES = ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")
BRACS_MPP = 0.25
_BRACS_SPLITS = ("train", "val", "test")
_BRACS_SLIDE = re.compile(r"BRACS_\d+", re.IGNORECASE)
_BRACS_ROI = re.compile(r"(BRACS_\d+)_(N|PB|UDH|FEA|ADH|DCIS|IC)_\d+", re.IGNORECASE)


def bracs(folder: str | Path) -> Cohort:
    """The whole slides of BRACS with the official split, labelled with one of its seven classes.

    The patients are listed only in `BRACS.xlsx` (or the sheet `WSI_Information` as CSV), which must lie in
    the folder. A patient of several official sets is assigned to one of them.
    """
    top = Path(folder).absolute()
    patients = _bracs_patients(top)
    cases = []
    for file, split in _bracs_files(top, ".svs"):
        group = file.parent.name.lower().removeprefix("type_").upper()
        if _BRACS_SLIDE.fullmatch(file.stem) and group in BRACS_CLASSES:
            patient = patients.get(file.stem.lower())
            cases.append(_bracs_case(file, split, group, patient, file.stem))
    expected = "BRACS: no train/Group_BT/Type_N/BRACS_1.svs and the like"
    return cohort_of(folder, one_split_per_patient(cases), expected)


def bracs_roi(folder: str | Path) -> Cohort:
    """The regions of interest of BRACS, in the official split of their latest version, at 0.25 µm/px.

    Older versions in `previous_versions` divide the regions otherwise and are left out.
    """
    top = Path(folder).absolute()
    patients = _bracs_patients(top)
    cases = []
    for file, split in _bracs_files(top, ".png"):
        match = _BRACS_ROI.fullmatch(file.stem)
        if match and "previous_versions" not in file.parts:
            slide = match[1]
            cases.append(_bracs_case(file, split, match[2].upper(), patients.get(slide.lower()), slide))
    return cohort_of(
        folder,
        one_split_per_patient(cases),
        "BRACS: no latest_version/train/0_N/BRACS_1_N_1.png and the like",
    )


def _bracs_files(top: Path, suffix: str) -> Iterator[tuple[Path, str]]:
    """Files with a suffix in one of the folders of the official split, with the split."""
    for file in files_under(top):
        splits = [folder for folder in map(str.lower, file.relative_to(top).parts) if folder in _BRACS_SPLITS]
        if splits and file.suffix.lower() == suffix:
            yield file, splits[-1]


def _bracs_patients(top: Path) -> Mapping[str, str]:
    """The patient of each slide, from the sheet `WSI_Information`."""
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
        attributes["note"] = "the table names no patient; the slide counts as a separate patient"
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
_TWO_DIAGNOSES = "13412"
"""A slide whose images occur both as ductal and as lobular carcinoma."""


def breakhis(folder: str | Path) -> Cohort:
    """BreakHis: images labelled benign or malignant, with the type and the magnification as attributes.

    The digits of the slide's number are the patient, since slides such as 22549AB and 22549CD belong to one
    patient. Slide 14-13412 occurs with two diagnoses and the same images; its images as ductal carcinoma get
    no label. The data set has no split and does not state its µm/px.
    """
    cases = []
    for file in files_under(folder):
        match = _BREAKHIS_FILE.fullmatch(file.stem)
        if match is None or file.suffix.lower() != ".png":
            continue
        malignant, type_code, year, number, letters, magnification, _ = match.groups()
        attributes = {
            "type": BREAKHIS_TYPES[type_code.upper()],
            "magnification": magnification,
            "slide_name": f"{year}-{number}{letters.upper()}",
        }
        label: str | None = "malignant" if malignant.upper() == "M" else "benign"
        if number == _TWO_DIAGNOSES and type_code.upper() == "DC":
            label = None
            attributes["note"] = "the same images occur as lobular carcinoma; used neither way"
        cases.append(Case(file.stem, number, "image", path=str(file), label=label, attributes=attributes))
    return cohort_of(folder, cases, "BreakHis: no SOB_B_TA-14-3411F-40-001.png and the like")
