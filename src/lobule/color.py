"""Colours of stained tissue: optical density, H&E stains, Macenko normalisation and stain augmentation.

Optical density is defined as -log((I + 1) / 240), so it is negative for I = 240 to 255. Changes of stains are
linear in the density. The new intensity 240 · exp(-(A · OD)) is therefore a product of three table entries,
one for each channel, and no logarithm or exponential has to be computed per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

RGB = NDArray[np.uint8]
"""Array (..., 3) of uint8 in the order red, green, blue."""

Normalisation = Literal["none", "macenko"]
"""How the stains of a slide are normalised before a model sees it."""

IO = 240.0
"""Intensity of clear glass."""

HE_REF = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
"""Macenko's reference stains: rows R, G, B; columns hematoxylin, eosin."""
MAX_C_REF = np.array([1.9705, 1.0308])

FORWARD = np.array([[1.88, -0.07, -0.60], [-1.02, 1.13, -0.48], [-0.55, -0.13, 1.57]])
"""Published matrix from densities to stains. It is rounded, so it is not the exact inverse of `STAINS`."""
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Ruifrok and Johnston's stains: rows hematoxylin, eosin, residual; columns R, G, B."""

LEAST_TISSUE_PIXELS = 100
_BLOCK = 1 << 15
"""Number of pixels per block; the intermediate float64 rows fit into the second-level cache."""


def optical_density(rgb: RGB, log: Literal["natural", "10"] = "natural") -> NDArray[np.float64]:
    """-log((I + 1) / 240) of each value, in the shape of `rgb`."""
    levels = np.arange(1, 257) / IO
    return (-np.log(levels) if log == "natural" else -np.log10(levels))[rgb]


@dataclass(frozen=True)
class DensityTables:
    """Tables (256, 4) for each channel, whose rows multiplied give 240 · exp(-(A · OD)).

    The fourth column is 1. It makes a row 32 or 16 bytes, which NumPy gathers fastest, and serves as the
    constant of a following affine map.
    """

    red: NDArray[np.floating[Any]]
    green: NDArray[np.floating[Any]]
    blue: NDArray[np.floating[Any]]

    @classmethod
    def of(cls, matrix: NDArray[np.float64], dtype: type[np.floating[Any]] = np.float64) -> DensityTables:
        density = -np.log(np.arange(1, 257) / IO)
        exponents = -density[None, :, None] * matrix.T[:, None, :]
        # Each factor gets a third of the range of exponents, so that a product of three cannot overflow.
        most = np.log(np.finfo(dtype).max) / 3 - 2
        tables = np.ones((3, 256, 4))
        tables[..., :3] = np.exp(np.clip(exponents, -most, most))
        tables[0, :, :3] *= IO
        return cls(*tables.astype(dtype))

    def light(self, pixels: RGB) -> NDArray[np.floating[Any]]:
        """The light (N, 4) of pixels (N, 3): R + 1, G + 1, B + 1 and 1."""
        light = self.red.take(pixels[:, 0], axis=0)
        light *= self.green.take(pixels[:, 1], axis=0)
        light *= self.blue.take(pixels[:, 2], axis=0)
        return light


def _transform(rgb: RGB, matrix: NDArray[np.float64], *, minus_one: bool, rounded: bool) -> RGB:
    """Apply a linear change of densities to each pixel and convert the result to 8 bits."""
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
    """Matrix (3, 3) on densities that multiplies the amounts of the two stains."""
    return np.asarray(STAINS.T @ np.diag([hematoxylin, eosin, 1.0]) @ FORWARD)


def augment_stains(rgb: RGB, hematoxylin: float, eosin: float) -> RGB:
    """Rakhlin's stain augmentation: multiply the two stains and truncate to 8 bits, as published."""
    return _transform(rgb, stain_change(hematoxylin, eosin), minus_one=True, rounded=False)


@dataclass(frozen=True)
class StainFit:
    """Stain directions and amounts that Macenko's method estimates from an image."""

    he: NDArray[np.float64]
    """Stain directions (3, 2): rows R, G, B; unit columns hematoxylin, eosin."""
    max_c: NDArray[np.float64]
    """The 99th percentile (2,) of each stain's amount over all pixels."""
    eigenvalues: NDArray[np.float64]
    """Eigenvalues (3,) of the covariance of tissue densities, in descending order."""
    tissue_pixels: int

    def matrix(self) -> NDArray[np.float64]:
        """Matrix (3, 3) from the densities of the image to those of the reference."""
        scale = np.diag(MAX_C_REF / self.max_c)
        return np.asarray(HE_REF @ scale @ np.linalg.pinv(self.he))


def fit_macenko(rgb: RGB, *, beta: float = 0.15, alpha: float = 1.0) -> StainFit | None:
    """Estimate stain directions by Macenko's method; None for images with too little tissue or a single
    stain.

    The published code uses the first two eigenvectors of a general solver, which returns them in no
    particular order. Here they are sorted and their signs are fixed. Whenever the solver happens to return
    that order, the result is identical to the byte.
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
    """Signs of the eigenvectors that keep the angles of the tissue densities away from ±π.

    The mean density lies on the positive side of the first vector. Because tissue densities are positive,
    this agrees with the published rule "first component positive" wherever that rule is safe.
    """
    first = 1.0 if tissue.mean(axis=0) @ vectors[:, 0] >= 0 else -1.0
    second = 1.0 if vectors[np.abs(vectors[:, 1]).argmax(), 1] >= 0 else -1.0
    return np.array([first, second])


@dataclass(frozen=True)
class Normalised:
    """A normalised image. If `fit` is None, the stains could not be estimated and the image is unchanged."""

    rgb: RGB
    fit: StainFit | None

    @property
    def degenerate(self) -> bool:
        return self.fit is None


def macenko_published(rgb: RGB, fit: StainFit | None = None) -> Normalised:
    """Macenko normalisation exactly as published: truncated, and without subtracting the added 1."""
    fit = fit or fit_macenko(rgb)
    if fit is None:
        return Normalised(rgb, None)
    return Normalised(_transform(rgb, fit.matrix(), minus_one=False, rounded=False), fit)


def macenko(rgb: RGB, fit: StainFit | None = None) -> Normalised:
    """Corrected Macenko normalisation: values are rounded, and the 1 in the density is subtracted again.

    Pass the `fit` of another image, such as the whole slide, to change the colours of all patches in the same
    way.
    """
    fit = fit or fit_macenko(rgb)
    if fit is None:
        return Normalised(rgb, None)
    return Normalised(_transform(rgb, fit.matrix(), minus_one=True, rounded=True), fit)
