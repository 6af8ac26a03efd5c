"""Headers of compressed tiles, supported samples, and the main image of an OME description."""

from __future__ import annotations

import pytest

from lobule.slides.tiff_mpp import parse_ome
from lobule.slides.tile_codecs import Coding, jpeg2000_header, webp_size


@pytest.mark.parametrize(
    "data", [b"", b"x" * 200, b"\xff\x4f\xff\x51" + bytes(37), bytes(150) + b"\xff\x4f\xff\x51"]
)
def test_bytes_without_a_complete_jpeg2000_header_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no JPEG 2000 codestream"):
        jpeg2000_header(data)


@pytest.mark.parametrize("data", [b"x" * 40, b"RIFF" + bytes(20), b"RIFX" + bytes(8) + b"VP8X" + bytes(40)])
def test_bytes_that_are_no_webp_image_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a WebP image"):
        webp_size(data)


def test_only_samples_of_8_and_16_bits_are_supported() -> None:
    supported = [bits for bits in (1, 4, 8, 12, 16, 32, 64) if Coding(1, 1, 1, bits=bits).supported]
    assert supported == [8, 16]
    assert not Coding(1, 1, 1, predictor=3).supported


def test_main_image_of_an_ome_file_is_the_largest_that_is_no_label_or_macro() -> None:
    images = "".join(
        f'<Image Name="{name}"><Pixels SizeX="{side}" SizeY="{side}" SizeZ="1" SizeC="3" SizeT="1"/></Image>'
        for name, side in (("Label image", 900), ("scan small", 200), ("scan", 500), ("Macro", 700))
    )
    parsed = parse_ome(f"<OME>{images}</OME>")
    assert [image.name for image in parsed if image.main] == ["scan"]
