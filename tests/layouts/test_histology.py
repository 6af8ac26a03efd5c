"""BACH, BRACS, BreakHis and Camelyon17 as released."""

from __future__ import annotations

from pathlib import Path

import pytest

from lobule.errors import NotReadable
from lobule.layouts import read_layout
from tests.layouts.support import assert_survives_a_manifest, touch, write_lines, write_xlsx


def test_bach(tmp_path: Path) -> None:
    touch(tmp_path, "Photos/Normal/n001.tif", "Photos/InSitu/is001.tif", "Photos/test0.tif", "WSI/A01.tif")
    (tmp_path / "Photos" / "microscopy_ground_truth.csv").write_text("n001.tif,Normal\nis001.tif,InSitu\n")
    cohort = read_layout("bach", tmp_path)
    assert {case.id: (case.label, case.split, case.mpp) for case in cohort} == {
        "n001": ("normal", "train", 0.42),
        "is001": ("in situ", "train", 0.42),
        "test0": (None, "test", 0.42),
    }


SLIDES_OF_BRACS = [
    "train/Group_BT/Type_N/BRACS_1.svs", "train/Group_MT/Type_IC/BRACS_2.svs",
    "train/Group_AT/Type_FEA/BRACS_3.svs",
    "val/Group_AT/Type_ADH/BRACS_4.svs", "test/Group_MT/Type_DCIS/BRACS_5.svs",
]  # fmt: skip


def test_bracs_slides_of_a_patient_in_two_official_sets_are_put_into_one(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *(f"BRACS_WSI/{name}" for name in SLIDES_OF_BRACS),
        "BRACS_WSI/train/Group_BT/Type_N/BRACS_1.qpdata",
    )
    with pytest.raises(NotReadable, match=r"BRACS\.xlsx"):
        read_layout("bracs", tmp_path)
    information: list[list[str | float]] = [
        ["WSI Filename", "Patient Id", "RoI ", "WSI label"],
        ["BRACS_1", 66, "Yes", "N"], ["BRACS_2", 67, "No", "IC"], ["BRACS_3", 67, "No", "FEA"],
        ["BRACS_4", 68, "No", "ADH"], ["BRACS_5", 67, "No", "DCIS"],
    ]  # fmt: skip
    write_xlsx(
        tmp_path / "BRACS.xlsx", {"WSI_with_RoI_Distribution": [["a"]], "WSI_Information": information}
    )
    cohort = read_layout("bracs", tmp_path)
    assert {case.id: (case.patient, case.split, case.label) for case in cohort} == {
        "BRACS_1": ("66", "train", "N"), "BRACS_2": ("67", "test", "IC"), "BRACS_3": ("67", "test", "FEA"),
        "BRACS_4": ("68", "val", "ADH"), "BRACS_5": ("67", "test", "DCIS"),
    }  # fmt: skip
    assert {case.id for case in cohort if "note" in case.attributes} == {"BRACS_2", "BRACS_3", "BRACS_5"}
    assert "train and test; assigned to test" in cohort["BRACS_2"].attributes["note"]
    moved = {case.id: case.attributes.get("official_split") for case in cohort}
    assert {name: split for name, split in moved.items() if split} == {"BRACS_2": "train", "BRACS_3": "train"}
    assert_survives_a_manifest(cohort, tmp_path)


def test_bracs_regions_come_from_the_latest_version(tmp_path: Path) -> None:
    touch(
        tmp_path / "BRACS_RoI", "latest_version/train/0_N/BRACS_1_N_1.png",
        "latest_version/test/6_IC/BRACS_2_IC_3.png",
        "previous_versions/Version1/test/0_N/BRACS_1_N_1.png",
    )  # fmt: skip
    write_lines(tmp_path / "WSI_Information.csv", "WSI Filename,Patient Id,RoI ", "BRACS_1,5,", "BRACS_2,6,")
    cohort = read_layout("bracs-roi", tmp_path)
    assert {case.id: (case.patient, case.split, case.label, case.mpp) for case in cohort} == {
        "BRACS_1_N_1": ("5", "train", "N", 0.25),
        "BRACS_2_IC_3": ("6", "test", "IC", 0.25),
    }
    assert_survives_a_manifest(cohort, tmp_path)


def test_breakhis_patients_and_the_slide_with_two_diagnoses(tmp_path: Path) -> None:
    top = tmp_path / "BreaKHis_v1" / "histology_slides" / "breast"
    touch(
        top,
        "benign/SOB/tubular_adenoma/SOB_B_TA_14-3411F/40X/SOB_B_TA-14-3411F-40-001.png",
        "benign/SOB/adenosis/SOB_B_A_14-22549AB/100X/SOB_B_A-14-22549AB-100-001.png",
        "benign/SOB/adenosis/SOB_B_A_14-22549CD/100X/SOB_B_A-14-22549CD-100-002.png",
        "malignant/SOB/ductal_carcinoma/SOB_M_DC_14-13412/400X/SOB_M_DC-14-13412-400-001.png",
        "malignant/SOB/lobular_carcinoma/SOB_M_LC_14-13412/400X/SOB_M_LC-14-13412-400-001.png",
        "malignant/SOB/lobular_carcinoma/SOB_M_LC_14-13412/400X/Thumbs.db",
    )
    cohort = read_layout("breakhis", tmp_path)
    assert {case.id: (case.patient, case.label) for case in cohort} == {
        "SOB_B_TA-14-3411F-40-001": ("3411", "benign"),
        "SOB_B_A-14-22549AB-100-001": ("22549", "benign"),
        "SOB_B_A-14-22549CD-100-002": ("22549", "benign"),
        "SOB_M_DC-14-13412-400-001": ("13412", None),
        "SOB_M_LC-14-13412-400-001": ("13412", "malignant"),
    }
    first = cohort["SOB_B_TA-14-3411F-40-001"]
    assert first.attributes == {"type": "tubular adenoma", "magnification": "40", "slide_name": "14-3411F"}
    assert (first.split, first.mpp) == (None, None)
    assert_survives_a_manifest(cohort, tmp_path)


@pytest.mark.parametrize("bucket", [False, True])
def test_camelyon17_in_both_layouts(bucket: bool, tmp_path: Path) -> None:
    slides = ["patient_000_node_0", "patient_000_node_1", "patient_099_node_4", "patient_100_node_0"]
    if bucket:
        touch(tmp_path, *(f"images/{name}.tif" for name in slides), "masks/patient_000_node_1_mask.tif")
        touch(tmp_path, "annotations/patient_000_node_1.xml")
        write_lines(
            tmp_path / "stages.csv", "patient,stage,center", "patient_000.zip,pN1mi,0",
            "patient_000_node_0.tif,negative,0", "patient_000_node_1.tif,itc,0",
            "patient_099_node_4.tif,macro,4",
        )  # fmt: skip
    else:
        touch(tmp_path, *(f"training/center_0/patient_000/{name}.tif" for name in slides[:2]))
        touch(tmp_path, f"training/center_4/{slides[2]}.tif", f"testing/patients/{slides[3]}.tif")
        touch(tmp_path, "training/lesion_annotations/patient_000_node_1.xml")
        write_lines(
            tmp_path / "training/stage_labels.csv", "patient,stage", "patient_000.zip,pN1mi",
            "patient_000_node_0.tif,negative", "patient_000_node_1.tif,itc", "patient_099_node_4.tif,macro",
        )  # fmt: skip
    cohort = read_layout("camelyon17", tmp_path)
    assert {case.id: (case.patient, case.split, case.label, case.site) for case in cohort} == {
        "patient_000_node_0": ("patient_000", "train", "negative", "center_0"),
        "patient_000_node_1": ("patient_000", "train", "itc", "center_0"),
        "patient_099_node_4": ("patient_099", "train", "macro", "center_4"),
        "patient_100_node_0": ("patient_100", "test", None, None),
    }
    outlined = cohort["patient_000_node_1"]
    assert Path(str(outlined.annotation)).suffix == ".xml"
    assert outlined.attributes["exhaustive"] == "false"
    assert "mask_tumour" not in outlined.attributes
    assert [case.annotation for case in cohort if case is not outlined] == [None] * 3
    assert_survives_a_manifest(cohort, tmp_path)


def test_masks_of_camelyon17_state_their_tumour_value(tmp_path: Path) -> None:
    """In the bucket, 1 is normal tissue: a mask whose only value is 1 must not become one large tumour."""
    touch(tmp_path, "images/patient_000_node_4.tif", "masks/patient_000_node_4_mask.tif")
    write_lines(tmp_path / "stages.csv", "patient,stage,center", "patient_000_node_4.tif,negative,0")
    (case,) = read_layout("camelyon17", tmp_path)
    assert Path(str(case.annotation)).name == "patient_000_node_4_mask.tif"
    assert case.mask_tumour == 2 and case.attributes["exhaustive"] == "false"


def test_patches_of_wilds_follow_the_official_split_by_centre(tmp_path: Path) -> None:
    rows = [
        ",patient,node,x_coord,y_coord,tumor,slide,center,split",
        "0,004,4,3328,21792,1,0,0,0",
        "1,004,4,3200,22272,0,0,0,1",
        "2,020,2,96,192,1,1,1,0",
        "3,040,1,0,96,0,2,2,1",
    ]
    write_lines(tmp_path / "metadata.csv", *rows)
    names = [
        "patient_004_node_4/patch_patient_004_node_4_x_3328_y_21792.png",
        "patient_004_node_4/patch_patient_004_node_4_x_3200_y_22272.png",
        "patient_020_node_2/patch_patient_020_node_2_x_96_y_192.png",
        "patient_040_node_1/patch_patient_040_node_1_x_0_y_96.png",
    ]
    touch(tmp_path, *(f"patches/{name}" for name in names))
    cohort = read_layout("camelyon17-wilds", tmp_path)
    assert [(case.patient, case.split, case.label, case.site) for case in cohort] == [
        ("patient_004", "train", "tumor", "center_0"),
        ("patient_004", None, "normal", "center_0"),
        ("patient_020", "val", "tumor", "center_1"),
        ("patient_040", "test", "normal", "center_2"),
    ]
    assert_survives_a_manifest(cohort, tmp_path)
