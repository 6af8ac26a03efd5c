"""The structure of a TIFF slide: which pages are levels or associated images, where tiles lie, and the µm/px.

Supported: tiled or stripped RGB, grey and palette pages of 8 or 16 bits, as a pyramid of pages (Aperio SVS
and generic), a pyramid of SubIFDs (OME-TIFF and others), or a single level. Left to OpenSlide, which knows
their layouts: NDPI, SCN, Ventana (BIF and TIFF), Philips, Trestle, and all codecs not supported here.

A page is a level if its width and height are those of level 0 divided by the same factor, except for rounding
of up to 2 px. If some pages are marked as reduced images, only those are considered.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFile, TiffFileError, TiffPage

from lobule.errors import DamagedFile, LobuleError, TooLarge, UnknownFormat, damaged
from lobule.geometry import Size
from lobule.slides.backend import MAX_SIDE, StatedMpp
from lobule.slides.tiff_channels import check_channels, check_samples, pixel_type_of, too_many_channels
from lobule.slides.tiff_directories import chain_error, check_limits
from lobule.slides.tiff_mpp import OmeImage, aperio_fields, mpp_of_tiff, parse_ome
from lobule.slides.tile_codecs import JPEG, MAX_TILE_PIXELS, Coding

MAX_ASSOCIATED = 64
"""Largest number of images of an OME-TIFF that are examined as associated images."""

ICC_PROFILE = 34675
LARGEST_PROFILE = 16 << 20

ASSOCIATED_NAMES = ("label", "macro", "thumbnail", "overview")

# tifffile logs problems that become typed errors here.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Layer:
    """One image of the file: its size, its tiles and their positions in the file."""

    size: Size
    tile: Size
    columns: int
    rows: int
    offsets: NDArray[np.uint64]
    """(planes, tiles): bytes from the start of the file; 0 for a missing tile."""
    lengths: NDArray[np.uint64]
    coding: Coding
    pixel_type: tuple[str, int, int]
    """Colour, grey or palette; samples; bits. It is the same for all levels of a pyramid."""

    def valid(self, column: int, row: int) -> Size:
        """Size of the area of a tile that lies inside the layer."""
        width = self.size.width - column * self.tile.width
        height = self.size.height - row * self.tile.height
        return Size(min(self.tile.width, width), min(self.tile.height, height))


@dataclass(frozen=True)
class TiffMetadata:
    """Everything needed to read the file after its directories are parsed."""

    format: str
    levels: tuple[Layer, ...]
    associated: Mapping[str, Layer]
    properties: Mapping[str, str]
    stated_mpp: StatedMpp | None
    colour_profile: bytes | None = None
    """The ICC profile of level 0."""


def read_metadata(stream: IO[bytes], path: str) -> TiffMetadata | None:
    """The metadata of a TIFF, or None if another backend should read the file."""
    try:
        broken_chain = check_limits(stream, path)
        stream.seek(0)
        with TiffFile(stream, _multifile=False) as tif:
            if _foreign(tif):
                return None
            if broken_chain is not None:
                raise chain_error(path, broken_chain)
            return _read_pages(tif, path)
    except LobuleError:
        raise
    except Exception as error:  # the parser raises any exception on damaged bytes
        raise damaged(path, "the TIFF directories cannot be read", _describe_damage(error)) from error


def _describe_damage(error: Exception) -> str:
    """Say what an exception of the parser means for the file."""
    if isinstance(error, struct.error):
        return "a file that ends inside a directory"
    if isinstance(error, IndexError) and str(error) == "0":
        return "a file without directories, whose header points at none"
    if isinstance(error, TiffFileError):
        return f"a directory that is cut off or damaged ({error})"
    if isinstance(error, TypeError | ValueError | IndexError | KeyError):
        return f"a tag with a value of the wrong type, length or range ({error})"
    return f"{type(error).__name__}: {error}"


def _foreign(tif: TiffFile) -> bool:
    first = tif.pages.first
    is_foreign = tif.is_ndpi or tif.is_scn or tif.is_bif or tif.is_philips
    if is_foreign or first.software.startswith(("Philips", "MedScan")):
        return True
    return 700 in first.tags and b"<iScan" in bytes(first.tags[700].value)[:65536]


def _read_pages(tif: TiffFile, path: str) -> TiffMetadata | None:
    first = tif.pages.first
    ome = parse_ome(first.description) if tif.is_ome else ()
    pages = list(_pages(tif))
    if ome:
        layers = _ome_layers(pages, ome, path)
    else:
        layers = _svs_layers(pages, path) if first.is_svs else _generic_layers(pages, path)
    if layers is None:
        return None
    levels, associated = layers
    main = next((image for image in ome if image.main), None)
    mpp = mpp_of_tiff(first, main)
    kind = "ome-tiff" if ome else "aperio-svs" if first.is_svs else "generic-tiff"
    properties = _properties(first, kind, mpp, main)
    return TiffMetadata(kind, tuple(levels), associated, properties, mpp, _colour_profile(first))


def _colour_profile(page: TiffPage) -> bytes | None:
    tag = page.tags.get(ICC_PROFILE)
    value = None if tag is None else tag.value
    return value if isinstance(value, bytes) and 128 <= len(value) <= LARGEST_PROFILE else None


def _pages(tif: TiffFile) -> Iterator[TiffPage]:
    tif.pages.useframes = False
    for page in tif.pages:
        assert isinstance(page, TiffPage)
        yield page


Layers = tuple[list[Layer], dict[str, Layer]]


def _svs_layers(pages: list[TiffPage], path: str) -> Layers | None:
    """Layers of an SVS: tiled pages are levels; pages in strips are associated images."""
    check_channels(pages[0], pages, path)
    base = _layer([pages[0]], path)
    if base is None or not pages[0].is_tiled:
        return None
    levels = [base]
    associated: dict[str, Layer] = {}
    for index, page in enumerate(pages[1:], start=1):
        layer = _layer([page], path)
        if page.is_tiled:
            if layer is None:
                return None
            if _is_level(layer, levels):
                levels.append(_require_same_pixel_type(layer, levels, path))
        elif layer is not None:
            associated.setdefault(_svs_name(page, index), layer)
    if any(bool((layer.lengths == 0).any()) for layer in levels[1:]):
        return None  # Aperio omits tiles of coarse levels; OpenSlide fills them from the finer level
    return levels, associated


def _svs_name(page: TiffPage, index: int) -> str:
    if index == 1:
        return "thumbnail"
    lines = page.description.splitlines()
    word = lines[1].split()[0].lower() if len(lines) > 1 and lines[1].split() else ""
    return word if word in ASSOCIATED_NAMES else "macro" if page.subfiletype == 9 else "label"


def _generic_layers(pages: list[TiffPage], path: str) -> Layers | None:
    base_page = max(pages, key=lambda page: page.imagewidth * page.imagelength)
    check_channels(base_page, pages, path)
    base = _layer([base_page], path)
    if base is None:
        return None
    levels = [base]
    candidates = [page for page in pages if page is not base_page]
    if base_page.subifds:
        candidates = _sub_pages(base_page)
    elif any(page.subfiletype & 1 for page in candidates):
        candidates = [page for page in candidates if page.subfiletype & 1]
    for page in sorted(candidates, key=lambda page: -page.imagewidth):
        layer = _layer([page], path)
        if layer is None or not _is_level(layer, levels):
            continue
        if base_page.subifds:
            levels.append(_require_same_pixel_type(layer, levels, path))
        elif (
            layer.pixel_type == base.pixel_type
        ):  # other pixel types are thumbnails or labels of the same shape
            levels.append(layer)
    return levels, {}


def _ome_layers(pages: list[TiffPage], images: Sequence[OmeImage], path: str) -> Layers | None:
    """Layers of an OME-TIFF: the largest image is the slide; others are associated images, by their names."""
    main = next(image for image in images if image.main)
    samples = pages[main.ifd].samplesperpixel
    separate_planes = main.channels == 3 and samples == 1 and main.states_rgb
    if main.channels not in (1, samples) and not separate_planes:
        raise too_many_channels(main.channels, path, file_kind="an OME-TIFF", names=main.channel_names)
    check_samples(pages[main.ifd], path)
    top = _planes(pages, main)
    base = _layer(top, path)
    if base is None:
        return None
    levels = [base]
    below = [_sub_pages(page) for page in top]
    for planes in zip(*below, strict=len({len(pages) for pages in below}) == 1):
        layer = _layer(list(planes), path)
        if layer is not None and _is_level(layer, levels):
            levels.append(_require_same_pixel_type(layer, levels, path))
    if not any(below) and len(images) == 1 and len(top) == 1:
        return _generic_layers(pages, path)
    associated: dict[str, Layer] = {}
    for index, image in enumerate(images[:MAX_ASSOCIATED]):
        layer = None if image is main or image.ifd >= len(pages) else _layer(_planes(pages, image), path)
        if layer is not None:
            matching_names = [name for name in ASSOCIATED_NAMES if name in image.name.lower()]
            associated.setdefault(matching_names[0] if matching_names else f"image {index}", layer)
    return levels, associated


def _planes(pages: list[TiffPage], image: OmeImage) -> list[TiffPage]:
    """The page of an image, or its three pages if red, green and blue are stored as separate pages."""
    separate_planes = image.channels == 3 and pages[image.ifd].samplesperpixel == 1
    indices = [image.ifd + plane * image.channel_stride for plane in range(3 if separate_planes else 1)]
    return [pages[index] for index in indices]


def _sub_pages(page: TiffPage) -> list[TiffPage]:
    if not page.subifds or page.pages is None:
        return []
    page.pages.useframes = False
    return [sub for sub in page.pages if isinstance(sub, TiffPage)]


def _is_level(layer: Layer, levels: Sequence[Layer]) -> bool:
    """Whether a layer continues the pyramid: smaller than the last level, with the shape of level 0."""
    base, last = levels[0], levels[-1]
    if not (layer.size.width < last.size.width and layer.size.height < last.size.height):
        return False
    skew = abs(layer.size.width * base.size.height - layer.size.height * base.size.width)
    return skew <= 2 * max(base.size.width, base.size.height)


def _require_same_pixel_type(layer: Layer, levels: Sequence[Layer], path: str) -> Layer:
    """Return the layer, or raise an error if its pixel type differs from that of level 0."""
    if layer.pixel_type == levels[0].pixel_type:
        return layer
    described = ["{} with {} samples of {} bits".format(*each.pixel_type) for each in (levels[0], layer)]
    raise UnknownFormat(
        f"level {len(levels)} has another pixel type than level 0",
        subject=path,
        expected=described[0],
        actual=described[1],
        remedy="Convert it to a tiled, pyramidal TIFF: vips tiffsave --tile --pyramid",
    )


def _layer(pages: list[TiffPage], path: str) -> Layer | None:
    """The layer of a page, or of three pages with one plane each; None if its coding is not supported."""
    page = pages[0]
    coding = _coding(page, apart=len(pages) > 1)
    if coding is None or any(_shape(other) != _shape(page) for other in pages):
        return None
    size = Size(page.imagewidth, page.imagelength)
    if page.is_tiled:
        tile = Size(page.tilewidth, page.tilelength)
    else:
        tile = Size(size.width, min(page.rowsperstrip or size.height, size.height))
    if not (0 < size.width <= MAX_SIDE and 0 < size.height <= MAX_SIDE and min(tile) > 0):
        raise TooLarge(f"a page declares {size}", subject=path, expected=f"1 to {MAX_SIDE} px a side")
    if tile.area > MAX_TILE_PIXELS:
        raise TooLarge(
            f"a page of {size} has tiles or strips of {tile}",
            subject=path,
            expected=f"tiles of at most {MAX_TILE_PIXELS >> 20} Mpixel",
            remedy="Convert it to a tiled, pyramidal TIFF: vips tiffsave --tile --pyramid",
        )
    columns, rows = -(-size.width // tile.width), -(-size.height // tile.height)
    shape = page.samplesperpixel if page.planarconfig == 2 else 1, columns * rows
    offsets = np.concatenate([_tile_table(other.dataoffsets, shape, path) for other in pages])
    lengths = np.concatenate([_tile_table(other.databytecounts, shape, path) for other in pages])
    return Layer(size, tile, columns, rows, offsets, lengths, coding, pixel_type_of(page))


_shape = attrgetter("imagewidth", "imagelength", "tilewidth", "tilelength", "compression", "bitspersample")


def _tile_table(values: Sequence[int], shape: tuple[int, int], path: str) -> NDArray[np.uint64]:
    """A table of planes and tiles from the values of a page."""
    count = shape[0] * shape[1]
    if len(values) < count:
        raise DamagedFile(
            "a page does not list the positions of all its tiles",
            subject=path,
            expected=f"{count} tiles",
            actual=f"{len(values)}",
            remedy="Copy the file again from its source",
        )
    return np.array(values[:count], np.uint64).reshape(shape)


def _coding(page: TiffPage, apart: bool) -> Coding | None:
    samples = page.samplesperpixel
    if page.bitspersample not in (8, 16) or page.sampleformat not in (None, 1) or page.fillorder != 1:
        return None
    if samples not in (1, 2, 3, 4) or (page.compression == JPEG and samples not in (1, 3)):
        return None
    separate = apart or page.planarconfig == 2
    extra = page.extrasamples[0] if page.extrasamples else 0
    palette = None
    if page.photometric == 3:
        if page.colormap is None or page.bitspersample != 8 or page.colormap.shape != (3, 256):
            return None
        palette = np.ascontiguousarray((page.colormap >> 8).astype(np.uint8).T)
    coding = Coding(
        compression=int(page.compression),
        photometric=int(page.photometric),
        samples=1 if separate else samples,
        bits=page.bitspersample,
        byteorder=page.parent.byteorder,
        predictor=int(page.predictor),
        alpha=int(extra) if int(extra) in (1, 2) else 0,
        tables=bytes(page.jpegtables or b""),
        palette=palette,
    )
    return coding if coding.supported else None


# -- properties ---------------------------------------------------------------------------------------------

_TAGS = {
    269: "DocumentName", 270: "ImageDescription", 271: "Make", 272: "Model", 282: "XResolution",
    283: "YResolution", 286: "XPosition", 287: "YPosition", 305: "Software", 306: "DateTime", 315: "Artist",
    316: "HostComputer", 33432: "Copyright",
}  # fmt: skip


def _properties(
    page: TiffPage, kind: str, stated_mpp: StatedMpp | None, ome: OmeImage | None
) -> Mapping[str, str]:
    """Properties of the file, under OpenSlide's names if it has one."""
    properties: dict[str, str] = {} if ome else {"openslide.vendor": kind.removesuffix("-svs")}
    present = {code: name for code, name in _TAGS.items() if code in page.tags}
    properties |= {f"tiff.{name}": _text(page.tags[code].value) for code, name in present.items()}
    unit = {1: "none", 2: "inch", 3: "centimeter"}.get(int(page.resolutionunit))
    if unit is not None and 282 in page.tags:
        properties["tiff.ResolutionUnit"] = unit
    if page.description:
        properties["openslide.comment"] = page.description
    if kind == "aperio-svs":
        fields = aperio_fields(page.description)
        properties.update({f"aperio.{name}": value for name, value in fields.items()})
        if fields.get("AppMag"):
            properties["openslide.objective-power"] = fields["AppMag"]
    if ome is not None and ome.objective is not None:
        properties["openslide.objective-power"] = f"{ome.objective:g}"
    if stated_mpp is not None:
        mpp = {"x": stated_mpp.mpp.x, "y": stated_mpp.mpp.y}
        properties |= {f"openslide.mpp-{axis}": f"{value:.17g}" for axis, value in mpp.items()}
    return properties


def _text(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 2:
        return f"{value[0] / value[1]:.17g}" if value[1] else ""
    return str(value)
