"""Local copies of remote slides: same pixels, one download, a bound, and nothing left by killed processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from lobule import object_stores
from lobule.errors import ConfigError, NotReadable, TooLarge, UnknownFormat
from lobule.geometry import Box
from lobule.slides import local_copy as copies
from lobule.slides.local_copy import LIMIT_VARIABLE, local_copy
from lobule.slides.slide import open_slide
from tests.scanning.support import pixels_of, write_slide
from tests.slides.range_server import Objects, serve

pytestmark = pytest.mark.skipif(find_spec("obstore") is None, reason="obstore is not installed")


@pytest.fixture
def objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    monkeypatch.setenv("LOBULE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(object_stores, "FIRST_PAUSE_S", 0.001)
    object_stores.store_of.cache_clear()
    with serve(Objects()) as served:
        for name in ("a", "b", "c"):
            served.data[f"/bucket/{name}.xyz"] = np.random.default_rng(ord(name)).bytes(1000)
        yield served


def names_in(folder: Path) -> list[str]:
    """The files of all copies in the cache, without the names of their folders."""
    return sorted(str(path.relative_to(folder).parts[1:]) for path in folder.rglob("*") if path.is_file()
                  and path.suffix != ".lock")  # fmt: skip


def copy_of(objects: Objects, name: str) -> bytes:
    path, lock = local_copy(f"{objects.url}/bucket/{name}.xyz")
    with lock:
        return path.read_bytes()


def test_a_slide_of_another_backend_is_copied_once_and_has_its_pixels(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_slide(tmp_path / "slide.tif", pixels_of(700, 500))
    objects.data["/bucket/a slide.tif"] = path.read_bytes()
    monkeypatch.setattr(copies, "CHUNK_BYTES", 10_000)
    url, box = f"{objects.url}/bucket/a%20slide.tif", Box(100, 50, 300, 200)
    with open_slide(path) as local:
        expected = local.read_level(0, box)
    for _ in range(2):
        with open_slide(url, backend="openslide") as remote:
            assert np.array_equal(remote.read_level(0, box), expected) and remote.path == url
        assert objects.bytes_sent == path.stat().st_size
    objects.data["/bucket/a slide.tif"] += b"x"
    with open_slide(url, backend="openslide"):
        assert objects.bytes_sent == 2 * path.stat().st_size + 1, "a changed object is copied again"


def test_an_unknown_format_is_reported_with_its_url(objects: Objects) -> None:
    with pytest.raises(UnknownFormat, match=rf"{objects.url}/bucket/a.xyz: the file is not a slide"):
        open_slide(f"{objects.url}/bucket/a.xyz")


def test_a_slide_with_a_data_folder_is_copied_with_it(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ENDPOINT_URL", objects.url), ("REGION", "eu-1"), ("ACCESS_KEY_ID", "k"),
                        ("SECRET_ACCESS_KEY", "s")):  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    objects.data |= {
        "/bucket/d/s.mrxs": b"key",
        "/bucket/d/s/Slidedat.ini": b"ini",
        "/bucket/d/s/x/D0.dat": b"0",
        "/bucket/d/st/Slidedat.ini": b"another slide",
    }
    path, lock = local_copy("s3://bucket/d/s.mrxs")
    with lock:
        files = {str(file.relative_to(path.parent)): file.read_bytes() for file in path.parent.rglob("*.*")}
    assert files == {"s.mrxs": b"key", "s/Slidedat.ini": b"ini", "s/x/D0.dat": b"0"}


def test_the_copies_used_last_remain(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "2500")
    for age, name in enumerate(["a", "b", "a"]):
        path, lock = local_copy(f"{objects.url}/bucket/{name}.xyz")
        lock.close()
        os.utime(path.parent, (age, age))
    assert copy_of(objects, "c") == objects.data["/bucket/c.xyz"]
    assert names_in(tmp_path / "cache" / "slides") == ["('a.xyz',)", "('c.xyz',)"]
    assert len(list((tmp_path / "cache" / "slides").glob("*.lock"))) == 2


def test_open_copies_are_not_deleted(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "1500")
    path, lock = local_copy(f"{objects.url}/bucket/a.xyz")
    with lock, pytest.raises(TooLarge, match=f"no room.*Set {LIMIT_VARIABLE}"):
        local_copy(f"{objects.url}/bucket/b.xyz")
    assert path.exists()
    assert copy_of(objects, "b") == objects.data["/bucket/b.xyz"]
    assert not path.exists()


def test_incomplete_copies_are_deleted(objects: Objects, tmp_path: Path) -> None:
    left = tmp_path / "cache" / "slides" / f"{'0' * 32}.12345678.part"
    left.mkdir(parents=True)
    (left / "half.xyz").write_bytes(b"half")
    copy_of(objects, "a")
    assert names_in(tmp_path / "cache" / "slides") == ["('a.xyz',)"]


def test_a_download_that_fails_leaves_nothing(objects: Objects, tmp_path: Path) -> None:
    url = f"{objects.url}/bucket/a.xyz"
    objects.failing_share, objects.faults = 1.0, ("short",)
    with pytest.raises(NotReadable, match="attempts to read the object failed"):
        local_copy(url)
    assert names_in(tmp_path / "cache" / "slides") == []


def test_a_limit_that_is_not_a_number_is_refused(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "20 GB")
    with pytest.raises(ConfigError, match="not a number of bytes"):
        copy_of(objects, "a")
