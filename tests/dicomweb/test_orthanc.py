"""A slide and an exam go from Orthanc through a scan back into Orthanc, and are read there again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from urllib.request import Request, urlopen

import highdicom
import numpy as np
import pydicom
import pytest

from lobule.api import export
from lobule.cli.dicomweb_cohort import dicomweb
from lobule.cohort import Case, Cohort
from lobule.dicomweb.archive import INSTANCE, SERIES, STUDY, search_studies, store, value_of
from lobule.dicomweb.server import Server
from lobule.errors import NotReadable
from lobule.findings import Finding
from lobule.grid import MapGrid
from lobule.mammograms.exam_views import ViewOptions, open_views
from lobule.mammograms.views import VIEWS
from lobule.phantoms.exams import write_exams
from lobule.results.result import RESEARCH_USE, Result
from lobule.scanning.contract import ImageSource, OpenCase, ScanOptions, Steps, fill_map
from lobule.scanning.exam_passes import exam_result
from lobule.scanning.scan import scan
from lobule.slides.slide import open_slide
from tests.dicomweb.orthanc import PASSWORD, USER, Orthanc
from tests.scanning.support import BUNDLE, EVERYWHERE, SMALL, STRIDE, WINDOW, MeanPredictor, pixels_of, tree
from tests.slides.sample_files import write_dicom

PATIENT = "Known^Patient"


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    server = Orthanc(tmp_path).start()
    yield server
    server.kill()


def store_files(orthanc: Orthanc, paths: list[Path]) -> None:
    server = Server(orthanc.url)
    for path in paths:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        uids = (str(header.StudyInstanceUID), str(header.SeriesInstanceUID), str(header.SOPInstanceUID))
        assert store(server, path.read_bytes(), *uids)


def slide_files(folder: Path) -> list[Path]:
    """A slide with the attributes that derived objects need."""
    pixels = pixels_of(700, 500)
    paths = write_dicom(folder, [pixels, np.ascontiguousarray(pixels[::2, ::2])])
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.PatientID = PATIENT, "P7"
        dataset.PatientBirthDate = dataset.PatientSex = dataset.AccessionNumber = ""
        dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20260102", "101112", ""
        dataset.ReferringPhysicianName = ""
        origin = pydicom.Dataset()
        origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0.0
        origin.ZOffsetInSlideCoordinateSystem = 0.0
        dataset.TotalPixelMatrixOriginSequence = [origin]
        dataset.ImageOrientationSlide = [1, 0, 0, 0, 1, 0]
        dataset.ContainerIdentifier = "slide"
        dataset.IssuerOfTheContainerIdentifierSequence = []
        dataset.ContainerTypeCodeSequence = []
        specimen = pydicom.Dataset()
        specimen.SpecimenIdentifier, specimen.SpecimenUID = "slide", "1.2.3.4"
        specimen.IssuerOfTheSpecimenIdentifierSequence = []
        specimen.SpecimenPreparationSequence = []
        dataset.SpecimenDescriptionSequence = [specimen]
        dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = "0.001"
        dataset.save_as(path)
    return paths


def instances_of(server: Server, modality: str) -> list[tuple[str, str, str]]:
    """The study, series and instance of all objects of a modality."""
    objects = []
    for study in search_studies(server, []):
        study_uid = value_of(study, STUDY)
        for series in server.json(f"/studies/{study_uid}/series", [("Modality", modality)]):
            path = f"/studies/{study_uid}/series/{value_of(series, SERIES)}"
            objects += [
                (study_uid, value_of(series, SERIES), value_of(instance, INSTANCE))
                for instance in server.json(f"{path}/instances")
            ]
    return objects


def read_again(orthanc: Orthanc, uids: tuple[str, str, str]) -> pydicom.Dataset:
    """Read one object as a file, through Orthanc's own interface instead of DICOMweb."""
    base = orthanc.url.removesuffix("/dicom-web")
    (identity,) = json.loads(urlopen(Request(f"{base}/tools/lookup", data=uids[2].encode())).read())
    return pydicom.dcmread(BytesIO(urlopen(f"{base}/instances/{identity['ID']}/file").read()))


class FindingPredictor(MeanPredictor):
    """Scores like `MeanPredictor` and states one finding."""

    def steps(self, case: OpenCase) -> Steps[Result]:
        result = yield from super().steps(case)
        return replace(result, findings=(Finding(300, 200, 0.9, label="mean"),))


def test_a_slide_goes_from_orthanc_through_a_scan_back_into_orthanc(orthanc: Orthanc, tmp_path: Path) -> None:
    paths = slide_files(tmp_path / "files")
    store_files(orthanc, paths)
    cohort, left_out = dicomweb(orthanc.url)
    (case,) = cohort.cases
    assert case.patient == "P7" and not left_out and case.value("study_date") == "20260102"
    report = scan(FindingPredictor(), BUNDLE, cohort, tmp_path / "remote", EVERYWHERE, SMALL)
    assert report.counts == {"complete": 1}
    local = Cohort((replace(case, path=str(paths[0])),))
    scan(FindingPredictor(), BUNDLE, local, tmp_path / "local", EVERYWHERE, SMALL)
    maps = [{n: b for n, b in tree(tmp_path / name).items() if "/maps/" in n} for name in ("local", "remote")]
    assert maps[0] == maps[1] != {}

    server, study = Server(orthanc.url), str(pydicom.dcmread(paths[0]).StudyInstanceUID)
    for to, modality in (("dicom-seg", "SEG"), ("dicom-sr", "SR"), ("dicom-ann", "ANN"), ("dicom-pm", "OT")):
        arguments = {"cohort": cohort, "show_patients": True, "store": orthanc.url}
        outcome = export(tmp_path / "remote", to, tmp_path / to, **arguments)
        assert outcome.failed == 0 and outcome.store is not None, [r.error for r in outcome.records]
        assert outcome.store.stored and not outcome.store.present
        stored = instances_of(server, modality)
        assert stored and {uids[0] for uids in stored} == {study}, "it belongs to the study of the slide"
        for uids in stored:
            dataset = read_again(orthanc, uids)
            assert dataset.SeriesDescription == RESEARCH_USE and dataset.PatientID == "P7"
        again = export(tmp_path / "remote", to, tmp_path / to, **arguments)
        assert again.store is not None and again.store.stored == ()
        assert again.store.present == outcome.store.stored and instances_of(server, modality) == stored
    (uids,) = instances_of(server, "SEG")
    segmentation = highdicom.seg.Segmentation.from_dataset(read_again(orthanc, uids))
    sources = {str(uid) for _, _, uid in segmentation.get_source_image_uids()}
    assert sources <= {str(pydicom.dcmread(path).SOPInstanceUID) for path in paths} and sources
    assert dicomweb(f"{orthanc.url}?ModalitiesInStudy=SM")[0].cases == cohort.cases


class ExamPredictor(MeanPredictor):
    """Scores each cell of each view with a mean, and states one finding."""

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        return open_views(case, ViewOptions(), joined=False)

    def steps(self, case: OpenCase) -> Steps[Result]:
        for view in VIEWS:
            grid = MapGrid(case.images[view].lattice(), STRIDE, WINDOW, case.engine.cells)
            everywhere = np.ones((grid.rows, grid.columns), np.bool_)
            yield from fill_map("mean", f"mean {view}", grid, self.classes, everywhere, image=view)
        findings = [Finding(60, 50, 0.9, label="mean", image="L-CC")]
        return exam_result({"mean": 0.9}, case.images, findings, "test", {})


def test_an_exam_goes_from_orthanc_through_a_scan_back_into_orthanc(orthanc: Orthanc, tmp_path: Path) -> None:
    write_exams(tmp_path / "exams", exams=1, form="dicom", size=(650, 475))
    paths = sorted((tmp_path / "exams/images").glob("*.dcm"))
    store_files(orthanc, paths)
    cohort, _ = dicomweb(orthanc.url)
    report = scan(ExamPredictor(), BUNDLE, cohort, tmp_path / "remote", ScanOptions(), SMALL)
    assert report.counts == {"complete": 1}
    views = {name: (str(tmp_path / "exams/images" / f"exam0000_{view}.dcm"),)
             for view in VIEWS for name in [view.lower().replace("-", "_")]}  # fmt: skip
    local = Cohort((replace(cohort.cases[0], views=views),))
    scan(ExamPredictor(), BUNDLE, local, tmp_path / "local", ScanOptions(), SMALL)
    maps = [{n: b for n, b in tree(tmp_path / name).items() if "/maps/" in n} for name in ("local", "remote")]
    assert maps[0] == maps[1] != {}

    server = Server(orthanc.url)
    outcome = export(
        tmp_path / "remote", "dicom-cad-sr", tmp_path / "sr", cohort=cohort, show_patients=True,
        store=orthanc.url,
    )  # fmt: skip
    assert outcome.failed == 0 and outcome.store is not None and len(outcome.store.stored) == 1
    (uids,) = instances_of(server, "SR")
    report_again = read_again(orthanc, uids)
    assert report_again.SeriesDescription == RESEARCH_USE and report_again.PatientID == "PHANTOM0000"
    assert uids[0] == str(pydicom.dcmread(paths[0]).StudyInstanceUID) == cohort.cases[0].id
    referenced = {str(e.value) for e in report_again.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
    assert str(pydicom.dcmread(views["l_cc"][0]).SOPInstanceUID) in referenced


def test_an_orthanc_that_dies_in_the_middle_and_one_with_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lobule.dicomweb.server.FIRST_PAUSE_S", 0.01)
    paths = slide_files(tmp_path / "files")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
    netrc.chmod(0o600)
    server = Orthanc(tmp_path, with_password=True).start()
    try:
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
        with pytest.raises(NotReadable, match="refused access"):
            dicomweb(server.url)
        monkeypatch.setenv("NETRC", str(netrc))
        store_files(server, paths)
        cohort, _ = dicomweb(server.url)

        class Killer(MeanPredictor):
            def forward(self, key: object, batch: object) -> dict:  # type: ignore[type-arg]
                if self.forwards == 2:
                    server.kill()
                return super().forward(key, batch)

        report = scan(Killer(), BUNDLE, cohort, tmp_path / "r", EVERYWHERE, SMALL)
        assert report.counts in ({"failed": 1}, {"partial": 1}, {"complete": 1})  # By what was fetched ahead.
        with pytest.raises(NotReadable, match="4 requests"):
            open_slide(str(cohort.cases[0].path))
        server.start()
        scan(MeanPredictor(), BUNDLE, cohort, tmp_path / "r", EVERYWHERE, SMALL, retry_failed=True)
        scan(MeanPredictor(), BUNDLE, cohort, tmp_path / "whole", EVERYWHERE, SMALL)
        maps = [{n: b for n, b in tree(tmp_path / name).items() if "/maps/" in n} for name in ("r", "whole")]
        assert maps[0] == maps[1] != {}
    finally:
        server.kill()
