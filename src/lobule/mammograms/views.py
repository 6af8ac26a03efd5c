"""The four views of an exam and which way a stored breast points."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

View = Literal["L-CC", "R-CC", "L-MLO", "R-MLO"]
Pointing = Literal["left", "right"]
"""Where the nipple is: the chest wall is on the other side."""

VIEWS: tuple[View, ...] = get_args(View)
"""In the order that every list, network and random stream of the method uses."""


def angle_of(view: str) -> Literal["CC", "MLO"]:
    """`L-CC` and a bare `CC` are both CC."""
    return "MLO" if view.endswith("MLO") else "CC"


def stored_pointing(view: str, horizontal_flip: str) -> Pointing:
    """NO stores left breasts pointing right and right breasts pointing left; YES the other way round."""
    return "right" if (view[0] == "L") == (horizontal_flip == "NO") else "left"


def is_mirrored(view: str, horizontal_flip: str) -> bool:
    """Whether the stored columns run against the right-pointing frame that every network sees.

    A flip that is neither NO nor YES, or a view without its side, mirrors nothing.
    """
    return (horizontal_flip, view[:2]) in (("NO", "R-"), ("YES", "L-"))


def right_pointing(image: NDArray[Any], view: str, horizontal_flip: str) -> NDArray[Any]:
    """The image (H, W) as networks see it; its own inverse, so heatmaps return to the file the same way."""
    return image[:, ::-1] if is_mirrored(view, horizontal_flip) else image


def pointing_of_pixels(image: NDArray[Any]) -> Pointing:
    """Which way the breast points: away from the side whose outer columns hold more non-zero pixels.

    Outer columns are a twentieth of the width that holds any, since film scans leave room behind the chest
    wall; where those hold equally many, a twentieth of the image decides, and failing that it points right.
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
