"""The identity of a slide covers every file that belongs to it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lobule.errors import NotReadable
from lobule.slides.identity import slide_fingerprint
from tests.slides.sample_files import picture, pyramid, write_dicom


def append(path: Path, data: bytes = b"x") -> None:
    path.write_bytes(path.read_bytes() + data)


def test_a_single_file_has_the_hash_that_sha256sum_prints(tmp_path: Path) -> None:
    slide = tmp_path / "a.svs"
    slide.write_bytes(bytes(range(256)) * 40_000)
    assert slide_fingerprint(str(slide)) == f"sha256:{hashlib.sha256(slide.read_bytes()).hexdigest()}"


def test_every_file_of_a_dicom_series_gives_the_same_identity(tmp_path: Path) -> None:
    files = write_dicom(tmp_path / "slide", pyramid(picture(300, 200), 2))
    first, second = str(files[0]), str(files[1])
    before = slide_fingerprint(first)
    assert before == slide_fingerprint(second)
    (tmp_path / "slide" / "notes.txt").write_text("not of the series")
    assert slide_fingerprint(first) == before
    append(files[1], b"\0\0")
    assert slide_fingerprint(first) != before


def test_files_named_by_a_key_file_count(tmp_path: Path) -> None:
    slide = tmp_path / "a.vms"
    slide.write_text("[Virtual Microscope Specimen]\nImageFile=a.jpg\nMapFile=../b.jpg\n")
    (tmp_path / "a.jpg").write_bytes(b"pixels")
    (tmp_path / "other.jpg").write_bytes(b"pixels")
    before = slide_fingerprint(str(slide))
    append(tmp_path / "other.jpg")
    assert slide_fingerprint(str(slide)) == before
    append(tmp_path / "a.jpg")
    assert slide_fingerprint(str(slide)) != before


def test_a_missing_slide_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(NotReadable, match="gone"):
        slide_fingerprint(str(tmp_path / "gone.tif"))
