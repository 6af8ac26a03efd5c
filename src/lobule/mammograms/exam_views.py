"""The views of an exam as networks read them: cropped, mirrored to point right, and cut into windows.

All boxes are in pixels of the stored image. Networks see the cropped view, mirrored to point right. A `Frame`
converts between the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Case
from lobule.errors import BlankMammogram, CaseError, ConfigError, LobuleError, NotAMammogram, NothingToScore
from lobule.geometry import Box, Lattice, Size
from lobule.mammograms.dicom_codes import overrides_of
from lobule.mammograms.dicom_pixels import Pixels
from lobule.mammograms.exams import read_view, require_one_patient
from lobule.mammograms.published.centres import best_centre, window_size
from lobule.mammograms.published.crop import Quirks, Window, crop_of
from lobule.mammograms.published.windows import network_input, shrunk
from lobule.mammograms.record import Mammogram
from lobule.mammograms.views import VIEWS, View
from lobule.units import Mpp


@dataclass(frozen=True)
class ViewOptions:
    """How the views of an exam are read and cropped, and the size of the window that a network reads."""

    quirks: Quirks = "reference"
    pixels: Pixels = "nyu-raw"
    crop_iterations: int = 100
    crop_buffer: int = 50
    window: tuple[int, int] | None = None
    """Height and width; None means the published size of each angle."""

    def size(self, view: str) -> tuple[int, int]:
        return self.window or window_size(view)


Heatmaps = NDArray[np.float32]
"""(2, H, W): the benign and the malignant heatmap of the cropped view, mirrored to point right."""


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

    def boxes(self, windows: Sequence[Window]) -> NDArray[np.int64]:
        """Return (n, 4): x, y, width and height of windows in the stored image."""
        boxes = [self.to_l0(window) for window in windows]
        return np.array([(b.x, b.y, b.width, b.height) for b in boxes], np.int64).reshape(-1, 4)


class ViewSource:
    """Base of all images of a view: its size and its only lattice."""

    def __init__(self, size: Size, mpp: Mpp | None = None) -> None:
        self.size, self.mpp = size, mpp

    def lattice(
        self, *, mpp: float | None = None, level: int | None = None, upsample: bool = False
    ) -> Lattice:
        if mpp is not None or level not in (None, 0):
            raise ConfigError("a mammogram can only be read at its own resolution")
        return Lattice(Fraction(1), Fraction(1), self.size, self.mpp, 0)


class ExamView(ViewSource):
    """One decoded image of an exam, with its breast located."""

    def __init__(self, view: View, mammogram: Mammogram, options: ViewOptions) -> None:
        stored = mammogram.pixels
        mm_per_px = mammogram.heading.mm_per_px
        mpp = None if mm_per_px is None else Mpp.square(1000 * mm_per_px)
        super().__init__(Size(stored.shape[1], stored.shape[0]), mpp)
        self.view, self.stored, self.mammogram = view, stored, mammogram
        self.crop = crop_of(
            stored, mammogram.pointing, iterations=options.crop_iterations, buffer=options.crop_buffer,
            quirks=options.quirks,
        )  # fmt: skip
        self.frame = Frame(self.crop.window, mammogram.pointing == "left")
        self.pixels = self.frame.of(stored)
        """(H, W), cropped and pointing right."""
        size = options.size(view)
        self.centre = best_centre(self.pixels, view, self.crop.landmarks, size, quirks=options.quirks)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the cropped view."""
        return self.crop.window.shape

    def boxes(self, windows: Sequence[Window]) -> NDArray[np.int64]:
        return self.frame.boxes(windows)

    def read_lattice(self, lattice: Lattice, box: Box) -> NDArray[np.uint16]:
        """Return (height, width, 1) pixels, with zeros outside the image."""
        return Window(box.y, box.bottom, box.x, box.right).padded(self.stored)[..., None]

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


class BrokenView(ViewSource):
    """Stands for a view that cannot be read, in an exam that is scored without it.

    Reading it raises the cause.
    """

    def __init__(self, view: View, error: Exception, options: ViewOptions) -> None:
        height, width = options.size(view)
        super().__init__(Size(width, height))
        self.view, self.error = view, error
        self.shape, self.centre = (height, width), (height // 2, width // 2)

    def boxes(self, windows: Sequence[Window]) -> NDArray[np.int64]:
        return np.tile(np.array([0, 0, *self.size], np.int64), (len(windows), 1))

    @property
    def is_blank(self) -> bool:
        """Whether the view is readable but shows no breast."""
        return isinstance(self.error, BlankMammogram)

    def read_lattice(self, lattice: Lattice, box: Box) -> NDArray[Any]:
        raise self.error


class InputView(ViewSource):
    """A view as the classifier reads it: cut, resized and standardised, with heatmaps as further channels."""

    def __init__(
        self, view: ExamView, size: tuple[int, int], heatmaps: Heatmaps | None = None, shrink: int = 1
    ) -> None:
        super().__init__(view.size, view.mpp)
        self._view, self._input_size, self._heatmaps, self._shrink = view, size, heatmaps, shrink

    def read_lattice(self, lattice: Lattice, box: Box) -> NDArray[np.float32]:
        """Return (h, w, 1 or 3) at the size of the classifier's input, whatever the size of the box."""
        window = self._view.frame.of_l0(box)
        channels = network_input(self._view.pixels, window, self._input_size, self._heatmaps)
        return np.moveaxis(shrunk(channels, self._shrink), 0, -1)


class PatchView(ViewSource):
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
        values = self.frame.of_l0(box).padded(self.pixels).astype(np.float64)
        values -= self._mean
        values /= self._spread
        return values.astype(np.float32)[..., None]


class HeatmapView(ViewSource):
    """The heatmaps of a view laid over its stored image, with a mask of the pixels that they cover."""

    def __init__(self, view: ExamView, heatmaps: Heatmaps, inside: Window | None = None) -> None:
        """`inside` is the window of the cropped view that the heatmaps cover; by default, the whole view."""
        super().__init__(view.size, view.mpp)
        shape = heatmaps.shape[1:]
        inside = inside or Window(0, shape[0], 0, shape[1])
        self._frame, self._heatmaps = view.frame, heatmaps
        self._inside_mask = np.zeros(shape, np.float32)
        inside.of(self._inside_mask)[:] = 1
        self.l0_box = view.frame.to_l0(inside)

    def read_lattice(self, lattice: Lattice, box: Box) -> NDArray[np.float32]:
        """Return (height, width, 3): benign, malignant, and 1 where the heatmaps cover the pixel."""
        window = self._frame.of_l0(box)
        pixels = np.stack([window.padded(layer) for layer in (*self._heatmaps, self._inside_mask)], axis=-1)
        return pixels[:, ::-1] if self._frame.mirrored else pixels


# -- opening an exam ----------------------------------------------------------------------------------------

OpenViews = Mapping[str, ExamView | BrokenView]
"""The images of an exam by name: the view, followed by a number if the exam has several images of it."""


def open_views(case: Case, options: ViewOptions, *, joined: bool) -> dict[str, ExamView | BrokenView]:
    """Open the images of an exam.

    Args:
        case: The exam. Its column `horizontal_flip`, if it has one, states how PNG images are stored, and
            its column `allow` names kinds of DICOM images that are refused otherwise.
        options: How the views are read.
        joined: Whether the model joins views. It then needs all four, and reads all images of each; otherwise
            only the first image of each view is opened, and a view may be missing or unreadable.
    """
    if case.kind != "exam":
        raise CaseError(
            "this model reads exams only",
            subject=case.path,
            expected="a case with files of the views in the columns l_cc, r_cc, l_mlo, r_mlo",
            actual=f"a case of kind {case.kind}",
        )
    images: dict[str, ExamView | BrokenView] = {}
    flip, allow = case.value("horizontal_flip"), overrides_of(case.value("allow"))
    for view, files in files_of_views(case).items():
        for index, path in enumerate(files if joined else files[:1]):
            name = view if index == 0 else f"{view} {index + 1}"
            try:
                mammogram = read_view(
                    path, view=view, pixels=options.pixels, allow=allow, horizontal_flip=flip
                )
                images[name] = ExamView(view, mammogram, options)
            except (LobuleError, OSError) as error:
                images[name] = BrokenView(view, error, options)
    _check_views(case, images, joined=joined)
    if "several patients" not in allow:
        require_one_patient(image.mammogram.heading for image in readable_views(images).values())
    return images


def files_of_views(case: Case) -> dict[View, tuple[str, ...]]:
    """Return the files of each view of an exam."""
    return {view: tuple(case.views.get(view.lower().replace("-", "_"), ())) for view in VIEWS}


def readable_views(images: Mapping[str, object]) -> dict[str, ExamView]:
    """Return the images that could be decoded, without those that are a `BrokenView`."""
    return {name: image for name, image in images.items() if isinstance(image, ExamView)}


def _check_views(case: Case, images: OpenViews, *, joined: bool) -> None:
    """Raise an error if all views are blank, or if a view that the model needs is missing or unreadable."""
    missing = [view for view in VIEWS if view not in images]
    broken = [image for image in images.values() if isinstance(image, BrokenView)]
    if len(broken) == len(images) and all(image.is_blank for image in broken):
        reason = f"no view of the exam shows a breast (blank: {', '.join(images) or 'none'}"
        raise NothingToScore(
            reason + (f"; missing: {', '.join(missing)})" if missing else ")"), subject=case.id
        )
    if missing and joined:
        raise NotAMammogram(
            "a model that joins views needs all four of them",
            subject=case.id,
            actual=f"an exam without {', '.join(missing)}",
            remedy="Scan exams that lack a view with an image-wise bundle, or convert one that has both",
        )
    if broken and (joined or len(broken) == len(images)):
        raise next((image.error for image in broken if not image.is_blank), broken[0].error)
