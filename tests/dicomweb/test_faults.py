"""Slides and exams of a DICOMweb server: same pixels as from files, and faults on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from lobule.cli.dicomweb_cohort import dicomweb
from lobule.cohort import Case, Cohort, read_cohort, write_cohort
from lobule.dicomweb import is_dicomweb_url, parse_url
from lobule.dicomweb import server as server_module
from lobule.dicomweb.archive import store
from lobule.dicomweb.server import TOKEN_VARIABLE, Answer, Server
from lobule.errors import CohortError, LobuleError, NotReadable, UnknownFormat, UsageError
from lobule.exports.store import require_storable
from lobule.geometry import Box
from lobule.mammograms.dicom import examine_dicom, read_dicom
from lobule.phantoms.exams import write_exams
from lobule.scanning.scan import scan
from lobule.slides.identity import slide_fingerprint
from lobule.slides.slide import open_slide
from tests.dicomweb.fake_server import Archive, serve
from tests.scanning.support import BUNDLE, EVERYWHERE, SMALL, MeanPredictor, pixels_of, tree
from tests.slides.sample_files import write_dicom

WIDTH, HEIGHT = 900, 700


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


@pytest.fixture
def archive() -> Iterator[Archive]:
    with serve(Archive()) as served:
        yield served


def add_slide(archive: Archive, folder: Path, coding: str = "jpeg", **options: object) -> tuple[Path, str]:
    """Put a slide on the server and return one of its files and the URL of its series."""
    pixels = pixels_of(WIDTH, HEIGHT)
    levels = [pixels, np.ascontiguousarray(pixels[::2, ::2])]
    label = np.ascontiguousarray(pixels[:64, :64])
    paths = write_dicom(folder / "slide", levels, coding=coding, label=label, **options)
    archive.add(paths)
    header = pydicom.dcmread(paths[0], stop_before_pixels=True)
    return paths[0], f"{archive.url}/studies/{header.StudyInstanceUID}/series/{header.SeriesInstanceUID}"


# -- slides -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coding", "sparse"), [("jpeg", None), ("jpeg2000", None), ("native", {(0, 0), (3, 5)})]
)
def test_a_slide_on_a_server_has_the_pixels_of_its_files(
    archive: Archive, tmp_path: Path, coding: str, sparse: set[tuple[int, int]] | None
) -> None:
    path, url = add_slide(archive, tmp_path, coding, sparse=sparse)
    with open_slide(path) as local, open_slide(url) as remote:
        assert remote.levels == local.levels and remote.mpp == local.mpp
        assert dict(remote.properties) == dict(local.properties)
        for level, size in enumerate(level.size for level in local.levels):
            box = Box(0, 0, *size)
            assert np.array_equal(remote.read_level(level, box), local.read_level(level, box))
        label = remote.backend.read_associated("label")
        assert np.array_equal(label, local.backend.read_associated("label"))


def test_a_planned_pass_fetches_each_frame_once_with_few_requests(archive: Archive, tmp_path: Path) -> None:
    _, url = add_slide(archive, tmp_path)
    with open_slide(url) as remote:
        lattice = remote.lattice(level=0)
        boxes = [Box(x, y, 180, 140) for y in range(0, HEIGHT, 140) for x in range(0, WIDTH, 180)]
        archive.requests.clear()
        remote.plan_reads(lattice, boxes)
        for box in boxes:
            remote.read_lattice(lattice, box)
    numbers = [int(n) for r in archive.requests for n in r.rpartition("/frames/")[2].split(",")]
    tiles = -(-WIDTH // 64) * -(-HEIGHT // 64)
    assert sorted(numbers) == list(range(2, tiles + 1)), "the first frame was read when the slide was opened"
    assert len(archive.requests) < tiles / 2


def test_identity_follows_the_uids_of_the_images(archive: Archive, tmp_path: Path) -> None:
    path, url = add_slide(archive, tmp_path)
    first = slide_fingerprint(url)
    assert slide_fingerprint(url) == first and not any("frames" in request for request in archive.requests)
    dataset = archive.objects.pop(str(pydicom.dcmread(path).SOPInstanceUID))
    dataset.SOPInstanceUID = "1.2.3"
    archive.add_object(dataset)
    assert slide_fingerprint(url) != first


def cohort_of_url(url: str) -> Cohort:
    return Cohort((Case("slide", "p", "slide", url, mpp=0.5),))


def maps_of(results: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(results).items() if "/maps/" in name}


def test_failing_requests_lose_nothing(archive: Archive, tmp_path: Path) -> None:
    path, url = add_slide(archive, tmp_path)
    scan(MeanPredictor(), BUNDLE, cohort_of_url(str(path)), tmp_path / "local", EVERYWHERE, SMALL)
    archive.failing_share = 0.1
    report = scan(MeanPredictor(), BUNDLE, cohort_of_url(url), tmp_path / "remote", EVERYWHERE, SMALL)
    assert report.counts == {"complete": 1}
    assert maps_of(tmp_path / "remote") == maps_of(tmp_path / "local") != {}


def test_a_server_that_dies_leaves_failed_fields_and_a_rerun_completes_them(
    archive: Archive, tmp_path: Path
) -> None:
    path, url = add_slide(archive, tmp_path)
    scan(MeanPredictor(), BUNDLE, cohort_of_url(str(path)), tmp_path / "local", EVERYWHERE, SMALL)
    archive.dies_after = 12
    report = scan(MeanPredictor(), BUNDLE, cohort_of_url(url), tmp_path / "r", EVERYWHERE, SMALL)
    assert report.counts == {"partial": 1}, "fields that were read before are scored"
    archive.dies_after = None
    report = scan(
        MeanPredictor(), BUNDLE, cohort_of_url(url), tmp_path / "r", EVERYWHERE, SMALL, retry_failed=True
    )
    assert report.counts == {"complete": 1} and maps_of(tmp_path / "r") == maps_of(tmp_path / "local")


# -- errors -------------------------------------------------------------------------------------------------


def test_refused_credentials_and_tokens(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = add_slide(archive, tmp_path)
    archive.token = "Bearer right"
    for token in (None, "wrong"):
        if token is not None:
            monkeypatch.setenv(TOKEN_VARIABLE, token)
        with pytest.raises(NotReadable, match="refused access") as caught:
            open_slide(url)
        assert TOKEN_VARIABLE in str(caught.value.remedy) and len(archive.requests) == 1
        archive.requests.clear()
    monkeypatch.setenv(TOKEN_VARIABLE, "right")
    assert tuple(open_slide(url).size) == (WIDTH, HEIGHT)
    with pytest.raises(UsageError, match="without encryption"):
        Server("http://archive.invalid/dicom-web").json("/studies")


def test_passwords_come_from_netrc_and_never_from_the_address(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = add_slide(archive, tmp_path)
    archive.token = "Basic cmVhZGVyOnNlY3JldA=="  # reader:secret
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login reader password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert tuple(open_slide(url).size) == (WIDTH, HEIGHT)
    with pytest.raises(UsageError, match="password") as caught:
        open_slide(url.replace("//", "//reader:secret@"))
    assert "secret" not in str(caught.value)


def test_other_addresses_are_never_contacted(archive: Archive, tmp_path: Path) -> None:
    with serve(Archive()) as other:
        _, url = add_slide(archive, tmp_path)
        archive.redirect = f"{other.url}/studies"
        with pytest.raises(NotReadable, match="redirects to another address"):
            open_slide(url)
        archive.redirect = None
        archive.links = {"00282000": {"vr": "OB", "BulkDataURI": f"{other.url}/bulk/1"}}
        with pytest.raises(NotReadable, match="another server"):
            open_slide(url)
        assert other.requests == []


@pytest.mark.parametrize("answer", [b"<html>", b"{}", b"[1]"])
def test_answers_of_other_servers_are_errors(archive: Archive, tmp_path: Path, answer: bytes) -> None:
    _, url = add_slide(archive, tmp_path)
    archive.answer = answer
    with pytest.raises(NotReadable, match="not that of a DICOMweb server"):
        open_slide(url)


def test_missing_series_other_kinds_and_servers_that_are_off(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(NotReadable, match="no such object"):
        open_slide(f"{archive.url}/studies/1.2/series/3.4")
    with pytest.raises(NotReadable, match="requests to the DICOMweb server failed"):
        open_slide("http://127.0.0.1:9/dicom-web/studies/1.2/series/3.4")
    write_exams(tmp_path, exams=1, form="dicom", size=(130, 95))
    archive.add(sorted((tmp_path / "images").glob("*.dcm")))
    mammogram = next(iter(archive.objects.values()))
    with pytest.raises(UnknownFormat, match="no whole-slide image"):
        open_slide(f"{archive.url}/studies/{mammogram.StudyInstanceUID}/series/{mammogram.SeriesInstanceUID}")


def test_addresses_are_recognised() -> None:
    series = "https://host:8042/some/dicom-web/studies/1.2.3/series/4.5"
    assert is_dicomweb_url(series) and is_dicomweb_url(f"{series}/instances/6.7")
    assert parse_url(f"{series}/instances/6.7").path == "/studies/1.2.3/series/4.5/instances/6.7"
    assert parse_url(series).root == "https://host:8042/some/dicom-web"
    for other in (
        "s3://studies/1/series/2",
        "https://h/slide.svs",
        "/studies/1/series/2",
        f"{series}/frames/1",
    ):
        assert not is_dicomweb_url(other)
        with pytest.raises(UsageError):
            parse_url(other)


# -- exams and cohorts --------------------------------------------------------------------------------------


def test_exams_of_a_server_are_those_of_the_folder(archive: Archive, tmp_path: Path) -> None:
    write_exams(tmp_path, exams=2, form="dicom", size=(260, 190))
    paths = sorted((tmp_path / "images").glob("*.dcm"))
    archive.add(paths)
    cohort, left_out = dicomweb(archive.url)
    assert cohort.kind == "exam" and not left_out
    assert sorted(cohort.patients()) == ["PHANTOM0000", "PHANTOM0001"]
    write_cohort(cohort, tmp_path / "exams.csv")
    assert read_cohort(tmp_path / "exams.csv").cases == cohort.cases
    files = {str(pydicom.dcmread(path).SOPInstanceUID): path for path in paths}
    urls = [url for case in cohort for urls in case.views.values() for url in urls]
    assert len(urls) == 8
    for url in urls:
        local, remote = read_dicom(files[url.rpartition("/")[2]]), read_dicom(url)
        assert np.array_equal(local.pixels, remote.pixels) and local.view == remote.view
        assert examine_dicom(url).mm_per_px == local.heading.mm_per_px
    only = dicomweb(f"{archive.url}?PatientID=PHANTOM0001")[0]
    assert only.patients() == ("PHANTOM0001",)


def test_slides_and_exams_together_need_a_choice(archive: Archive, tmp_path: Path) -> None:
    _, url = add_slide(archive, tmp_path)
    write_exams(tmp_path, exams=1, form="dicom", size=(130, 95))
    archive.add(sorted((tmp_path / "images").glob("*.dcm")))
    with pytest.raises(CohortError, match="ModalitiesInStudy=SM"):
        dicomweb(archive.url)
    (case,) = dicomweb(f"{archive.url}?ModalitiesInStudy=SM")[0].cases
    assert case.path == url and case.id == url.rpartition("/")[2]
    with pytest.raises(CohortError, match="no slides and no mammograms"):
        dicomweb(f"{archive.url}?PatientID=nobody")


def test_studies_are_searched_page_by_page(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lobule.dicomweb.archive.PAGE", 2)
    pixels = pixels_of(64, 64)
    for number in range(5):
        archive.add(write_dicom(tmp_path / str(number), [pixels], series=f"slide {number}"))
    assert len(dicomweb(archive.url)[0]) == 5


# -- storing ------------------------------------------------------------------------------------------------


def test_an_object_is_stored_once_and_never_replaced(archive: Archive, tmp_path: Path) -> None:
    path = write_dicom(tmp_path, [pixels_of(64, 64)])[0]
    header = pydicom.dcmread(path)
    uids = (str(header.StudyInstanceUID), str(header.SeriesInstanceUID), str(header.SOPInstanceUID))
    assert store(Server(archive.url), path.read_bytes(), *uids)
    assert archive.objects[uids[2]] == header
    assert not store(Server(archive.url), b"other", *uids)
    assert sum(request.startswith("POST") for request in archive.requests) == 1
    archive.objects.clear()
    archive.token = "Bearer right"
    with pytest.raises(LobuleError, match="refused access"):
        store(Server(archive.url), path.read_bytes(), *uids)
    assert archive.objects == {}


def test_an_object_that_was_stored_before_the_connection_broke_counts_as_stored(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_dicom(tmp_path, [pixels_of(64, 64)])[0]
    header = pydicom.dcmread(path)
    uids = (str(header.StudyInstanceUID), str(header.SeriesInstanceUID), str(header.SOPInstanceUID))
    server, send = Server(archive.url), Server.request

    def request(self: Server, method: str, url: str, **values: Any) -> Answer:
        answer = send(self, method, url, **values)
        return replace(answer, status=409) if method == "POST" else answer

    monkeypatch.setattr(Server, "request", request)
    assert store(server, path.read_bytes(), *uids) and set(archive.objects) == {uids[2]}
    monkeypatch.setattr(Server, "_attempt", lambda *_: Answer(409, b"", ""))
    with pytest.raises(NotReadable, match=r"did not store the object \(status 409"):
        store(server, path.read_bytes(), uids[0], uids[1], "1.2.3")


@pytest.mark.parametrize("address", ["ftp://host/dicom-web", "host/dicom-web", "/a/folder"])
def test_other_addresses_are_refused_by_every_use(address: str) -> None:
    for use in (lambda: dicomweb(address), lambda: require_storable("dicom-seg", address)):
        with pytest.raises(UsageError, match="not the address of a DICOMweb server"):
            use()
