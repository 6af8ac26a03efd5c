"""The four views of an exam and the direction in which a stored breast points."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

View = Literal["L-CC", "R-CC", "L-MLO", "R-MLO"]
Pointing = Literal["left", "right"]
"""The side of the nipple; the chest wall is on the other side."""

VIEWS: tuple[View, ...] = get_args(View)
"""The views in the order that every list, network and random stream of the method uses."""


def angle_of(view: str) -> Literal["CC", "MLO"]:
    """The angle of a view, such as CC for `L-CC` and for `CC`."""
    return "MLO" if view.endswith("MLO") else "CC"


def stored_pointing(view: str, horizontal_flip: str) -> Pointing:
    """Direction of a stored breast. With NO, left breasts point right and right ones left; YES swaps them."""
    return "right" if (view[0] == "L") == (horizontal_flip == "NO") else "left"


def is_mirrored(view: str, horizontal_flip: str) -> bool:
    """Whether the stored image is mirrored relative to the right-pointing frame that networks use.

    It is not if the flip is neither NO nor YES, or if the view has no side.
    """
    return (horizontal_flip, view[:2]) in (("NO", "R-"), ("YES", "L-"))


def pointing_of_pixels(image: NDArray[Any]) -> Pointing:
    """Direction of the breast: away from the side whose outer columns contain more non-zero pixels.

    Outer columns are a twentieth of the non-zero width, because film scans leave room behind the chest wall.
    If both sides are equal, a twentieth of the image decides, and otherwise the result is right.
    """
    per_column = np.count_nonzero(image, axis=0)
    filled = np.flatnonzero(per_column)
    if filled.size == 0:
        return "right"
    for counts in (per_column[filled[0] : filled[-1] + 1], per_column):
        outer = max(1, len(counts) // 20)
        first, last = counts[:outer].sum(), counts[-outer:].sum()
        if first != last:
            return "left" if last > first else "right"
    return "right"
