"""The 31 features of a map from which a classifier scores a slide (after Wang et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SURE = int(0.9 * 255)
"""T90: cells with at least this 8-bit value."""
LIKELY = 127
"""T50: cells above this 8-bit value."""

MEASURES = ("area", "perimeter", "eccentricity", "extent", "solidity")

_FORMS = ("max_{}", "mean_{}", "{}_variance", "{}_skew", "{}_kurt")
HEATMAP_FEATURES: tuple[str, ...] = (
    "region_count", "ratio_tumor_tissue", "largest_tumor_area", "longest_axis_largest_tumor",
    "pixels_gt_90", "avg_prediction", *(form.format(measure) for measure in MEASURES for form in _FORMS),
)  # fmt: skip
"""Names of the features in the column order of the public tables."""

EIGHT = np.ones((3, 3), dtype=bool)


def heatmap_features(scores: NDArray[np.generic], tissue: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Compute the features in `HEATMAP_FEATURES`, rounded to two decimals; all 0 if no cell reaches 90 %.

    Args:
        scores: Probabilities, or 8-bit values (uint8) computed as floor(255 p). Cells without a score (NaN)
            count as 0.
        tissue: The mask of tissue, of the same shape.
    """
    from scipy import ndimage

    values = _eight_bit(scores)
    sure, count = ndimage.label(values >= SURE, EIGHT)
    if count == 0:
        return np.zeros(len(HEATMAP_FEATURES))
    likely, _ = ndimage.label(values > LIKELY, EIGHT)
    sure_shapes, likely_shapes = _shapes(sure), _shapes(likely)
    largest = max(likely_shapes, key=lambda shape: shape["area"])
    means = ndimage.mean(values, sure, np.arange(1, count + 1))
    total = float(sum(shape["area"] for shape in sure_shapes))
    tissue_cells = int(np.count_nonzero(tissue))
    features = [
        count,
        total / tissue_cells if tissue_cells else 0.0,
        largest["area"],
        max(largest["axis_major_length"], largest["axis_minor_length"]),
        total,
        float(np.mean(means)),
    ]
    for measure in MEASURES:
        shapes = likely_shapes if measure == "extent" else sure_shapes
        features += _five([shape[measure] for shape in shapes])
    return np.asarray(np.array(features, dtype=np.float64).round(2))


def _eight_bit(scores: NDArray[np.generic]) -> NDArray[np.uint8]:
    if scores.dtype == np.uint8:
        return scores.astype(np.uint8)
    probability = np.nan_to_num(scores.astype(np.float64), nan=0.0)
    return np.floor(255 * np.clip(probability, 0, 1)).astype(np.uint8)


def _shapes(regions: NDArray[np.int32]) -> list[dict[str, float]]:
    """The measures of each region that do not depend on its position."""
    from skimage.measure import regionprops

    names = (*MEASURES, "axis_major_length", "axis_minor_length")
    measured: dict[tuple[tuple[int, ...], bytes], dict[str, float]] = {}
    shapes = []
    for region in regionprops(regions):
        # Maps contain thousands of regions of one or two cells; each distinct form is measured once.
        form = (region.image.shape, np.packbits(region.image).tobytes())
        if form not in measured:
            measured[form] = {name: float(getattr(region, name)) for name in names}
        shapes.append(measured[form])
    return shapes


def _five(values: Sequence[float]) -> tuple[float, float, float, float, float]:
    """Maximum, mean, population variance, biased skewness and biased excess kurtosis.

    For constant values, whose skewness and kurtosis are undefined, the published tables contain 0 and -3.
    """
    x = np.asarray(values, dtype=np.float64)
    mean = float(x.mean())
    second = float(((x - mean) ** 2).mean())
    if second <= (np.finfo(np.float64).resolution * mean) ** 2:
        return float(x.max()), mean, second, 0.0, -3.0
    third, fourth = float(((x - mean) ** 3).mean()), float(((x - mean) ** 4).mean())
    return float(x.max()), mean, second, third / second**1.5, fourth / second**2 - 3
