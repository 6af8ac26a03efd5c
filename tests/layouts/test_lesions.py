"""Outlines of lesions of CBIS-DDSM and INbreast become annotations of exams, in pixels of the images."""

from __future__ import annotations

import json
import plistlib
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from lobule.annotations import read_annotation
from lobule.cli import COMMANDS
from lobule.cli.base import LazyGroup, run
from lobule.cohort import read_cohort
from lobule.errors import ConfigError
from lobule.layouts import read_layout
from lobule.layouts.lesions import write_lesions
from tests.layouts.support import write_lines

SIZE = (400, 300)
"""Width and height of the full images."""


def write_dicom(path: Path, pixels: np.ndarray | None, patient: str, size: tuple[int, int] = SIZE) -> None:
    """Write a DICOM image; without pixels, only a header of this size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    dataset.PatientID, dataset.Modality = patient, "MG"
    dataset.Columns, dataset.Rows = size if pixels is None else pixels.shape[::-1]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    if pixels is not None:
        dataset.PixelData = pixels.astype(np.uint8).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def mask_of(box: tuple[int, int, int, int], size: tuple[int, int] = SIZE) -> np.ndarray:
    x, y, width, height = box
    mask = np.zeros(size[::-1], np.uint8)
    mask[y : y + height, x : x + width] = 255
    return mask


def lesion_folder(top: Path, name: str) -> Path:
    return top / "CBIS-DDSM" / name / "07-20-2016-DDSM-NA-1" / "1.000000-ROI mask images-2"


CROP = np.arange(40 * 30).reshape(40, 30) % 251


@pytest.fixture
def cbis(tmp_path: Path) -> Path:
    """Three lesions, whose mask is once the second file, once another size, and once missing."""
    rows = []
    for name, pathology in (
        ("Mass-Training_P_00001_LEFT_CC_1", "MALIGNANT"), ("Mass-Training_P_00001_LEFT_CC_2", "BENIGN"),
        ("Mass-Training_P_00001_LEFT_MLO_1", "MALIGNANT"), ("Mass-Training_P_00002_RIGHT_CC_1", "BENIGN"),
    ):  # fmt: skip
        _, patient, number, side, view, abnormality = name.split("_")
        cells = [f"{patient}_{number}", "3", side, view, abnormality, pathology]
        rows.append(",".join(cells) + f',"{name}/1.2/1.3/000001.dcm\n"')
    header = "patient_id,breast_density,left or right breast,image view,abnormality id,pathology"
    table = tmp_path / "mass_case_description_train_set.csv"
    write_lines(table, f"{header},ROI mask file path", *rows)
    for name in ("P_00001_LEFT_CC", "P_00001_LEFT_MLO", "P_00002_RIGHT_CC"):
        full = f"Mass-Training_{name}"
        write_dicom(lesion_folder(tmp_path, full) / "1-1.dcm", None, full)
    first = lesion_folder(tmp_path, "Mass-Training_P_00001_LEFT_CC_1")
    write_dicom(first / "1-1.dcm", CROP, "x")
    write_dicom(first / "1-2.dcm", mask_of((100, 60, 50, 40)), "x")
    second = lesion_folder(tmp_path, "Mass-Training_P_00001_LEFT_CC_2")
    write_dicom(second / "1-1.dcm", mask_of((20, 25, 30, 15), (320, 240)), "x")  # 0.8 of the image's size
    write_dicom(second / "1-2.dcm", CROP, "x")
    third = lesion_folder(tmp_path, "Mass-Training_P_00001_LEFT_MLO_1")
    write_dicom(third / "1-1.dcm", mask_of((10, 10, 20, 20), (300, 300)), "x")  # another shape
    fourth = lesion_folder(tmp_path, "Mass-Training_P_00002_RIGHT_CC_1")
    write_dicom(fourth / "1-1.dcm", CROP, "x")  # the mask was not downloaded
    return tmp_path


def test_masks_of_cbis_ddsm(cbis: Path, tmp_path: Path) -> None:
    cohort = read_layout("cbis-ddsm", cbis)
    report = write_lesions("cbis-ddsm", cbis, cohort, tmp_path / "out")
    assert report.outlined == 1 and report.cohort["P_00002"].annotation is None
    polygons = read_annotation(report.cohort["P_00001"].annotation).polygons
    assert [(polygon.name, polygon.group, polygon.kind) for polygon in polygons] == [
        ("L-CC", "malignant", "other"), ("L-CC", "benign", "other"),
    ]  # fmt: skip
    # Outlines follow the edges of pixels, and the second mask is scaled from 320 to 400 px.
    for polygon, (x, y, width, height) in zip(
        polygons, [(100, 60, 50, 40), (25, 31.25, 37.5, 18.75)], strict=True
    ):
        assert polygon.points.min(axis=0).tolist() == [x, y]
        assert polygon.points.max(axis=0).tolist() == [x + width, y + height]
    reasons = {Path(path).parts[-4]: reason for path, reason in report.left_out.items()}
    assert "does not have the shape" in reasons["Mass-Training_P_00001_LEFT_MLO_1"]
    assert "is a crop" in reasons["Mass-Training_P_00002_RIGHT_CC_1"]
    assert len(reasons) == 2


def test_converted_outlines_are_used_again(cbis: Path, tmp_path: Path, monkeypatch) -> None:
    import lobule.layouts.cbis_ddsm_lesions as cbis_ddsm_lesions

    cohort = read_layout("cbis-ddsm", cbis)
    first = write_lesions("cbis-ddsm", cbis, cohort, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(cbis_ddsm_lesions, "_mask_values", lambda path: pytest.fail("read again"))
        assert write_lesions("cbis-ddsm", cbis, cohort, tmp_path / "out").cohort == first.cohort
    mask = lesion_folder(cbis, "Mass-Training_P_00001_LEFT_CC_1") / "1-1.dcm"
    write_dicom(mask.with_name("1-2.dcm"), mask_of((10, 20, 30, 40)), "x")
    import os

    os.utime(mask, ns=(2**62, 2**62))  # newer than the outlines
    report = write_lesions("cbis-ddsm", cbis, cohort, tmp_path / "out")
    assert read_annotation(report.cohort["P_00001"].annotation).polygons[0].points.min(axis=0).tolist() == [
        10,
        20,
    ]


def test_command_writes_the_column(cbis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = LazyGroup("lobule", COMMANDS, help="")
    arguments = ["cohort", str(cbis), "--from", "cbis-ddsm", "--out", str(tmp_path / "c.csv")]
    assert run(root, [*arguments, "--outlines", str(tmp_path / "lesions"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["annotated"] == 1 and len(data["left_out"]) == 2
    case = read_cohort(tmp_path / "c.csv")["P_00001"]
    assert len(read_annotation(case.annotation)) == 2
    with pytest.raises(ConfigError, match="no outlines of lesions"):
        write_lesions("cmmd", cbis, read_cohort(tmp_path / "c.csv"), tmp_path / "other")


# -- INbreast -----------------------------------------------------------------------------------------------


def region(name: str, points: list[tuple[float, float]]) -> dict[str, object]:
    return {"Name": name, "NumberOfPoints": len(points), "Point_px": [f"({x:f}, {y:f})" for x, y in points]}


def write_inbreast(top: Path, images: dict[str, list[dict[str, object]] | bytes]) -> Path:
    names = {
        "20586908": "20586908_6c613a14b80a8591_MG_R_CC_ANON",
        "20586934": "20586934_6c613a14b80a8591_MG_L_CC_ANON",
        "20586960": "20586960_6c613a14b80a8591_MG_R_ML_ANON",
    }  # fmt: skip
    for name in names.values():
        write_dicom(top / "AllDICOMs" / f"{name}.dcm", None, "removed")
    write_lines(
        top / "INbreast.csv", "Laterality;View;Acquisition date;File Name;ACR;Bi-Rads",
        "R;CC;201001;20586908;3;2", "L;CC;201001;20586934;3;4a", "R;MLO;201001;20586960;3;5",
    )  # fmt: skip
    (top / "AllXML").mkdir()
    for image, regions in images.items():
        document = {"Images": [{"ImageIndex": 0, "NumberOfROIs": len(regions), "ROIs": regions}]}
        data = regions if isinstance(regions, bytes) else plistlib.dumps(document)
        (top / "AllXML" / f"{image}.xml").write_bytes(data)
    return top


SQUARE = [(100.0, 50.0), (140.5, 50.0), (140.5, 90.25), (100.0, 90.25)]


def test_outlines_of_inbreast(tmp_path: Path) -> None:
    top = write_inbreast(tmp_path / "INbreast Release 1.0", {
        "20586908": [region("Calcification", [(30, 40)]), region("Cluster", SQUARE)],
        "20586934": [region("Mass", SQUARE), region("Point 3", [(1, 2), (3, 4)])],
        "20586960": [region("Mass", [(x + 1000, y) for x, y in SQUARE])],
    })  # fmt: skip
    report = write_lesions("inbreast", top, read_layout("inbreast", top), tmp_path / "out")
    (case,) = report.cohort
    polygons = read_annotation(case.annotation).polygons
    assert {(polygon.name, polygon.group) for polygon in polygons} == {
        ("R-CC", "benign"),
        ("L-CC", "malignant"),
    }
    assert all(polygon.points.tolist() == [list(point) for point in SQUARE] for polygon in polygons)
    assert [Path(path).name for path in report.left_out] == ["20586960.xml"]
    assert "outside the image" in next(iter(report.left_out.values()))


DAMAGED = [
    b"<plist><dict/></plist>", b"not xml", b"<plist><array/></plist>",
    plistlib.dumps({"Images": [{"ROIs": [{"Point_px": ["(1; 2)"]}]}]}),
    plistlib.dumps({"Images": [{"ROIs": ["x"]}]}),
]  # fmt: skip


@pytest.mark.parametrize("data", DAMAGED)
def test_damaged_outlines_are_listed(data: bytes, tmp_path: Path) -> None:
    top = write_inbreast(tmp_path / "data", {"20586908": data, "20586934": [region("Mass", SQUARE)]})
    report = write_lesions("inbreast", top, read_layout("inbreast", top), tmp_path / "out")
    assert [Path(path).name for path in report.left_out] == ["20586908.xml"] and report.outlined == 1
