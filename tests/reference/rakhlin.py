"""The steps of the published classifier, one after the other; the fast implementation is compared to them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.color import RGB, augment_stains
from lobule.methods.rakhlin.crops import draw_crop, draw_stains

Probabilities = NDArray[np.floating[Any]]
CARCINOMA_PAIRS = ((0, 1), (2, 3))
"""Normal and benign against in situ and invasive."""


def augmented_crops(
    normalised: RGB, size: int, rng: np.random.Generator, *, count: int = 20, subject: object = None
) -> RGB:
    """(count, size, size, 3): one pair of stain factors for the whole image, then its crops."""
    height, width = normalised.shape[:2]
    stained = augment_stains(normalised, *draw_stains(rng))
    return np.stack([draw_crop(rng, height, width, size, subject).of(stained) for _ in range(count)])


def fuse(probabilities: Probabilities) -> NDArray[np.float64]:
    """(models, images, augmentations, classes) to (images, classes): the plain mean, all weights equal."""
    fused: NDArray[np.float64] = probabilities.astype(np.float64).mean(axis=(0, 2))
    return fused


def fuse_held_out(probabilities: Probabilities, fold_of_image: NDArray[np.intp]) -> NDArray[np.float64]:
    """Cross-validation: (sets, folds, seeds, images, augmentations, classes) to (images, classes).

    An image is predicted only by the models of the fold that left it out.
    """
    images = np.arange(probabilities.shape[3])
    held_out = probabilities[:, fold_of_image, :, images]  # (images, sets, seeds, augmentations, classes)
    fused: NDArray[np.float64] = held_out.astype(np.float64).mean(axis=(1, 2, 3))
    return fused


def geometric_mean(probabilities: Probabilities, floor: float = 1e-7) -> NDArray[np.float64]:
    """(images, augmentations, classes) to (images, classes); in the published code, and unused there."""
    mean: NDArray[np.float64] = np.exp(np.log(probabilities.astype(np.float64) + floor).mean(axis=1))
    mean /= mean.sum(axis=-1, keepdims=True)
    return mean
