"""Images of views for the tests of windows: plain values, and images mirrored to point right."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from lobule.mammograms.views import is_mirrored


class ViewImage(NamedTuple):
    """The properties of an image that determine its windows."""

    shape: tuple[int, int]
    centre: tuple[int, int]


def right_pointing(image: NDArray[Any], view: str, horizontal_flip: str) -> NDArray[Any]:
    """The image (H, W) in the right-pointing frame. The function is its own inverse, also for heatmaps."""
    return image[:, ::-1] if is_mirrored(view, horizontal_flip) else image
