"""From an image to the crops of an encoder, and from their descriptors to that of the image."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.color import RGB, Normalised, macenko, macenko_published
from lobule.errors import CaseError
from lobule.resize import halve, resize_cubic

STAIN_RANGE = (0.7, 1.3)


def resize_and_normalise(rgb: RGB, scale: float = 0.5, stains: str = "published") -> Normalised:
    """Resize an image as OpenCV does and normalise its stains. This happens once, before any augmentation."""
    resized = rescaled(rgb, scale)
    if stains == "none":
        return Normalised(resized, None)
    return macenko_published(resized) if stains == "published" else macenko(resized)


def rescaled(rgb: RGB, scale: float) -> RGB:
    """As `cv2.resize` with fx = fy = scale and INTER_CUBIC; sides are rounded half to even."""
    if scale == 1:
        return rgb
    if scale == 0.5:
        return halve(rgb)
    height, width = rescaled_sides(rgb.shape[0], rgb.shape[1], scale)
    resized: RGB = resize_cubic(rgb, height, width, step=(1 / scale, 1 / scale))
    return resized


def rescaled_sides(height: int, width: int, scale: float) -> tuple[int, int]:
    return max(1, round(height * scale)), max(1, round(width * scale))


def generator_of(seed: int, image: str, set_name: str, augmentation: int) -> np.random.Generator:
    """The random stream of one augmentation of one image for one (encoder, crop size) set."""
    words = (zlib.crc32(image.encode()), zlib.crc32(set_name.encode()), augmentation)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=words)))


def draw_stains(
    rng: np.random.Generator | np.random.RandomState, stain_range: tuple[float, float] = STAIN_RANGE
) -> tuple[float, float]:
    """The factors of hematoxylin and eosin, in this order."""
    hematoxylin, eosin = rng.uniform(*stain_range, 2)
    return float(hematoxylin), float(eosin)


@dataclass(frozen=True)
class Crop:
    """A square crop, then counter-clockwise quarter turns, then the flips: the order matters."""

    top: int
    left: int
    size: int
    quarter_turns: int
    flip_vertical: bool
    flip_horizontal: bool

    def of(self, image: NDArray[Any]) -> NDArray[Any]:
        crop = image[self.top : self.top + self.size, self.left : self.left + self.size]
        crop = np.rot90(crop, self.quarter_turns)
        if self.flip_vertical:
            crop = crop[::-1]
        return crop[:, ::-1] if self.flip_horizontal else crop


def draw_crop(rng: np.random.Generator, height: int, width: int, size: int, subject: object = None) -> Crop:
    """A uniform crop; both ends of the range of its corner are included."""
    if size >= min(height, width):
        raise CaseError(
            f"too small for crops of {size} px",
            subject=subject,
            expected=f"more than {size} px on both sides after scaling",
            actual=f"{width} × {height} px after scaling",
            remedy="Use a smaller crop size, or images of a finer µm/px",
        )
    return Crop(
        top=int(rng.integers(height - size, endpoint=True)),
        left=int(rng.integers(width - size, endpoint=True)),
        size=size,
        quarter_turns=int(rng.integers(4)),
        flip_vertical=bool(rng.random() < 0.5),
        flip_horizontal=bool(rng.random() < 0.5),
    )


def p_norm(features: NDArray[Any], p: int = 3, *, signed: bool = True) -> NDArray[np.float64]:
    """Descriptors (crops, d) pooled to (d,): the p-th root of the mean p-th power.

    A negative mean, which no encoder that ends in a ReLU gives, has the root -|m|^(1/p) where `signed`,
    and NaN as published otherwise.
    """
    means = (features.astype(np.float64) ** p).mean(axis=0)
    roots: NDArray[np.float64] = np.abs(means) ** (1.0 / p)
    return np.where(means < 0, -roots if signed else np.nan, roots)
