"""Damaged TIFFs: a damaged tile affects only itself, a damaged directory the file; both are named."""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from lobule.errors import DamagedFile, DamagedTile, TooLarge
from lobule.geometry import Box
from lobule.slides import open_slide
from lobule.slides.cache import PATIENCE
from lobule.slides.tiff import open_backend
from tests.slides.sample_files import picture, pyramid, write_tiff
from tests.slides.tiffs import (
    backend_of,
    decoded,
    overwrite,
    write_jpeg,
)


def spoil(path: Path, index: int, by: Any) -> None:
    """Change the bytes of one tile in place."""
    with tifffile.TiffFile(path) as tif:
        offset, length = tif.pages[0].dataoffsets[index], tif.pages[0].databytecounts[index]
    data = path.read_bytes()
    path.write_bytes(
        data[:offset]
        + by(data[offset : offset + length]).ljust(length, b"\0")[:length]
        + data[offset + length :]
    )


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def wider(data: bytes) -> bytes:
    frame = data.index(b"\xff\xc0")
    return data[: frame + 5] + struct.pack(">HH", 60000, 60000) + data[frame + 9 :]


def grey_frame(data: bytes) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(np.full((64, 64), 9, np.uint8), level=50))


def without_end(data: bytes) -> bytes:
    """A frame header that declares a length of 4 KB, so that no scan follows it."""
    frame = data.index(b"\xff\xc0")
    return data[: frame + 2] + b"\xff\x11" + data[frame + 4 :]


@pytest.mark.parametrize("patience", [PATIENCE, 0])
@pytest.mark.parametrize(
    "damage",
    [truncated, wider, grey_frame, without_end, lambda data: b"", lambda data: b"\xff\xd8" + bytes(90)],
)
def test_damaged_jpeg_tile_affects_only_that_tile(
    tmp_path: Path, damage: Any, patience: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lobule.slides.cache.PATIENCE", patience
    )  # 0: tiles are decoded in the buffer of a thread
    path = write_jpeg(tmp_path / "a.tif", pyramid(picture(300, 200), 2))
    good = decoded(path)[0]
    spoil(path, 6, damage)
    with open_slide(path, backend="tiff") as slide:
        with pytest.raises(DamagedTile) as caught:
            slide.read_level(0, Box(64, 64, 64, 64))
        assert (caught.value.level, caught.value.tile_index) == (0, (1, 1))
        assert "(64, 64) 64 × 64" in str(caught.value) and "a.tif" in str(caught.value)
        for box in (Box(0, 0, 300, 64), Box(0, 0, 64, 200), Box(128, 64, 172, 136)):
            assert np.array_equal(slide.read_level(0, box), good[box.y : box.bottom, box.x : box.right])


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "zstd", "webp", "jpeg2000"])
def test_damage_is_reported_for_other_codecs(tmp_path: Path, compression: str | None) -> None:
    path = write_tiff(tmp_path / "a.tif", pyramid(picture(300, 200), 2), compression=compression)
    if compression is None:
        overwrite(path, "TileByteCounts", 6, 1000)
    else:
        spoil(path, 6, lambda data: data[:40])
    with open_slide(path, backend="tiff") as slide:
        with pytest.raises(DamagedTile):
            slide.read_level(0, Box(70, 70, 1, 1))
        assert slide.read_level(0, Box(0, 0, 300, 64)).std() > 1


def test_tile_beyond_the_end_of_the_file_is_damaged(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture(300, 200)], compression="deflate")
    overwrite(path, "TileOffsets", 6, 1 << 30)
    with (
        open_slide(path, backend="tiff") as slide,
        pytest.raises(DamagedTile, match="beyond the end of the file"),
    ):
        slide.read_level(0, Box(70, 70, 1, 1))


def test_looping_and_truncated_directories_are_errors(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", pyramid(picture(300, 200), 3))
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tif:
        offsets = [page.offset for page in tif.pages]
        links = [offset + 2 + 12 * len(page.tags) for offset, page in zip(offsets, tif.pages, strict=True)]
    for target, reason in (
        (offsets[0], "twice"),
        (offsets[2], "twice"),
        (1 << 31, "outside"),
        (len(data) - 3, "cut off"),
    ):
        broken = bytearray(data)
        struct.pack_into("<I", broken, links[2], target)
        path.write_bytes(broken)
        with pytest.raises(DamagedFile, match=reason):
            open_backend(str(path))
    path.write_bytes(data[: offsets[2] + 30])
    with pytest.raises(DamagedFile):
        open_backend(str(path))


def test_too_few_tile_positions_are_an_error(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture(300, 200)])
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[0].tags["ImageLength"].overwrite(2000)
    with pytest.raises(DamagedFile, match="Expected 160 tiles"):
        open_backend(str(path))


def test_a_huge_strip_is_refused_before_decoding(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture(300, 30)], tile=None, compression="deflate")
    with tifffile.TiffFile(path, mode="r+b") as tif:
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tif.pages[0].tags[tag].overwrite(60_000)
    with pytest.raises(TooLarge, match="60000"):
        open_backend(str(path))


def test_closing_releases_the_file(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture(100, 80)])
    before = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        backend = backend_of(path)
        backend.read(0, Box(0, 0, 10, 10))
        backend.close()
    assert (threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))) == before


def with_tag_of_another_type(data: bytes) -> bytes:
    """The tag ImageWidth (256) has two values, where one is expected."""
    tag = data.index(struct.pack("<HHI", 256, 4, 1)) if struct.pack("<HHI", 256, 4, 1) in data else None
    assert tag is not None
    return data[: tag + 4] + struct.pack("<I", 2) + data[tag + 8 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:4] + bytes(4), "a file without directories"),
        (lambda data: data[: struct.unpack("<I", data[4:8])[0] + 1], "directory that is cut off or damaged"),
        (with_tag_of_another_type, "a tag with a value of the wrong type, length or range"),
    ],
)
def test_a_broken_directory_is_described_without_names_of_exceptions(
    tmp_path: Path, damage: Any, message: str
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((32, 32, 3), np.uint8), tile=(16, 16))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedFile, match=message) as caught:
        open_backend(str(path))
    assert "IndexError" not in str(caught.value)
