"""TIFF read tile by tile: same pixels as OpenSlide and tifffile, and each tile is decoded once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile

from lobule.errors import UnknownFormat
from lobule.geometry import Box, Size
from lobule.slides import open_slide
from lobule.slides.tiff import TiffBackend, open_backend
from lobule.testing.slide_backend import block_means
from tests.slides.sample_files import picture, pyramid, tile_frames, write_tiff
from tests.slides.tiffs import (
    APERIO,
    backend_of,
    by_openslide,
    overwrite,
    read_level,
    write_jpeg,
    ycbcr_stream,
)

# -- against OpenSlide --------------------------------------------------------------------------------------


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "rgb"])
def test_jpeg_pixels_equal_openslide(tmp_path: Path, subsampling: str) -> None:
    path = write_jpeg(tmp_path / "a.tif", pyramid(picture(400, 300), 2), subsampling=subsampling)
    with open_slide(path, backend="tiff") as slide:
        for level, level_info in enumerate(slide.levels):
            box = Box(0, 0, *level_info.size)
            assert np.array_equal(slide.read_level(level, box), by_openslide(path, level, box))


def test_tiff_determines_the_colours_of_a_jpeg(tmp_path: Path) -> None:
    """Streams with a JFIF segment, which implies YCbCr, in RGB pages: OpenSlide uses the page."""
    tiles = [ycbcr_stream(tile, "444") for tile in tile_frames(picture(128, 128), 64)]
    assert tiles[0][2:4] == b"\xff\xe0"
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        out.write(iter(tiles), shape=(128, 128, 3), dtype="uint8", tile=(64, 64), compression="jpeg",
                  photometric="rgb", metadata=None)  # fmt: skip
    box = Box(0, 0, 128, 128)
    assert np.array_equal(read_level(tmp_path / "a.tif"), by_openslide(tmp_path / "a.tif", 0, box))


@pytest.mark.parametrize(("compression", "mean"), [(33003, 1.0), (33005, 0.0)])
def test_aperio_jpeg2000(tmp_path: Path, compression: int, mean: float) -> None:
    pixels, path = picture(128, 128), tmp_path / "a.svs"
    y = pixels @ [0.299, 0.587, 0.114]
    ycbcr = np.stack([y, (pixels[..., 2] - y) / 1.772 + 128, (pixels[..., 0] - y) / 1.402 + 128], axis=-1)
    stored = np.rint(ycbcr).clip(0, 255).astype(np.uint8) if compression == 33003 else pixels
    tiles = [
        imagecodecs.jpeg2k_encode(np.ascontiguousarray(tile), codecformat="j2k", reversible=True, mct=False)
        for tile in tile_frames(stored, 64)
    ]
    with tifffile.TiffWriter(path) as out:
        out.write(iter(tiles), shape=pixels.shape, dtype="uint8", tile=(64, 64), compression=34712,
                  photometric="rgb", description=APERIO, metadata=None)  # fmt: skip
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[0].tags["Compression"].overwrite(compression)
    got = read_level(path)
    assert np.abs(got.astype(int) - pixels).mean() <= mean
    assert np.abs(got.astype(int) - by_openslide(path, 0, Box(0, 0, 128, 128))).max() <= (mean > 0)


@pytest.mark.parametrize(
    "name",
    ["CMU-1-Small-Region.svs", "idc_8863.tif", "idc_8865.tif", "fixtures/boxes.tiff", "fixtures/small.svs"],
)
def test_real_slides_equal_openslide(kit: Path, name: str) -> None:
    path = kit / "slides" / name
    with open_slide(path) as slide, openslide.OpenSlide(path) as theirs:
        assert isinstance(slide.backend, TiffBackend)
        assert [tuple(level.size) for level in slide.levels] == list(theirs.level_dimensions)
        for level, level_info in enumerate(slide.levels):
            box = Box(0, 0, *level_info.size)
            assert np.array_equal(slide.read_level(level, box), by_openslide(path, level, box))
        assert set(slide.associated) == set(theirs.associated_images)
        for image in slide.associated:
            expected = np.asarray(theirs.associated_images[image].convert("RGB"))
            assert np.array_equal(slide.read_associated(image), expected)
        for key, value in slide.properties.items():
            assert theirs.properties[key] == value


# -- codecs and photometric interpretations -----------------------------------------------------------------


@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "zstd", "packbits", "lzma"])
@pytest.mark.parametrize(
    "write_options",
    [{}, {"planarconfig": "separate"}, {"byteorder": ">"}, {"bits": 16, "byteorder": ">"}],
    ids=["plain", "planes", "big-endian", "16-bit"],
)
def test_lossless_codecs(
    tmp_path: Path, compression: str | None, predictor: bool, write_options: dict[str, Any]
) -> None:
    pixels = picture(150, 133)
    stored = pixels.astype(np.uint16) * 257 if write_options.get("bits") == 16 else pixels
    options = {"planarconfig": "contig"} | {
        k: v for k, v in write_options.items() if k not in ("bits", "byteorder")
    }
    if options["planarconfig"] == "separate":
        stored = np.moveaxis(stored, -1, 0)
    with tifffile.TiffWriter(tmp_path / "a.tif", byteorder=write_options.get("byteorder", "<")) as out:
        out.write(stored, photometric="rgb", tile=(64, 48), compression=compression, metadata=None,
                  predictor=predictor and compression not in (None, "packbits"), **options)  # fmt: skip
    assert np.array_equal(read_level(tmp_path / "a.tif"), pixels)


@pytest.mark.parametrize("compression", ["webp", "jpeg2000"])
def test_lossless_image_codecs(tmp_path: Path, compression: str) -> None:
    pixels = picture(150, 133)
    args = {"lossless": True} if compression == "webp" else {"reversible": True}
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(64, 64), compression=compression,
                     compressionargs=args, metadata=None)  # fmt: skip
    assert np.array_equal(read_level(tmp_path / "a.tif"), pixels)


def test_16_bits_are_scaled_and_rounded(tmp_path: Path) -> None:
    grey = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="minisblack", tile=(64, 64), metadata=None)
    expected = np.floor(grey * (255 / 65535) + 0.5)
    assert np.array_equal(read_level(tmp_path / "a.tif"), np.repeat(expected[..., None], 3, axis=2))


def test_min_is_white_is_inverted(tmp_path: Path) -> None:
    grey = picture(100, 80)[..., 1]
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="miniswhite", tile=(64, 64), metadata=None)
    assert np.array_equal(read_level(tmp_path / "a.tif")[..., 2], 255 - grey)


def test_palettes(tmp_path: Path) -> None:
    index = picture(100, 80)[..., 1]
    colours = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16) * 257
    tifffile.imwrite(
        tmp_path / "a.tif", index, photometric="palette", colormap=colours, tile=(64, 64), metadata=None
    )
    assert np.array_equal(read_level(tmp_path / "a.tif"), (colours // 257).T[index])


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_alpha_is_blended_with_white(tmp_path: Path, kind: str) -> None:
    colours, alpha = picture(100, 80), picture(100, 80, seed=3)[..., :1]
    opacity = alpha / 255
    stored = np.rint(colours * opacity).astype(np.uint8) if kind == "assocalpha" else colours
    tifffile.imwrite(tmp_path / "a.tif", np.concatenate([stored, alpha], axis=2), photometric="rgb",
                     extrasamples=[kind], tile=(64, 64), metadata=None)  # fmt: skip
    expected = colours if kind == "unspecified" else colours * opacity + 255 * (1 - opacity)
    assert np.abs(read_level(tmp_path / "a.tif") - expected).max() <= 1


def test_every_alpha_of_every_colour_is_blended_exactly(tmp_path: Path) -> None:
    colours, alpha = np.mgrid[0:256, 0:256].astype(np.uint8)
    pixels = np.dstack([colours, colours, colours, alpha])
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"],
                     tile=(64, 64), metadata=None)  # fmt: skip
    exact = (colours.astype(int) * alpha + 255 * (255 - alpha.astype(int))) / 255
    assert np.array_equal(read_level(tmp_path / "a.tif")[..., 0], np.rint(exact))


# -- which pages are levels ---------------------------------------------------------------------------------


def test_pages_that_are_not_levels_are_ignored(tmp_path: Path) -> None:
    """Neither other pictures nor crops are levels, in any order; unmarked pages are judged by shape."""
    base, half = pyramid(picture(400, 300), 2)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as out:
        for pixels in (half, base, picture(400, 300, seed=2), picture(120, 200), base[:80, :80]):
            out.write(pixels, photometric="rgb", metadata=None, tile=(64, 64))
    with open_slide(path, backend="tiff") as slide:
        assert [level.size for level in slide.levels] == [Size(400, 300), Size(200, 150)]
        assert np.array_equal(slide.read_level(1, Box(0, 0, 200, 150)), half)


def test_marked_levels_rule_out_unmarked_pages(tmp_path: Path) -> None:
    """If a file marks its reduced images, an unmarked picture of the shape of a level is not a level."""
    base, _, quarter = pyramid(picture(400, 300), 3)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as out:
        for pixels, mark in ((base, 0), (picture(200, 150, seed=2), 0), (quarter, 1)):
            out.write(pixels, photometric="rgb", metadata=None, tile=(64, 64), subfiletype=mark)
    with open_slide(path, backend="tiff") as slide:
        assert [level.size for level in slide.levels] == [Size(400, 300), Size(100, 75)]
        assert np.array_equal(slide.read_level(1, Box(0, 0, 100, 75)), quarter)


def test_shared_tables_are_joined_to_each_tile(tmp_path: Path) -> None:
    pixels, path = picture(128, 128), tmp_path / "a.tif"
    streams = [ycbcr_stream(tile, "420") for tile in tile_frames(pixels, 64)]
    expected = [imagecodecs.jpeg8_decode(stream) for stream in streams]

    def split(stream: bytes) -> tuple[bytes, bytes]:
        frame = stream.index(b"\xff\xc0")
        huffman, scan = stream.index(b"\xff\xc4"), stream.index(b"\xff\xda")
        tables = stream[stream.index(b"\xff\xdb") : frame] + stream[huffman:scan]
        return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + stream[frame:huffman] + stream[scan:]

    with tifffile.TiffWriter(path) as out:
        out.write(iter([split(stream)[1] for stream in streams]), shape=pixels.shape, dtype="uint8",
                  tile=(64, 64), compression="jpeg", photometric="ycbcr", metadata=None,
                  jpegtables=split(streams[0])[0])  # fmt: skip
    got = read_level(path)
    for index, tile in enumerate(expected):
        y, x = index // 2 * 64, index % 2 * 64
        assert np.array_equal(got[y : y + 64, x : x + 64], tile)


def test_missing_tiles_are_white(tmp_path: Path) -> None:
    pixels = picture(256, 192)
    path = write_tiff(tmp_path / "a.tif", [pixels], compression="deflate")
    overwrite(path, "TileByteCounts", 5, 0)
    expected = pixels.copy()
    expected[64:128, 64:128] = 255
    assert np.array_equal(read_level(path), expected)


@pytest.mark.parametrize("software", ["Philips DP v1.0", "MedScan"])
def test_formats_of_openslide_are_left_to_it(tmp_path: Path, software: str) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture(100, 80)], software=software)
    assert open_backend(str(path)) is None


def test_ventana_is_left_to_openslide(tmp_path: Path) -> None:
    xmp = (700, "B", 30, b"<Metadata><iScan ScanRes='0.25'", True)
    path = write_tiff(tmp_path / "a.tif", [picture(100, 80)], extratags=[xmp])
    assert open_backend(str(path)) is None


def test_other_images_than_brightfield_are_refused_or_left_to_openslide(tmp_path: Path) -> None:
    channels = np.zeros((5, 64, 64), np.uint8)
    tifffile.imwrite(
        tmp_path / "a.ome.tif", channels, metadata={"axes": "CYX"}, photometric="minisblack", tile=(32, 32)
    )
    with pytest.raises(UnknownFormat, match="5 channels"):
        open_backend(str(tmp_path / "a.ome.tif"))
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((64, 64), np.float32), tile=(32, 32))
    assert open_backend(str(tmp_path / "b.tif")) is None
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    assert open_backend(str(tmp_path / "c.png")) is None
    assert open_backend(str(tmp_path)) is None


# -- µm/px --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "mpp", "source"),
    [
        ({"resolution": (20000, 40000), "resolutionunit": "CENTIMETER"}, (0.5, 0.25), "XResolution"),
        ({"resolution": (101600, 101600), "resolutionunit": "INCH"}, (0.25, 0.25), "XResolution"),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None, ""),
        ({"resolution": (96, 96), "resolutionunit": "INCH"}, None, ""),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None, ""),
        ({"resolution": (28.346, 28.346), "resolutionunit": "CENTIMETER"}, None, ""),
        ({"resolution": (20000, 20000), "resolutionunit": "NONE"}, None, ""),
        ({"resolution": (2, 4), "description": "ImageJ=1.54\nunit=micron\n"}, (0.5, 0.25), "ImageJ"),
        ({"resolution": (2, 2), "description": "ImageJ=1.54\nunit=\\u00B5m\n"}, (0.5, 0.5), "ImageJ"),
        ({"resolution": (2, 2), "description": "ImageJ=1.54\nunit=pixel\n"}, None, ""),
        ({"description": '{"mpp": 0.3}'}, (0.3, 0.3), "mpp"),
        ({"description": '{"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm"}'}, (0.25, 0.25), "PhysicalSizeX"),
        ({"description": "Aperio Image\nx|MPP = 0.2521"}, (0.2521, 0.2521), "Aperio"),
        ({"description": "Aperio Image\nx|MPP = 0"}, None, ""),
    ],
)  # fmt: skip
def test_mpp_and_its_source(
    tmp_path: Path, options: dict[str, Any], mpp: tuple[float, float] | None, source: str
) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture(100, 80)], **options)
    stated_mpp = backend_of(path).stated_mpp
    if mpp is None:
        assert stated_mpp is None
    else:
        assert stated_mpp is not None and source in stated_mpp.source
        assert (stated_mpp.mpp.x, stated_mpp.mpp.y) == pytest.approx(mpp, rel=1e-6)


RGB_CHANNEL = '<Channel ID="Channel:0:0" SamplesPerPixel="3"/>'


def ome_xml(pixels: str = "", channels: str = RGB_CHANNEL, width: str = "100") -> str:
    """OME-XML of one image of 100 × 80 px, without a `µ`, which TIFF descriptions may not contain."""
    return (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{width}" '
        f'SizeY="80" SizeC="3" SizeZ="1" SizeT="1" {pixels}>'
        f"{channels}<TiffData/></Pixels></Image></OME>"
    )


@pytest.mark.parametrize(
    ("description", "mpp"),
    [
        (ome_xml('PhysicalSizeX="0.5"'), (0.5, 0.5)),
        (ome_xml('PhysicalSizeX="0.5" PhysicalSizeY="0.25"'), (0.5, 0.25)),
        (ome_xml('PhysicalSizeX="0.5" PhysicalSizeY="0"'), None),
        (ome_xml('PhysicalSizeX="0.5" PhysicalSizeY="abc"'), None),
        (ome_xml('PhysicalSizeX="0.5" PhysicalSizeY="0.5" PhysicalSizeYUnit="parsec"'), None),
        (ome_xml('PhysicalSizeX="500" PhysicalSizeY="500"'), None),
        (ome_xml('PhysicalSizeY="0.5"'), None),
        (ome_xml(), (0.25, 0.25)),
        ('{"PhysicalSizeX": 0.5, "PhysicalSizeY": -1}', None),
        ('{"PhysicalSizeX": 500}', None),
        ('{"mpp": "half"}', None),
        ('{"shape": [80, 100, 3]}', (0.25, 0.25)),
        ("Aperio Image\nx|MPP = 353", None),
        ("Aperio Image\nx|AppMag = 20", (0.25, 0.25)),
        ("ImageJ=1.54\nunit=furlong\n", None),
        ("ImageJ=1.54\n", (0.25, 0.25)),
    ],
)  # fmt: skip
def test_resolution_tags_count_only_if_the_description_states_no_resolution(
    tmp_path: Path, description: str, mpp: tuple[float, float] | None
) -> None:
    """The tags say 0.25 µm/px in every file. A description that states an invalid value leaves it unknown."""
    path = write_tiff(
        tmp_path / "a.tif", [picture(100, 80)], description=description, resolution=(40000, 40000),
        resolutionunit="CENTIMETER",
    )  # fmt: skip
    stated = backend_of(path).stated_mpp
    assert (None if stated is None else (stated.mpp.x, stated.mpp.y)) == (mpp and pytest.approx(mpp))


@pytest.mark.parametrize(
    "description",
    [
        ome_xml(width="abc"),
        ome_xml(width="-5"),
        ome_xml(channels='<Channel ID="Channel:0:0" SamplesPerPixel="0"/>'),
        ome_xml(channels='<Channel ID="Channel:0:0" SamplesPerPixel="three"/>'),
        ome_xml().replace('SizeZ="1"', 'SizeZ=""'),
        ome_xml().replace("<TiffData/>", '<TiffData IFD="first"/>'),
    ],
)
def test_malformed_attribute_of_the_ome_xml_does_not_make_a_slide_unreadable(
    tmp_path: Path, description: str
) -> None:
    pixels = picture(100, 80)
    path = write_tiff(tmp_path / "a.tif", [pixels], description=description)
    backend = backend_of(path)
    assert backend.format == "ome-tiff"
    assert np.array_equal(backend.read(0, Box(0, 0, 100, 80)), pixels)


# -- reduced decoding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "rgb"])
def test_reduced_tiles_are_means(tmp_path: Path, subsampling: str) -> None:
    """Compare with box means of the full decoding, which are mixed with white in the last columns."""
    path = write_jpeg(tmp_path / "a.tif", [picture(197, 131)], subsampling=subsampling)
    pixels = read_level(path)
    assert backend_of(path).reductions(0) == (1, 2, 4, 8)
    for reduce in (2, 4, 8):
        got = read_level(path, reduce=reduce)
        padded = np.pad(pixels, ((0, -131 % reduce), (0, -197 % reduce), (0, 0)), constant_values=255)
        expected = block_means(padded, reduce)
        assert got.shape == expected.shape
        assert np.abs(got - expected).mean() < 3.0
        assert abs(got.mean() - expected.mean()) < 0.5
        assert np.abs(got[:, -1] - expected[:, -1]).max() <= 0.5


def test_only_jpeg_tiles_that_divide_are_reduced(tmp_path: Path) -> None:
    lossless = write_tiff(tmp_path / "a.tif", [picture(100, 80)])
    assert backend_of(lossless).reductions(0) == (1,)
    uneven = write_jpeg(tmp_path / "b.tif", [picture(300, 80)], tile=48)
    assert backend_of(uneven).reductions(0) == (1, 2, 4, 8)


# -- each tile once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 4])
def test_neighbouring_reads_decode_each_tile_once(tmp_path: Path, threads: int) -> None:
    pixels = picture(1000, 700)
    backend = backend_of(write_tiff(tmp_path / "a.tif", [pixels], compression="deflate"))
    boxes = [
        Box(x, y, min(150, 1000 - x), min(150, 700 - y))
        for y in range(0, 700, 100)
        for x in range(0, 1000, 100)
    ]
    with ThreadPoolExecutor(threads) as pool:
        for box, got in zip(boxes, pool.map(lambda box: backend.read(0, box), boxes), strict=True):
            assert np.array_equal(got, pixels[box.y : box.bottom, box.x : box.right])
    assert backend.decoded_tiles == 16 * 11


# -- URLs ---------------------------------------------------------------------------------------------------


def test_urls(tmp_path: Path) -> None:
    pixels = picture(200, 150)
    path = write_tiff(tmp_path / "a.tif", [pixels], compression="deflate")
    with fsspec.open("memory://slides/a.tif", "wb") as out:
        out.write(path.read_bytes())
    backend = open_backend("memory://slides/a.tif")
    assert backend is not None
    with ThreadPoolExecutor(4) as pool:
        for y, got in enumerate(pool.map(lambda y: backend.read(0, Box(0, y, 200, 1)), range(150))):
            assert np.array_equal(got[0], pixels[y])
    backend.close()
