"""Detect tissue on a small picture of a slide, excluding glass, pen, cover-glass edges, padding and debris.

Tissue differs from glass in colour, not in brightness: haematoxylin and eosin both absorb green most, while
glass, shadows, dust and the edge of a cover glass are grey, however dark they are. Lengths are in µm, so
pictures of any resolution can be used; around 16 µm/px is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from lobule.units import Mpp

Mask = NDArray[np.bool_]
RGB = NDArray[np.uint8]
Plane = NDArray[np.float32]

DISC_ROWS = 16
"""Radius in pixels up to which dilation by a disc is computed row by row."""
EIGHT = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class TissueConfig:
    """Settings of tissue detection, stored with every result. Absorbances are optical densities."""

    method: Literal["stain", "camelyon"] = "stain"
    """"stain" is described above; "camelyon" is the Otsu recipe that is published with Camelyon16 code."""
    mpp: float = 16.0
    """µm/px at which a slide is read to detect its tissue."""
    smoothing_um: float = 8.0
    lowest_threshold: float = 0.02
    """Lower limit of the threshold on stain (green absorbance minus red or blue), for blank slides."""
    highest_threshold: float = 0.035
    """Upper limit of the threshold, so that a slide covered with tissue is not split in two."""
    darkest: int = 45
    """Pixels whose brightest channel is at most this are black: scanner padding, or ink."""
    closing_um: float = 24.0
    """Gaps up to twice this are closed."""
    hole_mm2: float = 0.05
    """Holes up to this area are filled."""
    hole_share: float = 0.05
    """Holes are also not filled above this share of the picture, so that limits fit small pictures."""
    debris_mm2: float = 0.01
    """Pieces smaller than this are removed."""
    debris_share: float = 0.01
    """Pieces of at least this share of the picture are kept; from 1 mm² on, `debris_mm2` decides."""
    pen_mm2: float = 0.05
    """Smaller areas of ink are ignored: specks of margin ink lie on real tissue."""
    pen_share: float = 0.5
    """Ink that covers at least this share of the picture is never ignored."""
    pen_margin_um: float = 60.0
    """Width of the margin around pen marks that is excluded."""
    line_um: float = 3000.0
    """Straight pieces longer than this and thinner than `line_width_um` are edges, not tissue."""
    line_width_um: float = 120.0

    pale_um: float = 50.0
    """Scale of the texture of fat. Pale areas thinner than twice this are not added; 0 adds no pale areas."""
    pale_absorbance: float = 0.015
    """Smallest mean absorbance of pale tissue, over all channels."""
    pale_texture: float = 0.008
    """Smallest standard deviation of the absorbance of pale tissue."""
    pale_reach_um: float = 200.0
    """Faintly stained areas without texture are added up to this distance from stained tissue."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Detected tissue, and the settings and thresholds used."""

    mask: Mask
    mpp: Mpp
    """µm/px of the mask."""
    pen: Mask
    """Pen marks with their margin, which are excluded from the mask."""
    threshold: float | None
    glass: tuple[float, float, float] | None
    """The estimated colour of glass; None if the method does not use it."""
    config: TissueConfig

    @property
    def area_mm2(self) -> float:
        return float(np.count_nonzero(self.mask)) * _pixel_mm2(self.mpp)

    @property
    def share(self) -> float:
        """Share of the picture that is tissue."""
        return float(self.mask.mean()) if self.mask.size else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "area_mm2": self.area_mm2,
            "share": self.share,
            "pen_mm2": float(np.count_nonzero(self.pen)) * _pixel_mm2(self.mpp),
            "threshold": self.threshold,
            "glass": self.glass,
            "mpp": [self.mpp.x, self.mpp.y],
            "config": self.config.to_dict(),
        }


def find_tissue(rgb: RGB, mpp: Mpp | float, config: TissueConfig | None = None) -> TissueMask:
    """Detect tissue on an RGB picture.

    Args:
        rgb: The picture, (height, width, 3) of uint8.
        mpp: µm/px of the picture.
        config: Settings; the defaults if None.

    Returns:
        The mask of tissue, of the same height and width.

    Raises:
        ValueError: `rgb` has another shape or type.
    """
    config = config or TissueConfig()
    scale = mpp if isinstance(mpp, Mpp) else Mpp.square(mpp)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"rgb must be (height, width, 3) of uint8, not {rgb.shape} of {rgb.dtype}")
    empty = np.zeros(rgb.shape[:2], dtype=bool)
    if rgb.size == 0:
        return TissueMask(empty, scale, empty, None, None, config)
    if config.method == "camelyon":
        return TissueMask(camelyon_mask(rgb), scale, empty, None, None, config)
    glass = _glass_colour(rgb)
    red, green, blue = (_absorbance(rgb[..., channel], glass[channel]) for channel in range(3))
    padding = _padding(rgb, config.darkest)
    limits = _limits_for_picture(config, np.count_nonzero(~padding) * _pixel_mm2(scale))
    grey = (red + green + blue) / np.float32(3)
    absorbances = [red, green, blue, green - np.minimum(red, blue)]
    red, green, blue, stain = _smoothed(absorbances, scale, config.smoothing_um)
    pen = _pen(red, green, blue, padding, scale, limits)
    threshold = _threshold(stain[~(pen | padding)], config)
    left_out = pen | _dilated(padding, scale, config.smoothing_um)
    mask = _cleaned((stain > threshold) & ~padding, left_out, scale, limits)
    mask = _with_pale_tissue(mask, stain, grey, left_out, scale, limits)
    return TissueMask(mask, scale, pen, threshold, glass, config)


def _limits_for_picture(config: TissueConfig, picture_mm2: float) -> TissueConfig:
    """Reduce the limits of area for a small picture: those of a slide would remove everything."""
    return replace(
        config,
        hole_mm2=min(config.hole_mm2, config.hole_share * picture_mm2),
        debris_mm2=min(config.debris_mm2, config.debris_share * picture_mm2),
        pen_mm2=min(config.pen_mm2, config.pen_share * picture_mm2),
    )


def camelyon_mask(rgb: RGB) -> Mask:
    """The method published with Camelyon16 code: Otsu thresholds of each channel and of the saturation.

    Background exceeds the threshold in all three channels. Tissue is the rest, where the saturation exceeds
    its threshold and every channel exceeds 50. The method is meant for level 6 (about 15.6 µm/px) and expects
    white where nothing was scanned.
    """
    background = np.logical_and.reduce([rgb[..., c] > threshold_otsu(rgb[..., c]) for c in range(3)])
    highest = _brightest(rgb).astype(np.float64)
    saturation = np.divide(highest - _darkest(rgb), highest, out=np.zeros_like(highest), where=highest > 0)
    return np.asarray(~background & (saturation > threshold_otsu(saturation)) & (rgb > 50).all(axis=2))


def _pixel_mm2(mpp: Mpp) -> float:
    return mpp.x * mpp.y * 1e-6


GREY_SPREAD = 24
"""Largest difference between the channels of glass, including tinted lamps and old mounting media."""
USUAL_GLASS = (245.0, 245.0, 245.0)


def _brightest(rgb: RGB) -> NDArray[np.uint8]:
    """The largest channel of each pixel, ten times as fast as `rgb.max(axis=2)`."""
    return np.asarray(np.maximum(np.maximum(rgb[..., 0], rgb[..., 1]), rgb[..., 2]))


def _darkest(rgb: RGB) -> NDArray[np.uint8]:
    return np.asarray(np.minimum(np.minimum(rgb[..., 0], rgb[..., 1]), rgb[..., 2]))


def _glass_colour(rgb: RGB) -> tuple[float, float, float]:
    """The most common bright grey. Pure white is ignored, because it fills areas that were not scanned."""
    brightest, darkest = _brightest(rgb), _darkest(rgb)
    grey = (brightest - darkest < GREY_SPREAD) & (darkest >= 180) & (darkest < 255)
    if np.count_nonzero(grey) < 0.002 * grey.size:
        return USUAL_GLASS
    levels = np.bincount(brightest[grey], minlength=256)
    common = int(np.argmax(ndimage.uniform_filter1d(levels.astype(np.float64), 5)))
    near = grey & (np.abs(brightest.astype(np.int16) - common) <= 3)
    red, green, blue = (float(np.median(rgb[..., channel][near])) for channel in range(3))
    return red, green, blue


def _absorbance(channel: NDArray[np.uint8], glass: float) -> Plane:
    table = -np.log10((np.arange(256) + 1) / (glass + 1))
    return np.clip(table, -0.05, None).astype(np.float32)[channel]


def _smoothed(planes: Sequence[Plane], mpp: Mpp, sigma_um: float) -> list[Plane]:
    """Smooth planes at the same time, each in a thread: the filter of scipy uses one core."""
    sigma = sigma_um / mpp.y, sigma_um / mpp.x
    with ThreadPoolExecutor(len(planes), "tissue") as pool:
        return list(pool.map(partial(ndimage.gaussian_filter, sigma=sigma, truncate=3), planes))


def _threshold(stain: Plane, config: TissueConfig) -> float:
    """Half of Otsu's threshold, clipped: on only glass or only tissue, Otsu would split noise."""
    if stain.size == 0 or float(np.ptp(stain)) < 1e-6:
        return config.highest_threshold
    otsu = float(threshold_otsu(np.clip(stain, 0, 0.3)))
    return float(np.clip(otsu / 2, config.lowest_threshold, config.highest_threshold))


def _padding(rgb: RGB, darkest: int) -> Mask:
    """Black areas that touch the border of the picture; other black areas are ink."""
    border = np.ones(rgb.shape[:2], dtype=bool)
    border[1:-1, 1:-1] = False
    return _touching(_brightest(rgb) <= darkest, border)


def _touching(mask: Mask, marked: Mask) -> Mask:
    """The pieces of a mask that contain a marked pixel."""
    pieces, count = ndimage.label(mask, EIGHT)
    touching = np.zeros(count + 1, dtype=bool)
    touching[pieces[marked]] = True
    touching[0] = False
    return np.asarray(touching.take(pieces))


def _pen(red: Plane, green: Plane, blue: Plane, padding: Mask, mpp: Mpp, config: TissueConfig) -> Mask:
    """Ink: areas that absorb more red than green (blue or green ink), are pure red, or dark grey (black ink).

    No mixture of haematoxylin and eosin has one of these colours over an area. The planes are smoothed.
    """
    cold = (red > 0.18) & (red > 1.08 * green + 0.02)
    pure_red = (green > 0.6) & (red < 0.15) & (blue > 0.85 * green)
    lowest, highest = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    black = (lowest > 0.3) & (highest - lowest < 0.25 * lowest)
    ink = (cold | pure_red | black) & ~padding
    ink = _dilated(~_dilated(~ink, mpp, config.smoothing_um), mpp, config.smoothing_um)
    ink = _without_small(ink, config.pen_mm2, mpp)
    return _dilated(ink, mpp, config.pen_margin_um) if ink.any() else ink


def _dilated(mask: Mask, mpp: Mpp, um: float) -> Mask:
    """Dilate the mask by a distance in µm."""
    if not mask.any() or um <= 0:
        return mask
    if um > DISC_ROWS * mpp.y:
        return np.asarray(ndimage.distance_transform_edt(~mask, sampling=(mpp.y, mpp.x)) <= um)
    # A disc is a stack of runs of pixels. For a few rows this is much faster than a distance transform.
    rows = int(um / mpp.y)
    padded = np.pad(mask, ((rows, rows), (0, 0)))
    out = np.zeros_like(mask)
    for offset in range(rows + 1):
        run = _widened(padded, int(np.sqrt(um**2 - (offset * mpp.y) ** 2) / mpp.x))
        out |= run[rows - offset : rows - offset + len(mask)] | run[rows + offset : rows + offset + len(mask)]
    return out


def _widened(mask: Mask, pixels: int) -> Mask:
    """Dilate the mask along its rows. Each step doubles the width, so there are few steps."""
    run, width, full_width = np.pad(mask, ((0, 0), (pixels, pixels))), 1, 2 * pixels + 1
    while width < full_width:
        step = min(width, full_width - width)
        run, width = run[:, :-step] | run[:, step:], width + step
    return run


def _without_small(mask: Mask, least_mm2: float, mpp: Mpp) -> Mask:
    pieces, _ = ndimage.label(mask, EIGHT)
    large = np.bincount(pieces.ravel()) * _pixel_mm2(mpp) >= least_mm2
    large[0] = False
    return np.asarray(large.take(pieces))


def _cleaned(mask: Mask, left_out: Mask, mpp: Mpp, config: TissueConfig) -> Mask:
    """Close gaps, fill small holes, and remove debris and straight edges."""
    mask = _closed(mask & ~left_out, mpp, config.closing_um)
    if mask.any():  # otherwise all of a small picture would be one hole
        mask = ~_without_small(~mask, config.hole_mm2, mpp)
    mask &= ~left_out
    mask = _without_small(mask, config.debris_mm2, mpp)
    return _without_lines(mask, mpp, config)


def _with_pale_tissue(
    mask: Mask, stain: Plane, grey: Plane, left_out: Mask, mpp: Mpp, config: TissueConfig
) -> Mask:
    """Add pale tissue next to stained tissue: fat, whose thin membranes absorb hardly any stain.

    Fat is slightly darker than glass and has a texture, whereas glass and shadows are smooth. Dust and edges
    have a texture but are small or thin. Only pale areas that touch stained tissue are added.
    """
    if not mask.any() or config.pale_um <= 0:
        return mask
    # Statistics exclude detected tissue: glass next to it must not look textured because of the edge.
    weight = (~_dilated(mask | left_out, mpp, 1.5 * mpp.mean)).astype(np.float32)
    planes = [weight, grey * weight, grey * grey * weight, stain * weight]
    with ThreadPoolExecutor(1, "tissue") as pool:
        dilation_future = pool.submit(_dilated, mask, mpp, config.pale_reach_um)
        total, *sums = _smoothed(planes, mpp, config.pale_um / 2)
        near_tissue = dilation_future.result()
    total = np.maximum(total, np.float32(1e-6))
    mean, mean_square, mean_stain = (np.divide(plane, total, dtype=np.float32) for plane in sums)
    spread = np.sqrt(np.maximum(0, mean_square - mean * mean))
    textured = (mean > config.pale_absorbance) & (spread > config.pale_texture)
    stained = (mean_stain > config.lowest_threshold / 2) & near_tissue
    pale = (mask | textured | stained) & ~left_out
    # The statistics reach half their scale into the glass around pale tissue.
    pale = ~_dilated(~pale, mpp, config.pale_um / 2)
    pale = _dilated(~_dilated(~pale, mpp, config.pale_um / 2), mpp, config.pale_um / 2) & pale
    return mask | _cleaned(_touching(mask | pale, mask), left_out, mpp, config)


def _closed(mask: Mask, mpp: Mpp, um: float) -> Mask:
    """Morphological closing. Beyond its edges the picture is continued with the edge pixels."""
    if not mask.any() or um <= 0:
        return mask
    rows, columns = int(np.ceil(um / mpp.y)), int(np.ceil(um / mpp.x))
    padded = np.pad(mask, ((rows, rows), (columns, columns)), mode="edge")
    closed = ~_dilated(~_dilated(padded, mpp, um), mpp, um)
    return (closed | padded)[rows : rows + mask.shape[0], columns : columns + mask.shape[1]]


def _without_lines(mask: Mask, mpp: Mpp, config: TissueConfig) -> Mask:
    """Remove long, thin and straight pieces, which are edges of the cover glass or of the scan."""
    pieces, count = ndimage.label(mask, EIGHT)
    dropped = np.zeros(count + 1, dtype=bool)
    for piece, bounding_slices in enumerate(ndimage.find_objects(pieces), 1):
        height, width = (s.stop - s.start for s in bounding_slices)
        length = np.hypot(height * mpp.y, width * mpp.x)
        if length < config.line_um:
            continue
        pixels = pieces[bounding_slices] == piece
        # The area of a piece is at most 4 π times the product of its standard deviations, as for an ellipse.
        # Of a line, the longer one is at most half of its length, and the shorter one a quarter of its width.
        # One pixel is added to the shorter one, because the pixels' centres spread less than their area.
        largest_width = config.line_width_um + 4 * max(mpp.x, mpp.y)
        if np.count_nonzero(pixels) * mpp.x * mpp.y > np.pi / 2 * largest_width * length:
            continue
        y, x = np.nonzero(pixels)
        spread = np.linalg.eigvalsh(np.cov(np.stack([y * mpp.y, x * mpp.x])))
        dropped[piece] = 4 * np.sqrt(max(0.0, spread[0])) < config.line_width_um
    return np.asarray(mask & ~dropped.take(pieces))
