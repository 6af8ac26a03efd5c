"""Tables of public data sets without a column, empty, in another encoding, or that name files elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from lobule.cohort import Cohort
from lobule.errors import DamagedFile, LobuleError
from lobule.layouts import read_layout
from tests.layouts.support import touch, write_lines


@dataclass(frozen=True)
class Release:
    """A data set with one row in its table."""

    layout: str
    table: str
    row: dict[str, str]
    files: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    """Columns that may be missing."""


RELEASES = [
    Release(
        "vindr-mammo",
        "breast-level_annotations.csv",
        {"study_id": "s1", "image_id": "i1", "laterality": "L", "view_position": "CC",
         "breast_birads": "BI-RADS 4", "breast_density": "DENSITY C", "split": "training"},
        ("images/s1/i1.dicom",),
    ),
    Release(
        "rsna-mammo",
        "train.csv",
        {"patient_id": "7", "image_id": "9", "laterality": "R", "view": "MLO", "cancer": "1"},
        ("train_images/7/9.dcm",),
        optional=("patient_id", "image_id"),
    ),
    Release(
        "csaw-cc",
        "CSAW-CC_breast_cancer_screening_data.csv",
        {"anon_patientid": "1", "anon_filename": "a.dcm", "exam_year": "2010", "imagelaterality": "Left",
         "viewposition": "CC", "x_case": "0", "x_cancer_laterality": "", "rad_timing": ""},
        ("images/a.dcm",),
        optional=("rad_timing",),
    ),
    Release(
        "embed",
        "tables/EMBED_OpenData_metadata.csv",
        {"empi_anon": "1", "acc_anon": "2", "FinalImageType": "2D", "ImageLateralityFinal": "L",
         "ViewPosition": "CC", "anon_dicom_path": "/mnt/x/cohort_1/a.dcm"},
        ("images/cohort_1/a.dcm",),
    ),
    Release(
        "cbis-ddsm",
        "mass_case_description_train_set.csv",
        {"patient_id": "P_00001", "left or right breast": "LEFT", "pathology": "MALIGNANT"},
        ("Mass-Training_P_00001_LEFT_CC/1-1.dcm",),
    ),
    Release(
        "camelyon17-wilds",
        "metadata.csv",
        {"patient": "4", "node": "1", "x_coord": "10", "y_coord": "20", "tumor": "1", "center": "0",
         "split": "0"},
    ),
    Release(
        "inbreast",
        "INbreast.csv",
        {"File Name": "20586908", "Bi-Rads": "5", "ACR": "2", "Acquisition date": "201001"},
        ("AllDICOMs/20586908_6c613a14b80a8591_MG_R_CC_ANON.dcm",),
        optional=("ACR", "Acquisition date"),
    ),
    Release(
        "bracs",
        "WSI_Information.csv",
        {"WSI Filename": "BRACS_1.svs", "Patient Id": "5"},
        ("train/Group_BT/Type_N/BRACS_1.svs",),
    ),
]  # fmt: skip
NAMES = [release.layout for release in RELEASES]


def write(folder: Path, release: Release, row: dict[str, str] | None = None) -> Path:
    row = release.row if row is None else row
    touch(folder, *release.files)
    table = folder / release.table
    write_lines(table, ",".join(row), ",".join(row.values()))
    return table


def cases_of(cohort: Cohort) -> list[str]:
    return [repr(case) for case in cohort.cases]


@pytest.mark.parametrize("release", RELEASES, ids=NAMES)
def test_missing_column_is_named_with_the_table(release: Release, tmp_path: Path) -> None:
    """A missing column used to end in a KeyError."""
    write(tmp_path / "whole", release)
    assert len(read_layout(release.layout, tmp_path / "whole")) == 1
    for column in set(release.row) - set(release.optional):
        row = {name: value for name, value in release.row.items() if name != column}
        folder = tmp_path / column.replace(" ", "_")
        table = write(folder, release, row)
        with pytest.raises(DamagedFile) as caught:
            read_layout(release.layout, folder)
        message = str(caught.value)
        assert str(table) in message
        assert f"no column '{column.replace('_', ' ').lower()}'" in message
        assert next(iter(row)).replace("_", " ").lower() in message, "the columns that are there"


@pytest.mark.parametrize("content", ["", "\n\n", "only,column,names\n"])
@pytest.mark.parametrize("release", RELEASES, ids=NAMES)
def test_empty_table_is_named(release: Release, content: str, tmp_path: Path) -> None:
    table = write(tmp_path, release)
    table.write_text(content, "utf-8")
    with pytest.raises(DamagedFile, match="the table has no rows") as caught:
        read_layout(release.layout, tmp_path)
    assert str(table) in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("release", RELEASES, ids=NAMES)
def test_encodings_of_spreadsheets_make_no_difference(
    release: Release, encoding: str, tmp_path: Path
) -> None:
    table = write(tmp_path, release, {**release.row, "notes": "é"})
    expected = cases_of(read_layout(release.layout, tmp_path))
    lines = table.read_text("utf-8").splitlines()
    table.write_bytes("\r\n".join(line.replace(",", ";") for line in lines).encode(encoding))
    assert cases_of(read_layout(release.layout, tmp_path)) == expected


@pytest.mark.parametrize(
    ("layout", "column", "value"),
    [
        ("vindr-mammo", "study_id", "../../elsewhere"),
        ("vindr-mammo", "study_id", "/elsewhere"),
        ("rsna-mammo", "image_id", "../../../9"),
        ("embed", "anon_dicom_path", "/mnt/cohort_1/../../../a.dcm"),
        ("camelyon17-wilds", "patient", "../../../4"),
    ],
)
def test_table_cannot_name_files_outside_of_the_data_set(
    layout: str, column: str, value: str, tmp_path: Path
) -> None:
    release = RELEASES[NAMES.index(layout)]
    write(tmp_path, release, {**release.row, column: value})
    with pytest.raises(DamagedFile, match="names a file outside of the data set"):
        read_layout(layout, tmp_path)


@pytest.mark.parametrize(
    ("layout", "slide", "table", "line"),
    [
        ("camelyon16", "test_001.tif", "reference.csv", "test_001,Tumor,IDC,Macro"),
        ("camelyon17", "patient_000_node_0.tif", "stage_labels.csv", "patient_000_node_0.tif,macro"),
        ("bach", "Photos/a.tif", "microscopy_ground_truth.csv", "a.tif,Normal"),
    ],
)
def test_tables_without_header_have_any_encoding(
    layout: str, slide: str, table: str, line: str, tmp_path: Path
) -> None:
    """A table that was not in UTF-8 used to end in a UnicodeDecodeError."""
    touch(tmp_path, slide)
    for encoding in ("utf-8-sig", "utf-16", "latin-1"):
        (tmp_path / table).write_bytes(f"{line}\nétranger,é\n".encode(encoding))
        assert read_layout(layout, tmp_path).cases[0].label is not None, encoding


def test_table_that_is_no_text_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "test_001.tif")
    (tmp_path / "reference.csv").write_bytes(b'"' + b"x" * 200_000)
    with pytest.raises(DamagedFile, match=r"reference.csv.*cannot be read"):
        read_layout("camelyon16", tmp_path)


def test_blank_lines_do_not_shift_the_centres_of_camelyon16(tmp_path: Path) -> None:
    touch(tmp_path, "images/test_001.tif", "images/test_002.tif")
    lines = ("image,class,type,center", "test_001.tif,negative,,0", " , , , ", "test_002.tif,macro,IDC,1")
    write_lines(tmp_path / "evaluation" / "reference.csv", *lines)
    cohort = read_layout("camelyon16", tmp_path)
    assert [case.site for case in cohort.cases] == ["RUMC", "UMCU"]


def test_missing_file_behind_a_link_is_not_larger_than_a_slide(tmp_path: Path) -> None:
    """Archives that are fetched in parts contain links to files that are not there yet."""
    touch(tmp_path, "a/tumor_001.tif", size=9)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "tumor_001.tif").symlink_to(tmp_path / "nowhere.tif")
    (case,) = read_layout("camelyon16", tmp_path).cases
    assert case.path == str(tmp_path / "a" / "tumor_001.tif")


def test_folder_above_the_data_set_does_not_matter(tmp_path: Path) -> None:
    """Photographs below a folder `wsi` that contains the whole data set used to be left out."""
    folder = tmp_path / "WSI" / "previous_versions" / "ICIAR2018"
    touch(folder, "Photos/Normal/n001.tif", "WSI/A01.tif")
    assert [case.label for case in read_layout("bach", folder).cases] == ["normal"]


@pytest.mark.parametrize("release", RELEASES, ids=NAMES)
def test_folder_without_files_names_what_is_expected(release: Release, tmp_path: Path) -> None:
    with pytest.raises(LobuleError, match=r"expected|missing"):
        read_layout(release.layout, tmp_path)
