"""Every variant of tiled TIFF passes the conformance suite of backends."""

from __future__ import annotations

from typing import Any

import numpy as np
import openslide
import pytest
import tifffile

from lobule.slides import RGB, open_slide
from lobule.testing.slide_backend import BackendConformance, KnownSlide
from tests.slides.sample_files import picture, pyramid, tile_frames, write_tiff
from tests.slides.tiffs import (
    APERIO,
    decoded,
    rgb_stream,
    write_jpeg,
)


class TestTiledPages(BackendConformance):
    reader = "tiff"

    @pytest.fixture(scope="class")
    @classmethod
    def known_slide(cls, tmp_path_factory: pytest.TempPathFactory) -> KnownSlide:
        levels = pyramid(picture(523, 389), 3)
        path = tmp_path_factory.mktemp("tiff") / "a.tif"
        write_tiff(path, levels, mpp=0.25, compression="deflate", predictor=True)
        return KnownSlide(path, levels, mpp=(0.25, 0.25))


class TestStripsOfOneLevel(BackendConformance):
    reader = "tiff"

    @pytest.fixture(scope="class")
    @classmethod
    def known_slide(cls, tmp_path_factory: pytest.TempPathFactory) -> KnownSlide:
        pixels = picture(301, 203)
        path = write_tiff(tmp_path_factory.mktemp("tiff") / "a.tif", [pixels], tile=None, compression="lzw")
        return KnownSlide(path, [pixels])


class TestJpegTiles(BackendConformance):
    """Odd sizes, so that the last tiles extend beyond the level; tifffile decodes the expected pixels."""

    reader = "tiff"

    @pytest.fixture(scope="class")
    @classmethod
    def known_slide(cls, tmp_path_factory: pytest.TempPathFactory) -> KnownSlide:
        path = tmp_path_factory.mktemp("tiff") / "a.tif"
        write_jpeg(path, pyramid(picture(523, 389), 2, stride=2), bigtiff=True)
        return KnownSlide(path, decoded(path))


class TestOmePlanesInSubifds(BackendConformance):
    """Red, green and blue as separate pages with pyramids in SubIFDs; the µm/px differs in x and y."""

    reader = "tiff"

    @pytest.fixture(scope="class")
    @classmethod
    def known_slide(cls, tmp_path_factory: pytest.TempPathFactory) -> KnownSlide:
        levels = pyramid(picture(310, 254), 3)
        path = tmp_path_factory.mktemp("tiff") / "a.ome.tif"
        metadata = {"axes": "CYX", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25,
                    "Channel": {"Name": ["Red", "Green", "Blue"]}}  # fmt: skip
        options: dict[str, Any] = {"tile": (64, 64), "compression": "zstd", "photometric": "minisblack"}
        with tifffile.TiffWriter(path, ome=True) as out:
            out.write(np.moveaxis(levels[0], -1, 0), subifds=2, metadata=metadata, **options)
            for pixels in levels[1:]:
                out.write(np.moveaxis(pixels, -1, 0), subfiletype=1, metadata=None, **options)
        return KnownSlide(path, levels, mpp=(0.5, 0.25))


class TestOmeRgbWithAssociated(BackendConformance):
    reader = "tiff"

    @pytest.fixture(scope="class")
    @classmethod
    def known_slide(cls, tmp_path_factory: pytest.TempPathFactory) -> KnownSlide:
        levels, label = pyramid(picture(310, 254), 2), picture(60, 40, seed=5)
        path = tmp_path_factory.mktemp("tiff") / "a.ome.tif"
        with tifffile.TiffWriter(path, ome=True) as out:
            size = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
            options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb"}
            out.write(levels[0], subifds=1, metadata={"axes": "YXS", "Name": "scan", **size}, **options)
            out.write(levels[1], subfiletype=1, metadata=None, **options)
            out.write(label, photometric="rgb", metadata={"axes": "YXS", "Name": "label image"})
        return KnownSlide(path, levels, mpp=(0.5, 0.5), associated={"label": label})


class TestAperio(BackendConformance):
    """Pages in Aperio's order: level 0, thumbnail in strips, level 1, label, macro."""

    reader = "tiff"

    @pytest.fixture(scope="class")
    @classmethod
    def known_slide(cls, tmp_path_factory: pytest.TempPathFactory) -> KnownSlide:
        path = tmp_path_factory.mktemp("tiff") / "a.svs"
        levels = pyramid(picture(403, 305), 2, stride=2)
        beside = [picture(60, 50, seed=n) for n in range(3)]
        about = ["thumbnail", "Aperio v12\r\nlabel 60x50", "Aperio v12\r\nmacro 60x50"]

        def tiled(out: tifffile.TiffWriter, pixels: RGB) -> None:
            out.write(
                map(rgb_stream, tile_frames(pixels, 64)), shape=pixels.shape, dtype="uint8", tile=(64, 64),
                compression="jpeg", photometric="rgb", description=APERIO, metadata=None,
            )  # fmt: skip

        with tifffile.TiffWriter(path) as out:
            tiled(out, levels[0])
            for index, (pixels, text) in enumerate(zip(beside, about, strict=True)):
                if index == 1:
                    tiled(out, levels[1])
                out.write(pixels, photometric="rgb", rowsperstrip=16, compression="lzw", predictor=True,
                          description=text, metadata=None, subfiletype=(0, 1, 9)[index])  # fmt: skip
        pages = decoded(path)
        names = {"thumbnail": beside[0], "label": beside[1], "macro": beside[2]}
        return KnownSlide(path, [pages[0], pages[2]], mpp=(0.252, 0.252), associated=names)

    def test_properties_have_openslides_names(self, known_slide: KnownSlide) -> None:
        with (
            open_slide(known_slide.path, backend="tiff") as slide,
            openslide.OpenSlide(known_slide.path) as theirs,
        ):
            assert slide.format == "aperio-svs"
            for name, value in slide.properties.items():
                assert theirs.properties[name] == value
            aperio = {name for name in theirs.properties if name.startswith("aperio.")}
            assert aperio and aperio | {"openslide.objective-power"} <= set(slide.properties)
