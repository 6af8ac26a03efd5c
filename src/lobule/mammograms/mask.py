"""Set the background of a mammogram to exactly 0, also in film scans and images with white borders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from lobule.errors import BlankMammogram
from lobule.mammograms.published.crop import largest_component
from lobule.mammograms.record import Decision

GREY_SHARE = 0.10
"""Share of the non-zero area above which dark background counts as grey; letters and labels cover less."""
DARK_SHARE = 0.20
"""A background is darker than this share of the breast's median; fat at the skin is brighter."""
WHITE_SHARE = 0.85
"""A border is white where this share of a row or column is brighter than this share of the white."""


@dataclass(frozen=True)
class Cleaned:
    """An image whose background is exactly 0, and the decision on how it was obtained."""

    pixels: NDArray[np.uint16]
    decision: Decision


def with_black_background(pixels: NDArray[np.uint16], subject: object = None) -> Cleaned:
    """Return the image unchanged if its background is 0; otherwise set everything but the breast to 0.

    Cropping treats every value above 0 as breast, but film scans have grey film, white borders and labels.
    """
    if pixels.size == 0 or pixels.max() == pixels.min():
        raise BlankMammogram(
            "the image is empty",
            subject=subject,
            expected="a breast brighter than its background",
            actual=f"{pixels.shape[1]} × {pixels.shape[0]} px of one value" if pixels.size else "no pixels",
        )
    step = max(1, min(pixels.shape) // 400)
    small = ndimage.uniform_filter(pixels.astype(np.float32), step)[::step, ::step]
    white = _white_edges(small)
    background, grey_share = _grey_background(small, white)
    if background is None and not white.any():
        return Cleaned(pixels, Decision("background", "accepted", "The background is exactly 0."))
    breast = _breast(small, white, background)
    mask = breast.repeat(step, axis=0).repeat(step, axis=1)[: pixels.shape[0], : pixels.shape[1]]
    cleaned = np.where(mask, np.maximum(pixels, 1), 0).astype(np.uint16)
    dark_areas = f"{grey_share:.0%} of the non-zero area is dark background" if background is not None else ""
    borders = "there are white borders" if white.any() else ""
    sentence = (
        f"The background is not 0: {' and '.join(filter(None, (dark_areas, borders)))}. "
        "The breast was found by its brightness, and everything else set to 0."
    )
    return Cleaned(cleaned, Decision("background", "noted", sentence))


def _grey_background(
    image: NDArray[np.float32], white: NDArray[np.bool_]
) -> tuple[NDArray[np.float32] | None, float]:
    """The values of a background that is not 0 (or None), and its share of the non-zero area.

    The background is dark and touches the frame at the top, the bottom or the side the breast points to. Dark
    fat inside the breast does not touch the frame, and fat at the skin is not dark enough.
    """
    inner = ~white & (image > 0)
    values = np.log(image[inner])
    if values.size == 0 or values.max() == values.min():
        return None, 0.0
    level = float(np.exp(threshold_otsu(values)))
    labels, _ = ndimage.label((image <= level) & ~white)
    front = labels[:, -1] if image[:, : image.shape[1] // 2].sum() > image.sum() / 2 else labels[:, 0]
    outer = np.unique(np.concatenate([labels[0], labels[-1], front]))
    reached = np.isin(labels, outer[outer > 0]) & inner
    share = float(reached.sum()) / float(inner.sum())
    background = image[reached]
    is_grey = share > GREY_SHARE and np.median(background) < DARK_SHARE * np.median(image[image > level])
    return (background if is_grey else None), share


def _breast(
    image: NDArray[np.float32], white: NDArray[np.bool_], background: NDArray[np.float32] | None
) -> NDArray[np.bool_]:
    """The largest region brighter than the background, smoothed and without holes."""
    level = 0.0
    if background is not None:
        black = float(np.median(background))
        spread = 1.4826 * float(np.median(np.abs(background - black)))
        bright = float(np.percentile(image[~white], 99)) - black
        level = black + float(np.clip(3 * spread, 0.02 * bright, 0.25 * bright))
    return _largest_smooth(~white & (image > level))


def _white_edges(image: NDArray[Any]) -> NDArray[np.bool_]:
    """(H, W) True in rows and columns at the edges that are white over most of their length.

    A breast at the chest wall is also bright, but never white along the whole edge.
    """
    white = image >= WHITE_SHARE * image.max()
    edges = np.zeros(image.shape, bool)
    rows, columns = white.mean(axis=1) > WHITE_SHARE, white.mean(axis=0) > WHITE_SHARE
    edges[: _run(rows)] = edges[len(rows) - _run(rows[::-1]) :] = True
    edges[:, : _run(columns)] = edges[:, len(columns) - _run(columns[::-1]) :] = True
    return edges


def _run(flags: NDArray[np.bool_]) -> int:
    """Number of True values at the start."""
    return len(flags) if flags.all() else int(np.argmin(flags))


def _largest_smooth(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    radius = max(2, min(mask.shape) // 80)
    disk = np.hypot(*np.mgrid[-radius : radius + 1, -radius : radius + 1]) <= radius
    # The breast continues outside the frame, so opening must not remove its corners at the chest wall.
    padded = np.pad(mask, radius, mode="edge")
    opened = ndimage.binary_opening(padded, disk)[radius:-radius, radius:-radius]
    largest = largest_component(opened)
    filled: NDArray[np.bool_] = mask if largest is None else ndimage.binary_fill_holes(largest)
    return filled
