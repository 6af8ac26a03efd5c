"""INbreast: exams with BI-RADS categories."""

from __future__ import annotations

import re
from pathlib import Path

from lobule.cohort import Cohort
from lobule.errors import NotReadable
from lobule.layouts.exams import SIDES, STATED_BY_TABLES, ExamRecord, exam_cases, worst_birads
from lobule.layouts.folders import files_under, non_empty_cohort
from lobule.layouts.tables import Row, read_table, whole_number

FILE = re.compile(r"(\d+)_([0-9a-f]+)_MG_([LR])_([A-Z]+)_ANON", re.IGNORECASE)
_ANGLES = {"cc": "cc", "ml": "mlo", "mlo": "mlo"}
"""File names write ML for the oblique view."""
SUSPICIOUS = "456"


def inbreast(folder: str | Path) -> Cohort:
    """INbreast: one exam for each patient and date, with the BI-RADS category of each breast as attribute.

    There is no biopsy, so `left_malignant` and `right_malignant` follow the usual rule: BI-RADS 4 to 6 is
    positive, 1 to 3 negative. The attribute `label_source` says so. The data set has no split.
    `lobule.layouts.lesions` reads the outlines of the lesions.
    """
    rows = read_rows(folder)
    records: dict[str, ExamRecord] = {}
    for file in files_under(folder):
        match = FILE.fullmatch(file.stem)
        if match is None or file.suffix.lower() != ".dcm":
            continue
        image, patient, side_letter, angle = match.groups()
        row = rows.get(image, {})
        date = whole_number(row.get("acquisition date", ""))
        record = records.setdefault("_".join(filter(None, (patient, date))), ExamRecord(patient))
        record.add_image(side_letter, _ANGLES.get(angle.lower(), angle), file)
        record.set_attributes(allow=STATED_BY_TABLES)
        _add_birads(record, SIDES[side_letter.lower()], row["bi-rads"] if row else "")
        record.set_attributes(acquisition_date=date, density=whole_number(row.get("acr", "")))
    return non_empty_cohort(
        folder, exam_cases(records), "INbreast", "files such as AllDICOMs/20586908_…_MG_R_CC_ANON.dcm"
    )


def read_rows(folder: str | Path) -> dict[str, Row]:
    """The rows of the table by image. The last two rows of the table are totals."""
    tables = {file.suffix.lower(): file for file in files_under(folder) if file.stem.lower() == "inbreast"}
    table = tables.get(".csv") or tables.get(".xlsx") or tables.get(".xls")
    if table is None:
        raise NotReadable(
            "the table of BI-RADS categories is missing", subject=folder, expected="INbreast.csv or .xlsx"
        )
    rows = {whole_number(row["file name"]): row for row in read_table(table)}
    return {image: row for image, row in rows.items() if image.isdigit()}


def _add_birads(record: ExamRecord, side: str, birads: str) -> None:
    category = whole_number(birads).lower()
    if category:
        name = f"{side}_birads"
        record.attributes[name] = worst_birads(record.attributes.get(name, ""), category)
        record.attributes["label_source"] = "BI-RADS"
        record.labels[f"{side}_malignant"] = record.attributes[name][0] in SUSPICIOUS
