"""Image pixels for the viewer: tiles of slides, regions, thumbnails and the full depth of mammograms."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.geometry import Box, Lattice
from lobule.mammograms.dicom_codes import OVERRIDES
from lobule.mammograms.exams import read_view, view_named
from lobule.mammograms.record import Mammogram
from lobule.server.file_versions import file_state
from lobule.server.slide_tiles import OpenedImage, Slides

ENCODED_BYTES = 48 << 20
"""Map tiles and thumbnails that stay in memory."""
VIEWS_BYTES = 512 << 20
MAX_REGION_SIDE = 2048


class ByteCache:
    """Values by key, least recently used first out, limited by their total size in bytes."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._values: OrderedDict[Hashable, tuple[int, Any]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][1]

    def put(self, key: Hashable, value: Any, nbytes: int) -> None:
        with self._lock:
            self._bytes += nbytes - self._values.pop(key, (0, None))[0]
            self._values[key] = nbytes, value
            while self._bytes > self.budget_bytes and len(self._values) > 1:
                self._bytes -= self._values.popitem(last=False)[1][0]


class Pixels:
    """Opens images at first use and keeps the most recently used ones."""

    def __init__(self) -> None:
        self.slides = Slides()
        self._encoded = ByteCache(ENCODED_BYTES)
        self._views = ByteCache(VIEWS_BYTES)
        self._view_lock = threading.Lock()

    def open(self, path: str, mpp: float | None) -> OpenedImage:
        """Open a slide, or return it if it is open and its file has not changed."""
        return self.slides.open(path, mpp)

    def region(self, image: OpenedImage, l0_box: Box, side: int) -> NDArray[np.uint8]:
        """Return a level-0 box of a slide, its longest side about `side` pixels."""
        factor = max(1, max(l0_box.size) // max(1, side))
        lattice = Lattice(Fraction(factor), Fraction(factor), image.slide.size, None)
        if factor == 1:
            lattice = image.levels[0].lattice
        return image.slide.read_lattice(lattice, lattice.of_l0(l0_box))

    def view(self, path: str, name: str) -> Mammogram:
        """Read one view of an exam with its full depth. `name` is that of the view, such as `L-CC`."""
        key = path, file_state(path)
        with self._view_lock:  # One at a time: a decoded view has tens of megabytes.
            mammogram: Mammogram | None = self._views.get(key)
            if mammogram is None:
                mammogram = read_view(path, view=view_named(name.partition(" ")[0]), allow=OVERRIDES)
                self._views.put(key, mammogram, mammogram.pixels.nbytes)
        return mammogram

    def cached(self, key: Hashable, compute: Callable[[], bytes]) -> bytes:
        """Return encoded bytes from the cache, or compute and cache them."""
        data: bytes | None = self._encoded.get(key)
        if data is None:
            data = compute()
            self._encoded.put(key, data, len(data))
        return data


def exam_picture(mammogram: Mammogram, side: int) -> NDArray[np.uint8]:
    """Return a reduced 8-bit grey picture (H, W, 1) of a view, its longest side at most `side` pixels."""
    stored = mammogram.pixels
    factor = max(1, -(-max(stored.shape) // side))
    height, width = stored.shape[0] // factor * factor, stored.shape[1] // factor * factor
    blocks = stored[:height, :width].reshape(height // factor, factor, width // factor, factor)
    means = blocks.mean(axis=(1, 3))
    grey: NDArray[np.uint8] = (255 * means / max(1.0, float(means.max()))).astype(np.uint8)
    return grey[..., None]
