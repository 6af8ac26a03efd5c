"""CMMD, the Chinese Mammography Database: exams of breasts with biopsies."""

from __future__ import annotations

from pathlib import Path

from lobule.cohort import Cohort
from lobule.errors import DamagedFile, LobuleError, NotReadable
from lobule.layouts.exams import SIDES, ExamRecord, exam_cases
from lobule.layouts.folders import files_under, non_empty_cohort
from lobule.layouts.tables import Row, read_table
from lobule.mammograms.dicom import examine_dicom


def cmmd(folder: str | Path) -> Cohort:
    """CMMD: one exam for each patient. Side and view come from the DICOM headers, never from file numbers.

    A breast with a clinical row is benign or malignant, as its biopsy says. A breast without a row has no
    label: 729 patients have images of such a breast, and the table does not call it normal. The data set has
    no split. Its images have 8 bits, which the attribute `allow` accepts.
    """
    records: dict[str, ExamRecord] = {}
    for file in files_under(folder):
        if file.suffix.lower() != ".dcm":
            continue
        try:
            heading = examine_dicom(file)
        except LobuleError:
            continue
        if heading.patient and heading.view:
            side, angle = heading.view.split("-")
            record = records.setdefault(heading.patient, ExamRecord(heading.patient))
            record.add_image(side, angle, file)
            if any(decision.rule == "depth" for decision in heading.refusals):
                record.set_attributes(allow="8-bit")
    table = _clinical_table(folder)
    rows = [row for row in read_table(table) if row["id1"] in records]
    if records and not rows:
        raise DamagedFile(
            "no row of the clinical table belongs to a patient of the images",
            subject=table,
            expected=f"patients such as {next(iter(records))} in the column ID1",
            remedy="Copy the table that belongs to these images into the folder",
        )
    for row in rows:
        _add_clinical_row(records[row["id1"]], row)
    return non_empty_cohort(folder, exam_cases(records), "CMMD", "DICOM files of mammograms")


def _clinical_table(folder: str | Path) -> Path:
    tables = [
        file
        for file in files_under(folder)
        if "clinicaldata" in file.stem.lower() and file.suffix.lower() in (".csv", ".xlsx")
    ]
    if not tables:
        raise NotReadable(
            "the clinical table is missing",
            subject=folder,
            expected="CMMD_clinicaldata_revision.xlsx, or the same as CSV",
            remedy="Copy the table into the folder",
        )
    return tables[0]


def _add_clinical_row(record: ExamRecord, row: Row) -> None:
    side = SIDES.get(row["leftright"].lower())
    classes = {"malignant": True, "benign": False}
    if side and row["classification"].lower() in classes:
        record.add_finding(side, malignant=classes[row["classification"].lower()])
        record.set_attributes(**{f"{side}_subtype": row.get("subtype", "")})
        record.set_attributes(**{f"{side}_abnormality": row.get("abnormality", "")})
    record.set_attributes(age=row.get("age", ""))
