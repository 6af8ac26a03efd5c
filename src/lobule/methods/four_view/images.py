"""The views of an exam as the scanner reads them: stored pixels, network inputs, patches and heatmaps.

All boxes are in pixels of the stored image. Networks see the cropped view, mirrored to point right. A `Frame`
converts between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lobule.errors import BlankMammogram, ConfigError
from lobule.geometry import Box, Lattice, Size
from lobule.mammograms.dicom import Pixels
from lobule.mammograms.exams import read_view
from lobule.mammograms.record import Mammogram
from lobule.mammograms.views import View
from lobule.methods.four_view.centres import best_centre
from lobule.methods.four_view.crop import Compat, Window, crop_of
from lobule.methods.four_view.windows import (
    Augmentation,
    Draws,
    Padding,
    ViewImage,
    WindowPlan,
    network_input,
    shrunk,
)
from lobule.units import Mpp


class ViewConfig(Protocol):
    """The settings that decide how views are read, for any model that reads them."""

    @property
    def quirks(self) -> Compat: ...

    @property
    def pixels(self) -> Pixels: ...

    @property
    def crop_iterations(self) -> int: ...

    @property
    def crop_buffer(self) -> int: ...

    @property
    def reads_exams(self) -> bool: ...

    @property
    def windows(self) -> int: ...

    @property
    def variation(self) -> Augmentation: ...

    @property
    def seed(self) -> int: ...

    def size(self, view: str) -> tuple[int, int]: ...

    def input_size(self, view: str) -> tuple[int, int]: ...


Heatmaps = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Benign and malignant heatmap, (H, W), of the cropped view mirrored to point right."""


@dataclass(frozen=True)
class Frame:
    """A cropped and optionally mirrored image, in terms of the stored image."""

    crop: Window
    mirrored: bool

    def to_l0(self, window: Window) -> Box:
        left = self.crop.right - window.right if self.mirrored else self.crop.left + window.left
        return Box(left, self.crop.top + window.top, window.width, window.height)

    def of_l0(self, l0_box: Box) -> Window:
        top = l0_box.y - self.crop.top
        left = self.crop.right - l0_box.right if self.mirrored else l0_box.x - self.crop.left
        return Window(top, top + l0_box.height, left, left + l0_box.width)

    def of(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return the image (H, W) in this frame, as a NumPy view of the stored one."""
        cropped = self.crop.of(stored)
        return cropped[:, ::-1] if self.mirrored else cropped


class _Source:
    """Base of all images of a view: its size and its only lattice."""

    def __init__(self, size: Size, mpp: Mpp | None = None) -> None:
        self.size, self.mpp = size, mpp

    def lattice(
        self, *, mpp: float | None = None, level: int | None = None, upsample: bool = False
    ) -> Lattice:
        if mpp is not None or level not in (None, 0):
            raise ConfigError("a mammogram can only be read at its own resolution")
        return Lattice(Fraction(1), Fraction(1), self.size, self.mpp, 0)


class ExamView(_Source):
    """One decoded image of an exam, with its breast located."""

    def __init__(self, view: View, mammogram: Mammogram, config: ViewConfig) -> None:
        stored = mammogram.pixels
        mm_per_px = mammogram.heading.mm_per_px
        super().__init__(
            Size(stored.shape[1], stored.shape[0]),
            None if mm_per_px is None else Mpp.square(1000 * mm_per_px),
        )
        self.view, self.stored, self.mammogram = view, stored, mammogram
        self.crop = crop_of(
            stored,
            mammogram.pointing,
            iterations=config.crop_iterations,
            buffer=config.crop_buffer,
            compat=config.quirks,
        )
        self.frame = Frame(self.crop.window, mammogram.pointing == "left")
        self.pixels = self.frame.of(stored)
        """(H, W), cropped and pointing right."""
        size = config.size(view)
        self.centre = best_centre(self.pixels, view, self.crop.landmarks, size, compat=config.quirks)

    @property
    def for_windows(self) -> ViewImage:
        return ViewImage(self.crop.window.shape, self.centre)

    def read_lattice(self, lattice: Lattice, box: Box) -> NDArray[np.uint16]:
        """Return (height, width, 1) pixels, with zeros outside the image."""
        return _read_padded(self.stored, Window(box.y, box.bottom, box.x, box.right))[..., None]

    def metadata(self) -> dict[str, Any]:
        """Return the entry of the image in `result.json`."""
        heading, window = self.mammogram.heading, self.crop.window
        return {
            "path": heading.path,
            "size": list(self.size),
            "mpp": None if self.mpp is None else [self.mpp.x, self.mpp.y],
            "view": self.view,
            "pointing": self.mammogram.pointing,
            "crop": [window.left, window.top, window.width, window.height],
            "decisions": [decision.sentence for decision in self.mammogram.decisions],
        }


class BrokenView(_Source):
    """Stands for a view that cannot be read, in an exam that is scored without it.

    Reading it raises the cause.
    """

    def __init__(self, view: View, error: Exception, config: ViewConfig) -> None:
        height, width = config.size(view)
        super().__init__(Size(width, height))
        self.view, self.error = view, error

    @property
    def is_blank(self) -> bool:
        """Whether the view is readable but shows no breast."""
        return isinstance(self.error, BlankMammogram)

    def read_lattice(self, lattice: Lattice, box: Box) -> NDArray[Any]:
        raise self.error


class InputView(_Source):
    """A view as the classifier reads it: cut, resized and standardised, with heatmaps as further channels."""

    def __init__(
        self, view: ExamView, size: tuple[int, int], heatmaps: Heatmaps | None, shrink: int = 1
    ) -> None:
        super().__init__(view.size, view.mpp)
        self._view, self._input_size, self._heatmaps, self._shrink = view, size, heatmaps, shrink

    def read_lattice(self, lattice: Lattice, box: Box) -> NDArray[np.float32]:
        """Return (h, w, 1 or 3) at the size of the classifier's input, whatever the size of the box."""
        window = self._view.frame.of_l0(box)
        shape = self._view.pixels.shape
        plan = WindowPlan(
            self._input_size, Padding(), (shape[0], shape[1]), window, window, Draws(None, None)
        )
        channels = network_input(self._view.pixels, plan, self._heatmaps)
        return np.moveaxis(shrunk(channels, self._shrink), 0, -1)


class PatchView(_Source):
    """A view as the patch network reads it: standardised as a whole in float64, then cut into patches."""

    def __init__(self, view: ExamView, frame: Frame) -> None:
        super().__init__(view.size, view.mpp)
        self.frame, self.pixels = frame, frame.of(view.stored)
        # This computes the same as `standardise`, without keeping a float64 copy of every view.
        values = np.array(self.pixels, np.float64, order="C")
        self._mean = values.mean()
        values -= self._mean
        self._spread = np.maximum(values.std(), 1e-5)

    def read_lattice(self, lattice: Lattice, box: Box) -> NDArray[np.float32]:
        values = _read_padded(self.pixels, self.frame.of_l0(box)).astype(np.float64)
        values -= self._mean
        values /= self._spread
        return values.astype(np.float32)[..., None]


class HeatmapView(_Source):
    """The heatmaps of a view laid over its stored image, with a mask of the pixels that they cover."""

    def __init__(self, view: ExamView, heatmaps: Heatmaps, inside: Window | None = None) -> None:
        super().__init__(view.size, view.mpp)
        shape = heatmaps[0].shape
        inside = inside or Window(0, shape[0], 0, shape[1])
        self._frame, self._heatmaps = view.frame, heatmaps
        self._inside_mask = np.zeros(shape, np.float32)
        inside.of(self._inside_mask)[:] = 1
        self.l0_box = view.frame.to_l0(inside)

    def read_lattice(self, lattice: Lattice, box: Box) -> NDArray[np.float32]:
        """Return (height, width, 3): benign, malignant, and 1 where the heatmaps cover the pixel."""
        window = self._frame.of_l0(box)
        pixels = np.stack(
            [_read_padded(layer, window) for layer in (*self._heatmaps, self._inside_mask)], axis=-1
        )
        return pixels[:, ::-1] if self._frame.mirrored else pixels


def open_view(path: str, view: View, config: ViewConfig) -> ExamView:
    return ExamView(view, read_view(path, view=view, pixels=config.pixels), config)


def _read_padded(image: NDArray[Any], window: Window) -> NDArray[Any]:
    """Return the window of an image (H, W), with zeros outside the image."""
    pixels = np.zeros(window.shape, image.dtype)
    inside = Window(
        max(0, window.top),
        min(image.shape[0], window.bottom),
        max(0, window.left),
        min(image.shape[1], window.right),
    )
    if inside.height > 0 and inside.width > 0:
        top, left = inside.top - window.top, inside.left - window.left
        pixels[top : top + inside.height, left : left + inside.width] = inside.of(image)
    return pixels
