"""Scans whose results are in an object store: same bytes as a local scan, whatever fails on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lobule import object_stores
from lobule.api import extract_features
from lobule.cli import ABOUT, COMMANDS
from lobule.cli.base import LazyGroup, run
from lobule.cli.view import open_library
from lobule.cluster.scan import scan_on_ray
from lobule.cluster.session import ClusterOptions
from lobule.cohort import Cohort
from lobule.errors import DamagedResults, MissingExtra, NotReadable, ResultsError, TooLarge, UsageError
from lobule.features import open_features
from lobule.object_folder import ObjectFolder
from lobule.results import local_results, open_results
from lobule.results.case_files import CaseFiles
from lobule.results.store import results_at
from lobule.results.store_copies import LIMIT_VARIABLE
from lobule.results.store_lock import LOCK, StoreLock
from lobule.reviews import Review, append_review
from lobule.scanning.scan import ScanReport, scan
from tests.cluster.local_ray import LocalRay, local_ray
from tests.cluster.support import SlowSource
from tests.scanning.support import (
    BUNDLE,
    EVERYWHERE,
    SMALL,
    MeanPredictor,
    cohort_of,
    pixels_of,
    tree,
    write_slide,
)
from tests.slides.range_server import Objects, serve

__all__ = ["local_ray"]

pytestmark = pytest.mark.skipif(find_spec("obstore") is None, reason="obstore is not installed")

URL = "s3://bucket/some results"
PREFIX = "/bucket/some results/"
ROOT = Path(__file__).parents[2]
STORE_ONLY = ("files.json", LOCK)


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Objects]:
    monkeypatch.setattr(object_stores, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("LOBULE_CACHE", str(tmp_path / "cache"))
    object_stores.store_of.cache_clear()
    with serve(Objects()) as served:
        monkeypatch.setenv("AWS_ENDPOINT_URL", served.url)
        yield served
    object_stores.store_of.cache_clear()


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("slides")
    good = [write_slide(folder / f"slide {i} %.tif", pixels_of(300 + 40 * i, 200, i)) for i in range(3)]
    (folder / "bad.tif").write_bytes(b"not a slide")
    return cohort_of(*good, folder / "bad.tif")


@pytest.fixture(scope="module")
def local(slides: Cohort, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local") / "r"
    scan(MeanPredictor(), BUNDLE, slides, out, EVERYWHERE, SMALL)
    return tree(out)


def scan_to_store(slides: Cohort, predictor: MeanPredictor | None = None, **options: bool) -> ScanReport:
    with results_at(URL, fresh=options.get("fresh", False)) as (folder, store):
        return scan(
            predictor or MeanPredictor(), BUNDLE, slides, folder, EVERYWHERE, SMALL, store=store, **options
        )


def in_store(objects: Objects) -> dict[str, bytes]:
    """The objects below the URL that a local scan writes as well, without times."""
    names = {path.removeprefix(PREFIX): data for path, data in objects.data.items()}
    return {name: data for name, data in names.items() if Path(name).name not in (*STORE_ONLY, "run.json")}


def test_objects_have_the_bytes_of_a_local_scan(
    objects: Objects, slides: Cohort, local: dict[str, bytes], tmp_path: Path
) -> None:
    report = scan_to_store(slides)
    assert report.counts == {"complete": 3, "failed": 1}
    assert in_store(objects) == local
    order = [path.removeprefix(PREFIX) for path in objects.puts if "slide 0" in path]
    assert order[-2:] == ["cases/slide 0 %25/result.json", "cases/slide 0 %25/files.json"]
    assert f"{PREFIX}{LOCK}" not in objects.data, "the lock is deleted at the end"
    remaining = [path for path in (tmp_path / "cache" / "results").rglob("*") if path.is_file()]
    assert not [path for path in remaining if "maps" in path.parts], "the scratch folder has no maps"


def test_a_finished_case_is_not_scanned_again_on_any_machine(
    objects: Objects, slides: Cohort, local: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan_to_store(Cohort(slides.cases[:2]))
    for machine in ("cache", "another machine"):
        monkeypatch.setenv("LOBULE_CACHE", str(tmp_path / machine))
        predictor = MeanPredictor()
        scan_to_store(Cohort(slides.cases[:2]), predictor)
        assert predictor.forwards == 0
    scan_to_store(slides)
    assert in_store(objects) == local


KILLED = """
import sys
from pathlib import Path
from tests.scanning.test_results_in_store import scan_to_store
from tests.scanning.support import cohort_of
scan_to_store(cohort_of(*map(Path, sys.argv[1:])))
"""


@pytest.mark.parametrize("machine", [pytest.param("cache", marks=pytest.mark.campaign), "another machine"])
def test_a_scan_that_was_killed_while_it_copied_a_case_is_completed(
    objects: Objects, slides: Cohort, local: dict[str, bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, machine: str,
) -> None:  # fmt: skip
    process: list[subprocess.Popen[bytes]] = []
    started = threading.Event()

    def kill(path: str, number: int) -> None:
        if path.endswith("slide 1 %25/maps/mean/zarr.json"):
            started.wait(60)
            os.kill(process[0].pid, signal.SIGKILL)

    objects.before_put = kill
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    paths = [str(case.path) for case in slides]
    process.append(subprocess.Popen([sys.executable, "-c", KILLED, *paths], env=environment, cwd=ROOT))
    started.set()
    assert process[0].wait(120) == -signal.SIGKILL
    objects.before_put = None
    assert f"{PREFIX}cases/slide 1 %25/files.json" not in objects.data
    monkeypatch.setenv("LOBULE_CACHE", str(tmp_path / machine))
    scan_to_store(slides)
    assert in_store(objects) == local


def test_two_workers_with_disks_of_their_own_write_the_bytes_of_a_local_scan(
    objects: Objects, slides: Cohort, local: dict[str, bytes], local_ray: LocalRay
) -> None:
    local_ray.lost_at = {0: 3}
    with results_at(URL) as (folder, store):
        report = scan_on_ray(
            SlowSource(), slides, folder, EVERYWHERE, replace(SMALL, replicas=1), ClusterOptions(workers=2),
            store=store,
        )  # fmt: skip
    assert report.counts == {"complete": 3, "failed": 1}
    assert len(local_ray.actors) == 3 and local_ray.actors[0].is_lost
    stored = in_store(objects)
    assert stored.keys() == local.keys()
    assert {name: data for name, data in stored.items() if "/maps/" in name} == {
        name: data for name, data in local.items() if "/maps/" in name
    }


def test_features_are_stored_and_read_back(
    objects: Objects, slides: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "encoder": "lobule:tiny", "weights": "random", "mpp": 0.5, "tile": 128, "input_px": 224,
        "tissue": False, "precision": "float32", "runtime": "torch", "device": "cpu", "batch": 4,
    }  # fmt: skip
    cohort = Cohort((*slides.cases[:1], slides.cases[-1]))
    local = extract_features(cohort, tmp_path / "local", **options)
    report = extract_features(cohort, URL, **options)
    assert report.counts == local.counts == {"complete": 1, "failed": 1}
    stored_files = {Path(path).name: data for path, data in objects.data.items()}
    for name in ("features.json", "encoder.safetensors", "results.csv"):
        (path,) = (tmp_path / "local").rglob(name)
        assert stored_files[name] == path.read_bytes()
    monkeypatch.setenv("LOBULE_CACHE", str(tmp_path / "another machine"))
    expected, copied = open_features(tmp_path / "local"), open_features(URL)
    case = cohort.cases[0]
    assert copied.manifest == expected.manifest and copied.encoder_weights is not None
    assert np.array_equal(copied.find(case).l0_coords(), expected.find(case).l0_coords())
    assert np.array_equal(copied.find(case).read(slice(None)), expected.find(case).read(slice(None)))
    with pytest.raises(NotReadable, match="no features of the case"):
        copied.find(cohort.cases[1])
    before = len(objects.puts)
    again = extract_features(cohort, URL, **options)
    assert again.counters.fields_done == 0
    assert not [path for path in objects.puts[before:] if path.endswith(".h5")]
    assert len([path for path in objects.data if path.endswith(".h5")]) == 2, "features and positions"
    extract_features(Cohort(cohort.cases[1:]), URL, fresh=True, **options)
    assert not [path for path in objects.data if path.endswith(".h5")]


# -- faults -------------------------------------------------------------------------------------------------


def test_requests_that_fail_at_random_lose_nothing(
    objects: Objects, slides: Cohort, local: dict[str, bytes]
) -> None:
    objects.failing_share, objects.faults = 0.05, ("503", "429", "500")
    scan_to_store(slides)
    objects.failing_share = 0.0
    assert in_store(objects) == local


def test_refused_credentials_end_the_scan_and_the_next_one_copies_what_was_scanned(
    objects: Objects, slides: Cohort, local: dict[str, bytes]
) -> None:
    objects.refused = {f"{PREFIX}cases/slide 0 %25/findings.csv"}
    with pytest.raises(ResultsError, match=r"refused the credentials.*AWS_ACCESS_KEY_ID"):
        scan_to_store(Cohort(slides.cases[:1]))
    assert f"{PREFIX}cases/slide 0 %25/files.json" not in objects.data
    objects.refused = set()
    predictor = MeanPredictor()
    scan_to_store(Cohort(slides.cases[:1]), predictor)
    assert predictor.forwards == 0, "the scratch folder has the case"
    scan_to_store(slides)
    assert in_store(objects) == local


def test_two_scans_cannot_write_below_one_url(objects: Objects, slides: Cohort) -> None:
    folder = ObjectFolder(URL)
    with results_at(URL), pytest.raises(ResultsError, match=r"process .* is writing here"), results_at(URL):
        pass
    with StoreLock(folder, beat_s=0.05), pytest.raises(ResultsError, match=r"is writing here.*another URL"):
        StoreLock(folder, silent_s=5).__enter__()


def test_a_lock_that_is_not_written_any_more_is_taken_over(objects: Objects) -> None:
    folder = ObjectFolder(URL)
    folder.write(LOCK, b'{"id": "x", "host": "another machine", "process": 1}')
    with StoreLock(folder, beat_s=60, silent_s=0.05) as first:
        first.check()
        version = folder.version(LOCK)
        with StoreLock(folder, silent_s=0.05):  # This process looks dead, because it writes too rarely.
            assert folder.version(LOCK) != version
            first._version = str(version)
            first.beat_s = 0.0
            first._beat_until_end()
            with pytest.raises(ResultsError, match="another scan has taken over"):
                first.check()


def test_a_case_that_is_scanned_again_replaces_all_of_its_objects(
    objects: Objects, slides: Cohort, local: dict[str, bytes]
) -> None:
    scan_to_store(slides)
    leftover = f"{PREFIX}cases/slide 0 %25/maps/mean/score/c/9/9/9"
    objects.data[leftover] = b"of an earlier scan"
    del objects.data[f"{PREFIX}cases/slide 0 %25/files.json"]  # The case no longer counts as finished.
    scan_to_store(slides)
    assert in_store(objects) == local


def test_fresh_deletes_the_scan_and_nothing_else(objects: Objects, slides: Cohort) -> None:
    objects.data[f"{PREFIX}notes.txt"] = b"of the user"
    scan_to_store(slides)
    predictor = MeanPredictor()
    scan_to_store(Cohort(slides.cases[:1]), predictor, fresh=True)
    assert predictor.forwards > 0
    assert objects.data[f"{PREFIX}notes.txt"] == b"of the user"
    assert not [path for path in objects.data if "slide 1" in path]


def test_a_correction_of_the_patient_reaches_the_store(objects: Objects, slides: Cohort) -> None:
    scan_to_store(Cohort(slides.cases[:1]))
    corrected = replace(slides.cases[0], patient="another patient")
    scan_to_store(Cohort((corrected,)))
    copy = open_results(local_results(URL))
    assert (copy.case_folder(corrected.id).result or {})["patient"] == "another patient"
    assert copy.case_folder(corrected.id).maps


def test_urls_that_cannot_store_results_are_refused(objects: Objects) -> None:
    with pytest.raises(UsageError, match="an HTTP server stores no results"), results_at(f"{objects.url}/r"):
        pass
    with pytest.raises(UsageError, match="not a folder in an object store"), results_at("ftp://host/r"):
        pass


# -- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_http", [False, True])
def test_a_copy_has_the_bytes_of_the_results(
    objects: Objects, slides: Cohort, local: dict[str, bytes], is_http: bool
) -> None:
    scan_to_store(slides)
    copy = local_results(f"{objects.url}/bucket/some%20results" if is_http else URL)
    copied = {name: data for name, data in tree(copy).items() if not Path(name).name.startswith(".")}
    copied = {name: data for name, data in copied.items() if Path(name).name not in STORE_ONLY}
    assert copied == local
    before = len(objects.requests)
    assert local_results(URL if not is_http else f"{objects.url}/bucket/some%20results") == copy
    assert not [path for _, path, _ in objects.requests[before:] if "/maps/" in path], (
        "nothing is copied twice"
    )


def test_a_copy_follows_the_store(objects: Objects, slides: Cohort) -> None:
    scan_to_store(Cohort(slides.cases[:1]))
    copy = local_results(URL, only_records=True)
    (folder,) = open_results(copy).cases()
    assert folder.status == "complete" and not folder.maps
    assert open_results(local_results(URL)).case_folder(folder.case_id).maps
    scan_to_store(slides)
    assert open_results(local_results(URL)).counts()["complete"] == 3
    chosen = open_results(local_results(URL, cases=[slides.cases[1].id]))
    assert [case.case_id for case in chosen.cases()] == [slides.cases[1].id]


def test_other_bytes_than_yesterday_are_an_error(objects: Objects, slides: Cohort) -> None:
    scan_to_store(slides)
    path = f"{PREFIX}cases/slide 0 %25/findings.csv"
    objects.data[path] = objects.data[path].swapcase()
    with pytest.raises(DamagedResults, match=r"other bytes than the scan wrote.*sha256"):
        local_results(URL)


def test_a_list_of_files_cannot_name_files_outside_of_the_results() -> None:
    for path in ("/etc/passwd", "../x", "cases/../../x", "a\\..\\b"):
        data = (
            CaseFiles({}).to_bytes().replace(b"{}", f'{{"{path}": [1, "0"]}}'.replace("\\", "\\\\").encode())
        )
        with pytest.raises(DamagedResults, match="damaged"):
            CaseFiles.from_bytes(data, URL)


def test_copies_are_bounded(objects: Objects, slides: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    scan_to_store(slides)
    monkeypatch.setenv(LIMIT_VARIABLE, "1000")
    assert local_results(URL, only_records=True)
    with pytest.raises(TooLarge, match=LIMIT_VARIABLE):
        local_results(URL)


def test_commands_accept_the_url(objects: Objects, slides: Cohort, capfd: pytest.CaptureFixture[str]) -> None:
    scan_to_store(slides)
    entries = open_library([URL], None, None).entries()
    assert sorted(entry.name for entry in entries) == sorted(case.id for case in slides)
    capfd.readouterr()
    commands = LazyGroup("lobule", COMMANDS, help=ABOUT, version=True)
    run(commands, ("info", URL, "--json"))
    assert json.loads(capfd.readouterr().out)["counts"] == {"complete": 3, "failed": 1}
    run(commands, ("info", URL, "--watch", "--every", "0.1"))
    assert "4 of 4 finished" in capfd.readouterr().out


def test_reviews_in_a_copy_are_refused(objects: Objects, slides: Cohort) -> None:
    scan_to_store(Cohort(slides.cases[:1]))
    with pytest.raises(ResultsError, match=r"some results: reviews cannot be written"):
        append_review(local_results(URL), slides.cases[0].id, "Ann", Review("note", text="clear"))


def test_missing_results_and_a_missing_extra_are_errors(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ResultsError, match="not a results folder"):
        local_results("s3://bucket/nothing")
    monkeypatch.setattr("lobule.object_folder.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="remote"):
        ObjectFolder(URL)
