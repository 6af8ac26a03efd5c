"""Versions of files: equal for copies, different after every change, without reading slides of gigabytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lobule.server import file_versions
from lobule.server.file_versions import content_version
from lobule.server.slide_tiles import Slides
from tests.server.support import squares, write_jpeg_slide


def write_in_place(path: Path, at: int, data: bytes) -> None:
    """Change bytes of a file, but neither its size nor its time."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_copy_of_a_slide_has_the_same_etag_and_a_change_in_place_another(tmp_path: Path) -> None:
    first = write_jpeg_slide(tmp_path / "slide.tif", [squares(300, 200)])
    (tmp_path / "other").mkdir()
    copy = Path(shutil.copyfile(first, tmp_path / "other/copy.tif"))
    slides = Slides()
    opened = slides.open(str(first), None)
    assert opened.tag == Slides().open(str(copy), 0.25).tag
    assert slides.open(str(first), None) is opened
    write_in_place(first, first.stat().st_size // 2, b"\x00\x01\x02")
    assert slides.open(str(first), None).tag != opened.tag


def test_a_large_file_is_hashed_in_pieces_and_its_time_counts(tmp_path: Path) -> None:
    path = tmp_path / "large.svs"
    with path.open("wb") as file:
        file.truncate(200 << 30)  # Without data: reading all of it would take minutes.
    versions = [content_version(str(path))]
    write_in_place(path, (200 << 30) - 5, b"end")
    versions.append(content_version(str(path)))
    write_in_place(path, 5, b"start")
    versions.append(content_version(str(path)))
    restored = path.rename(tmp_path / "restored.svs")
    assert content_version(str(restored)) == versions[-1]
    os.utime(restored, (1e9, 1e9))
    versions.append(content_version(str(restored)))
    assert len(set(versions)) == len(versions)


def test_a_file_is_read_again_only_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def count(path: str) -> str:
        read.append(path)
        return str(len(read))

    monkeypatch.setattr(file_versions, "_hash", count)
    path = tmp_path / "slide.tif"
    path.write_bytes(b"content")
    assert [content_version(str(path)) for _ in range(3)] == ["1"] * 3
    write_in_place(path, 0, b"C")
    assert content_version(str(path)) == "2"


def test_a_slide_of_several_files_has_the_state_of_its_path(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.mrxs", "b.mrxs")]
    for path in paths:
        path.write_bytes(b"index")
    versions = [content_version(str(path)) for path in (*paths, tmp_path)]
    write_in_place(paths[0], 0, b"I")
    versions.append(content_version(str(paths[0])))
    assert len(set(versions)) == 4
