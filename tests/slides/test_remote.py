"""Slides read from object stores by ranges: same pixels, few bytes, few requests, and faults on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobule import object_stores
from lobule.cohort import Case, Cohort
from lobule.errors import NotReadable, UsageError
from lobule.files import open_url
from lobule.geometry import Box
from lobule.scanning.scan import scan
from lobule.slides.identity import slide_fingerprint
from lobule.slides.read_ahead import LARGEST_GAP, LARGEST_REQUEST, ReadAhead, coalesced
from lobule.slides.slide import open_slide
from tests.scanning.support import BUNDLE, EVERYWHERE, SMALL, MeanPredictor, pixels_of, tree, write_slide
from tests.slides.range_server import Objects, serve

needs_obstore = pytest.mark.skipif(find_spec("obstore") is None, reason="obstore is not installed")


# -- planning -----------------------------------------------------------------------------------------------


ranges = st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 900)), max_size=40, unique=True)


@given(ranges, st.integers(1, 4000), st.data())
def test_ranges_read_ahead_are_those_of_the_file(
    planned: list[tuple[int, int]], budget: int, data: st.DataObject
) -> None:
    content = np.random.default_rng(0).bytes(6000)
    used_bytes = data.draw(st.integers(0, 3000))
    ahead = ReadAhead(lambda start, end: content[start:end], planned, budget, used_bytes)
    for offset, length in data.draw(st.permutations(planned)):
        assert ahead.take(offset, length) == content[offset : offset + length]
        assert ahead.take(offset, length) in (content[offset : offset + length], None)
        assert ahead.covers([(offset, length)])
    assert ahead.take(5999, 7) is None and not ahead.covers([(5999, 7)])
    remaining = sum(request.size for request in ahead._requests if request.data is not None)
    assert remaining == ahead._used_bytes <= used_bytes and ahead._fetched_bytes == 0
    ahead.close()


@given(ranges)
def test_requests_cover_every_range_once_and_waste_little(planned: list[tuple[int, int]]) -> None:
    requests = coalesced(planned)
    assert sorted(item for request in requests for item in request.unused) == sorted(planned)
    for request in requests:
        assert request.end - request.start <= max(
            LARGEST_REQUEST, max(length for _, length in request.unused)
        )
        used = sorted(request.unused)
        assert (used[0][0], sum(used[-1])) == (request.start, request.end)
        assert all(0 <= b[0] - sum(a) <= LARGEST_GAP for a, b in pairwise(used))


def test_neighbouring_ranges_become_one_request() -> None:
    tiles = [(1000 * index, 1000) for index in range(100)]
    assert len(coalesced(tiles)) == 1
    assert len(coalesced(tiles[::2])) == 1
    assert len(coalesced([(100_000 * index, 1000) for index in range(10)])) == 10


def test_ranges_used_a_short_time_ago_are_not_fetched_again() -> None:
    fetched: list[tuple[int, int]] = []

    def read(start: int, end: int) -> bytes:
        fetched.append((start, end))
        return bytes(end - start)

    tiles = [(100_000 * index, 1000) for index in range(10)]
    ahead = ReadAhead(read, tiles, used_bytes=4000)
    for tile in tiles:
        assert ahead.take(*tile) is not None
    assert [ahead.take(*tile) is not None for tile in tiles] == [False] * 6 + [True] * 4
    assert sorted(fetched) == [(offset, offset + 1000) for offset, _ in tiles]


def test_an_error_while_reading_ahead_reaches_the_reader() -> None:
    def broken(start: int, end: int) -> bytes:
        raise OSError("the server is gone")

    ahead = ReadAhead(broken, [(0, 10), (50_000, 10)])
    for offset in (0, 50_000):
        with pytest.raises(OSError, match="gone"):
            ahead.take(offset, 10)
        assert ahead.take(offset, 10) is None, "the range is then read alone"


# -- slides -------------------------------------------------------------------------------------------------


@pytest.fixture
def objects() -> Iterator[Objects]:
    with serve(Objects()) as served:
        yield served


@pytest.fixture
def slide(tmp_path: Path, objects: Objects) -> Path:
    path = write_slide(tmp_path / "slide.tif", pixels_of(1500, 1100))
    objects.data["/bucket/slide.tif"] = path.read_bytes()
    return path


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_stores, "FIRST_PAUSE_S", 0.001)
    object_stores.store_of.cache_clear()


def urls(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", objects.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return {"http": f"{objects.url}/bucket/slide.tif", "s3": "s3://bucket/slide.tif"}


@needs_obstore
@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_remote_slide_has_the_pixels_of_the_local_one(
    slide: Path, objects: Objects, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    url = urls(objects, monkeypatch)[scheme]
    boxes = [Box(0, 0, 300, 200), Box(900, 700, 600, 400), Box(130, 5, 1, 1)]
    with open_slide(slide) as local, open_slide(url) as remote:
        assert (remote.size, remote.mpp, remote.format) == (local.size, local.mpp, local.format)
        for box in boxes:
            assert np.array_equal(remote.read_level(0, box), local.read_level(0, box))
        assert np.array_equal(remote.thumbnail(200), local.thumbnail(200))


@needs_obstore
def test_a_planned_pass_fetches_each_tile_once_with_few_requests(slide: Path, objects: Objects) -> None:
    objects.pause_s = 0.01
    with open_slide(slide) as local, open_slide(f"{objects.url}/bucket/slide.tif") as remote:
        lattice = remote.lattice(level=0)
        boxes = [Box(x, y, 256, 256) for y in range(0, 1024, 256) for x in range(0, 1280, 256)]
        objects.requests.clear()
        remote.plan_reads(lattice, boxes)
        for box in boxes:
            assert np.array_equal(remote.read_lattice(lattice, box), local.read_lattice(lattice, box))
        layer = remote.backend._layers[0]  # type: ignore[attr-defined]
        lengths = layer.lengths.reshape(layer.rows, layer.columns)[:8, :10]
        assert int(lengths.sum()) <= objects.bytes_sent <= 1.1 * int(lengths.sum())
        assert len(objects.requests) < len(boxes)
        assert objects.most_at_once > 1


def remote_cohort(objects: Objects) -> Cohort:
    return Cohort((Case("slide", "patient slide", "slide", f"{objects.url}/bucket/slide.tif", mpp=0.5),))


@needs_obstore
def test_remote_scan_has_the_scores_of_a_local_one(slide: Path, objects: Objects, tmp_path: Path) -> None:
    local = Cohort((replace(remote_cohort(objects).cases[0], path=str(slide)),))
    scan(MeanPredictor(), BUNDLE, local, tmp_path / "local", EVERYWHERE, SMALL)
    scan(MeanPredictor(), BUNDLE, remote_cohort(objects), tmp_path / "remote", EVERYWHERE, SMALL)
    maps = [{n: b for n, b in tree(tmp_path / name).items() if "/maps/" in n} for name in ("local", "remote")]
    assert maps[0] == maps[1] and maps[0]
    assert objects.bytes_sent < 1.6 * slide.stat().st_size  # The header is read by several backends.


@needs_obstore
def test_failing_requests_lose_nothing(slide: Path, objects: Objects, tmp_path: Path) -> None:
    objects.failing_share = 0.05
    report = scan(MeanPredictor(), BUNDLE, remote_cohort(objects), tmp_path / "r", EVERYWHERE, SMALL)
    assert report.counts == {"complete": 1}


@needs_obstore
def test_a_store_that_always_fails_ends_as_a_failed_case(
    slide: Path, objects: Objects, tmp_path: Path
) -> None:
    objects.failing_share, objects.faults = 1.0, ("short",)
    report = scan(MeanPredictor(), BUNDLE, remote_cohort(objects), tmp_path / "r", EVERYWHERE, SMALL)
    assert report.counts == {"failed": 1}
    assert "slide.tif" in report.failed["slide"]


@needs_obstore
@pytest.mark.parametrize(
    ("fault", "message"), [("missing", "no such object"), ("refused", "refused the credentials")]
)
def test_missing_objects_and_refused_credentials_are_reported(
    slide: Path, objects: Objects, fault: str, message: str
) -> None:
    if fault == "missing":
        objects.data.clear()
    else:
        objects.refused.add("/bucket/slide.tif")
    with pytest.raises(NotReadable, match=message):
        open_slide(f"{objects.url}/bucket/slide.tif")


@needs_obstore
def test_renewed_credentials_are_read_again(
    slide: Path, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.refused.add("/bucket/slide.tif")
    monkeypatch.setattr("lobule.object_stores.time.sleep", lambda seconds: objects.refused.clear())
    with open_slide(f"{objects.url}/bucket/slide.tif") as remote:
        assert tuple(remote.size) == (1500, 1100)


@needs_obstore
def test_a_server_without_ranges_is_refused(slide: Path, objects: Objects) -> None:
    objects.ignores_ranges = True
    if find_spec("aiohttp") is None:
        with pytest.raises(NotReadable, match="does not support range requests"):
            open_slide(f"{objects.url}/bucket/slide.tif")


@needs_obstore
@pytest.mark.parametrize("weak", [False, True])
def test_an_object_that_changes_while_it_is_read_is_an_error(
    slide: Path, objects: Objects, weak: bool
) -> None:
    objects.weak_versions = weak
    with open_slide(f"{objects.url}/bucket/slide.tif") as remote:
        objects.data["/bucket/slide.tif"] = slide.read_bytes()[:-1] + b"x"
        with pytest.raises(NotReadable, match="changed after it was opened"):
            remote.read_level(0, Box(1000, 900, 300, 100))


@needs_obstore
def test_identity_of_a_remote_slide_follows_its_version_without_a_download(
    slide: Path, objects: Objects
) -> None:
    url = f"{objects.url}/bucket/slide.tif"
    first = slide_fingerprint(url)
    assert objects.bytes_sent == 0 and slide_fingerprint(url) == first
    objects.data["/bucket/slide.tif"] = slide.read_bytes() + b"x"
    assert slide_fingerprint(url) != first


@needs_obstore
def test_small_reads_of_a_header_are_few_requests(objects: Objects) -> None:
    content = np.random.default_rng(1).bytes(300_000)
    objects.data["/file"] = content
    with open_url(f"{objects.url}/file") as file:
        for offset in range(0, 60_000, 1000):
            file.seek(offset)
            assert file.read(10) == content[offset : offset + 10]
        assert len(objects.requests) == 1
        file.seek(0)
        assert file.read() == content


def test_addresses_of_object_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_stores, "find_spec", lambda name: object())
    assert all(
        object_stores.is_object_url(f"{scheme}://bucket/a.tif") for scheme in ("s3", "gs", "az", "https")
    )
    assert not any(map(object_stores.is_object_url, ("memory://a", "/local/a.tif", "file:///a")))
    monkeypatch.setattr(object_stores, "find_spec", lambda name: None)
    assert not object_stores.is_object_url("s3://bucket/a.tif")


@pytest.mark.parametrize(
    "url", ["https://host/a.svs?sig=1", "s3://bucket/a#1.svs", "https://me:pw1@host/a.svs"]
)
def test_addresses_that_would_name_another_object_or_a_password_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="the URL") as refused:
        object_stores.ObjectRanges(url)
    assert "pw1" not in str(refused.value)
    assert object_stores.split_url("s3://bucket/a%231%3F.svs") == ("s3://bucket", "a#1?.svs")
