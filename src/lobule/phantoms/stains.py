"""Stain and scanner of a site: from densities of hematoxylin and eosin to the RGB that its scanner writes."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lobule.phantoms.noise import generator

HEMATOXYLIN = np.array([0.60, 0.71, 0.36])
EOSIN = np.array([0.11, 0.86, 0.48])


Words = NDArray[np.uint32]
"""RGBX pixels as little-endian words."""


def rgb_of_words(words: Words) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of words (H, W), without a copy."""
    return words.view(np.uint8).reshape(*words.shape, 4)[..., :3]


SOFTNESS_UM = (0.35, 0.6, 0.85)
"""Sharp, usual and soft optics. There are few because each needs separate sprites."""


@dataclass(frozen=True)
class Look:
    """Properties that differ between sites."""

    hematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    hematoxylin_gain: float
    eosin_gain: float
    white: tuple[float, float, float]
    gamma: float
    softness_um: float
    """Blur of the optics, as the width of an edge."""
    noise: int
    """Spread of the sensor's noise, in hundredths of optical density."""
    quality_step: int
    """Added to the requested JPEG quality."""


def site_number(site: int | str) -> int:
    return site if isinstance(site, int) else zlib.crc32(site.encode())


def look_of(site: int | str) -> Look:
    """The look of a site. Site 0 is the plain one; all others vary randomly around it."""
    number = site_number(site)
    rng = generator(number, 0x51AE)
    far = 0.0 if number == 0 else 1.0

    def deviation(spread: float, size: int | None = None) -> NDArray[np.float64]:
        return np.asarray(far * np.clip(rng.standard_normal(size), -1.8, 1.8) * spread)

    hematoxylin = HEMATOXYLIN + deviation(0.035, 3)
    eosin = np.maximum(EOSIN + deviation(0.05, 3), 0.02)
    hematoxylin /= np.linalg.norm(hematoxylin)
    eosin /= np.linalg.norm(eosin)
    white = np.clip(np.array([242.0, 240.0, 243.0]) + deviation(4.0, 3), 225, 252)
    return Look(
        tuple(hematoxylin.tolist()),
        tuple(eosin.tolist()),
        float(np.exp(deviation(0.16))),
        float(np.exp(deviation(0.16))),
        tuple(white.tolist()),
        float(np.exp(deviation(0.07))),
        SOFTNESS_UM[0 if number == 0 else int(rng.integers(len(SOFTNESS_UM)))],
        round(2 + float(abs(deviation(1.5)))),
        round(float(np.clip(deviation(4.0), -8, 6))),
    )


def colour_table(look: Look) -> Words:
    """Pixels by their densities, at hematoxylin · 256 + eosin."""
    density = np.arange(256) / 100.0
    h = density[:, None, None] * look.hematoxylin_gain * np.array(look.hematoxylin)
    e = density[None, :, None] * look.eosin_gain * np.array(look.eosin)
    passed = 10.0 ** -(h + e)
    # a scanner's shadows do not reach black
    passed = (0.03 + 0.97 * passed) ** look.gamma
    rgb = np.clip(np.rint(np.array(look.white) * passed), 0, 255).astype(np.uint32)
    words: Words = rgb[..., 0] | rgb[..., 1] << 8 | rgb[..., 2] << 16 | np.uint32(0xFF000000)
    return words.reshape(-1)


def glass_word(look: Look) -> int:
    return int(colour_table(look)[0])
