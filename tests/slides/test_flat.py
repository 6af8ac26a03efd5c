"""Plain images as slides: every pixel type compared with simple arithmetic, and the size limits."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from lobule.errors import DamagedFile, TooLarge, UnknownFormat
from lobule.geometry import Box
from lobule.slides import open_slide
from lobule.testing.slide_backend import BackendConformance, KnownSlide
from tests.slides.sample_files import picture

PICTURE = picture(181, 133)


class TestPng(BackendConformance):
    reader = "flat"

    @pytest.fixture(scope="class")
    @classmethod
    def known_slide(cls, tmp_path_factory: pytest.TempPathFactory) -> KnownSlide:
        path = tmp_path_factory.mktemp("flat") / "a.png"
        Image.fromarray(PICTURE).save(path, dpi=(300, 300))  # a printing resolution is not a µm/px
        return KnownSlide(path, [PICTURE])


def read_all(path: Path) -> Any:
    with open_slide(path, backend="flat") as slide:
        return slide.read_level(0, Box(0, 0, *slide.size)).astype(int)


@pytest.mark.parametrize("suffix", ["bmp", "webp", "jp2", "ppm", "tif"])
def test_lossless_formats_give_the_pixels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PICTURE).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(read_all(path), PICTURE)


def test_jpeg_agrees_with_a_second_decoder_and_ignores_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    Image.fromarray(PICTURE).save(tmp_path / "a.jpg", quality=90, exif=exif)
    expected = imagecodecs.jpeg8_decode((tmp_path / "a.jpg").read_bytes())
    assert np.abs(read_all(tmp_path / "a.jpg") - expected).max() <= 1


def test_transparent_pixels_are_blended_with_white(tmp_path: Path) -> None:
    rgba = np.dstack([PICTURE, np.linspace(0, 255, PICTURE[..., 0].size).reshape(PICTURE.shape[:2])]).astype(
        np.uint8
    )
    Image.fromarray(rgba).save(tmp_path / "a.png")
    share = rgba[..., 3:] / 255
    assert np.abs(read_all(tmp_path / "a.png") - (PICTURE * share + 255 * (1 - share))).max() <= 0.5 + 1e-9


def test_grey_two_tone_palette_and_cmyk(tmp_path: Path) -> None:
    grey = PICTURE[..., 1]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_all(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))
    Image.fromarray(grey > 128).save(tmp_path / "two.png")
    assert np.array_equal(read_all(tmp_path / "two.png")[..., 2], (grey > 128) * 255)
    few = PICTURE // 64 * 64
    Image.fromarray(few).quantize(256).save(tmp_path / "palette.png")
    assert np.array_equal(read_all(tmp_path / "palette.png"), few)
    Image.fromarray(PICTURE).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98, subsampling=0)
    assert np.abs(read_all(tmp_path / "cmyk.jpg") - PICTURE).mean() < 2


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_keeps_the_high_byte(tmp_path: Path, suffix: str) -> None:
    deep = np.arange(256 * 256, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(read_all(tmp_path / f"a.{suffix}")[..., 1], deep >> 8)


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((9, 9), np.float32))
    with pytest.raises(UnknownFormat, match="8-bit RGB"):
        open_slide(tmp_path / "a.tif", backend="flat")


def png_of(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG that declares a size independent of its content."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def test_a_declared_size_is_checked_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(60_000, 60_000))
    with pytest.raises(TooLarge, match=r"60000 × 60000 px.*tiled, pyramidal TIFF"):
        open_slide(path)


def test_large_allowed_image_is_not_refused(tmp_path: Path) -> None:
    """Pillow itself warns from 90 Mpixel on; this test only reads the header."""
    path = tmp_path / "large.png"
    path.write_bytes(png_of(16_000, 16_000))
    with open_slide(path) as slide:
        assert slide.size.area == 256_000_000


def test_truncated_file_is_an_error_instead_of_grey(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "bmp"):
        complete, cut = tmp_path / f"a.{suffix}", tmp_path / f"cut.{suffix}"
        Image.fromarray(PICTURE).save(complete)
        data = complete.read_bytes()
        cut.write_bytes(data[: len(data) // 2])
        with open_slide(cut) as slide, pytest.raises(DamagedFile, match=f"cut.{suffix}"):
            slide.read_level(0, Box(0, 0, 10, 10))
