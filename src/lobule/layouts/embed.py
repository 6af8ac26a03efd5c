"""EMBED, the open part: exams with the pathology of their findings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from lobule.cohort import Cohort
from lobule.layouts.exams import SIDES, STATED_BY_TABLES, ExamRecord, exam_cases
from lobule.layouts.folders import files_under, non_empty_cohort
from lobule.layouts.tables import Row, path_inside, read_table, whole_number

_MALIGNANT, _BENIGN = ("0", "1"), ("4",)
"""Values of `path_severity`: invasive and in situ cancer, and benign. Others decide no label."""
_SPECIAL_VIEW = "1"


def embed(folder: str | Path) -> Cohort:
    """EMBED: one exam for each accession number, with its flat images of CC and MLO views.

    A breast is malignant if the pathology of a finding is invasive or in situ, and benign if it is benign.
    High-risk and borderline lesions and findings without pathology give no label. Special views and images
    computed from tomosynthesis are left out. Outlines are not read, because some of the published boxes refer
    to mirrored images. The data set has no split.
    """
    metadata, clinical = _read_tables(folder)
    records: dict[str, ExamRecord] = {}
    for top, row in metadata:
        is_flat = row["finalimagetype"].lower() == "2d"
        if is_flat and whole_number(row.get("spot mag", "")) != _SPECIAL_VIEW:
            patient, exam = _exam_key(row)
            record = records.setdefault(f"{patient}_{exam}", ExamRecord(patient))
            record.add_image(row["imagelateralityfinal"], row["viewposition"], _file_of(top, row))
            record.set_attributes(allow=STATED_BY_TABLES, study_date=row.get("study date anon", ""))
    for row in clinical:
        patient, exam = _exam_key(row)
        if (named := records.get(f"{patient}_{exam}")) is not None:
            _add_finding(named, row)
    return non_empty_cohort(
        folder,
        exam_cases(records),
        "EMBED",
        "tables/EMBED_OpenData_metadata.csv and the images that it lists",
    )


def _read_tables(folder: str | Path) -> tuple[list[tuple[Path, Row]], list[Row]]:
    """Rows of images with the top folder of the data set, and rows of findings.

    Of a full table and its `_reduced` version, the full one is used.
    """
    tables: dict[str, Path] = {}
    for file in files_under(folder):
        for kind in ("metadata", "clinical"):
            stem = file.stem.lower()
            if stem == f"embed_opendata_{kind}":
                tables[kind] = file
            elif stem == f"embed_opendata_{kind}_reduced":
                tables.setdefault(kind, file)
    metadata = tables.get("metadata")
    images = [(metadata.parent.parent, row) for row in read_table(metadata)] if metadata else []
    return images, read_table(tables["clinical"]) if "clinical" in tables else []


def _exam_key(row: Row) -> tuple[str, str]:
    return whole_number(row["empi anon"]), whole_number(row["acc anon"])


def _file_of(top: Path, row: Row) -> Path:
    """The file on this disk: the published path is cut before `cohort_1` or `cohort_2`."""
    path = row["anon dicom path"].replace("\\", "/")
    _, _, inside = path.partition("cohort_")
    return path_inside(top / "images", f"cohort_{inside}")


def _add_finding(record: ExamRecord, row: Mapping[str, str]) -> None:
    side = SIDES.get(row.get("side", "").lower())
    sides: Iterable[str] = (side,) if side else ("left", "right")  # B and blank mean both breasts
    severity = whole_number(row.get("path severity", ""))
    for breast in sides:
        if severity in _MALIGNANT + _BENIGN:
            record.add_finding(breast, malignant=severity in _MALIGNANT)
        if assessment := row.get("asses", "").strip():
            name = f"{breast}_assessments"
            earlier = record.attributes.get(name, "")
            record.attributes[name] = "".join(sorted({*earlier, assessment.upper()}))
    record.set_attributes(density=whole_number(row.get("tissueden", "")))
