"""Small grey pictures of slides, images and mammograms, and the vectors by which copies are looked up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lobule.cohort import Case
from lobule.geometry import Box, Lattice
from lobule.mammograms.dicom_codes import OVERRIDES
from lobule.mammograms.exams import read_view, view_named
from lobule.slides.slide import open_slide

Plane = NDArray[np.float32]
Sums = NDArray[np.float64]

LONGEST = 192
"""Longest side of a picture in pixels."""
CELLS = 12
"""Rows and columns of a vector."""
COARSE_SIGMA, FINE_SIGMA = 30.0, 10.0
"""Standard deviations in pixels of the high-pass filters, for vectors and for the comparison of pictures.
They remove the shape of the tissue and of the breast, which different cases share."""
SMOOTH_SIGMA = 1.0

ORIENTATIONS = tuple(product((False, True), range(4)))
"""Whether a picture is mirrored, and its number of quarter turns."""

Window = tuple[float, float, float, float]
"""A part of a picture: left, right, top and bottom edge, as fractions of its width and height."""


FULL_WINDOW: Window = (0.0, 1.0, 0.0, 1.0)


def _windows() -> tuple[Window, ...]:
    """Windows that a crop of up to 20 % could show: of four sizes, at several positions each."""
    spans = [(size, offset) for size in (1.0, 0.95, 0.9, 0.8) for offset in _offsets(1 - size)]
    return tuple(
        (x, x + size, y, y + other)
        for (size, x), (other, y) in product(spans, spans)
        if size == other and (size > 0.85 or x == y)
    )


def _offsets(room: float) -> tuple[float, ...]:
    return (0.0,) if room == 0 else (0.0, room) if room < 0.075 else (0.0, room / 2, room)


WINDOWS = _windows()


@dataclass(frozen=True, eq=False)
class Picture:
    """The picture of one image of a case, high-pass filtered for lookup and for comparison."""

    case: str
    split: str | None
    image: str
    """`slide`, `image` or the name of a view."""
    coarse: Plane
    fine: Plane

    def vector(self) -> Plane:
        """The vector of the whole picture."""
        return _unit(averaged(summed(self.coarse), CELLS, CELLS))

    def window_vectors(self) -> Plane:
        """The vectors of every window in every orientation, in rows."""
        sums = summed(self.coarse)
        cells = [averaged(sums, CELLS, CELLS, window) for window in WINDOWS]
        return np.stack(
            [_unit(oriented(plane, mirrored, turns)) for plane in cells for mirrored, turns in ORIENTATIONS]
        )


def oriented(plane: Plane, mirrored: bool, turns: int) -> Plane:
    """A mirrored and rotated plane."""
    turned: Plane = np.rot90(plane[:, ::-1] if mirrored else plane, turns)
    return turned


def oriented_window(window: Window, mirrored: bool, turns: int) -> Window:
    """The same window in the mirrored and rotated plane."""
    left, right, top, bottom = window
    if mirrored:
        left, right = 1 - right, 1 - left
    for _ in range(turns):
        left, right, top, bottom = top, bottom, 1 - right, 1 - left
    return left, right, top, bottom


def _unit(cells: Plane) -> Plane:
    flat = cells.reshape(-1) - cells.mean()
    length = max(float(np.linalg.norm(flat)), 1e-6)
    return np.asarray(flat / length, np.float32)


def summed(plane: Plane) -> Sums:
    """The sums of all pixels above and to the left, from which means over rectangles follow."""
    sums = np.zeros((plane.shape[0] + 1, plane.shape[1] + 1))
    sums[1:, 1:] = plane.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    return sums


def averaged(sums: Sums, rows: int, columns: int, window: Window = FULL_WINDOW) -> Plane:
    """Means of equal cells of a window, which may cover fractions of pixels."""
    left, right, top, bottom = window
    x = np.linspace(left, right, columns + 1) * (sums.shape[1] - 1)
    y = np.linspace(top, bottom, rows + 1) * (sums.shape[0] - 1)
    at = _interpolated(_interpolated(sums, y).T, x).T
    area = np.diff(y)[:, None] * np.diff(x)[None, :]
    means: Plane = (np.diff(np.diff(at, axis=0), axis=1) / area).astype(np.float32)
    return means


def _interpolated(rows: Sums, positions: NDArray[np.float64]) -> Sums:
    lower = np.clip(positions.astype(np.intp), 0, len(rows) - 2)
    share = (positions - lower)[:, None]
    return np.asarray(rows[lower] * (1 - share) + rows[lower + 1] * share)


# -- reading ------------------------------------------------------------------------------------------------


def pictures_of(case: Case) -> Iterator[Picture]:
    """The pictures of a case: one, or one for each file of the views of an exam."""
    for image, pixels in shrunk_images(case):
        yield filtered(case, image, pixels)


def shrunk_images(case: Case) -> Iterator[tuple[str, Plane]]:
    """The name and the shrunk grey pixels of each image of a case."""
    if case.path is not None:
        yield case.kind, _slide_pixels(case)
    for view, files in case.views.items():
        for file in files:
            pixels = read_view(file, view=view_named(view), allow=OVERRIDES).pixels.astype(np.float32)
            yield view, shrunk(pixels)


def _slide_pixels(case: Case) -> Plane:
    assert case.path is not None
    with open_slide(case.path) as slide:
        box = case.l0_box or Box(0, 0, *slide.size)
        step = max(Fraction(1), Fraction(max(box.width, box.height), 2 * LONGEST))
        inside = Box(
            int(box.x / step),
            int(box.y / step),
            max(1, int(box.width / step)),
            max(1, int(box.height / step)),
        )
        rgb = slide.read_lattice(Lattice(step, step, slide.size, None), inside)
    return shrunk(rgb.mean(axis=2, dtype=np.float32))


def shrunk(pixels: Plane) -> Plane:
    """A picture whose longest side has LONGEST pixels."""
    scale = LONGEST / max(pixels.shape)
    rows, columns = (max(1, round(side * scale)) for side in pixels.shape)
    return averaged(summed(pixels), rows, columns)


def filtered(case: Case, image: str, pixels: Plane) -> Picture:
    """The picture of an image of a case, from its shrunk pixels."""
    smooth = ndimage.gaussian_filter(pixels, SMOOTH_SIGMA)
    coarse = smooth - ndimage.gaussian_filter(pixels, COARSE_SIGMA)
    fine = smooth - ndimage.gaussian_filter(pixels, FINE_SIGMA)
    return Picture(case.id, case.split, image, coarse.astype(np.float32), fine.astype(np.float32))
