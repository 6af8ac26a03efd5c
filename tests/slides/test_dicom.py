"""DICOM slides compared with the pixels they were written from, and with OpenSlide."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pytest
from wsidicom.codec.decoder import PydicomDecoder

from lobule.errors import DamagedFile, DamagedTile, TooLarge, UnknownFormat
from lobule.geometry import Box, Size
from lobule.slides import RGB, open_slide
from lobule.slides.dicom import _declared_size
from lobule.testing.slide_backend import BackendConformance, KnownSlide
from tests.slides.sample_files import jpeg_frame, picture, pyramid, tile_frames, write_dicom

LEVELS = pyramid(picture(333, 251), 3)
LABEL = picture(90, 90, seed=4)


def through_jpeg(pixels: RGB, tile: int) -> RGB:
    """The pixels of the JPEG of each tile, decoded by a second decoder."""
    columns = -(-pixels.shape[1] // tile)
    tiles = [imagecodecs.jpeg8_decode(jpeg_frame(frame)) for frame in tile_frames(pixels, tile)]
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows)[: pixels.shape[0], : pixels.shape[1]]


class TestJpeg(BackendConformance):
    reader = "dicom"

    @pytest.fixture(scope="class")
    @classmethod
    def known_slide(cls, tmp_path_factory: pytest.TempPathFactory) -> KnownSlide:
        paths = write_dicom(tmp_path_factory.mktemp("dicom"), LEVELS, mpp=(0.25, 0.26), label=LABEL)
        pixels = [through_jpeg(level, 64) for level in LEVELS]
        return KnownSlide(
            paths[1], pixels, mpp=(0.25, 0.26), associated={"label": through_jpeg(LABEL, 90)}, tolerance=1
        )


class TestJpeg2000(BackendConformance):
    reader = "dicom"

    @pytest.fixture(scope="class")
    @classmethod
    def known_slide(cls, tmp_path_factory: pytest.TempPathFactory) -> KnownSlide:
        folder = tmp_path_factory.mktemp("dicom")
        write_dicom(folder, LEVELS, coding="jpeg2000")
        return KnownSlide(folder, LEVELS, mpp=(0.5, 0.5))


class TestSparse(BackendConformance):
    reader = "dicom"

    @pytest.fixture(scope="class")
    @classmethod
    def known_slide(cls, tmp_path_factory: pytest.TempPathFactory) -> KnownSlide:
        paths = write_dicom(
            tmp_path_factory.mktemp("dicom"), LEVELS, coding="native", mpp=None, sparse={(1, 2), (0, 0)}
        )
        pixels = [level.copy() for level in LEVELS]
        pixels[0][128:192, 64:128] = 255
        pixels[0][:64, :64] = 255
        return KnownSlide(paths[0], pixels, mpp=None)


def test_threads_never_share_pydicoms_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set decodes the frame set last: with two threads, one tile would get the other's pixels."""
    path = write_dicom(tmp_path, LEVELS, coding="native")[0]
    inside, decode = [], PydicomDecoder.decode
    at_once: list[int] = []

    def watched(self: PydicomDecoder, frame: bytes) -> np.ndarray:
        inside.append(frame)
        time.sleep(0.001)  # a thread that does not wait for the lock is inside by now
        at_once.append(len(inside))
        try:
            return decode(self, frame)
        finally:
            inside.pop()

    monkeypatch.setattr(PydicomDecoder, "decode", watched)
    boxes = [Box(x, y, 64, 64) for y in range(0, 192, 64) for x in range(0, 256, 64)]
    with open_slide(path) as slide, ThreadPoolExecutor(4) as threads:
        for box, got in zip(boxes, threads.map(lambda box: slide.read_level(0, box), boxes), strict=True):
            assert np.array_equal(got, LEVELS[0][box.y : box.bottom, box.x : box.right])
    assert at_once and max(at_once) == 1


def test_other_slides_in_the_folder_are_ignored(tmp_path: Path) -> None:
    write_dicom(tmp_path, LEVELS, coding="native", series="one")
    other = [255 - level for level in LEVELS]
    write_dicom(tmp_path, other, coding="native", series="two")
    (tmp_path / "notes.dcm").write_text("not DICOM")
    for series, levels in (("one", LEVELS), ("two", other)):
        with open_slide(tmp_path / f"{series}_2.dcm") as slide:
            assert len(slide.levels) == 3
            assert np.array_equal(slide.read_level(0, Box(0, 0, *slide.size)), levels[0])
    with pytest.raises(UnknownFormat, match=r"2 DICOM slides.*one_0\.dcm, two_0\.dcm"):
        open_slide(tmp_path)


def test_missing_level_is_accepted_but_damaged_level_is_refused(tmp_path: Path) -> None:
    paths = write_dicom(tmp_path, LEVELS)
    paths[1].unlink()
    with open_slide(paths[0]) as slide:
        assert len(slide.levels) == 2
    data = bytearray(paths[0].read_bytes())
    at = data.index(b"\x28\x00\x10\x00US")  # Rows, without which nothing can be placed
    data[at : at + 4] = b"\x28\x00\x12\x00"
    paths[0].write_bytes(data)
    with pytest.raises(DamagedFile, match=r"slide_0\.dcm"):
        open_slide(paths[2])


def test_one_damaged_tile_is_named_and_the_rest_stays_readable(tmp_path: Path) -> None:
    path = write_dicom(tmp_path, LEVELS)[0]
    frame = jpeg_frame(tile_frames(LEVELS[0], 64)[7])
    data = path.read_bytes()
    at = data.index(frame)
    path.write_bytes(data[: at + 200] + bytes(len(frame) - 200) + data[at + len(frame) :])
    with open_slide(path) as slide:
        with pytest.raises(DamagedTile, match="column 1, row 1") as caught:
            slide.read_level(0, Box(0, 0, *slide.size))
        assert caught.value.tile_index == (1, 1) and caught.value.level == 0
        assert caught.value.l0_box == Box(64, 64, 64, 64)
        good = through_jpeg(LEVELS[0], 64)
        assert np.abs(slide.read_level(0, Box(0, 0, 333, 64)).astype(int) - good[:64]).max() <= 1
        assert (
            np.abs(slide.read_level(1, Box(0, 0, 166, 125)).astype(int) - through_jpeg(LEVELS[1], 64)).max()
            <= 1
        )


def test_a_mammogram_is_refused_by_name(tmp_path: Path) -> None:
    path = write_dicom(tmp_path, LEVELS[2:])[0]
    data = path.read_bytes().replace(b"1.2.840.10008.5.1.4.1.1.77.1.6", b"1.2.840.10008.5.1.4.1.1.1.2\0\0\0")
    path.write_bytes(data)
    with pytest.raises(UnknownFormat, match=r"Digital Mammography X-Ray.*l_cc"):
        open_slide(path)


def test_openslide_reads_the_same(tmp_path: Path) -> None:
    path = write_dicom(tmp_path, LEVELS, mpp=(0.25, 0.26))[0]
    with open_slide(path) as slide, openslide.OpenSlide(path) as other:
        assert [tuple(level.size) for level in slide.levels] == list(other.level_dimensions)
        assert float(other.properties["openslide.mpp-x"]) == pytest.approx(slide.mpp.x)
        assert float(other.properties["openslide.mpp-y"]) == pytest.approx(slide.mpp.y)
        for level, level_info in enumerate(slide.levels):
            theirs = np.asarray(other.read_region((0, 0), level, tuple(level_info.size)))[..., :3]
            assert (
                np.abs(slide.read_level(level, Box(0, 0, *level_info.size)).astype(int) - theirs).max() <= 1
            )


def test_imaged_volume_replaces_missing_pixel_spacing(tmp_path: Path) -> None:
    import pydicom

    path = write_dicom(tmp_path, LEVELS[:1], mpp=None)[0]
    data = pydicom.dcmread(path)
    data.ImagedVolumeWidth, data.ImagedVolumeHeight = 0.333 * 0.25, 0.251 * 0.25
    data.save_as(path)
    with open_slide(path) as slide:
        assert slide.stated_mpp is not None and "ImagedVolumeWidth" in slide.stated_mpp.source
        assert slide.mpp.x == pytest.approx(0.25) and slide.mpp.y == pytest.approx(0.25)


def test_real_sample(kit: Path, tmp_path: Path) -> None:
    for name in ("boxes_0.dcm", "boxes_1.dcm"):
        shutil.copy(kit / "slides/fixtures" / name, tmp_path / name)
    with (
        open_slide(tmp_path / "boxes_1.dcm") as slide,
        openslide.OpenSlide(tmp_path / "boxes_0.dcm") as other,
    ):
        assert slide.mpp.x == pytest.approx(0.499)
        theirs = np.asarray(other.read_region((0, 0), 0, (16, 16)))[..., :3]
        assert np.array_equal(slide.read_level(0, Box(0, 0, 16, 16)), theirs)
        assert slide.read_associated("thumbnail").shape == (16, 16, 3)


def test_tiles_may_have_the_largest_size_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_dicom(tmp_path, LEVELS)
    monkeypatch.setattr("lobule.slides.dicom.MAX_TILE_SIDE", 64)
    with open_slide(paths[0]) as slide:
        assert len(slide.levels) == 3
    monkeypatch.setattr("lobule.slides.dicom.MAX_TILE_SIDE", 63)
    with pytest.raises(TooLarge, match="in tiles of"):
        open_slide(paths[0])


def test_size_of_a_lossless_stream_is_read_behind_other_segments_or_unknown_if_it_is_cut() -> None:
    frame = (
        b"\xff\xf7\x00\x0b\x08" + (251).to_bytes(2, "big") + (333).to_bytes(2, "big") + b"\x01\x01\x11\x00"
    )
    stream = b"\xff\xd8" + b"\xff\xe8\x00\x05abc" + frame
    assert _declared_size(stream) == Size(333, 251)
    complete = len(stream) - 4  # the size ends four bytes before the end of the segment
    assert [_declared_size(stream[:length]) for length in range(complete)] == [None] * complete
