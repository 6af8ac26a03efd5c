"""µm/px of a TIFF and its source: Aperio, OME-XML, ImageJ, JSON, or the resolution tags.

The description of a file is more specific than its resolution tags. If the description states a resolution,
it alone counts: an invalid or implausible value leaves the µm/px unknown, because any other source would be a
guess. The tags count only if the description states nothing. Values outside 0.01 to 20 µm/px are implausible:
image programs fill the tags with 72, 96 or 300 dots per inch (353, 265 and 85 µm/px), a printing resolution.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any
from xml.etree import ElementTree

from lobule.slides.backend import StatedMpp, plausible_mpp

UM_PER_UNIT = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0,
    "\\u00b5m": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "dm": 1e5, "m": 1e6, "pm": 1e-6, "Å": 1e-4,
    "in": 25400.0, "inch": 25400.0, "mil": 25.4,
}  # fmt: skip
"""Length in µm of the units that OME-XML, ImageJ and JSON descriptions name. ImageJ escapes the µ."""


PixelUm = tuple[float | None, float | None]
"""Width and height of a pixel in µm as a description states them; None for an invalid value."""


@dataclass(frozen=True)
class OmeImage:
    """The OME-XML description of one image."""

    name: str
    width: int
    height: int
    channels: int
    """Number of samples of one pixel, over all its channels."""
    ifd: int
    """Index of the directory of its first plane."""
    channel_stride: int
    """Number of directories from the plane of one channel to that of the next."""
    pixel_um: PixelUm | None
    """Size of a pixel; None if the XML does not state one."""
    objective: float | None
    main: bool = False
    """True for the largest image that is not a label, macro, thumbnail or overview."""
    channel_names: tuple[str, ...] = ()
    states_rgb: bool = False
    """True if the names or colours of its three channels are red, green and blue."""


def mpp_of_tiff(page: Any, ome: OmeImage | None) -> StatedMpp | None:
    """µm/px of level 0, from the most specific source that states it.

    Args:
        page: The first page of the file, a `tifffile.TiffPage`.
        ome: The main image of the OME-XML description, if there is one.
    """
    described = _described_size(page, ome)
    if described is None:
        # ResolutionUnit: 2 is inch, 3 is centimetre.
        unit_um = {2: 25400.0, 3: 10000.0}.get(int(page.resolutionunit))
        described = _size_from_tags(page, unit_um), "TIFF XResolution and YResolution"
    (x, y), source = described
    return plausible_mpp(x, y, source)


def _described_size(page: Any, ome: OmeImage | None) -> tuple[PixelUm, str] | None:
    """Size of a pixel that the description states, and the name of its field; None if it states none."""
    if page.is_svs:
        fields = aperio_fields(page.description)
        value = _positive_number(fields.get("MPP"))
        return ((value, value), "Aperio MPP") if "MPP" in fields else None
    if ome is not None:
        return ome.pixel_um and (ome.pixel_um, "OME PhysicalSizeX and PhysicalSizeY")
    if page.is_imagej:
        # The unit is in the description, and pixels per unit are in the tags.
        match = re.search(r"^unit=(.+)$", page.description, re.MULTILINE)
        if match is None:
            return None
        unit_um = UM_PER_UNIT.get(match.group(1).strip().replace("\\u00B5", "µ"))
        return _size_from_tags(page, unit_um), "ImageJ unit and TIFF XResolution"
    return _json_size(page.description) if page.description[:1] == "{" else None


def _size_from_tags(page: Any, unit_um: float | None) -> PixelUm:
    """The size from XResolution (tag 282) and YResolution (tag 283), in pixels per unit of length."""
    pixels_per_unit = (_rational(page.tags[code].value) if code in page.tags else None for code in (282, 283))
    x, y = (unit_um / pixels if unit_um and pixels else None for pixels in pixels_per_unit)
    return x, y


def _json_size(description: str) -> tuple[PixelUm, str] | None:
    """The size in a JSON description: `PhysicalSizeX` with its unit, as tifffile writes it, or `mpp`."""
    try:
        fields = json.loads(description)
    except ValueError:
        return None
    if not isinstance(fields, dict):
        return None
    if (size := _physical_size(fields)) is not None:
        return size, "PhysicalSizeX of the image description"
    value = _positive_number(fields.get("mpp"))
    return ((value, value), "mpp of the image description") if "mpp" in fields else None


def aperio_fields(description: str) -> dict[str, str]:
    """The `key = value` pairs of an Aperio description, which separates them with `|`.

    If a key is repeated, the last one counts, as in OpenSlide.
    """
    fields = {}
    for pair in description.split("|")[1:]:
        key, equals, value = pair.partition("=")
        if equals:
            fields[key.strip()] = value.strip()
    return fields


# -- OME-XML ------------------------------------------------------------------------------------------------


def parse_ome(description: str) -> tuple[OmeImage, ...]:
    """The images of an OME-XML description, with `main` set for one; empty if the XML cannot be parsed."""
    # Entities can expand to gigabytes of text, and OME-XML does not need them.
    if "<!DOCTYPE" in description or "<!ENTITY" in description:
        return ()
    try:
        root = ElementTree.fromstring(description)
    except ElementTree.ParseError:
        return ()
    magnification_of_objective = {
        node.get("ID"): node.get("NominalMagnification")
        for instrument in _children(root, "Instrument")
        for node in _children(instrument, "Objective")
    }
    images: list[OmeImage] = []
    first_free_ifd = 0
    for node in _children(root, "Image"):
        pixels = next(_children(node, "Pixels"), None)
        if pixels is None:
            continue
        image, plane_count = _ome_image(node, pixels, first_free_ifd, magnification_of_objective)
        images.append(image)
        first_free_ifd = image.ifd + plane_count
    if not images:
        return ()
    associated_names = ("label", "macro", "thumbnail", "overview")
    slides = [image for image in images if not any(name in image.name.lower() for name in associated_names)]
    largest = max(slides or images, key=lambda image: image.width * image.height)
    return tuple(replace(image, main=image is largest) for image in images)


def _ome_image(
    image_node: Any, pixels_node: Any, default_ifd: int, magnification_of_objective: dict[Any, Any]
) -> tuple[OmeImage, int]:
    """Return the description of one image, and the number of directories that its planes occupy.

    `default_ifd` is the index of its first directory if the XML does not state one.
    """
    attributes = pixels_node.attrib
    size = {axis: _whole_number(attributes.get(f"Size{axis}"), default=1, least=1) for axis in "XYZCT"}
    channels = list(_children(pixels_node, "Channel"))
    samples = [_whole_number(channel.get("SamplesPerPixel"), default=1, least=1) for channel in channels]
    plane_ifds = [
        _whole_number(block.get("IFD"), default=default_ifd) for block in _children(pixels_node, "TiffData")
    ]
    order = attributes.get("DimensionOrder", "XYCZT")
    faster_axes = order[2 : order.index("C")] if "C" in order else ""
    objective_settings = next(_children(image_node, "ObjectiveSettings"), None)
    image = OmeImage(
        name=image_node.get("Name", ""),
        width=size["X"],
        height=size["Y"],
        channels=max(sum(samples), size["C"]),
        ifd=min(plane_ifds, default=default_ifd),
        channel_stride=prod(size.get(axis, 1) for axis in faster_axes),
        pixel_um=_physical_size(attributes),
        objective=_positive_number(magnification_of_objective.get(objective_settings.get("ID")))
        if objective_settings is not None
        else None,
        channel_names=tuple(channel.get("Name") for channel in channels if channel.get("Name")),
        states_rgb=_states_rgb(channels),
    )
    return image, max(1, size["Z"] * size["T"] * size["C"] // max(samples, default=1))


def _whole_number(text: str | None, *, default: int, least: int = 0) -> int:
    """An attribute as a whole number of at least `least`; `default` if it is missing or malformed."""
    try:
        number = int(text or "")
    except ValueError:
        return default
    return number if number >= least else default


FLUORESCENCE = ("Fluor", "EmissionWavelength", "ExcitationWavelength")
"""Attributes of a Channel that the channels of a brightfield image do not have."""

RGB_NAMES = (("r", "red"), ("g", "green"), ("b", "blue"))
RGB_COLOURS = (0xFF0000, 0x00FF00, 0x0000FF)
WHITE = 0xFFFFFF


def _states_rgb(channels: list[Any]) -> bool:
    """Whether the channels are red, green and blue by their names or, if they have none, their colours."""
    if len(channels) != 3 or any(channel.get(name) for channel in channels for name in FLUORESCENCE):
        return False
    if any(channel.get("ContrastMethod") == "Fluorescence" for channel in channels):
        return False
    for channel, names, colour in zip(channels, RGB_NAMES, RGB_COLOURS, strict=True):
        name = (channel.get("Name") or "").strip().lower()
        try:  # Color is a signed 32-bit number with the bytes RGBA; -1 is white, the default.
            channel_colour = (int(channel.get("Color") or -1) & 0xFFFFFFFF) >> 8
        except ValueError:
            channel_colour = WHITE
        if channel_colour not in (WHITE, colour) or name not in (*names, ""):
            return False
        if not name and channel_colour == WHITE:
            return False
    return True


def _children(node: Any, name: str) -> Iterator[Any]:
    """Direct children of a node with the given name, ignoring the XML namespace."""
    return (child for child in node if isinstance(child.tag, str) and child.tag.rpartition("}")[2] == name)


def _physical_size(attributes: Mapping[str, Any]) -> PixelUm | None:
    """Size of a pixel from PhysicalSizeX and PhysicalSizeY; None if neither is stated.

    Without PhysicalSizeY pixels are square. A value that is not a positive length in a known unit is None.
    """
    if not any(f"PhysicalSize{axis}" in attributes for axis in "XY"):
        return None
    x = _length_um(attributes, "PhysicalSizeX")
    return x, _length_um(attributes, "PhysicalSizeY") if "PhysicalSizeY" in attributes else x


def _length_um(attributes: Mapping[str, Any], name: str) -> float | None:
    value = _positive_number(attributes.get(name))
    unit_um = UM_PER_UNIT.get(str(attributes.get(f"{name}Unit", "µm")))
    return None if value is None or unit_um is None else value * unit_um


def _rational(value: Any) -> float | None:
    """The value of a RATIONAL tag, which tifffile returns as (numerator, denominator)."""
    if isinstance(value, tuple):
        return value[0] / value[1] if len(value) == 2 and value[1] else None
    return _positive_number(value)


def _positive_number(value: Any) -> float | None:
    """Convert a value to a number; None unless it is positive and finite."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None
