"""Mammography data sets as released: CBIS-DDSM, INbreast, VinDr-Mammo, RSNA, CMMD, EMBED and CSAW-CC."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from lobule.cohort import Cohort
from lobule.errors import DamagedFile
from lobule.layouts import read_layout
from tests.layouts.support import assert_survives_a_manifest, touch, write_lines, write_xlsx


def write_header(path: Path, **fields: object) -> None:
    """Write a DICOM mammogram of 8 bits without pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    dataset.Modality, dataset.BitsStored, dataset.Rows, dataset.Columns = "MG", 8, 4, 4
    for name, value in fields.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)


def code(value: str) -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = value, "SCT"
    return [item]


def names(cohort: Cohort) -> dict[str, dict[str, list[str]]]:
    """The names of the files of each view of each case."""
    return {
        case.id: {view: [Path(file).name for file in files] for view, files in case.views.items()}
        for case in cohort
    }


def test_cbis_ddsm_patients_of_two_official_sets_are_put_into_test(tmp_path: Path) -> None:
    columns = (
        "patient_id,{},left or right breast,image view,abnormality id,abnormality type,mass shape,"
        "mass margins,assessment,pathology,subtlety,image file path,"
        "cropped image file path,ROI mask file path"
    )

    def row(name: str, patient: str, side: str, view: str, pathology: str) -> str:
        cells = f"{patient},3,{side},{view},1,mass,OVAL,SPICULATED,4,{pathology},4,{name}/1.2/1.3/000000.dcm"
        return f'{cells},{name}_1/1.2/1.3/000001.dcm,"{name}_1/1.2/1.3/000000.dcm\n"'

    tables = {
        "mass_case_description_train_set": [
            row("Mass-Training_P_00001_LEFT_CC", "P_00001", "LEFT", "CC", "BENIGN"),
            row("Mass-Training_P_00001_LEFT_MLO", "P_00001", "LEFT", "MLO", "MALIGNANT"),
            row("Mass-Training_P_00002_RIGHT_CC", "P_00002", "RIGHT", "CC", "BENIGN_WITHOUT_CALLBACK"),
        ],
        "calc_case_description_test_set": [
            row("Calc-Test_P_00001_LEFT_CC", "P_00001", "LEFT", "CC", "BENIGN"),
        ],
        "mass_case_description_test_set": [
            row("Mass-Test_P_00003_LEFT_CC", "P_00003", "LEFT", "CC", "MALIGNANT"),
        ],
    }
    for name, rows in tables.items():
        density = "breast density" if name.startswith("calc") else "breast_density"
        write_lines(tmp_path / f"{name}.csv", columns.format(density), *rows)
    images = tmp_path / "CBIS-DDSM"
    full, crop = (
        "07-20-2016-DDSM-NA-1/1.000000-full mammogram images-2",
        "07-20-2016-DDSM-NA-3/1.000000-cropped images-4",
    )
    for folder in (
        "Mass-Training_P_00001_LEFT_CC",
        "Mass-Training_P_00001_LEFT_MLO",
        "Calc-Test_P_00001_LEFT_CC",
    ):
        touch(images, f"{folder}/{full}/1-1.dcm", f"{folder}_1/{crop}/1-1.dcm", f"{folder}_1/{crop}/1-2.dcm")
    # Another tool for downloading names folders after the series, so only the header states the name.
    write_header(images / "1.3.6.1.4.1" / "1-1.dcm", PatientID="Mass-Training_P_00002_RIGHT_CC")
    write_header(images / "1.3.6.1.4.2" / "1-1.dcm", PatientID="Mass-Training_P_00002_RIGHT_CC_1")
    cohort = read_layout("cbis-ddsm", tmp_path)
    assert {case.id: (case.patient, case.split) for case in cohort} == {
        "P_00001": ("P_00001", "test"),
        "P_00002": ("P_00002", "train"),
    }
    assert "assigned to test" in cohort["P_00001"].attributes["note"]
    assert "note" not in cohort["P_00002"].attributes
    assert cohort["P_00001"].breast_labels == {"left_malignant": True, "left_benign": True}
    assert cohort["P_00002"].breast_labels == {"right_malignant": False, "right_benign": True}
    folders = {view: [Path(f).parts[-4] for f in files] for view, files in cohort["P_00001"].views.items()}
    assert folders == {"l_cc": ["Calc-Test_P_00001_LEFT_CC"], "l_mlo": ["Mass-Training_P_00001_LEFT_MLO"]}
    assert [Path(file).parent.name for file in cohort["P_00002"].views["r_cc"]] == ["1.3.6.1.4.1"]
    assert cohort["P_00002"].attributes["density"] == "3"
    assert_survives_a_manifest(cohort, tmp_path)


def test_cmmd_table_of_other_patients_is_refused(tmp_path: Path) -> None:
    """All breasts used to stay unlabelled without a word."""
    write_header(
        tmp_path / "D1" / "1-1.dcm",
        PatientID="D1-0001", StudyInstanceUID="1.2", ImageLaterality="L", ViewCodeSequence=code("399162004"),
    )  # fmt: skip
    table = tmp_path / "CMMD_clinicaldata_revision.csv"
    write_lines(table, "ID1,LeftRight,classification", "1,L,Benign")
    with pytest.raises(DamagedFile, match=r"no row of the clinical table.*patients such as D1-0001"):
        read_layout("cmmd", tmp_path)
    write_lines(table, "ID1,LeftRight", "D1-0001,L")
    with pytest.raises(DamagedFile, match="no column 'classification'"):
        read_layout("cmmd", tmp_path)


@pytest.mark.parametrize("table", ["csv", "xlsx"])
def test_cmmd_breasts_without_a_clinical_row_stay_unlabelled(table: str, tmp_path: Path) -> None:
    views = {"1-1": ("L", "399162004"), "1-2": ("R", "399368009"), "1-3": ("R", "399162004")}
    for patient, files in (("D1-0001", ("1-1", "1-2", "1-3")), ("D2-0007", ("1-1",)), ("D2-0008", ("1-2",))):
        for file in files:
            side, angle = views[file]
            write_header(
                tmp_path / "CMMD" / patient / "07-18-2010-NA-NA-1" / "1.000000-NA-2" / f"{file}.dcm",
                PatientID=patient, StudyInstanceUID="1.2", ImageLaterality=side, ViewCodeSequence=code(angle),
            )  # fmt: skip
    rows: list[list[str | float]] = [
        ["ID1", "LeftRight", "Age", "number", "abnormality", "classification", "subtype"],
        ["D1-0001", "R", 44, 2, "mass", "Benign", ""],
        ["D2-0007", "L", 50, 2, "both", "Malignant", "triple negative"],
        ["D2-0007", "R", 50, 2, "calcification", "Benign", ""],
    ]
    if table == "xlsx":
        write_xlsx(tmp_path / "CMMD_clinicaldata_revision.xlsx", {"Sheet1": rows})
    else:
        lines = (",".join(str(cell) for cell in row) for row in rows)
        write_lines(tmp_path / "CMMD_clinicaldata_revision.csv", *lines)
    cohort = read_layout("cmmd", tmp_path)
    assert names(cohort) == {
        "D1-0001": {"l_cc": ["1-1.dcm"], "r_cc": ["1-3.dcm"], "r_mlo": ["1-2.dcm"]},
        "D2-0007": {"l_cc": ["1-1.dcm"]},
        "D2-0008": {"r_mlo": ["1-2.dcm"]},
    }
    assert cohort["D1-0001"].breast_labels == {"right_malignant": False, "right_benign": True}
    assert cohort["D2-0007"].breast_labels == {
        "left_malignant": True, "right_malignant": False, "right_benign": True,
    }  # fmt: skip
    assert cohort["D2-0008"].breast_labels == {}
    assert cohort["D2-0007"].attributes["left_subtype"] == "triple negative"
    assert {case.split for case in cohort} == {None}
    assert_survives_a_manifest(cohort, tmp_path)


def test_vindr_mammo_has_studies_as_patients_and_no_labels(tmp_path: Path) -> None:
    header = (
        "study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,breast_density,split"
    )
    rows = [
        "s1,x,i1,L,CC,3518,2800,BI-RADS 2,DENSITY C,training",
        "s1,x,i2,L,MLO,3518,2800,BI-RADS 4,DENSITY C,training",
        "s1,x,i3,R,CC,3518,2800,BI-RADS 1,DENSITY C,training",
        "s2,x,i4,L,CC,3518,2800,BI-RADS 1,DENSITY A,test",
        "s2,x,i5,L,CC,3518,2800,BI-RADS 1,DENSITY A,test",
        "s3,x,i6,L,CC,3518,2800,BI-RADS 1,DENSITY A,test",
    ]
    write_lines(tmp_path / "breast-level_annotations.csv", header, *rows)
    write_lines(tmp_path / "metadata.csv", "SOP Instance UID", "i1")
    touch(tmp_path, *(f"images/s1/i{n}.dicom" for n in (1, 2, 3)), *(f"images/s2/i{n}.dicom" for n in (4, 5)))
    cohort = read_layout("vindr-mammo", tmp_path)
    assert names(cohort) == {
        "s1": {"l_cc": ["i1.dicom"], "r_cc": ["i3.dicom"], "l_mlo": ["i2.dicom"]},
        "s2": {"l_cc": ["i4.dicom", "i5.dicom"]},
    }
    assert [(case.patient, case.split, case.breast_labels) for case in cohort] == [
        ("s1", "train", {}),
        ("s2", "test", {}),
    ]
    stated = "unstated class; unstated view"
    assert cohort["s1"].attributes == {
        "left_birads": "4", "right_birads": "1", "density": "C", "allow": stated,
    }  # fmt: skip
    assert_survives_a_manifest(cohort, tmp_path)


def test_rsna_breasts_are_labelled_by_cancer(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "train.csv",
        "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,density,machine_id,"
        "difficult_negative_case",
        "2,10006,462822612,L,CC,61.0,0,0,0,,0,,29,False",
        "2,10006,1459541791,L,MLO,61.0,0,0,0,,0,,29,False",
        "2,10006,1864590858,R,MLO,61.0,1,1,1,0,0,,29,False",
        "2,10006,1874946579,R,CC,61.0,1,1,1,2,0,,29,False",
        "2,10006,1874946580,R,CC,61.0,1,1,1,2,0,,29,False",
        "2,10006,99,R,LM,61.0,1,1,1,2,0,,29,False",
        "1,10011,220375232,L,CC,,0,0,0,1,0,B,21,True",
    )
    write_lines(
        tmp_path / "test.csv",
        "site_id,patient_id,image_id,laterality,view,age,implant,machine_id,prediction_id",
        "2,10008,736471439,L,MLO,81,0,21,10008_L",
    )
    images = (
        "10006/462822612",
        "10006/1459541791",
        "10006/1864590858",
        "10006/1874946579",
        "10006/1874946580",
    )
    touch(tmp_path, *(f"train_images/{name}.dcm" for name in (*images, "10006/99", "10011/220375232")))
    touch(tmp_path, "test_images/10008/736471439.dcm")
    cohort = read_layout("rsna-mammo", tmp_path)
    assert names(cohort) == {
        "10006": {
            "l_cc": ["462822612.dcm"], "r_cc": ["1874946579.dcm", "1874946580.dcm"],
            "l_mlo": ["1459541791.dcm"], "r_mlo": ["1864590858.dcm"],
        },
        "10008": {"l_mlo": ["736471439.dcm"]},
        "10011": {"l_cc": ["220375232.dcm"]},
    }  # fmt: skip
    assert {case.id: (case.split, case.site, case.breast_labels) for case in cohort} == {
        "10006": (None, "2", {"left_malignant": False, "right_malignant": True}),
        "10008": ("test", "2", {}),
        "10011": (None, "1", {"left_malignant": False}),
    }
    assert cohort["10006"].attributes["right_birads"] == "2"
    assert cohort["10011"].attributes["density"] == "B"
    assert_survives_a_manifest(cohort, tmp_path)


def test_inbreast_categories_become_labels_that_say_so(tmp_path: Path) -> None:
    top = tmp_path / "INbreast Release 1.0"
    files = (
        "20586908_6c613a14b80a8591_MG_R_CC_ANON", "20586934_6c613a14b80a8591_MG_L_CC_ANON",
        "20586960_6c613a14b80a8591_MG_R_ML_ANON", "20587054_b6a4f750c6df4f90_MG_R_CC_ANON",
        "20587080_b6a4f750c6df4f90_MG_R_FB_ANON",
    )  # fmt: skip
    touch(top, *(f"AllDICOMs/{name}.dcm" for name in files), "AllXML/20586908.xml")
    (top / "INbreast.csv").write_bytes(
        "Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads;Mass ;"
        "Findings Notes (in Portuguese)\n"
        "removed;removed;R;CC;201001;20586908;3;1;;\n"
        "removed;removed;L;CC;201001;20586934.0;3;4a;X;n\xf3dulo\n"
        "removed;removed;R;MLO;201001;20586960;3;3;;\n"
        "removed;removed;R;CC;200802;20587054;4;6;X;\n"
        ";;;;;;;;108;\n"
        ";;;;;Total;;;;\n".encode("latin-1")
    )
    cohort = read_layout("inbreast", tmp_path)
    assert names(cohort) == {
        "6c613a14b80a8591_201001": {
            "l_cc": [f"{files[1]}.dcm"], "r_cc": [f"{files[0]}.dcm"], "r_mlo": [f"{files[2]}.dcm"],
        },
        "b6a4f750c6df4f90_200802": {"r_cc": [f"{files[3]}.dcm"]},
    }  # fmt: skip
    first, second = cohort
    assert first.breast_labels == {"left_malignant": True, "right_malignant": False}
    assert (first.attributes["left_birads"], first.attributes["right_birads"]) == ("4a", "3")
    assert first.attributes["label_source"] == "BI-RADS"
    assert (second.patient, second.breast_labels) == ("b6a4f750c6df4f90", {"right_malignant": True})
    assert_survives_a_manifest(cohort, tmp_path)


def test_embed_joins_findings_by_patient_exam_and_side(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "tables/EMBED_OpenData_metadata_reduced.csv",
        ",empi_anon,acc_anon,anon_dicom_path,study_date_anon,FinalImageType,ImageLateralityFinal,ViewPosition,"
        "spot_mag,num_roi,ROI_coords",
        "0,60221963.0,2.0,/mnt/NAS2/mammo/anon_dicom/cohort_1/extracted/60221963/2/a.dcm,2013-01-01,2D,L,CC,,0,()",
        "1,60221963.0,2.0,/mnt/NAS2/mammo/anon_dicom/cohort_1/extracted/60221963/2/b.dcm,2013-01-01,2D,R,MLO,,0,()",
        "2,60221963.0,2.0,/mnt/NAS2/mammo/anon_dicom/cohort_1/extracted/60221963/2/c.dcm,2013-01-01,cview,R,CC,,0,()",
        "3,60221963.0,2.0,/mnt/NAS2/mammo/anon_dicom/cohort_1/extracted/60221963/2/d.dcm,2013-01-01,2D,R,CC,1.0,0,()",
        "4,77.0,2.0,/mnt/NAS2/mammo/anon_dicom/cohort_2/extracted/77/2/e.dcm,2014-01-01,2D,R,CC,,0,()",
    )
    write_lines(
        tmp_path / "tables/EMBED_OpenData_clinical_reduced.csv",
        ",empi_anon,acc_anon,numfind,side,asses,tissueden,desc,bside,path1,path_severity",
        "0,60221963,2,1,L,S,3,Mammo,L,ID,0.0",
        "1,60221963,2,2,R,B,3,Mammo,,,2.0",
        "2,77,2,1,B,N,2,Mammo,,,4.0",
        "3,78,2,1,L,N,2,Mammo,,,0.0",
    )
    touch(tmp_path, *(f"images/cohort_1/extracted/60221963/2/{letter}.dcm" for letter in "abcd"))
    touch(tmp_path, "images/cohort_2/extracted/77/2/e.dcm")
    cohort = read_layout("embed", tmp_path)
    assert names(cohort) == {
        "60221963_2": {"l_cc": ["a.dcm"], "r_mlo": ["b.dcm"]},
        "77_2": {"r_cc": ["e.dcm"]},
    }
    assert cohort["60221963_2"].patient == "60221963"
    assert cohort["60221963_2"].breast_labels == {"left_malignant": True}
    assert cohort["77_2"].breast_labels == {
        "left_malignant": False, "left_benign": True, "right_malignant": False, "right_benign": True,
    }  # fmt: skip
    assert cohort["60221963_2"].attributes["right_assessments"] == "B"
    assert_survives_a_manifest(cohort, tmp_path)


def test_csaw_labels_only_the_breast_of_a_screen_detected_cancer(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "CSAW-CC_breast_cancer_screening_data.csv",
        "anon_patientid,exam_year,x_age,x_case,x_cancer_laterality,x_type,x_lymphnode_met,rad_timing,rad_r1,"
        "imagelaterality,viewposition,anon_filename",
        "1,2010,1,1,Left,2,0,3,0,Left,CC,00001_20990909_L_CC_1.dcm",
        "1,2012,1,1,Left,2,0,1,1,Left,CC,00001_20990909_L_CC_2.dcm",
        "1,2012,1,1,Left,2,0,1,1,Right,MLO,00001_20990909_R_MLO_1.dcm",
        "2,2012,2,0,,,,,0,Right,MLO,00002_20990909_R_MLO_1.dcm",
        "3,2013,2,1,Right,3,0,2,0,Right,MLO,00003_20990909_R_MLO_1.dcm",
        "4,2013,2,0,,,,,0,Right,MLO,not_downloaded.dcm",
    )
    files = ("00001_{}_L_CC_1", "00001_{}_L_CC_2", "00001_{}_R_MLO_1", "00002_{}_R_MLO_1", "00003_{}_R_MLO_1")
    touch(tmp_path, *(f"part1/{name.format(20990909)}.dcm" for name in files))
    touch(tmp_path, "masks/00001_20990909_L_CC_2_mask.png")
    cohort = read_layout("csaw-cc", tmp_path)
    assert {case.id: (case.patient, case.breast_labels) for case in cohort} == {
        "1_2010": ("1", {}),
        "1_2012": ("1", {"left_malignant": True}),
        "2_2012": ("2", {"left_malignant": False, "right_malignant": False}),
        "3_2013": ("3", {}),
    }
    assert names(cohort)["1_2012"] == {
        "l_cc": ["00001_20990909_L_CC_2.dcm"],
        "r_mlo": ["00001_20990909_R_MLO_1.dcm"],
    }
    assert cohort["1_2010"].attributes["rad_timing"] == "3"
    assert_survives_a_manifest(cohort, tmp_path)
