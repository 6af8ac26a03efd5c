"""ICC profiles for the browser: a table from stored colours to sRGB, which the page applies to every tile."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

GRID = 33
"""Colours per side of the table."""
UNCHANGED = 2
"""A profile whose table changes no colour by more than this is not worth applying."""


@dataclass(frozen=True)
class ColourProfile:
    """The ICC profile of a slide."""

    name: str
    table: NDArray[np.uint8] | None
    """(GRID, GRID, GRID, 3): sRGB of red, green and blue; None if the profile cannot be used."""
    transform: ImageCms.ImageCmsTransform | None = None

    @property
    def changes_colours(self) -> bool:
        if self.table is None:
            return False
        difference = np.abs(self.table.astype(np.int16) - grid_colours())
        return int(difference.max()) > UNCHANGED

    def to_srgb(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert pixels (H, W, 3)."""
        if self.transform is None:
            return pixels
        converted = ImageCms.applyTransform(Image.fromarray(pixels), self.transform)
        return np.asarray(converted)


def read_profile(data: bytes) -> ColourProfile:
    """Read an ICC profile. A damaged one, or one that is not of RGB, has no table."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        name = (ImageCms.getProfileDescription(profile) or "").strip() or "unnamed profile"
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(profile))
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(profile, srgb, "RGB", "RGB", renderingIntent=intent)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return ColourProfile("a profile that cannot be used", None)
    plain = grid_colours().astype(np.uint8).reshape(GRID, GRID * GRID, 3)
    table = np.asarray(ImageCms.applyTransform(Image.fromarray(plain), transform))
    return ColourProfile(name, table.reshape(GRID, GRID, GRID, 3), transform)


def grid_colours() -> NDArray[np.int16]:
    """Return the colours of the table's grid points: (GRID, GRID, GRID, 3) by red, green and blue."""
    steps = np.rint(np.linspace(0, 255, GRID)).astype(np.int16)
    return np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
