"""Objects of exams: valid by dciodvfy, and their marks are where the heatmaps are high."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest

from lobule.exports import ExportOptions
from lobule.exports.run import export_results
from lobule.files import read_json, write_json
from lobule.findings import Finding
from lobule.geometry import Box
from lobule.phantoms._mammogram_dicom import dicom_dataset, write_dicom
from lobule.results import open_results
from lobule.results.folder import begin_results
from lobule.results.maps import MapInfo, MapWriter
from lobule.results.result import FORMAT
from lobule.results.writing import map_summaries, write_findings
from lobule.stitch import State
from tests.exports.test_dicom import program

VIEWS = ("L-CC", "R-CC", "L-MLO")
HEIGHT, WIDTH, STRIDE = 300, 220, 10
HOT = Box(50, 100, 100, 100)
"""Pixels of each view with a score of 0.95; elsewhere the score is 0."""
FORMATS = ("dicom-cad-sr", "dicom-gsps", "dicom-seg")


def breast(view: str) -> np.ndarray:
    """A half ellipse at the chest wall, on the side where the standard has it."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    across = columns if view[0] == "L" else WIDTH - 1 - columns
    inside = ((rows - HEIGHT / 2) / 130) ** 2 + (across / 190) ** 2 < 1
    return np.where(inside, 900 + 3 * across, 0).astype(np.uint16)


def write_exam_results(folder: Path) -> Path:
    """Write a results folder with one exam of three DICOM views, whose heatmaps have a hot square."""
    bundle = {"method": "four_view", "fingerprint": "cd" * 32, "classes": ["benign", "malignant"]}
    results = begin_results(folder / "results", {"bundle": bundle, "options": {}, "cases": ["exam"]})
    case, views = results.case_folder("exam"), {}
    for view in VIEWS:
        path = folder / f"{view}.dcm"
        write_dicom(
            path, dicom_dataset(breast(view), view, 0.1, seed=0, patient="SECRET", horizontal_flip="NO")
        )
        views[view.lower().replace("-", "_")] = [str(path)]
        rows, columns = HEIGHT // STRIDE, WIDTH // STRIDE
        strides = (float(STRIDE), float(STRIDE))
        info = MapInfo(
            f"heatmap {view}", view, ("benign", "malignant"), rows, columns, strides, None, (rows, columns)
        )
        scores = np.zeros((2, rows, columns), np.float32)
        scores[1, HOT.y // STRIDE : HOT.bottom // STRIDE, HOT.x // STRIDE : HOT.right // STRIDE] = 0.95
        states = np.full((rows, columns), State.SCORED, np.uint8)
        MapWriter(case.map_path(info.name), info).write_chunk((0, 0), scores, states)
    files = {file: "sha256:" + f"{number}" * 64 for number, (file,) in enumerate(views.values())}
    write_json(
        case.path / "plan.json", {"case": "exam", "input": files, "mpp": None, "l0_box": None, "views": views}
    )
    result = {
        "format": FORMAT, "case": "exam", "patient": "SECRET", "status": "complete",
        "scores": {"left_malignant": 0.71, "right_malignant": 0.2}, "maps": map_summaries(case), "tables": [],
        "findings": {"count": 0}, "notes": [], "error": None, "bundle": bundle, "input": files, "failed": [],
    }  # fmt: skip
    write_json(case.path / "result.json", result)
    return results.path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exam_results(tmp_path_factory.mktemp("exams"))


@pytest.fixture(scope="module")
def folder(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("objects")
    for to in FORMATS:
        report = export_results(results, to, out)
        assert report.records[0].exported, report.records
    return out


def test_dciodvfy_reports_no_error(folder: Path) -> None:
    paths = sorted(folder.glob("*.dcm"))
    assert len(paths) == 7
    for path in paths:
        done = subprocess.run([program("dciodvfy"), str(path)], capture_output=True, text=True, check=False)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
        assert errors == [], path.name
        assert b"SECRET" not in path.read_bytes() and b"esearch use only" in path.read_bytes()


def test_the_report_has_breast_scores_and_locations(folder: Path) -> None:
    report = pydicom.dcmread(folder / "exam.cad-sr.dcm")
    summary = report.ContentSequence[2]
    scores = {
        item.ContentSequence[0].ConceptCodeSequence[0].CodeMeaning: float(
            item.MeasuredValueSequence[0].NumericValue
        )
        for item in summary.ContentSequence
        if item.ValueType == "NUM"
    }
    assert scores == {"Left": 71, "Right": 20}
    points = [item for item in _walk(report) if item.get("ValueType") == "SCOORD"]
    assert points
    library = report.ContentSequence[1].ContentSequence
    for point in points:
        x, y = point.GraphicData
        assert HOT.x <= x < HOT.right and HOT.y <= y < HOT.bottom
        root, container, image = point.ContentSequence[0].ReferencedContentItemIdentifier
        assert (root, container) == (1, 2) and 1 <= image <= len(library) == 3
    referenced = {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in library}
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert referenced == {
        one.ReferencedSOPInstanceUID for series in evidence for one in series.ReferencedSOPSequence
    }


def _walk(item: pydicom.Dataset):
    for child in item.get("ContentSequence", []):
        yield child
        yield from _walk(child)


def test_presentation_states_mark_the_views(folder: Path, results: Path) -> None:
    for view in VIEWS:
        state = pydicom.dcmread(folder / f"exam.{view}.gsps.dcm")
        reference = state.ReferencedSeriesSequence[0].ReferencedImageSequence[0]
        source = pydicom.dcmread(results.parent / f"{view}.dcm", stop_before_pixels=True)
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        (annotation,) = state.GraphicAnnotationSequence
        for graphic in annotation.GraphicObjectSequence:
            x, y = graphic.GraphicData[:2]
            assert HOT.x <= x <= HOT.right and HOT.y <= y <= HOT.bottom


def test_segmentations_cover_the_heatmaps(folder: Path) -> None:
    for view in VIEWS:
        pixels = pydicom.dcmread(folder / f"exam.{view}.seg.dcm").pixel_array
        expected = np.zeros((HEIGHT, WIDTH), np.uint8)
        expected[HOT.y : HOT.bottom, HOT.x : HOT.right] = 1
        assert np.array_equal(pixels.reshape(HEIGHT, WIDTH), expected)


def test_views_that_are_gone_are_described(results: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(results, tmp_path / "results"))
    path = copy / "cases/exam/plan.json"
    plan = read_json(path)
    views = {name: [f"/gone/{Path(files[0]).name}"] for name, files in plan["views"].items()}
    write_json(path, {**plan, "views": views})
    finding = Finding(70, 120, 0.8, "box", "region", Box(60, 110, 20, 20), image="L-CC")
    write_findings(copy / "cases/exam", [finding])
    for to in FORMATS:
        report = export_results(copy, to, tmp_path / "out", options=ExportOptions())
        assert report.records[0].exported and "is gone" in " ".join(report.records[0].notes), report.records
    report = pydicom.dcmread(tmp_path / "out/exam.cad-sr.dcm")
    outline = [item for item in _walk(report) if item.get("GraphicType") == "POLYLINE"]
    assert outline[0].GraphicData[:4] == [60, 110, 80, 110]
    assert list((tmp_path / "out").glob("*.gsps.dcm")) == [tmp_path / "out/exam.L-CC.gsps.dcm"]


def test_slides_have_no_exam_objects(tmp_path: Path) -> None:
    from lobule.testing.export import write_known_results

    results = write_known_results(tmp_path, ["squares"], incomplete_cases=False)
    report = export_results(results.path, "dicom-cad-sr", tmp_path / "out")
    assert "does not represent a case of the kind slide" in report.records[0].notes[0]
    assert not report.records[0].exported and open_results(results.path).planned() == ["squares"]


def test_a_view_without_the_attributes_that_objects_need(results: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(results, tmp_path / "results"))
    path = copy / "cases/exam/plan.json"
    plan = read_json(path)
    view = pydicom.dcmread(plan["views"]["l_cc"][0])
    del view.StudyInstanceUID, view.Rows
    view.save_as(tmp_path / "cut.dcm")
    write_json(path, {**plan, "views": {**plan["views"], "l_cc": [str(tmp_path / "cut.dcm")]}})
    for to in FORMATS:
        (record,) = export_results(copy, to, tmp_path / to).records
        assert not record.exported and "lacks attributes" in str(record.error), (to, record)
