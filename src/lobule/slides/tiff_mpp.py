"""µm/px of a TIFF and its source: Aperio, OME-XML, ImageJ, JSON, or the resolution tags.

The resolution tags are used only between 0.01 and 20 µm/px: image programs fill them with 72, 96 or 300 dots
per inch (353, 265 and 85 µm/px), which is a printing resolution and unrelated to the slide.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from xml.etree import ElementTree

from lobule.slides.backend import FoundMpp
from lobule.units import Mpp

FINEST_MPP, COARSEST_MPP = 0.01, 20.0
"""Range of µm/px that is accepted from a tag or description; values outside it are ignored."""

UM_PER_UNIT = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0,
    "\\u00b5m": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "dm": 1e5, "m": 1e6, "pm": 1e-6, "Å": 1e-4,
    "in": 25400.0, "inch": 25400.0, "mil": 25.4,
}  # fmt: skip
"""Length in µm of the units that OME-XML, ImageJ and JSON descriptions name. ImageJ escapes the µ."""


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
    mpp: Mpp | None
    objective: float | None
    main: bool = False
    """True for the largest image that is not a label, macro, thumbnail or overview."""
    channel_names: tuple[str, ...] = ()
    may_be_rgb: bool = True
    """False if the description shows that its three channels are not red, green and blue."""


def mpp_of_tiff(page: Any, ome: OmeImage | None) -> FoundMpp | None:
    """µm/px of level 0, from the most specific source that states it.

    Args:
        page: The first page of the file, a `tifffile.TiffPage`.
        ome: The main image of the OME-XML description, if there is one.
    """
    description = page.description
    if page.is_svs:
        value = _positive_number(aperio_fields(description).get("MPP"))
        return _plausible_mpp(value, value, "Aperio MPP")
    if ome is not None:
        if ome.mpp is not None:
            return _plausible_mpp(ome.mpp.x, ome.mpp.y, "OME PhysicalSizeX and PhysicalSizeY")
    elif page.is_imagej:
        return _mpp_from_imagej(page)
    elif description[:1] == "{":
        json_mpp = _mpp_from_json(description)
        if json_mpp is not None:
            return json_mpp
    # ResolutionUnit: 2 is inch, 3 is centimetre.
    unit_um = {2: 25400.0, 3: 10000.0}.get(int(page.resolutionunit))
    return None if unit_um is None else _mpp_from_tags(page, unit_um, "TIFF XResolution and YResolution")


def _mpp_from_tags(page: Any, unit_um: float, source: str) -> FoundMpp | None:
    """µm/px from XResolution (tag 282) and YResolution (tag 283), which count pixels per unit of length."""
    pixels_per_unit_x, pixels_per_unit_y = (
        _rational(page.tags[code].value) if code in page.tags else None for code in (282, 283)
    )
    return _plausible_mpp(
        unit_um / pixels_per_unit_x if pixels_per_unit_x else None,
        unit_um / pixels_per_unit_y if pixels_per_unit_y else None,
        source,
    )


def _mpp_from_imagej(page: Any) -> FoundMpp | None:
    """µm/px of an ImageJ file: the unit is in the description, and pixels per unit are in the tags."""
    match = re.search(r"^unit=(.+)$", page.description, re.MULTILINE)
    unit_um = UM_PER_UNIT.get(match.group(1).strip().replace("\\u00B5", "µ")) if match else None
    return None if unit_um is None else _mpp_from_tags(page, unit_um, "ImageJ unit and TIFF XResolution")


def _mpp_from_json(description: str) -> FoundMpp | None:
    """µm/px from a JSON description: `PhysicalSizeX` with its unit, as tifffile writes it, or `mpp`."""
    try:
        fields = json.loads(description)
    except ValueError:
        return None
    if not isinstance(fields, dict):
        return None
    if "PhysicalSizeX" in fields:
        x, y = (_physical_size_um(fields, axis) for axis in "XY")
        return _plausible_mpp(x, y or x, "PhysicalSizeX of the image description")
    value = _positive_number(fields.get("mpp"))
    return _plausible_mpp(value, value, "mpp of the image description")


def _plausible_mpp(x: float | None, y: float | None, source: str) -> FoundMpp | None:
    """The µm/px with its source, or None if a value is missing or outside the accepted range."""
    if x is None or y is None or not all(FINEST_MPP <= value <= COARSEST_MPP for value in (x, y)):
        return None
    return FoundMpp(Mpp(x, y), source)


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
    size = {axis: int(attributes.get(f"Size{axis}", 1)) for axis in "XYZCT"}
    channels = list(_children(pixels_node, "Channel"))
    samples = sum(int(channel.get("SamplesPerPixel", 1)) for channel in channels) or size["C"]
    samples_per_plane = max((int(channel.get("SamplesPerPixel", 1)) for channel in channels), default=1)
    plane_ifds = [int(block.get("IFD", default_ifd)) for block in _children(pixels_node, "TiffData")]
    order = attributes.get("DimensionOrder", "XYCZT")
    faster_axes = order[2 : order.index("C")] if "C" in order else ""
    channel_stride = 1
    for axis in faster_axes:
        channel_stride *= size.get(axis, 1)
    x, y = _physical_size_um(attributes, "X"), _physical_size_um(attributes, "Y")
    objective_settings = next(_children(image_node, "ObjectiveSettings"), None)
    image = OmeImage(
        name=image_node.get("Name", ""),
        width=size["X"],
        height=size["Y"],
        channels=max(samples, size["C"]),
        ifd=min(plane_ifds, default=default_ifd),
        channel_stride=channel_stride,
        mpp=Mpp(x, y or x) if x else None,
        objective=_positive_number(magnification_of_objective.get(objective_settings.get("ID")))
        if objective_settings is not None
        else None,
        channel_names=tuple(channel.get("Name") for channel in channels if channel.get("Name")),
        may_be_rgb=_may_be_rgb(channels),
    )
    return image, max(1, size["Z"] * size["T"] * size["C"] // samples_per_plane)


FLUORESCENCE = ("Fluor", "EmissionWavelength", "ExcitationWavelength")
"""Attributes of a Channel that the channels of a brightfield image do not have."""

RGB_NAMES = (("r", "red"), ("g", "green"), ("b", "blue"))
RGB_COLOURS = (0xFF0000, 0x00FF00, 0x0000FF)
WHITE = 0xFFFFFF


def _may_be_rgb(channels: list[Any]) -> bool:
    """Whether the names, colours and attributes of three channels are compatible with red, green and blue."""
    if any(channel.get(name) for channel in channels for name in FLUORESCENCE):
        return False
    if any(channel.get("ContrastMethod") == "Fluorescence" for channel in channels):
        return False
    for channel, names, colour in zip(channels, RGB_NAMES, RGB_COLOURS, strict=False):
        name = (channel.get("Name") or "").strip().lower()
        if name and name not in names:
            return False
        try:  # Color is a signed 32-bit number with the bytes RGBA; -1 is white, the default.
            channel_colour = (int(channel.get("Color") or -1) & 0xFFFFFFFF) >> 8
        except ValueError:
            continue
        if channel_colour not in (WHITE, colour):
            return False
    return True


def _children(node: Any, name: str) -> Iterator[Any]:
    """Direct children of a node with the given name, ignoring the XML namespace."""
    return (child for child in node if isinstance(child.tag, str) and child.tag.rpartition("}")[2] == name)


def _physical_size_um(attributes: Any, axis: str) -> float | None:
    """The size of a pixel along an axis in µm; None if it is missing or its unit is unknown."""
    value = _positive_number(attributes.get(f"PhysicalSize{axis}"))
    unit_um = UM_PER_UNIT.get(str(attributes.get(f"PhysicalSize{axis}Unit", "µm")))
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
