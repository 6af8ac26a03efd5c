"""Colours of stained tissue: optical density, H&E stains, Macenko normalisation and stain augmentation.

Optical density here is -log((I + 1) / 240), so it is negative for I = 240 to 255. Every change of stains is
linear in it, and then 240 · exp(-(A · OD)) is a product of three table entries, one for each channel: no
logarithm or exponential is taken of a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

RGB = NDArray[np.uint8]
"""(..., 3) uint8, red first."""

IO = 240.0
"""The intensity that counts as clear glass."""

HE_REF = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
"""Macenko's reference stains: rows R, G, B; columns hematoxylin, eosin."""
MAX_C_REF = np.array([1.9705, 1.0308])

FORWARD = np.array([[1.88, -0.07, -0.60], [-1.02, 1.13, -0.48], [-0.55, -0.13, 1.57]])
"""Densities to stains as published: a rounded inverse, so that forth and back is not quite the identity."""
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Ruifrok and Johnston's stains: rows hematoxylin, eosin, residual; columns R, G, B."""

LEAST_TISSUE_PIXELS = 100
_BLOCK = 1 << 15
"""Pixels worked on at once: the intermediate float64 rows stay in the second-level cache."""


def optical_density(rgb: RGB, log: Literal["natural", "10"] = "natural") -> NDArray[np.float64]:
    """-log((I + 1) / 240) of every value, in the shape of `rgb`."""
    levels = np.arange(1, 257) / IO
    return (-np.log(levels) if log == "natural" else -np.log10(levels))[rgb]


def rgb_of_density(density: NDArray[np.floating[Any]], log: Literal["natural", "10"] = "natural") -> RGB:
    """The inverse of `optical_density`, rounded and clipped to 8 bits."""
    light = np.exp(-density) if log == "natural" else np.power(10.0, -density)
    rgb: RGB = np.clip(np.rint(IO * light - 1), 0, 255).astype(np.uint8)
    return rgb


def separate_stains(rgb: RGB) -> NDArray[np.float64]:
    """Amounts of hematoxylin, eosin and residual (..., 3), in densities of log base 10."""
    stains: NDArray[np.float64] = optical_density(rgb, "10") @ np.linalg.inv(STAINS)
    return stains


def mix_stains(stains: NDArray[np.floating[Any]]) -> RGB:
    """The inverse of `separate_stains`."""
    return rgb_of_density(stains @ STAINS, "10")


@dataclass(frozen=True)
class DensityTables:
    """240 · exp(-(A · OD)) as one table (256, 4) for each channel; `light` multiplies a row of each.

    The fourth column is 1: it makes a row 32 or 16 bytes, which NumPy gathers fastest, and is the constant of
    an affine map that may follow.
    """

    red: NDArray[np.floating[Any]]
    green: NDArray[np.floating[Any]]
    blue: NDArray[np.floating[Any]]

    @classmethod
    def of(cls, matrix: NDArray[np.float64], dtype: type[np.floating[Any]] = np.float64) -> DensityTables:
        density = -np.log(np.arange(1, 257) / IO)
        exponents = -density[None, :, None] * matrix.T[:, None, :]
        # a third of the range for each factor: a product of three never overflows, however wild the matrix
        most = np.log(np.finfo(dtype).max) / 3 - 2
        tables = np.ones((3, 256, 4))
        tables[..., :3] = np.exp(np.clip(exponents, -most, most))
        tables[0, :, :3] *= IO
        return cls(*tables.astype(dtype))

    def light(self, pixels: RGB) -> NDArray[np.floating[Any]]:
        """Pixels (N, 3) to (N, 4): the light in R, G, B on the scale of I + 1, and 1."""
        light = self.red.take(pixels[:, 0], axis=0)
        light *= self.green.take(pixels[:, 1], axis=0)
        light *= self.blue.take(pixels[:, 2], axis=0)
        return light


def _transform(rgb: RGB, matrix: NDArray[np.float64], *, minus_one: bool, rounded: bool) -> RGB:
    """A linear change of densities, pixel by pixel, back to 8 bits."""
    tables = DensityTables.of(matrix)
    pixels = np.ascontiguousarray(rgb).reshape(-1, 3)
    out = np.empty_like(pixels)
    for start in range(0, len(pixels), _BLOCK):
        light = tables.light(pixels[start : start + _BLOCK])[:, :3]
        if minus_one:
            light -= 1
        if rounded:
            np.rint(light, out=light)
        out[start : start + _BLOCK] = np.clip(light, 0, 255, out=light)
    return out.reshape(rgb.shape)


def stain_change(hematoxylin: float, eosin: float) -> NDArray[np.float64]:
    """(3, 3): from densities to densities with the two stains multiplied."""
    change: NDArray[np.float64] = STAINS.T @ np.diag([hematoxylin, eosin, 1.0]) @ FORWARD
    return change


def augment_stains(rgb: RGB, hematoxylin: float, eosin: float) -> RGB:
    """Rakhlin's stain augmentation: the two stains multiplied, truncated to 8 bits as published."""
    return _transform(rgb, stain_change(hematoxylin, eosin), minus_one=True, rounded=False)


@dataclass(frozen=True)
class StainFit:
    """What Macenko's method finds in an image."""

    he: NDArray[np.float64]
    """(3, 2): rows R, G, B; columns hematoxylin, eosin; unit length."""
    max_c: NDArray[np.float64]
    """(2,): the 99th percentile of each stain's amount over all pixels."""
    eigenvalues: NDArray[np.float64]
    """(3,): of the covariance of tissue densities, largest first."""
    tissue_pixels: int

    def matrix(self) -> NDArray[np.float64]:
        """(3, 3): from the densities of the image to those of the reference."""
        scale = np.diag(MAX_C_REF / self.max_c)
        to_reference: NDArray[np.float64] = HE_REF @ scale @ np.linalg.pinv(self.he)
        return to_reference


def fit_macenko(rgb: RGB, *, beta: float = 0.15, alpha: float = 1.0) -> StainFit | None:
    """Macenko's stain directions; None where the image is degenerate: hardly any tissue, or a single stain.

    The published code takes the first two eigenvectors that a general solver happens to return; this sorts
    them and fixes their signs, which gives the same bytes wherever the solver happens to be in order.
    """
    density = optical_density(rgb).reshape(-1, 3)
    tissue = density[(density >= beta).all(axis=1)]
    if len(tissue) < LEAST_TISSUE_PIXELS:
        return None
    eigenvalues, vectors = np.linalg.eigh(np.cov(tissue, rowvar=False))
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    if eigenvalues[1] <= 1e-9 * max(eigenvalues[0], 1e-3):
        return None
    plane = vectors[:, :2] * _signs(vectors[:, :2], tissue)
    projected = tissue @ plane
    angles = np.percentile(np.arctan2(projected[:, 1], projected[:, 0]), [alpha, 100 - alpha])
    ends = plane @ np.stack([np.cos(angles), np.sin(angles)])
    he = ends if ends[0, 0] > ends[0, 1] else ends[:, ::-1]
    if np.linalg.svd(he, compute_uv=False)[1] < 1e-6:
        return None
    amounts = np.linalg.pinv(he) @ density.T
    max_c = np.percentile(amounts, 99, axis=1)
    if (max_c <= 0).any():
        return None
    return StainFit(he, max_c, eigenvalues, len(tissue))


def _signs(vectors: NDArray[np.float64], tissue: NDArray[np.float64]) -> NDArray[np.float64]:
    """Signs that keep the cloud away from ±π: it lies on the positive side of the first vector.

    Tissue densities are positive, so this is the published "first component positive" wherever that is safe.
    """
    first = 1.0 if tissue.mean(axis=0) @ vectors[:, 0] >= 0 else -1.0
    second = 1.0 if vectors[np.abs(vectors[:, 1]).argmax(), 1] >= 0 else -1.0
    return np.array([first, second])


@dataclass(frozen=True)
class Normalised:
    """A normalised image; where `fit` is None the image was degenerate and is returned unchanged."""

    rgb: RGB
    fit: StainFit | None

    @property
    def degenerate(self) -> bool:
        return self.fit is None


def macenko_published(rgb: RGB, fit: StainFit | None = None) -> Normalised:
    """Macenko normalisation byte for byte as published: truncated, and the 1 once added is not taken off."""
    fit = fit or fit_macenko(rgb)
    if fit is None:
        return Normalised(rgb, None)
    return Normalised(_transform(rgb, fit.matrix(), minus_one=False, rounded=False), fit)


def macenko(rgb: RGB, fit: StainFit | None = None) -> Normalised:
    """Macenko normalisation put right: rounded, and the 1 of the density taken off again.

    With the `fit` of another image (a whole slide, say) the colours of many patches change alike.
    """
    fit = fit or fit_macenko(rgb)
    if fit is None:
        return Normalised(rgb, None)
    return Normalised(_transform(rgb, fit.matrix(), minus_one=True, rounded=True), fit)
