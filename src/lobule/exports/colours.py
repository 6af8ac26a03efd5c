"""Colours of classes, the same in every format. They follow Okabe and Ito, so that most people can tell them
apart."""

from __future__ import annotations

import zlib

Colour = tuple[int, int, int]
PALETTE: tuple[Colour, ...] = (
    (213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233),
    (148, 103, 189),
)  # fmt: skip
TISSUE: Colour = (0, 158, 115)
REVIEW: Colour = (230, 159, 0)
BY_NAME: dict[str, Colour] = {
    "tumour": (200, 0, 0), "tumor": (200, 0, 0), "malignant": (200, 0, 0), "invasive": (200, 0, 0),
    "benign": (86, 180, 233), "normal": (0, 128, 255), "tissue": TISSUE,
}  # fmt: skip


def colour_of(name: str) -> Colour:
    """Return the colour of a class; an unknown name always gets the same colour of the palette."""
    named = BY_NAME.get(name.lower())
    return named or PALETTE[zlib.crc32(name.encode(errors="surrogateescape")) % len(PALETTE)]


def hexadecimal(colour: Colour) -> str:
    return "#{:02X}{:02X}{:02X}".format(*colour)
