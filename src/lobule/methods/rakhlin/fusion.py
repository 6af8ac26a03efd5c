"""Merging classes: the probabilities of groups of classes from those of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.floating[Any]]
CARCINOMA_PAIRS = ((0, 1), (2, 3))
"""Normal and benign against in situ and invasive."""


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
