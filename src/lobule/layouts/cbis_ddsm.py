"""CBIS-DDSM: film mammograms with lesions, in the official split of each lesion type."""

from __future__ import annotations

import re
from pathlib import Path

from lobule.cohort import SPLITS, Cohort
from lobule.layouts.exams import SIDES, ExamRecord, exam_cases
from lobule.layouts.folders import files_under, non_empty_cohort
from lobule.layouts.tables import Row, read_table, whole_number
from lobule.mammograms.dicom_header import read_dicom_header

TABLE = re.compile(r"(mass|calc)_case_description_(train|test)_set", re.IGNORECASE)
_FULL_IMAGE = re.compile(r"(Calc|Mass)-(Training|Test)_(P_\d{5})_(LEFT|RIGHT)_(CC|MLO)", re.IGNORECASE)
ALLOW = "secondary capture; unstated view; several patients"
PATHOLOGY = {"malignant": True, "benign": False, "benign_without_callback": False}


def cbis_ddsm(folder: str | Path) -> Cohort:
    """CBIS-DDSM: one exam for each patient, with the full mammograms. Crops are not read.

    A breast is labelled with its worst lesion over the tables of masses and calcifications; a breast without
    lesions is not labelled. The official split is disjoint only within each lesion type: 31 patients are in
    training for one type and in test for the other. Such a patient is assigned to the test set, with a note.

    The images are secondary captures of film scans. Their headers may state no view, and their PatientID is
    the name of the image. The attribute `allow` accepts this. `lobule.layouts.lesions` reads the masks of
    lesions.
    """
    records: dict[str, ExamRecord] = {}
    splits: dict[str, set[str]] = {}
    images: dict[str, Path] = {}
    for file in files_under(folder):
        if match := TABLE.fullmatch(file.stem):
            for row in read_table(file):
                splits.setdefault(row["patient id"], set()).add(match[2].lower())
                _add_lesion(records.setdefault(row["patient id"], ExamRecord(row["patient id"])), row)
        elif file.suffix.lower() == ".dcm" and (name := _name_of_full_image(file)):
            images.setdefault(name, file)
    for name, file in sorted(images.items()):
        match = _FULL_IMAGE.fullmatch(name)
        assert match is not None
        record = records.get(match[3].upper())
        view = f"{match[4][0]}_{match[5]}".lower()
        if record is not None and view not in record.views:  # one scan of a view with both lesion types
            record.add_image(match[4], match[5], file)
            record.set_attributes(allow=ALLOW)
    for patient, present in splits.items():
        _assign_split(records[patient], sorted(present, key=SPLITS.index))
    expected = "mass_case_description_train_set.csv and the full mammograms that it lists"
    return non_empty_cohort(folder, exam_cases(records), "CBIS-DDSM", expected)


def _name_of_full_image(file: Path) -> str | None:
    """The name that identifies a full mammogram: that of a folder above it, or the DICOM PatientID.

    The names of crops and masks end in the number of their lesion.
    """
    for folder in reversed(file.parts[:-1]):
        if folder.lower().startswith(("calc-", "mass-")):
            return folder if _FULL_IMAGE.fullmatch(folder) else None
    header = read_dicom_header(file)
    return header.patient if header and _FULL_IMAGE.fullmatch(header.patient) else None


def _add_lesion(record: ExamRecord, row: Row) -> None:
    side = SIDES.get(row["left or right breast"].lower())
    malignant = PATHOLOGY.get(row["pathology"].lower())
    if side and malignant is not None:
        record.add_finding(side, malignant=malignant)
    record.set_attributes(density=whole_number(row.get("breast density", "")))


def _assign_split(record: ExamRecord, present: list[str]) -> None:
    record.split = present[-1]
    if len(present) > 1:
        record.attributes["note"] = (
            "the official split has this patient in train for one lesion type and in test for the other; "
            "assigned to test"
        )
