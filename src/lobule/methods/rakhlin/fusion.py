"""How the predictions of many models become one: means over sets, folds, seeds and augmentations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.floating[Any]]
CARCINOMA_PAIRS = ((0, 1), (2, 3))
"""Normal and benign against in situ and invasive."""


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


def merged(
    probabilities: Probabilities, groups: Sequence[Sequence[int]] = CARCINOMA_PAIRS
) -> NDArray[np.float64]:
    """(..., classes) to (..., groups): the largest of each group, over their sum.

    Not the sum of each group: so the merged label is always the group of the winning class.
    """
    columns = [probabilities[..., list(group)].max(axis=-1) for group in groups]
    largest: NDArray[np.float64] = np.stack(columns, axis=-1).astype(np.float64)
    largest /= largest.sum(axis=-1, keepdims=True)
    return largest
