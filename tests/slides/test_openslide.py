"""Slides read with OpenSlide: exact pixels at every level, also if a downsample is not an integer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from lobule.errors import DamagedFile, DamagedTile
from lobule.geometry import Box
from lobule.slides import open_slide
from lobule.slides.openslide import OpenSlideBackend, aligned_start
from lobule.testing.slide_backend import BackendConformance, KnownSlide
from tests.slides.sample_files import picture, pyramid, write_tiff

REAL_SLIDES = (
    "CMU-1-Small-Region.svs",
    "idc_8863.tif",
    "idc_8865.tif",
    "fixtures/boxes.tiff",
    "fixtures/small.svs",
)


class TestWholeDownsamples(BackendConformance):
    reader = "openslide"

    @pytest.fixture(scope="class")
    @classmethod
    def known_slide(cls, tmp_path_factory: pytest.TempPathFactory) -> KnownSlide:
        levels = pyramid(picture(512, 384), 3)
        path = write_tiff(tmp_path_factory.mktemp("os") / "a.tif", levels, mpp=0.25, compression="deflate")
        return KnownSlide(path, levels, mpp=(0.25, 0.25))


class TestOddDownsamples(BackendConformance):
    """Rounded level sizes: 1111 → 277 is a factor of 4.0108, at which OpenSlide itself would interpolate."""

    reader = "openslide"

    @pytest.fixture(scope="class")
    @classmethod
    def known_slide(cls, tmp_path_factory: pytest.TempPathFactory) -> KnownSlide:
        levels = pyramid(picture(1111, 701), 3, stride=2)
        return KnownSlide(write_tiff(tmp_path_factory.mktemp("os") / "a.tif", levels, tile=256), levels)


def test_aligned_starts_are_at_or_near_integer_level_0_positions() -> None:
    for downsample, tolerance in ((2.0, 0), (4.0, 0), (2222 / 555, 2e-3), (16.0748, 2e-3), (4.0017, 0.125)):
        for requested in range(0, 20_000, 1024):
            level_x, l0_x = aligned_start(requested, downsample)
            assert requested - 512 <= level_x <= requested
            assert abs(l0_x / downsample - level_x) <= tolerance


def test_printing_resolution_is_not_used_as_mpp(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture(100, 80)], resolution=(72, 72), resolutionunit="INCH")
    with open_slide(path, backend="openslide") as slide:
        assert float(slide.properties["openslide.mpp-x"]) > 300
        assert slide.stated_mpp is None


def test_transparent_areas_are_white(tmp_path: Path) -> None:
    """A missing tile is transparent to OpenSlide."""
    pixels = picture(256, 192)
    path = write_tiff(tmp_path / "a.tif", [pixels])
    with tifffile.TiffFile(path) as tif:
        offsets = tif.pages.first.tags["TileOffsets"]
        counts = tif.pages.first.tags["TileByteCounts"]
        offsets_in_file = [tag.valueoffset + 5 * (4 if tag.dtype == 4 else 2) for tag in (offsets, counts)]
        widths = [4 if tag.dtype == 4 else 2 for tag in (offsets, counts)]
    data = bytearray(path.read_bytes())
    for offset, width in zip(offsets_in_file, widths, strict=True):
        data[offset : offset + width] = bytes(width)
    path.write_bytes(data)
    expected = pixels.copy()
    expected[64:128, 64:128] = 255
    with open_slide(path, backend="openslide") as slide:
        assert np.array_equal(slide.read_level(0, Box(0, 0, 256, 192)), expected)


def test_one_damaged_tile_is_named_and_the_rest_stays_readable(tmp_path: Path) -> None:
    pixels = picture(512, 384)
    path = write_tiff(tmp_path / "a.tif", [pixels], compression="deflate", tile=128)
    with tifffile.TiffFile(path) as tif:
        offset, length = tif.pages.first.dataoffsets[6], tif.pages.first.databytecounts[6]
    data = bytearray(path.read_bytes())
    data[offset + 10 : offset + length] = bytes(length - 10)
    path.write_bytes(data)
    with open_slide(path, backend="openslide") as slide:
        for _ in range(2):
            with pytest.raises(DamagedTile, match="column 2, row 1") as caught:
                slide.read_level(0, Box(0, 0, 512, 384))
            assert caught.value.tile_index == (2, 1) and caught.value.level == 0
            assert caught.value.l0_box == Box(256, 128, 128, 128)
            assert np.array_equal(slide.read_level(0, Box(0, 0, 512, 128)), pixels[:128])
            assert np.array_equal(slide.read_level(0, Box(384, 0, 128, 384)), pixels[:, 384:])


def test_slide_is_opened_again_once_after_a_damaged_tile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture(512, 384)], compression="deflate", tile=128)
    with tifffile.TiffFile(path) as tif:
        offset, length = tif.pages.first.dataoffsets[6], tif.pages.first.databytecounts[6]
    data = bytearray(path.read_bytes())
    data[offset + 10 : offset + length] = bytes(length - 10)
    path.write_bytes(data)
    with open_slide(path, backend="openslide") as slide:
        with pytest.raises(DamagedTile):
            slide.read_level(0, Box(0, 0, 512, 384))
        openings = []
        reopen = OpenSlideBackend._reopen

        def noted(self: OpenSlideBackend) -> openslide.OpenSlide:
            openings.append(self.path)
            return reopen(self)

        monkeypatch.setattr(OpenSlideBackend, "_reopen", noted)
        for _ in range(3):
            slide.read_level(0, Box(0, 0, 512, 128))
        assert len(openings) == 1


def test_file_that_openslide_fails_to_open_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.mrxs").write_bytes(b"MRXS")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "Slidedat.ini").write_text("[GENERAL]\nSLIDE_VERSION = 1\n")
    with pytest.raises(DamagedFile, match=r"a\.mrxs"):
        open_slide(tmp_path / "a.mrxs")


@pytest.mark.parametrize("name", REAL_SLIDES)
def test_every_backend_agrees_with_openslide_on_real_slides(kit: Path, name: str) -> None:
    """Compare each complete level as read by Lobule's first backend and by OpenSlide itself."""
    path = kit / "slides" / name
    with open_slide(path) as slide, openslide.OpenSlide(path) as other:
        assert [tuple(level.size) for level in slide.levels] == list(other.level_dimensions)
        assert set(slide.associated) == set(other.associated_images)
        for level, level_info in enumerate(slide.levels):
            theirs = np.asarray(other.read_region((0, 0), level, tuple(level_info.size)))[..., :3]
            ours = slide.read_level(level, Box(0, 0, *level_info.size))
            assert np.array_equal(ours, theirs)
        for key in slide.associated:
            theirs = np.asarray(other.associated_images[key].convert("RGB"))
            assert np.abs(slide.read_associated(key).astype(int) - theirs).max() <= 1
