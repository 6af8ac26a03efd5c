"""Files are whole or absent; fingerprints change when files do."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from lobule import files, fingerprints
from lobule.errors import NotReadable, ResultsError, UsageError
from lobule.files import MIB, read_at_most


def test_written_file_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "map.json"
    with files.write_atomic(target) as temporary_path:
        temporary_path.write_text("new")
        assert temporary_path.parent == tmp_path
        assert temporary_path.suffix == ".json"
        assert temporary_path.name.startswith(".")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "map.json"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), files.write_atomic(target) as temporary_path:
        temporary_path.write_text("half")
        1 / 0  # noqa: B018
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_kill_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")
    code = (
        "import os, signal, sys\n"
        "from lobule.files import write_atomic\n"
        "with write_atomic(sys.argv[1]) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert done.returncode == -9
    assert target.read_text() == "old"


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "no space"), (errno.EACCES, "permission"), (errno.EROFS, "read-only")],
)
def test_disk_trouble_is_a_results_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    with (
        pytest.raises(ResultsError, match=words) as caught,
        files.write_atomic(tmp_path / "a") as temporary_path,
    ):
        temporary_path.write_text("x")
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_error_of_another_file_is_not_converted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.write_atomic(tmp_path / "a"):
        Path("/nowhere/at/all").read_bytes()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="folder does not exist"):
        files.write_text(tmp_path / "no" / "a.txt", "x")


def test_json_round_trip_and_refusal_of_nan(tmp_path: Path) -> None:
    value = {"µm": [1, 2.5, None], "tumour": "ü"}
    files.write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == value
    assert files.read_json(tmp_path / "a.json") == value
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "b.json", {"score": float("nan")})
    assert not (tmp_path / "b.json").exists()
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ResultsError, match="not JSON"):
        files.read_json(tmp_path / "c.json")


def test_small_files_have_the_hash_that_sha256sum_prints(tmp_path: Path) -> None:
    # the published digest of "abc", FIPS 180-4
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert fingerprints.fingerprint(tmp_path / "abc") == expected


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file whose hash is stored: large, and unchanged for an hour."""
    path = tmp_path / "slide.svs"
    path.write_bytes(bytes(fingerprints.STORE_FROM))
    return path


def test_every_byte_of_a_large_file_counts(large: Path) -> None:
    before = fingerprints.fingerprint(large)
    data = bytearray(large.read_bytes())
    assert before == f"sha256:{hashlib.sha256(data).hexdigest()}"
    for position in (1, len(data) // 3, len(data) - 1):
        data[position] ^= 1
        large.write_bytes(data)
        assert fingerprints.fingerprint(large) == f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_stored_hash_is_used_while_the_file_state_is_unchanged(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "SETTLED_S", -3600.0)
    reads: list[str] = []
    digest = fingerprints.digest_of

    def counted_digest(file: BinaryIO) -> str:
        reads.append(file.name)
        return digest(file)

    monkeypatch.setattr(fingerprints, "digest_of", counted_digest)
    first = fingerprints.fingerprint(large)
    assert fingerprints.fingerprint(large) == first
    fingerprints._stored_hashes.clear()  # as in another process
    assert fingerprints.fingerprint(large) == first
    assert len(reads) == 1
    assert fingerprints.fingerprint(large, full=True) == first
    assert len(reads) == 2
    os.utime(large, ns=(1, 1))
    assert fingerprints.fingerprint(large) == first
    assert len(reads) == 3, "another modification time: the file must be read again"


@pytest.mark.parametrize("entry", ["", "{", "[]", '{"identity": 7}', "[" * 100_000])
def test_damaged_stored_hash_is_ignored(entry: str, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "SETTLED_S", -3600.0)
    expected = fingerprints.fingerprint(large)
    fingerprints._stored_hashes.clear()
    fingerprints._hash_path(str(large)).write_text(entry)
    assert fingerprints.fingerprint(large) == expected


def test_recently_changed_file_has_no_stored_hash(large: Path) -> None:
    fingerprints.fingerprint(large)
    assert not fingerprints._hash_path(str(large)).exists()


def test_unwritable_cache_folder_is_ignored(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "SETTLED_S", -3600.0)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LOBULE_CACHE", str(tmp_path / "file"))
    assert fingerprints.fingerprint(large).startswith("sha256:")


def test_fifo_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "slide.tif")
    with pytest.raises(NotReadable, match="not a regular file"):
        fingerprints.fingerprint(tmp_path / "slide.tif")


def test_folders_and_companions_count(tmp_path: Path) -> None:
    series = tmp_path / "series"
    series.mkdir()
    (series / "0.dcm").write_bytes(b"0")
    before = fingerprints.fingerprint(series)
    (series / "1.dcm").write_bytes(b"1")
    both = fingerprints.fingerprint(series)
    (series / "1.dcm").rename(series / "2.dcm")
    assert len({before, both, fingerprints.fingerprint(series)}) == 3
    slide = tmp_path / "a.mrxs"
    slide.write_bytes(b"index")
    alone = fingerprints.fingerprint(slide)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "Data0000.dat").write_bytes(b"pixels")
    assert fingerprints.fingerprint(slide) != alone


def test_urls_are_opened_by_fsspec(tmp_path: Path) -> None:
    url = "memory://lobule-test/a/b.json"
    files.write_json(url, [1, 2])
    assert files.read_json(url) == [1, 2]
    (tmp_path / "same").write_bytes(b"x" * 100)
    with files.open_url("memory://lobule-test/same", "wb") as file:
        file.write(b"x" * 100)
    assert fingerprints.fingerprint("memory://lobule-test/same") == fingerprints.fingerprint(
        tmp_path / "same"
    )
    assert files.is_url("s3://bucket/slide.svs")
    assert files.is_url("simplecache::s3://bucket/slide.svs")
    assert not files.is_url("/data/slide.svs")
    assert not files.is_url("C:\\slides\\a.svs")


def test_an_unknown_scheme_names_the_remedy() -> None:
    with pytest.raises(UsageError, match="copy the file here"):
        files.open_url("nosuchscheme://a/b")


def test_unreadable_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotReadable, match="no such file"):
        fingerprints.fingerprint(tmp_path / "none")
    with pytest.raises(NotReadable, match="folder"):
        files.open_url(tmp_path)


def test_flush_all_reaches_every_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "chunk").write_bytes(b"x")
    flushed = []
    real = os.fsync

    def record(descriptor: int) -> None:
        flushed.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    files.flush_all(tmp_path)
    assert sorted(flushed) == sorted(path.stat().st_ino for path in tmp_path.rglob("*"))
    files.flush_all(tmp_path / "missing")


@pytest.mark.parametrize(("size", "largest"), [(0, 10), (10, 10), (11, 10), (3 * MIB + 1, 4 * MIB)])
def test_a_file_is_read_in_pieces_up_to_a_limit(size: int, largest: int) -> None:
    requests: list[int] = []

    class Requests(io.BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            requests.append(count or 0)
            return super().read(count)

    data = bytes(range(256)) * (size // 256 + 1)
    assert read_at_most(Requests(data[:size]), largest) == data[: min(size, largest)]
    assert max(requests) <= max(size, MIB)
