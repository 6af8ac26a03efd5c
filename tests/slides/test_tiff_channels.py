"""Files with several channels are refused, and all levels of a pyramid must have one pixel type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from lobule.errors import UnknownFormat
from lobule.geometry import Box, Size
from lobule.slides import RGB, open_slide
from lobule.slides.check import check_slide
from tests.slides.sample_files import halved, picture, pyramid

LEVELS = pyramid(picture(400, 300), 3)
CHANNELS = ("DAPI", "Opal 520", "Opal 690")


def qpi_description(image_type: str, name: str = "") -> str:
    """The ImageDescription that the scanner writes, shortened."""
    channel = f"<Name>{name}</Name><Color>0,0,255</Color>" if name else ""
    return (
        '<?xml version="1.0" encoding="utf-16"?><PerkinElmer-QPI-ImageDescription>'
        "<DescriptionVersion>2</DescriptionVersion><AcquisitionSoftware>VectraScan</AcquisitionSoftware>"
        f"<ImageType>{image_type}</ImageType>{channel}</PerkinElmer-QPI-ImageDescription>"
    )


def write_qptiff(path: Path, channels: Sequence[str], *, brightfield: bool = False) -> Path:
    """Pages in the order of a QPTIFF: full resolution, RGB thumbnail, reduced levels, overview, label."""
    common: dict[str, Any] = {"metadata": None, "software": "PerkinElmer-QPI"}
    with tifffile.TiffWriter(path) as out:

        def write(pixels: RGB, image_type: str, subfiletype: int) -> None:
            if brightfield:
                out.write(pixels, photometric="rgb", tile=(64, 64), subfiletype=subfiletype,
                          description=qpi_description(image_type), **common)  # fmt: skip
                return
            for index, name in enumerate(channels):
                out.write(pixels[..., index % 3], photometric="minisblack", tile=(64, 64),
                          subfiletype=subfiletype, description=qpi_description(image_type, name),
                          **common)  # fmt: skip

        write(LEVELS[0], "FullResolution", 0)
        out.write(halved(LEVELS[0]), photometric="rgb", description=qpi_description("Thumbnail"), **common)
        for level in LEVELS[1:]:
            write(level, "ReducedResolution", 1)
        for kind in ("Overview", "Label"):
            out.write(picture(60, 90), photometric="rgb", description=qpi_description(kind), **common)
    return path


def test_fluorescence_qptiff_is_refused_with_its_channels(tmp_path: Path) -> None:
    path = write_qptiff(tmp_path / "a.qptiff", CHANNELS)
    with pytest.raises(UnknownFormat, match=r"a QPTIFF of 3 channels \(DAPI, Opal 520, Opal 690\).*Export"):
        open_slide(path)
    with pytest.raises(UnknownFormat, match="3 channels"):
        check_slide(str(path))


def test_brightfield_qptiff_reads_as_before(tmp_path: Path) -> None:
    path = write_qptiff(tmp_path / "a.qptiff", CHANNELS, brightfield=True)
    with open_slide(path) as slide:
        assert [level.size for level in slide.levels] == [Size(400, 300), Size(200, 150), Size(100, 75)]
        assert np.array_equal(slide.read_level(2, Box(0, 0, 100, 75)), LEVELS[2])


def test_one_grey_channel_reads_and_its_rgb_thumbnail_is_not_a_level(tmp_path: Path) -> None:
    path = write_qptiff(tmp_path / "a.qptiff", CHANNELS[:1])
    with open_slide(path) as slide:
        assert [level.size for level in slide.levels] == [Size(400, 300), Size(200, 150), Size(100, 75)]
        for index, level in enumerate(LEVELS):
            pixels = slide.read_level(index, Box(0, 0, level.shape[1], level.shape[0]))
            assert np.array_equal(pixels, np.repeat(level[..., :1], 3, axis=2))


@pytest.mark.parametrize(
    ("names", "metadata"),
    [
        ("DAPI, FITC, Cy5", {"Name": ["DAPI", "FITC", "Cy5"]}),
        ("3 channels", {"EmissionWavelength": [461, 519, 670]}),
        ("3 channels", {"Color": [0x0000FFFF, 0x00FF00FF, -16776961]}),
        ("3 channels", {}),
        ("Red", {"Name": ["Red", "", ""]}),
    ],
)
def test_ome_tiff_of_three_channels_that_are_not_rgb_is_refused(
    tmp_path: Path, names: str, metadata: dict[str, Any]
) -> None:
    path = tmp_path / "a.ome.tif"
    pages = np.moveaxis(LEVELS[0], -1, 0)
    tifffile.imwrite(
        path, pages, photometric="minisblack", tile=(64, 64), metadata={"axes": "CYX", "Channel": metadata}
    )
    with pytest.raises(UnknownFormat, match=names):
        open_slide(path)


@pytest.mark.parametrize(
    "channels", [{"Name": ["Red", "G", "blue"]}, {"Color": [-16776961, 16711935, 65535]}]
)
def test_ome_tiff_with_planes_stated_as_red_green_and_blue_is_rgb(
    tmp_path: Path, channels: dict[str, Any]
) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.moveaxis(LEVELS[0], -1, 0), photometric="minisblack", tile=(64, 64),
                     metadata={"axes": "CYX", "Channel": channels})  # fmt: skip
    with open_slide(path) as slide:
        assert np.array_equal(slide.read_level(0, Box(0, 0, 400, 300)), LEVELS[0])


@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
@pytest.mark.parametrize("channels", [2, 3, 4, 7])
def test_samples_beyond_the_photometric_interpretation_are_refused(
    tmp_path: Path, channels: int, planarconfig: str
) -> None:
    pixels = np.stack([LEVELS[0][..., index % 3] for index in range(channels)])
    stored = pixels if planarconfig == "separate" else np.moveaxis(pixels, 0, -1)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planarconfig,
                     tile=(64, 64), metadata=None)  # fmt: skip
    with pytest.raises(UnknownFormat, match=f"a file of {channels} channels"):
        open_slide(tmp_path / "a.tif")


def test_grey_with_transparency_and_planar_rgb_are_accepted(tmp_path: Path) -> None:
    grey = np.dstack([LEVELS[0][..., 0], np.full(LEVELS[0].shape[:2], 255, np.uint8)])
    tifffile.imwrite(
        tmp_path / "a.tif", grey, photometric="minisblack", extrasamples=["unassalpha"], tile=(64, 64)
    )
    tifffile.imwrite(tmp_path / "b.tif", np.moveaxis(LEVELS[0], -1, 0), photometric="rgb", tile=(64, 64),
                     planarconfig="separate", metadata=None)  # fmt: skip
    for name, expected in (("a", np.repeat(grey[..., :1], 3, axis=2)), ("b", LEVELS[0])):
        with open_slide(tmp_path / f"{name}.tif") as slide:
            assert np.array_equal(slide.read_level(0, Box(0, 0, 400, 300)), expected)


def test_imagej_hyperstack_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(LEVELS[0], -1, 0), imagej=True, metadata={"axes": "CYX"})
    with pytest.raises(UnknownFormat, match="3 channels"):
        open_slide(tmp_path / "a.tif")


@pytest.mark.parametrize("level", [LEVELS[1].astype(np.uint16) * 257, LEVELS[1][..., 0]])
def test_sub_ifds_of_another_pixel_type_are_refused(tmp_path: Path, level: Any) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        out.write(LEVELS[0], photometric="rgb", tile=(64, 64), subifds=1, metadata=None)
        out.write(level, photometric="rgb" if level.ndim == 3 else "minisblack", tile=(64, 64),
                  subfiletype=1, metadata=None)  # fmt: skip
    with pytest.raises(UnknownFormat, match="level 1 has another pixel type than level 0"):
        open_slide(tmp_path / "a.tif")
