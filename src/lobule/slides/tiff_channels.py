"""Refuse files with several channels: read as brightfield images, they would lose most of their channels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lobule.errors import UnknownFormat

PHOTOMETRIC_SAMPLES = {0: 1, 1: 1, 2: 3, 3: 1, 6: 3}
"""Samples per pixel of a photometric interpretation: 1 for grey and palette, 3 for RGB and YCbCr."""

PHOTOMETRIC_FAMILIES = {0: "grey", 1: "grey", 2: "colour", 3: "palette", 6: "colour"}

ALPHA = (1, 2)
"""ExtraSamples values that mark transparency."""

REDUCED_RESOLUTION = 1
"""Bit of NewSubfileType that marks a reduced version of another page."""

_MAX_DESCRIPTION = 200_000
"""Number of characters of a page's description in which the name of its channel is searched."""

_QPI_NAME = re.compile(r"<Name>([^<]{1,60})</Name>")
_IMAGEJ_CHANNELS = re.compile(r"^channels=(\d{1,9})$", re.MULTILINE)


def too_many_channels(
    count: int,
    path: str,
    *,
    file_kind: str = "a file",
    names: Sequence[str] = (),
    evidence: str | None = None,
) -> UnknownFormat:
    """Return the error for a file that has more channels than an RGB image can show.

    Args:
        count: Number of channels.
        path: The file.
        file_kind: What the file is, such as "an OME-TIFF".
        names: Names of the channels; the message lists the first six.
        evidence: What shows the number of channels, if the file does not state it.
    """
    listing = f" ({', '.join(names[:6])}{', …' if len(names) > 6 else ''})" if names else ""
    return UnknownFormat(
        f"this is {file_kind} of {count} channels{listing}",
        subject=path,
        expected="a brightfield image: RGB, or one grey channel",
        actual=evidence,
        remedy="Export an RGB rendering of it, or one channel",
    )


def check_channels(largest_page: Any, pages: Sequence[Any], path: str) -> None:
    """Refuse a TIFF whose largest image has several channels.

    A file stores channels in one of three ways: as samples of a pixel beyond those of its photometric
    interpretation, as several grey pages of the same size (fluorescence QPTIFF), or as planes that an ImageJ
    description declares.

    Args:
        largest_page: The page of the largest image.
        pages: All pages of the file.
        path: The file, for the error.
    """
    check_samples(largest_page, path)
    imagej = _IMAGEJ_CHANNELS.search(largest_page.description) if largest_page.is_imagej else None
    if imagej is not None and int(imagej.group(1)) > 1 and largest_page.samplesperpixel == 1:
        raise too_many_channels(int(imagej.group(1)), path, file_kind="an ImageJ file")
    if largest_page.samplesperpixel != 1 or largest_page.photometric not in (0, 1):
        return
    size = largest_page.imagewidth, largest_page.imagelength
    planes = [
        page
        for page in pages
        if (page.imagewidth, page.imagelength) == size
        and page.samplesperpixel == 1
        and (page is largest_page or not page.subfiletype & REDUCED_RESOLUTION)
    ]
    if len(planes) <= 1:
        return
    matches = [_QPI_NAME.search(page.description[:_MAX_DESCRIPTION]) for page in planes]
    raise too_many_channels(
        len(planes),
        path,
        file_kind="a QPTIFF" if largest_page.is_qpi else "a TIFF",
        names=[match.group(1) for match in matches if match is not None],
        evidence=f"{len(planes)} grey pages of the same size",
    )


def check_samples(page: Any, path: str) -> None:
    """Refuse a page with more samples than its photometric interpretation and transparency require."""
    expected = PHOTOMETRIC_SAMPLES.get(int(page.photometric))
    channels = page.samplesperpixel - sum(int(extra) in ALPHA for extra in page.extrasamples)
    # A fourth sample of RGB that the file does not declare is usually transparency.
    undeclared_alpha = 1 if expected == 3 else 0
    if expected is not None and channels > expected + undeclared_alpha:
        raise too_many_channels(channels, path)


def pixel_type_of(page: Any) -> tuple[str, int, int]:
    """Return colour, grey or palette; the samples per pixel; the bits per sample.

    All levels of a pyramid must have the same pixel type.
    """
    photometric = int(page.photometric)
    family = PHOTOMETRIC_FAMILIES.get(photometric, str(photometric))
    return family, int(page.samplesperpixel), int(page.bitspersample)
