"""Colour deconvolution: amounts of stains from pixels, and pixels from amounts."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lobule.color import IO, STAINS, optical_density


def rgb_of_density(
    density: NDArray[np.float64], log: Literal["natural", "10"] = "natural"
) -> NDArray[np.uint8]:
    """The inverse of `optical_density`, rounded and clipped to 8 bits."""
    light = np.exp(-density) if log == "natural" else np.power(10.0, -density)
    return np.clip(np.rint(IO * light - 1), 0, 255).astype(np.uint8)


def separate_stains(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Amounts of hematoxylin, eosin and residual (..., 3), in densities of log base 10."""
    return np.asarray(optical_density(rgb, "10") @ np.linalg.inv(STAINS))


def mix_stains(stains: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The inverse of `separate_stains`."""
    return rgb_of_density(stains @ STAINS, "10")
