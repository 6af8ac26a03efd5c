"""Screening mammograms with one row per image: VinDr-Mammo, RSNA Screening Mammography and CSAW-CC."""

from __future__ import annotations

from pathlib import Path

from lobule.cohort import Cohort
from lobule.layouts.exams import SIDES, STATED_BY_TABLES, ExamRecord, exam_cases, worst_birads
from lobule.layouts.folders import files_under, non_empty_cohort
from lobule.layouts.tables import Row, path_inside, read_table, whole_number

# -- VinDr-Mammo --------------------------------------------------------------------------------------------

_VINDR_SPLITS = {"training": "train", "test": "test"}


def vindr_mammo(folder: str | Path) -> Cohort:
    """VinDr-Mammo: one exam for each study, with BI-RADS and density as attributes, in the official split.

    The data set has neither patients nor pathology: each study counts as a patient, and no breast is
    labelled.
    """
    records: dict[str, ExamRecord] = {}
    for table in files_under(folder):
        if table.name.lower() != "breast-level_annotations.csv":
            continue
        for row in read_table(table):
            study = row["study id"]
            record = records.setdefault(study, ExamRecord(study))
            record.split = _VINDR_SPLITS.get(row["split"].lower())
            file = path_inside(table.parent / "images", study, f"{row['image id']}.dicom")
            record.add_image(row["laterality"], row["view position"], file)
            density = row["breast density"].upper().removeprefix("DENSITY").strip()
            birads = row["breast birads"].upper().removeprefix("BI-RADS").strip()
            _set_worst_birads(record, row["laterality"], birads)
            record.set_attributes(density=density, allow=STATED_BY_TABLES)
    expected = "breast-level_annotations.csv beside images"
    return non_empty_cohort(folder, exam_cases(records), "VinDr-Mammo", expected)


def _set_worst_birads(record: ExamRecord, laterality: str, birads: str) -> None:
    side = SIDES.get(laterality.strip().lower())
    if side and birads:
        name = f"{side}_birads"
        record.attributes[name] = worst_birads(record.attributes.get(name, ""), birads)


# -- RSNA ---------------------------------------------------------------------------------------------------


def rsna_mammo(folder: str | Path) -> Cohort:
    """RSNA Screening Mammography Breast Cancer Detection: one exam for each woman.

    `cancer` labels the breasts as malignant or not; whether a breast has a benign lesion is not known. The
    women of `train.csv` have no split, those of `test.csv` are the test set and have no labels.
    """
    records: dict[str, ExamRecord] = {}
    for table in files_under(folder):
        if table.name.lower() in ("train.csv", "test.csv"):
            for row in read_table(table):
                if row.get("patient id") and row.get("image id"):
                    _add_rsna_row(records, table, row)
    return non_empty_cohort(folder, exam_cases(records), "the RSNA data", "train.csv beside train_images")


def _add_rsna_row(records: dict[str, ExamRecord], table: Path, row: Row) -> None:
    patient = whole_number(row["patient id"])
    record = records.setdefault(patient, ExamRecord(patient))
    images = table.parent / f"{table.stem.lower()}_images"
    file = path_inside(images, patient, f"{whole_number(row['image id'])}.dcm")
    record.add_image(row["laterality"], row["view"], file)
    record.site = row.get("site id") or None
    record.set_attributes(allow=STATED_BY_TABLES)
    if table.stem.lower() == "test":
        record.split = "test"
    side = SIDES.get(row["laterality"].lower())
    cancer = "" if table.stem.lower() == "test" else row["cancer"]
    if side and cancer:
        record.labels[f"{side}_malignant"] = whole_number(cancer) == "1"
    names = ("age", "density", "implant", "machine id", "difficult negative case")
    record.set_attributes(**{name.replace(" ", "_"): row.get(name, "") for name in names})
    _set_worst_birads(record, row["laterality"], whole_number(row.get("birads", "")))


# -- CSAW-CC ------------------------------------------------------------------------------------------------

_CSAW_TABLE = "csaw-cc_breast_cancer_screening_data.csv"
_SCREEN_DETECTED = "1"


def csaw_cc(folder: str | Path) -> Cohort:
    """CSAW-CC: one exam for each woman and year. Images are looked up by name anywhere below the folder.

    The breasts of women without cancer are not malignant. The breast with a screen-detected cancer is
    malignant in the exam that detected it. In earlier exams, in exams before an interval cancer, and for the
    other breast, the label is not known.
    """
    files = list(files_under(folder))
    by_name = {file.name.lower(): file for file in files if file.suffix.lower() == ".dcm"}
    records: dict[str, ExamRecord] = {}
    for table in files:
        if table.name.lower() != _CSAW_TABLE:
            continue
        for row in read_table(table):
            name = row["anon filename"].lower()
            file = by_name.get(name) or by_name.get(f"{name}.dcm")
            if file is not None:
                _add_csaw_row(records, file, row)
    expected = f"{_CSAW_TABLE} and the images that it lists"
    return non_empty_cohort(folder, exam_cases(records), "CSAW-CC", expected)


def _add_csaw_row(records: dict[str, ExamRecord], file: Path, row: Row) -> None:
    patient, year = whole_number(row["anon patientid"]), whole_number(row["exam year"])
    record = records.setdefault(f"{patient}_{year}", ExamRecord(patient))
    record.add_image(row["imagelaterality"], row["viewposition"], file)
    timing = whole_number(row.get("rad timing", ""))
    cancer_side = SIDES.get(row["x cancer laterality"].lower())
    if whole_number(row["x case"]) == "0":
        record.labels |= {"left_malignant": False, "right_malignant": False}
    elif cancer_side and timing == _SCREEN_DETECTED:
        record.labels[f"{cancer_side}_malignant"] = True
    record.set_attributes(
        allow=STATED_BY_TABLES,
        exam_year=year,
        rad_timing=timing,
        age_group=whole_number(row.get("x age", "")),
        cancer_type=whole_number(row.get("x type", "")),
        cancer_laterality=row["x cancer laterality"],
    )
