"""Tiles decoded directly into the requested box: same pixels, same errors, no writes outside."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile

from lobule.errors import DamagedTile
from lobule.geometry import Box, Size
from lobule.slides import RGB, libturbojpeg, open_slide
from lobule.slides.jpeg import ROOM, TileBuffer
from lobule.slides.libturbojpeg import TurboJpeg
from lobule.slides.tiff import REFUSALS
from tests.slides.sample_files import picture, pyramid
from tests.slides.tiffs import backend_of, write_jpeg, ycbcr_stream


@pytest.fixture
def turbo() -> TurboJpeg:
    library = libturbojpeg.library()
    if library is None:
        pytest.skip("no libturbojpeg here: the wheel `turbojpeg` has none for this platform, nor the system")
    return library


@pytest.fixture
def tiles_are_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not store completely read tiles in the cache."""
    monkeypatch.setattr("lobule.slides.cache.PATIENCE", 0)


@pytest.fixture
def decoder_answers(turbo: TurboJpeg, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The return values of the library, one per tile."""
    answers: list[bool] = []
    decode_into = TurboJpeg.decode_into

    def noted(self: TurboJpeg, *args: Any) -> bool:
        answers.append(decode_into(self, *args))
        return answers[-1]

    monkeypatch.setattr(TurboJpeg, "decode_into", noted)
    return answers


@pytest.mark.usefixtures("tiles_are_not_cached")
@pytest.mark.parametrize("reduce", [1, 2, 4, 8])
@pytest.mark.parametrize("subsampling", ["444", "422", "420", "rgb"])
def test_pixels_equal_those_of_the_usual_decoding(
    tmp_path: Path,
    subsampling: str,
    reduce: int,
    decoder_answers: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_jpeg(tmp_path / "a.tif", pyramid(picture(400, 300), 2), subsampling=subsampling)
    with open_slide(path, backend="tiff") as slide:
        straight = [slide.read_level(k, Box(0, 0, *slide.reduced_size(k, reduce)), reduce) for k in (0, 1)]
    assert len(decoder_answers) == 6 * 4 + 3 * 2 and all(decoder_answers)  # those that lie inside their level
    monkeypatch.setattr(libturbojpeg, "library", lambda: None)
    with open_slide(path, backend="tiff") as slide:
        for level, pixels in enumerate(straight):
            box = Box(0, 0, *slide.reduced_size(level, reduce))
            assert np.array_equal(slide.read_level(level, box, reduce), pixels)
    assert len(decoder_answers) == 6 * 4 + 3 * 2


@pytest.mark.usefixtures("tiles_are_not_cached", "turbo")
@pytest.mark.parametrize("reduce", [1, 2, 4, 8])
def test_pixels_beyond_the_level_are_not_averaged_in(
    tmp_path: Path, reduce: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """441 px: reduced by 8, the last tile has 8 columns, although not all of its pixels are in the level."""

    def with_black(pixels: RGB, tile: int) -> list[RGB]:
        height, width = (-(-length // tile) * tile for length in pixels.shape[:2])
        padded = np.zeros((height, width, 3), np.uint8)
        padded[: pixels.shape[0], : pixels.shape[1]] = pixels
        return [
            padded[y : y + tile, x : x + tile] for y in range(0, height, tile) for x in range(0, width, tile)
        ]

    monkeypatch.setattr("tests.slides.tiffs.tile_frames", with_black)
    path = write_jpeg(tmp_path / "a.tif", [np.full((255, 441, 3), 230, np.uint8)])
    with open_slide(path, backend="tiff") as slide:
        size = slide.reduced_size(0, reduce)
        level_pixels = slide.read_level(0, Box(0, 0, *size), reduce)
        corner = slide.read_level(0, Box(size.width - 3, size.height - 3, 3, 3), reduce)
    assert level_pixels.min() > 200
    assert np.array_equal(level_pixels[-3:, -3:], corner)


def without_tables(pixels: RGB, subsampling: str) -> bytes:
    """A stream that lacks its quantisation tables."""
    stream = ycbcr_stream(pixels, subsampling)
    remaining, at = stream[:2], 2
    while stream[at + 1] != 0xDA:
        length = 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        remaining += b"" if stream[at + 1] == 0xDB else stream[at : at + length]
        at += length
    return remaining + stream[at:]


def hiding_a_smaller_one(pixels: RGB, subsampling: str) -> bytes:
    """A stream with a complete picture of 8 px in a segment of an unknown kind."""
    small = ycbcr_stream(picture(8, 8), "444")[2:]
    segment = b"\xff\x00" + (2 + len(small)).to_bytes(2, "big") + small
    return b"\xff\xd8" + segment + ycbcr_stream(pixels, subsampling)[2:]


@pytest.mark.usefixtures("tiles_are_not_cached")
@pytest.mark.parametrize("spoilt", [without_tables, hiding_a_smaller_one])
def test_damaged_header_is_an_error_also_after_a_valid_slide(
    tmp_path: Path, spoilt: Any, decoder_answers: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = write_jpeg(tmp_path / "a.tif", [picture(128, 128)])
    streams = [spoilt(picture(64, 64), "420") for _ in range(4)]
    path = tmp_path / "b.tif"
    tifffile.imwrite(
        path, iter(streams), shape=(128, 128, 3), dtype="uint8", tile=(64, 64), compression="jpeg",
        photometric="ycbcr", subsampling=(2, 2), metadata=None,
    )  # fmt: skip
    assert backend_of(sound).read(0, Box(0, 0, 128, 128)).std() > 1
    assert decoder_answers == [True] * 4
    with pytest.raises(DamagedTile):
        backend_of(path).read(0, Box(0, 0, 128, 128))


@pytest.mark.usefixtures("tiles_are_not_cached")
def test_grey_tiles_are_grey(tmp_path: Path, decoder_answers: list[bool]) -> None:
    grey = picture(128, 128)[..., 0]
    streams = [
        imagecodecs.jpeg8_encode(np.ascontiguousarray(grey[y : y + 64, x : x + 64]), level=85)
        for y in (0, 64)
        for x in (0, 64)
    ]
    tifffile.imwrite(
        tmp_path / "a.tif", iter(streams), shape=(128, 128), dtype="uint8", tile=(64, 64),
        compression="jpeg", photometric="minisblack", metadata=None,
    )  # fmt: skip
    with open_slide(tmp_path / "a.tif", backend="tiff") as slide:
        pixels = slide.read_level(0, Box(0, 0, 128, 128))
    assert decoder_answers == [True] * 4
    assert np.array_equal(pixels[..., 0], tifffile.imread(tmp_path / "a.tif"))
    assert np.array_equal(pixels, np.repeat(pixels[..., :1], 3, axis=2))


def test_nothing_is_written_outside_the_output(turbo: TurboJpeg) -> None:
    """This also holds if the stream is larger than the output, or its size is not a multiple."""
    for width, height in [(64, 64), (128, 64), (64, 128), (1000, 700), (67, 3)]:
        stream = bytearray(ycbcr_stream(picture(width, height), "420"))
        around = np.full((96, 100, 3), 77, np.uint8)
        turbo.decode_into(memoryview(stream), Size(width, height), around[16:80, 20:84])
        around[16:80, 20:84] = 77
        assert (around == 77).all(), (width, height)


def test_outputs_that_are_not_rows_of_rgb_are_refused(turbo: TurboJpeg) -> None:
    stream = memoryview(bytearray(ycbcr_stream(picture(64, 64), "420")))
    sheet = np.zeros((64, 128, 3), np.uint8)
    read_only = np.zeros((64, 64, 3), np.uint8)
    read_only.flags.writeable = False
    for output in (
        sheet[:, ::2],
        sheet[::-1, :64],
        sheet[..., ::-1][:, :64],
        np.zeros((64, 64, 4), np.uint8),
    ):
        with pytest.raises(ValueError, match="rows of RGB"):
            turbo.decode_into(stream, Size(64, 64), output)
    with pytest.raises(TypeError):
        turbo.decode_into(stream, Size(64, 64), read_only)


@pytest.mark.parametrize("cut", [3, 100, 700])
def test_truncated_stream_is_refused(turbo: TurboJpeg, cut: int) -> None:
    complete = ycbcr_stream(picture(64, 64), "420")
    output = np.zeros((64, 64, 3), np.uint8)
    assert turbo.decode_into(memoryview(bytearray(complete)), Size(64, 64), output)
    assert np.array_equal(output, simplejpeg.decode_jpeg(complete))
    assert not turbo.decode_into(memoryview(bytearray(complete[:-cut])), Size(64, 64), output)


@pytest.mark.parametrize("subsampling", ["444", "420"])
def test_flipped_bits_never_write_outside_the_output(turbo: TurboJpeg, subsampling: str) -> None:
    rng = np.random.default_rng(3)
    complete = ycbcr_stream(picture(64, 64), subsampling)
    scan = complete.index(b"\xff\xda")  # our own parser checks the bytes before the scan
    sound = 0
    for _ in range(400):
        stream = bytearray(complete)
        positions = rng.integers(0, len(stream), rng.integers(1, 5))
        for at in positions:
            stream[at] ^= 1 << int(rng.integers(8))
        around = np.full((96, 100, 3), 77, np.uint8)
        done = turbo.decode_into(memoryview(stream), Size(64, 64), around[16:80, 20:84])
        output = around[16:80, 20:84].copy()
        around[16:80, 20:84] = 77
        assert (around == 77).all()
        if done and min(positions) > scan + 14:
            sound += 1
            assert np.array_equal(output, simplejpeg.decode_jpeg(bytes(stream)))
    assert sound > 20


@pytest.mark.usefixtures("tiles_are_not_cached")
def test_damaged_tile_is_named_and_its_neighbours_are_read(tmp_path: Path, turbo: TurboJpeg) -> None:
    path = write_jpeg(tmp_path / "a.tif", [picture(256, 192)])
    with tifffile.TiffFile(path) as tif:
        offset, length = tif.pages[0].dataoffsets[5], tif.pages[0].databytecounts[5]
    data = bytearray(path.read_bytes())
    data[offset + length // 2 : offset + length] = bytes(length - length // 2)
    path.write_bytes(data)
    with open_slide(path, backend="tiff") as slide:
        with pytest.raises(DamagedTile) as caught:
            slide.read_level(0, Box(0, 0, 256, 192))
        assert caught.value.tile_index == (1, 1)
        assert slide.read_level(0, Box(0, 128, 256, 64)).std() > 1


@pytest.mark.usefixtures("tiles_are_not_cached")
def test_missing_tiles_are_white_and_do_not_count_as_refusals(tmp_path: Path, turbo: TurboJpeg) -> None:
    path = write_jpeg(tmp_path / "a.tif", [picture(640, 64)])
    with tifffile.TiffFile(path, mode="r+b") as tif:
        counts = list(tif.pages[0].databytecounts)
        for tag, values in (("TileByteCounts", [*[0] * 9, counts[9]]),):
            tif.pages[0].tags[tag].overwrite(values)
    backend = backend_of(path)
    pixels = backend.read(0, Box(0, 0, 640, 64))
    assert (pixels[:, :576] == 255).all() and pixels[:, 576:].std() > 1
    assert backend._refused == [0]


@pytest.mark.usefixtures("turbo")
@pytest.mark.parametrize(
    ("ending", "refused"), [(bytes(8) + b"\xff\xd9", REFUSALS), (b"", REFUSALS), (b"\xff\xd9\0", 0)]
)
def test_library_is_not_used_after_several_refusals(
    tmp_path: Path, ending: bytes, refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library warns about zeros before the end marker or a missing one; other decoders accept both."""

    def ended(pixels: Any, subsampling: str) -> bytes:
        return ycbcr_stream(pixels, subsampling)[:-2] + ending

    monkeypatch.setattr("tests.slides.tiffs.ycbcr_stream", ended)
    path = write_jpeg(tmp_path / "a.tif", [picture(640, 128)])
    monkeypatch.undo()
    monkeypatch.setattr("lobule.slides.cache.PATIENCE", 0)
    good = write_jpeg(tmp_path / "b.tif", [picture(640, 128)])
    backends = backend_of(path), backend_of(good)
    pixels = [backend.read(0, Box(0, 0, 640, 128)) for backend in backends]
    assert np.array_equal(*pixels)
    assert [backend._refused for backend in backends] == [[refused], [0]]


@pytest.mark.usefixtures("tiles_are_not_cached")
def test_threads_decode_concurrently(tmp_path: Path, turbo: TurboJpeg) -> None:
    path = write_jpeg(tmp_path / "a.tif", [picture(640, 640)])
    backend = backend_of(path)
    boxes = [Box(x, y, 128, 128) for y in range(0, 640, 128) for x in range(0, 640, 128)] * 8
    alone = {(box.x, box.y): backend.read(0, box) for box in boxes[:25]}
    with ThreadPoolExecutor(8) as pool:
        for box, pixels in zip(boxes, pool.map(lambda box: backend.read(0, box), boxes), strict=True):
            assert np.array_equal(pixels, alone[box.x, box.y])


def test_missing_library_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any) -> Iterator[str]:
        yield "libthatisnowhere.so"

    monkeypatch.setattr(libturbojpeg, "_candidates", nothing)
    assert libturbojpeg.library.__wrapped__() is None


def test_system_library_is_used_without_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.files", gone)
    monkeypatch.setattr(libturbojpeg, "find_library", lambda name: f"lib{name}.so.0")
    assert list(libturbojpeg._candidates()) == ["libturbojpeg.so.0"]


def test_buffer_has_room_for_every_tile_and_for_a_longer_header() -> None:
    buffer = TileBuffer(64 * 64)
    for length in (10, 5000, 3 * ROOM, 20):
        memory = buffer.room_for(length)
        memory[:] = bytes(range(256)) * (length // 256) + bytes(range(length % 256))
        joined = buffer.with_header(b"H" * 300, 2, length)
        assert joined is not None and bytes(joined) == b"H" * 300 + bytes(memory[2:])
