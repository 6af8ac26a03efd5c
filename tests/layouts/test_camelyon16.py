"""Camelyon16 as GigaDB, the public cloud bucket and the organisers of 2016 lay it out."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lobule.annotations import read_annotation
from lobule.cohort import read_cohort, write_cohort
from lobule.errors import DamagedFile
from lobule.layouts import read_layout
from tests.layouts.support import assert_survives_a_manifest, touch, write_lines

OUTLINE = """<?xml version="1.0"?>
<ASAP_Annotations><Annotations>
<Annotation Name="Annotation 0" Type="Polygon" PartOfGroup="_0" Color="#F4FA58"><Coordinates>
<Coordinate Order="0" X="10.5" Y="20"/><Coordinate Order="1" X="40" Y="20"/>
<Coordinate Order="2" X="40" Y="60"/></Coordinates></Annotation>
</Annotations><AnnotationGroups/></ASAP_Annotations>"""


def test_camelyon16_as_published(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *(f"training/normal/normal_{n:03d}.tif" for n in (1, 86, 101)),
        *(f"training/tumor/tumor_{n:03d}.tif" for n in (1, 15, 25, 71)),
        *(f"training/lesion_annotations/tumor_{n:03d}.xml" for n in (1, 15, 25, 71)),
        *(f"testing/images/test_{n:03d}.tif" for n in (1, 2, 49, 114)),
        "testing/lesion_annotations/test_001.xml",
        "testing/evaluation/evaluation_masks/test_001.tif",
    )
    (tmp_path / "testing" / "reference.csv").write_text(
        "test_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\n"
    )
    cohort = read_layout("camelyon16", tmp_path)
    assert len(cohort) == 11
    assert (cohort["tumor_001"].label, cohort["tumor_001"].split, cohort["tumor_001"].site) == (
        "tumor",
        "train",
        "RUMC",
    )
    assert cohort["tumor_001"].annotation == str(tmp_path / "training/lesion_annotations/tumor_001.xml")
    assert cohort["tumor_071"].site == "UMCU"
    assert cohort["normal_001"].site == "RUMC"
    assert cohort["normal_101"].site == "UMCU"
    exhaustive = {case.id: case.attributes.get("exhaustive") for case in cohort if case.split == "train"}
    assert exhaustive == {
        "normal_001": "true", "normal_101": "true", "tumor_001": "true", "tumor_015": "false",
        "tumor_025": "false", "tumor_071": "true",
    }  # fmt: skip
    assert (cohort["normal_086"].label, cohort["normal_086"].split) == (None, None)
    assert (cohort["test_001"].label, cohort["test_001"].attributes["metastasis"]) == ("tumor", "macro")
    assert cohort["test_001"].annotation is not None
    assert cohort["test_002"].label == "normal"
    assert [case.id for case in cohort if case.attributes.get("froc") == "false"] == ["test_049", "test_114"]
    write_cohort(cohort, tmp_path / "cohort.csv")
    assert read_cohort(tmp_path / "cohort.csv").cases == cohort.cases


def test_camelyon16_in_one_folder(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "Train_Tumor/Tumor_003.tif",
        "Train_Normal/Normal_004.tif",
        "Ground_Truth/Mask/Tumor_003_Mask.tif",
    )
    cohort = read_layout("camelyon16", tmp_path)
    assert [(case.id, case.label) for case in cohort] == [("Normal_004", "normal"), ("Tumor_003", "tumor")]
    assert cohort["Tumor_003"].annotation == str(tmp_path / "Ground_Truth/Mask/Tumor_003_Mask.tif")


def test_the_twenty_partly_annotated_slides(tmp_path: Path) -> None:
    touch(tmp_path, *(f"tumor/tumor_{n:03d}.tif" for n in range(1, 111)))
    cohort = read_layout("camelyon16", tmp_path)
    assert sum(case.attributes["exhaustive"] == "false" for case in cohort) == 20


def cloud_bucket(top: Path) -> None:
    """A folder as the cloud bucket lays it out: everything flat, and a mask for every slide."""
    names = [
        "normal_001",
        "normal_101",
        "tumor_001",
        "tumor_071",
        "tumor_111",
        "test_001",
        "test_002",
        "test_003",
    ]
    for name in names:
        touch(top, f"images/{name}.tif", size=100)
        touch(top, f"masks/{name}_mask.tif", f"background_tissue/{name}_tissue.tif")
    touch(top, *(f"annotations/{name}.xml" for name in ("tumor_001", "tumor_071", "tumor_111", "test_001")))
    write_lines(
        top / "evaluation" / "reference.csv",
        "image,class,type,center",
        "normal_001.tif,negative,None,0",
        "normal_101.tif,negative,None,1",
        "tumor_001.tif,macro,IDC,0",
        "tumor_071.tif,micro,IDC,1",
        "tumor_111.tif,micro,IDC,0",
        "test_001.tif,micro,IDC,1",
        "test_002.tif,negative,None,0",
        "test_003.tif,macro,Non-IDC,1",
    )


def test_camelyon16_in_the_cloud_bucket(tmp_path: Path) -> None:
    cloud_bucket(tmp_path)
    cohort = read_layout("camelyon16", tmp_path)
    assert {case.id: (case.label, case.split, case.site) for case in cohort} == {
        "normal_001": ("normal", "train", "RUMC"), "normal_101": ("normal", "train", "UMCU"),
        "tumor_001": ("tumor", "train", "RUMC"), "tumor_071": ("tumor", "train", "UMCU"),
        "tumor_111": ("tumor", "train", "RUMC"), "test_001": ("tumor", "test", "UMCU"),
        "test_002": ("normal", "test", "RUMC"), "test_003": ("tumor", "test", "UMCU"),
    }  # fmt: skip
    assert {case.id: Path(case.annotation).name if case.annotation else None for case in cohort} == {
        "normal_001": None, "normal_101": None, "tumor_001": "tumor_001.xml", "tumor_071": "tumor_071.xml",
        "tumor_111": "tumor_111.xml", "test_001": "test_001_mask.tif", "test_002": None,
        "test_003": "test_003_mask.tif",
    }  # fmt: skip
    assert all(Path(str(case.path)).parent.name == "images" for case in cohort)
    assert cohort["test_003"].attributes["metastasis"] == "macro"
    assert_survives_a_manifest(cohort, tmp_path)


def test_masks_alone_label_no_test_slide(tmp_path: Path) -> None:
    cloud_bucket(tmp_path)
    (tmp_path / "evaluation" / "reference.csv").unlink()
    cohort = read_layout("camelyon16", tmp_path)
    assert [cohort[name].label for name in ("test_001", "test_002", "test_003")] == ["tumor", None, None]


@pytest.mark.parametrize("folder", ["background_tissue", "masks", "aa_tissue_masks", "zz"])
def test_files_with_the_names_of_slides_do_not_replace_them(folder: str, tmp_path: Path) -> None:
    touch(tmp_path, "training/tumor/tumor_001.tif", "training/normal/normal_001.tif", size=1000)
    touch(tmp_path, f"{folder}/tumor_001.tif", f"training/{folder}/normal_001.tif", size=10)
    cohort = read_layout("camelyon16", tmp_path)
    assert {case.id: Path(str(case.path)).parent.name for case in cohort} == {
        "normal_001": "normal",
        "tumor_001": "tumor",
    }


def test_mislabelled_slides_have_neither_label_nor_split(tmp_path: Path) -> None:
    touch(tmp_path, *(f"training/normal/normal_{number:03d}.tif" for number in (85, 86, 143, 144, 145)))
    touch(tmp_path, "training/tumor/tumor_110.tif", "training/tumor/tumor_111.tif")
    cohort = read_layout("camelyon16", tmp_path)
    assert [case.id for case in cohort if case.split is None] == ["normal_086", "normal_144"]
    for name in ("normal_086", "normal_144"):
        assert cohort[name].label is None
        assert "mislabelled" in cohort[name].attributes["note"]
    assert (cohort["tumor_110"].site, cohort["tumor_111"].site) == ("UMCU", "RUMC")
    assert cohort["tumor_111"].label == "tumor"


def test_packed_annotations_are_read_from_the_archive(tmp_path: Path) -> None:
    touch(
        tmp_path, "training/tumor/tumor_001.tif", "testing/images/test_001.tif", "testing/images/test_002.tif"
    )
    for archive, member in (("training", "tumor_001.xml"), ("testing", "lesion_annotations/Test_001.xml")):
        with zipfile.ZipFile(tmp_path / archive / "lesion_annotations.zip", "w") as packed:
            packed.writestr(member, OUTLINE)
    write_cohort(read_layout("camelyon16", tmp_path), tmp_path / "elsewhere.csv")
    cohort = read_cohort(tmp_path / "elsewhere.csv")
    assert [case.label for case in cohort] == ["tumor", None, "tumor"]
    for name in ("tumor_001", "test_001"):
        (polygon,) = read_annotation(str(cohort[name].annotation)).of_kind("tumour")
        assert polygon.points.tolist() == [[10.5, 20], [40, 20], [40, 60]]
    touch(tmp_path, "training/lesion_annotations/tumor_001.xml")  # an unpacked copy is preferred
    unpacked = read_layout("camelyon16", tmp_path)["tumor_001"].annotation
    assert unpacked == str(tmp_path / "training/lesion_annotations/tumor_001.xml")


def test_damaged_archive_of_annotations_is_reported_at_once(tmp_path: Path) -> None:
    touch(tmp_path, "training/tumor/tumor_001.tif", "training/lesion_annotations.zip")
    with pytest.raises(DamagedFile, match=r"lesion_annotations\.zip.*unpack it yourself"):
        read_layout("camelyon16", tmp_path)


def test_evaluation_masks_of_the_organisers_are_used(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "testing/images/test_001.tif",
        "training/tumor/tumor_001.tif",
        "training/tumor/tumor_002.tif",
    )
    touch(tmp_path, "training/lesion_annotations/tumor_001.xml")
    folder = tmp_path / "testing" / "evaluation" / "evaluation_mask"
    folder.mkdir(parents=True)
    for name in ("test_001", "tumor_001", "tumor_002"):
        Image.fromarray(np.full((4, 4), 255, np.uint8)).save(folder / f"{name}_evaluation_mask.png")
    write_lines(tmp_path / "testing" / "reference.csv", "test_001,Tumor,IDC,Macro")
    cohort = read_layout("camelyon16", tmp_path)
    assert {case.id: Path(str(case.annotation)).name for case in cohort} == {
        "test_001": "test_001_evaluation_mask.png",
        "tumor_001": "tumor_001.xml",
        "tumor_002": "tumor_002_evaluation_mask.png",
    }
