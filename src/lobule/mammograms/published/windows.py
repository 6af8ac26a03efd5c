"""The windows that a network reads: their positions, random variation and conversion to its input.

Every random number comes from NumPy's legacy `RandomState`, in the order of the published code. The same seed
therefore gives the published windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lobule.mammograms.published.centres import window_size
from lobule.mammograms.published.crop import Window
from lobule.mammograms.published.resize import resize_cubic
from lobule.mammograms.views import VIEWS, angle_of

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Augmentation:
    """Largest shift of a window (rows, columns) and of each of its edges, in pixels."""

    position: tuple[int, int] = (100, 100)
    size: int = 100

    @property
    def margins(self) -> tuple[int, int]:
        """Free rows and columns that a window needs around it to move by the largest shifts."""
        return self.position[0] + self.size, self.position[1] + self.size


NO_AUGMENTATION = Augmentation((0, 0), 0)


@dataclass(frozen=True)
class Padding:
    """Zeros added around an image."""

    top: int = 0
    bottom: int = 0
    right: int = 0


@dataclass(frozen=True)
class Draws:
    """The random numbers of one window, all between -1 and 1."""

    position: tuple[float, float] | None
    """Shift down and right; None if the position is not augmented."""
    edges: tuple[float, float, float, float] | None
    """Top, bottom, left, right."""


@dataclass(frozen=True)
class WindowPlan:
    """One window of one image: the padding, the pixels to cut and the size to resize them to."""

    size: tuple[int, int]
    padding: Padding
    padded_shape: tuple[int, int]
    after_position: Window
    window: Window
    """In the padded image."""
    draws: Draws

    @property
    def unpadded(self) -> Window:
        """The window in the image without padding; it may extend past the image."""
        window, top = self.window, self.padding.top
        return Window(window.top - top, window.bottom - top, window.left, window.right)


def draw_numbers(rng: np.random.RandomState | None, augmentation: Augmentation) -> Draws:
    """Draw the random numbers of one window.

    Those of the edges are drawn even without augmentation, because the published code does so and the later
    windows depend on it.
    """
    position = None
    if augmentation.position != (0, 0):
        if rng is None:
            raise ValueError("augmentation needs a random stream")
        down, right = rng.uniform(-1, 1, size=2)
        position = (float(down), float(right))
    if rng is None:
        return Draws(position, None)
    top, bottom, first, last = (float(value) for value in rng.uniform(-1, 1, size=4))
    return Draws(position, (top, bottom, first, last))


def plan_window(
    shape: tuple[int, int],
    view: str,
    size: tuple[int, int],
    centre: tuple[int, int],
    augmentation: Augmentation = NO_AUGMENTATION,
    rng: np.random.RandomState | None = None,
) -> WindowPlan:
    """Plan the window of an image of `shape` (cropped, right-pointing) around its best centre."""
    draws = draw_numbers(rng, augmentation)
    rows, columns = _around(centre[0], size[0]), _around(centre[1], size[1])
    padding, padded, rows, columns = _padded(shape, view, size, augmentation, rows, columns)
    rows, columns = _inside(rows, padded[0]), _inside(columns, padded[1])
    if draws.position is not None:
        rows = _moved(rows, padded[0], augmentation.position[0], draws.position[0])
        columns = _moved(columns, padded[1], augmentation.position[1], draws.position[1])
    after_position = Window(*rows, *columns)
    window = after_position
    if draws.edges is not None:
        window = _edges_moved(after_position, padded, size, augmentation.size, draws.edges)
    return WindowPlan(size, padding, padded, after_position, window, draws)


def _around(centre: int, length: int) -> tuple[int, int]:
    start = centre - length // 2
    return start, start + length


def _padded(
    shape: tuple[int, int],
    view: str,
    size: tuple[int, int],
    augmentation: Augmentation,
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> tuple[Padding, tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Pad an axis that is too short for the window to move. On a padded axis the centre has no effect.

    A CC view is padded above and below, an MLO view only below, and every view on the right.
    """
    margin_rows, margin_columns = augmentation.margins
    top = bottom = right = 0
    if angle_of(view) == "CC":
        if shape[0] < size[0] + 2 * margin_rows:
            total = size[0] - shape[0] + 2 * margin_rows
            top, bottom = total // 2, total - total // 2
            rows = (margin_rows, margin_rows + size[0])
    elif shape[0] < size[0] + margin_rows:
        bottom = size[0] - shape[0] + margin_rows
        rows = (0, size[0])
    if shape[1] < size[1] + margin_columns:
        right = size[1] - shape[1] + margin_columns
        columns = (0, size[1])
    padded = (shape[0] + top + bottom, shape[1] + right)
    return Padding(top, bottom, right), padded, rows, columns


def _inside(span: tuple[int, int], extent: int) -> tuple[int, int]:
    start, end = span
    if start < 0:
        return 0, end - start
    if end > extent:
        return extent - (end - start), extent
    return span


def _moved(span: tuple[int, int], extent: int, limit: int, amount: float) -> tuple[int, int]:
    """Move a span by a fraction of its free room.

    A span at an edge of the image moves away from that edge.
    """
    start, end = span
    if start == 0:
        amount = abs(amount)
    elif end == extent:
        amount = -abs(amount)
    room = extent - end if amount >= 0 else start
    shift = round(min(limit, room) * amount)
    return start + shift, end + shift


def _edges_moved(
    window: Window,
    padded: tuple[int, int],
    size: tuple[int, int],
    limit: int,
    amounts: tuple[float, float, float, float],
) -> Window:
    """Move each edge independently, by at most the smallest free room of all edges."""
    top, bottom, left, right = window.edges()
    vertical = min(limit, top, padded[0] - bottom, left, padded[1] - right)
    horizontal = round(vertical * (size[1] / size[0]))
    return Window(
        top + round(vertical * amounts[0]),
        bottom + round(vertical * amounts[1]),
        left + round(horizontal * amounts[2]),
        right + round(horizontal * amounts[3]),
    )


def cut(image: NDArray[Any], window: Window, size: tuple[int, int]) -> Floats:
    """Cut a window from an image (H, W) and resize it: float32, zeros outside the image, not standardised."""
    piece = window.padded(image).astype(np.float32)
    filled = window.inside(image.shape).relative_to(window)
    return piece if window.shape == size else resize_cubic(piece, size, filled.edges())


def standardise(image: NDArray[Any], dtype: type[np.floating[Any]] = np.float32) -> NDArray[Any]:
    """Return a copy with mean 0 and standard deviation 1.

    It is computed in `dtype`: float32 for classifiers, float64 for patches.
    """
    result = np.array(image, dtype=dtype, order="C")
    result -= result.mean()
    result /= np.maximum(result.std(), dtype(1e-5))
    return result


def network_input(
    image: NDArray[Any], window: Window, size: tuple[int, int], heatmaps: Iterable[NDArray[Any]] | None = None
) -> Floats:
    """Return the input (C, h, w): the standardised window, then the same window of both heatmaps.

    The order of the heatmaps is benign, malignant. All are in the cropped, right-pointing frame. Heatmaps are
    resized like the image but not standardised.
    """
    layers = () if heatmaps is None else heatmaps
    return np.stack([standardise(cut(image, window, size)), *(cut(layer, window, size) for layer in layers)])


def shrunk(channels: Floats, factor: int) -> Floats:
    """Average (C, h, w) over squares of `factor` × `factor` pixels.

    Incomplete squares at the end are dropped.
    """
    if factor == 1:
        return channels
    count, height, width = len(channels), channels.shape[1] // factor, channels.shape[2] // factor
    divisible = channels[:, : height * factor, : width * factor]
    # Adding slices is several times faster than the mean over two axes of a five-dimensional view.
    bands: Floats = np.zeros((count, height, width * factor), np.float32)
    sums: Floats = np.zeros((count, height, width), np.float32)
    for offset in range(factor):
        bands += divisible[:, offset::factor]
    for offset in range(factor):
        sums += bands[:, :, offset::factor]
    return sums / np.float32(factor**2)


class ViewImage(Protocol):
    """An image of a view: the size of its crop and the best centre of a window determine its windows."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def centre(self) -> tuple[int, int]: ...


def plan_exam(
    views: Mapping[str, Sequence[ViewImage]],
    rng: np.random.RandomState,
    *,
    epochs: int = 10,
    augmentation: Augmentation = Augmentation(),
    size: tuple[int, int] | None = None,
) -> list[dict[str, tuple[int, WindowPlan]]]:
    """For each epoch and view, choose one of the view's images and plan its window.

    In the published code one stream serves a whole list of exams, so the windows depend on the order of the
    list. Views that the exam lacks consume no random numbers.

    Returns:
        For each epoch, the index of the image and its window, by view.
    """
    plans = []
    for _ in range(epochs):
        epoch: dict[str, tuple[int, WindowPlan]] = {}
        for view in VIEWS:
            images = views.get(view, ())
            if not images:
                continue
            index = int(rng.randint(0, len(images))) if augmentation != NO_AUGMENTATION else 0
            chosen, target_size = images[index], size or window_size(view)
            plan = plan_window(chosen.shape, view, target_size, chosen.centre, augmentation, rng)
            epoch[view] = index, plan
        plans.append(epoch)
    return plans


def plan_image(
    image: ViewImage,
    view: str,
    *,
    epochs: int = 10,
    augmentation: Augmentation = Augmentation(),
    seed: int = 0,
    size: tuple[int, int] | None = None,
) -> list[WindowPlan]:
    """Plan the windows of a single image. Every image has a new stream, and no image index is drawn."""
    rng = np.random.RandomState(seed)
    target_size = size or window_size(view)
    return [
        plan_window(image.shape, view, target_size, image.centre, augmentation, rng) for _ in range(epochs)
    ]
