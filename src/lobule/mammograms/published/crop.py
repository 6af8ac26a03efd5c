"""Detection of the breast in a stored view: the window to crop to, and the landmarks for later windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lobule.errors import BlankMammogram
from lobule.mammograms.views import Pointing

Mask = NDArray[np.bool_]
Quirks = Literal["reference", "fixed"]
"""`reference` reproduces the errors of the published code exactly; `fixed` repairs them."""


@dataclass(frozen=True)
class Window:
    """Half-open range of rows and columns of an image. Some functions allow it to extend past the image."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    def of(self, image: NDArray[Any]) -> NDArray[Any]:
        return image[self.top : self.bottom, self.left : self.right]

    def edges(self) -> tuple[int, int, int, int]:
        return self.top, self.bottom, self.left, self.right

    def inside(self, shape: tuple[int, ...]) -> Window:
        """Return the intersection with an image of this shape, which may be empty."""
        top, left = min(max(0, self.top), shape[0]), min(max(0, self.left), shape[1])
        return Window(top, max(top, min(self.bottom, shape[0])), left, max(left, min(self.right, shape[1])))

    def relative_to(self, other: Window) -> Window:
        """Return the same window in the frame of another one."""
        return Window(
            self.top - other.top, self.bottom - other.top, self.left - other.left, self.right - other.left
        )

    def padded(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return the window of an image (H, W), with zeros outside the image."""
        pixels = np.zeros(self.shape, image.dtype)
        inside = self.inside(image.shape)
        inside.relative_to(self).of(pixels)[:] = inside.of(image)
        return pixels


@dataclass(frozen=True)
class Landmarks:
    """The rightmost and the lowest point of the breast, in the cropped image mirrored to point right."""

    rightmost_rows: tuple[int, int]
    """First and last row of the breast's rightmost column, in the lower two thirds of the image."""
    rightmost_x: int
    bottommost_y: int
    bottommost_columns: tuple[int, int]


@dataclass(frozen=True)
class Crop:
    """The position of the breast in the stored image."""

    window: Window
    landmarks: Landmarks
    distance_from_starting_side: int
    """Number of columns between the breast and the edge that it should touch. It is only recorded: a large
    distance is not an error."""


def eroded(mask: Mask, iterations: int) -> Mask:
    """Erode `iterations` times by the 4-neighbour cross. Pixels outside the image count as False.

    The pixels that remain are those more than `iterations` steps (L1 distance) from the nearest False.
    """
    from scipy import ndimage

    steps = ndimage.distance_transform_cdt(np.pad(mask, 1), metric="taxicab")
    remaining: Mask = steps[1:-1, 1:-1] > iterations
    return remaining


def dilated(mask: Mask, iterations: int) -> Mask:
    """Dilate `iterations` times by the 4-neighbour cross, within the image."""
    from scipy import ndimage

    if not mask.any():
        return mask.copy()
    steps = ndimage.distance_transform_cdt(~mask, metric="taxicab")
    reached: Mask = steps <= iterations
    return reached


def largest_component(mask: Mask) -> Mask | None:
    """Return the 4-connected component with the most pixels, or None for an empty mask.

    Of components of equal size, the first in raster order is returned.
    """
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    largest: Mask = labels == 1 + int(np.argmax(sizes))
    return largest


def breast_of(mask: Mask, iterations: int = 100) -> Mask:
    """Return the mask of the breast: erosion separates it from letters, and dilation restores it."""
    core = largest_component(eroded(mask, iterations))
    if core is None:
        raise BlankMammogram(
            "no breast was found in the image",
            expected=f"a bright region that survives {iterations} erosions, on a background of exactly 0",
            actual=f"{int(np.count_nonzero(mask))} non-zero pixels of {mask.size}",
            remedy="Check that the background is 0, or use fewer iterations for small images",
        )
    return dilated(core, iterations)


def crop_of(
    image: NDArray[Any],
    pointing: Pointing,
    *,
    iterations: int = 100,
    buffer: int = 50,
    quirks: Quirks = "reference",
) -> Crop:
    """Compute the crop of a stored view (H, W) whose breast points to `pointing`.

    `crop_of(image, …).window.of(image)` is the cropped image.
    """
    breast = breast_of(image > 0, iterations)
    height, width = breast.shape
    rows = np.flatnonzero(breast.any(axis=1))
    columns = np.flatnonzero(breast.any(axis=0))
    last_row = int(rows[-1])
    top = int(rows[0]) - min(int(rows[0]), buffer)
    bottom = last_row + 1 + min(height - last_row - 1, buffer)
    left, right = int(columns[0]), int(columns[-1]) + 1
    distance = left if pointing == "right" else width - right
    bottommost = np.flatnonzero(breast[last_row])
    ends = _from_chest_wall(int(bottommost[0]), int(bottommost[-1]), left, right, pointing, quirks)
    if pointing == "left":
        left -= min(left, buffer)
    else:
        right += min(width - right, buffer)
    window = Window(top, bottom, left, right)
    rightmost_rows, rightmost_x = _rightmost(window.of(breast), pointing, quirks)
    return Crop(window, Landmarks(rightmost_rows, rightmost_x, last_row - top, ends), distance)


def _from_chest_wall(
    first: int, last: int, left: int, right: int, pointing: Pointing, quirks: Quirks
) -> tuple[int, int]:
    """Convert two columns to distances from the chest wall's edge of the breast."""
    if pointing == "right":
        return first - left, last - left
    edge = right if quirks == "reference" else right - 1
    return edge - last, edge - first


def _rightmost(breast: Mask, pointing: Pointing, quirks: Quirks) -> tuple[tuple[int, int], int]:
    """Return the rows and the column furthest from the chest wall, ignoring the upper third.

    The upper third may show the arm.
    """
    skipped = breast.shape[0] // 3
    lower = breast[skipped:]
    columns = np.flatnonzero(lower.any(axis=0))
    column = int(columns[-1] if pointing == "right" else columns[0])
    rows = np.flatnonzero(lower[:, column]) + skipped
    x = column if pointing == "right" else breast.shape[1] - column - (0 if quirks == "reference" else 1)
    return (int(rows[0]), int(rows[-1])), x
