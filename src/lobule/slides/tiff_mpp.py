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

FINEST_UM, COARSEST_UM = 0.01, 20.0
"""Range of µm/px that is accepted from a tag or description."""

UM_OF_UNIT = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0,
    "\\u00b5m": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "dm": 1e5, "m": 1e6, "pm": 1e-6, "Å": 1e-4,
    "in": 25400.0, "inch": 25400.0, "mil": 25.4,
}  # fmt: skip


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
    channel_names: tuple[str, ...] = ()
    may_be_rgb: bool = True
    """False if the description shows that its three channels are not red, green and blue."""


def mpp_of_tiff(page: Any, ome: OmeImage | None) -> FoundMpp | None:
    """µm/px of level 0, from the most specific source that states it."""
    description = page.description
    if page.is_svs:
        value = _number(aperio_fields(description).get("MPP"))
        return _plausible_mpp(value, value, "Aperio MPP")
    if ome is not None:
        if ome.mpp is not None:
            return _plausible_mpp(ome.mpp.x, ome.mpp.y, "OME PhysicalSizeX and PhysicalSizeY")
    elif page.is_imagej:
        return _imagej(page)
    elif description[:1] == "{":
        stated = _json(description)
        if stated is not None:
            return stated
    unit = {2: 25400.0, 3: 10000.0}.get(int(page.resolutionunit))
    return None if unit is None else _of_density(page, unit, "TIFF XResolution and YResolution")


def _of_density(page: Any, unit_um: float, source: str) -> FoundMpp | None:
    x, y = (_ratio(page.tags[code].value) if code in page.tags else None for code in (282, 283))
    return _plausible_mpp(unit_um / x if x else None, unit_um / y if y else None, source)


def _imagej(page: Any) -> FoundMpp | None:
    match = re.search(r"^unit=(.+)$", page.description, re.MULTILINE)
    unit = UM_OF_UNIT.get(match.group(1).strip().replace("\\u00B5", "µ")) if match else None
    return None if unit is None else _of_density(page, unit, "ImageJ unit and TIFF XResolution")


def _json(description: str) -> FoundMpp | None:
    """µm/px from a JSON description, as tifffile and others write it: `PhysicalSizeX` with unit, or `mpp`."""
    try:
        fields = json.loads(description)
    except ValueError:
        return None
    if not isinstance(fields, dict):
        return None
    if "PhysicalSizeX" in fields:
        x, y = (_physical(fields, axis) for axis in "XY")
        return _plausible_mpp(x, y or x, "PhysicalSizeX of the image description")
    value = _number(fields.get("mpp"))
    return _plausible_mpp(value, value, "mpp of the image description")


def _plausible_mpp(x: float | None, y: float | None, source: str) -> FoundMpp | None:
    if x is None or y is None or not all(FINEST_UM <= value <= COARSEST_UM for value in (x, y)):
        return None
    return FoundMpp(Mpp(x, y), source)


def aperio_fields(description: str) -> dict[str, str]:
    """The `key = value` pairs between bars. If a key is repeated, the last one counts, as in OpenSlide."""
    fields = {}
    for pair in description.split("|")[1:]:
        key, equals, value = pair.partition("=")
        if equals:
            fields[key.strip()] = value.strip()
    return fields


# -- OME-XML ------------------------------------------------------------------------------------------------


def parse_ome(description: str) -> tuple[OmeImage, ...]:
    """The images of an OME-XML description, the largest one marked; empty if it cannot be used."""
    if "<!DOCTYPE" in description or "<!ENTITY" in description:
        return ()
    try:
        root = ElementTree.fromstring(description)
    except ElementTree.ParseError:
        return ()
    magnifications = {
        node.get("ID"): node.get("NominalMagnification")
        for instrument in _children(root, "Instrument")
        for node in _children(instrument, "Objective")
    }
    images: list[OmeImage] = []
    next_ifd = 0
    for node in _children(root, "Image"):
        pixels = next(_children(node, "Pixels"), None)
        if pixels is None:
            continue
        image, planes = _ome_image(node, pixels, next_ifd, magnifications)
        images.append(image)
        next_ifd = image.ifd + planes
    if not images:
        return ()
    named = ("label", "macro", "thumbnail", "overview")
    slides = [image for image in images if not any(name in image.name.lower() for name in named)]
    largest = max(slides or images, key=lambda image: image.width * image.height)
    return tuple(replace(image, main=image is largest) for image in images)


def _ome_image(node: Any, pixels: Any, next_ifd: int, magnifications: dict[Any, Any]) -> tuple[OmeImage, int]:
    attributes = pixels.attrib
    size = {axis: int(attributes.get(f"Size{axis}", 1)) for axis in "XYZCT"}
    channels = list(_children(pixels, "Channel"))
    samples = sum(int(channel.get("SamplesPerPixel", 1)) for channel in channels) or size["C"]
    together = max((int(channel.get("SamplesPerPixel", 1)) for channel in channels), default=1)
    blocks = [int(block.get("IFD", next_ifd)) for block in _children(pixels, "TiffData")]
    order = attributes.get("DimensionOrder", "XYCZT")
    before = order[2 : order.index("C")] if "C" in order else ""
    stride = 1
    for axis in before:
        stride *= size.get(axis, 1)
    x, y = _physical(attributes, "X"), _physical(attributes, "Y")
    settings = next(_children(node, "ObjectiveSettings"), None)
    image = OmeImage(
        name=node.get("Name", ""),
        width=size["X"],
        height=size["Y"],
        channels=max(samples, size["C"]),
        ifd=min(blocks, default=next_ifd),
        channel_stride=stride,
        mpp=Mpp(x, y or x) if x else None,
        objective=_number(magnifications.get(settings.get("ID"))) if settings is not None else None,
        channel_names=tuple(channel.get("Name") for channel in channels if channel.get("Name")),
        may_be_rgb=_may_be_rgb(channels),
    )
    return image, max(1, size["Z"] * size["T"] * size["C"] // together)


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
        try:  # a signed 32-bit RGBA
            stated = (int(channel.get("Color") or -1) & 0xFFFFFFFF) >> 8
        except ValueError:
            continue
        if stated not in (WHITE, colour):
            return False
    return True


def _children(node: Any, name: str) -> Iterator[Any]:
    """Direct children of a node with the given name, ignoring the XML namespace."""
    return (child for child in node if isinstance(child.tag, str) and child.tag.rpartition("}")[2] == name)


def _physical(attributes: Any, axis: str) -> float | None:
    value = _number(attributes.get(f"PhysicalSize{axis}"))
    unit = UM_OF_UNIT.get(str(attributes.get(f"PhysicalSize{axis}Unit", "µm")))
    return None if value is None or unit is None else value * unit


def _ratio(value: Any) -> float | None:
    if isinstance(value, tuple):
        return value[0] / value[1] if len(value) == 2 and value[1] else None
    return _number(value)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None
