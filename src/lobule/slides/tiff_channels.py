"""Refuse files with several channels: read as brightfield images, they would lose most of their channels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lobule.errors import UnknownFormat

PHOTOMETRIC_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 6: 3}
"""Samples per photometric interpretation: 1 for grey and palette, 3 for RGB and YCbCr."""

ALPHA = (1, 2)
"""ExtraSamples values that mark transparency."""

_QPI_NAME = re.compile(r"<Name>([^<]{1,60})</Name>")
_IMAGEJ_CHANNELS = re.compile(r"^channels=(\d{1,9})$", re.MULTILINE)


def several_channels(
    count: int, path: str, *, kind: str = "a file", names: Sequence[str] = ()
) -> UnknownFormat:
    """The error for a file whose pixels have more channels than an RGB image can show."""
    listing = f" ({', '.join(names[:6])}{', …' if len(names) > 6 else ''})" if names else ""
    return UnknownFormat(
        f"this is {kind} of {count} channels{listing}",
        subject=path,
        expected="a brightfield image: RGB, or one grey channel",
        remedy="Export an RGB rendering of it, or one channel",
    )


def check_channels(base: Any, pages: Sequence[Any], path: str) -> None:
    """Refuse a TIFF whose largest image has several channels.

    Args:
        base: The page of the largest image.
        pages: All pages of the file.
        path: The file, for the error.

    Channels are: samples of a pixel beyond those of its photometric interpretation, several grey pages of the
    same size (as in fluorescence QPTIFF), or planes that an ImageJ description declares.
    """
    check_samples(base, path)
    imagej = _IMAGEJ_CHANNELS.search(base.description) if base.is_imagej else None
    if imagej is not None and int(imagej.group(1)) > 1 and base.samplesperpixel == 1:
        raise several_channels(int(imagej.group(1)), path, kind="an ImageJ file")
    if base.samplesperpixel != 1 or base.photometric not in (0, 1):
        return
    size = base.imagewidth, base.imagelength
    planes = [
        page
        for page in pages
        if (page.imagewidth, page.imagelength) == size
        and page.samplesperpixel == 1
        and (page is base or not page.subfiletype & 1)
    ]
    if len(planes) > 1:
        matches = [_QPI_NAME.search(page.description[:200_000]) for page in planes]
        names = [match.group(1) for match in matches if match is not None]
        kind = "a QPTIFF" if base.is_qpi else f"{len(planes)} grey pages of one size, which is a file"
        raise several_channels(len(planes), path, kind=kind, names=names)


def check_samples(page: Any, path: str) -> None:
    """Refuse a page with more samples than its photometric interpretation and transparency require."""
    colours = PHOTOMETRIC_COLOURS.get(int(page.photometric))
    channels = page.samplesperpixel - sum(int(extra) in ALPHA for extra in page.extrasamples)
    unexplained = 1 if colours == 3 else 0  # an undeclared fourth sample of RGB is usually transparency
    if colours is not None and channels > colours + unexplained:
        raise several_channels(channels, path)


def kind_of(page: Any) -> tuple[str, int, int]:
    """Pixel type of a page: colour, grey or palette; samples; bits. All levels must have the same."""
    photometric = int(page.photometric)
    family = {0: "grey", 1: "grey", 2: "colour", 3: "palette", 6: "colour"}.get(photometric, str(photometric))
    return family, int(page.samplesperpixel), int(page.bitspersample)
