"""`open_slide` and `Slide`: the same interface for every slide format, whichever library reads it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from lobule.dicomweb import is_dicomweb_url
from lobule.errors import (
    ConfigError,
    DamagedFile,
    FinerThanSlide,
    MissingMpp,
    NotReadable,
    TooLarge,
    UnknownFormat,
)
from lobule.files import is_url, not_readable, open_url
from lobule.geometry import Box, Lattice, Size, level_step
from lobule.slides.backend import MAX_SIDE, RGB, Backend, Level, StatedMpp
from lobule.slides.cache import TileCache
from lobule.slides.local_copy import copied_backend, needs_local_copy
from lobule.slides.resample import read_resampled, source_box, source_of
from lobule.units import Mpp

READERS: dict[str, str] = {
    "tiff": "lobule.slides.tiff",
    "dicom": "lobule.slides.dicom",
    "openslide": "lobule.slides.openslide",
    "flat": "lobule.slides.flat",
}
"""Backends for files in the order in which they are tried.

Each module has `open_backend(path) -> Backend | None`.
None means that the file is for another backend; an error means that it is for this one and is damaged.
A value may also be the function itself.
"""

DICOMWEB_READER = "lobule.slides.dicom_web"
"""The only backend for URLs of DICOMweb servers."""

NEAR = 0.10
"""A level whose µm/px differs from the requested one by at most this share is read unscaled."""

MAX_READ_PIXELS = 1 << 30
"""Largest number of pixels of one read. A larger request is a mistake or an attack."""


def open_slide(path: str | Path, *, mpp: Mpp | float | None = None, backend: str | None = None) -> Slide:
    """Open a whole-slide image (or a plain image) of any supported format.

    Pickling a slide stores its path, not its pixels.

    Args:
        path: The slide: a file, a folder with the DICOM files of one slide, or a URL.
        mpp: µm/px of level 0, which replaces the value in the file.
        backend: A name in `READERS`. By default the backends are tried in order.

    Returns:
        The opened slide, which is also a context manager.

    Raises:
        UnknownFormat: No backend reads this format.
        DamagedFile: The file is empty or damaged.
        NotReadable: The file does not exist or cannot be read.
        ConfigError: `backend` is not in `READERS`, or `mpp` is not a plausible length.
    """
    if backend is not None and backend not in READERS:
        raise ConfigError(f"there is no backend '{backend}'", expected=f"one of {', '.join(READERS)}")
    override = Mpp.square(mpp) if isinstance(mpp, int | float) else mpp
    for value in () if override is None else (override.x, override.y):
        check_mpp(value, path)
    slide = Slide(str(path), mpp=override, backend=backend)
    slide.levels  # noqa: B018 - opens the file now, so that a bad path fails here
    return slide


def open_mask(path: str | Path) -> Slide:
    """Open a class mask stored as a slide. Tiles that the file does not store are 0 instead of white."""
    slide = open_slide(path)
    if hasattr(slide.backend, "blank"):
        slide.backend.blank = 0
    return slide


class Slide:
    """A whole-slide image. Thread-safe; opens its file at the first use in each process."""

    def __init__(self, path: str, *, mpp: Mpp | None = None, backend: str | None = None) -> None:
        self.path = path
        self._mpp_override = mpp
        self._requested_backend = backend
        self._backend: Backend | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "mpp": self._mpp_override, "backend": self._requested_backend}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Slide.__init__(self, state["path"], mpp=state["mpp"], backend=state["backend"])

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Slide({self.path!r})"

    def close(self) -> None:
        with self._lock:
            if self._backend is not None:
                self._backend.close()
                self._backend = None

    @property
    def as_scanned(self) -> Slide:
        """The slide with the colours of the file; a slide with normalised stains returns another slide."""
        return self

    @property
    def backend(self) -> Backend:
        with self._lock:
            if self._backend is None:
                self._backend = _find_backend(self.path, self._requested_backend)
            return self._backend

    def use_cache(self, budget_bytes: int) -> None:
        """Set the size of the backend's cache of decoded tiles, if it has one."""
        cache = getattr(self.backend, "cache", None)
        if isinstance(cache, TileCache):
            cache.budget_bytes = budget_bytes

    @property
    def decoding_bytes(self) -> int:
        """Peak memory of decoding in addition to the tile cache; 0 if it is small."""
        return int(getattr(self.backend, "decoding_bytes", 0))

    @property
    def tiles_decoded(self) -> int:
        """Number of compressed tiles decoded since the file was opened; 0 if the backend does not count."""
        return int(getattr(self.backend, "decoded_tiles", 0))

    # -- metadata -----------------------------------------------------------------------------------------

    @property
    def format(self) -> str:
        return self.backend.format

    @property
    def levels(self) -> tuple[Level, ...]:
        return self.backend.levels

    @property
    def size(self) -> Size:
        """Size of level 0."""
        return self.levels[0].size

    @property
    def properties(self) -> Mapping[str, str]:
        return self.backend.properties

    @property
    def bounds(self) -> Box:
        """The level-0 box that contains pixels; the whole slide if the file does not declare one."""
        return self.backend.bounds or Box(0, 0, *self.size)

    @property
    def stated_mpp(self) -> StatedMpp | None:
        """µm/px of level 0 and its source. A value given by the user overrides the file."""
        if self._mpp_override is not None:
            return StatedMpp(self._mpp_override, "given by the user")
        return self.backend.stated_mpp

    @property
    def mpp(self) -> Mpp:
        """µm/px of level 0. Raises `MissingMpp` if neither the user nor the file states it."""
        stated = self.stated_mpp
        if stated is None:
            raise MissingMpp(self.path)
        return stated.mpp

    @property
    def colour_profile(self) -> bytes | None:
        """The ICC profile of the pixels, if the file has one. Pixels are never converted by it here."""
        profile: bytes | None = getattr(self.backend, "colour_profile", None)
        return profile

    @property
    def associated(self) -> Mapping[str, Size | None]:
        return self.backend.associated

    def read_associated(self, name: str) -> RGB:
        if name not in self.associated:
            have = ", ".join(self.associated) or "none"
            raise ConfigError(f"there is no associated image '{name}'", subject=self.path, actual=have)
        return self.backend.read_associated(name)

    def steps(self, level: int) -> tuple[Fraction, Fraction]:
        """Level-0 pixels per pixel of a level, in x and y, as exact ratios."""
        size = self.levels[level].size
        return level_step(self.size.width, size.width), level_step(self.size.height, size.height)

    # -- lattices -----------------------------------------------------------------------------------------

    def lattice(
        self, *, mpp: float | None = None, level: int | None = None, upsample: bool = False
    ) -> Lattice:
        """The lattice for a µm/px or a level.

        Args:
            mpp: Requested µm/px. If a level is within 10 % of it, the lattice of that level is returned.
            level: A level of the file, instead of `mpp`.
            upsample: Allow a µm/px finer than the slide.

        Raises:
            ConfigError: Not exactly one of `mpp` and `level` is given, or there is no such level.
            MissingMpp: The µm/px of the slide is unknown.
            FinerThanSlide: `mpp` is finer than the slide and `upsample` is false.
        """
        if (mpp is None) == (level is None):
            raise ConfigError("give the resolution as exactly one of mpp and level")
        l0_mpp = self.stated_mpp.mpp if self.stated_mpp else None
        if level is not None:
            if not 0 <= level < len(self.levels):
                actual = f"{len(self.levels)} levels"
                raise ConfigError(f"there is no level {level}", subject=self.path, actual=actual)
            return self._level_lattice(level, l0_mpp)
        base = self.mpp
        assert mpp is not None
        check_mpp(mpp, self.path)
        level_mpps = [base.scaled(*map(float, self.steps(index))).mean for index in range(len(self.levels))]
        distance, nearest = min(
            (abs(level_mpp / mpp - 1), index) for index, level_mpp in enumerate(level_mpps)
        )
        if distance <= NEAR:
            return self._level_lattice(nearest, l0_mpp)
        if mpp < base.mean and not upsample:
            raise FinerThanSlide(
                f"{mpp:g} µm/px is finer than the slide",
                subject=self.path,
                actual=f"{base} at level 0",
                remedy="Pass --upsample to enlarge it, or use a model for a coarser resolution",
            )
        exact, base_x, base_y = (Fraction(um).limit_denominator(10**6) for um in (mpp, base.x, base.y))
        return Lattice(exact / base_x, exact / base_y, self.size, Mpp.square(mpp))

    def _level_lattice(self, level: int, base: Mpp | None) -> Lattice:
        step_x, step_y = self.steps(level)
        mpp = None if base is None else base.scaled(float(step_x), float(step_y))
        return Lattice(step_x, step_y, self.size, mpp, level)

    # -- pixels -------------------------------------------------------------------------------------------

    def read(
        self, l0_box: Box, *, mpp: float | None = None, level: int | None = None, upsample: bool = False
    ) -> RGB:
        """Pixels of a level-0 box at a µm/px or a level; white outside the slide.

        The box is moved to the nearest pixels of the lattice (see `Lattice.of_l0`), so neighbouring reads
        join without a seam. The arguments `mpp`, `level` and `upsample` are those of `lattice`.

        Returns:
            An array (height, width, 3) of uint8.
        """
        lattice = self.lattice(mpp=mpp, level=level, upsample=upsample)
        return self.read_lattice(lattice, lattice.of_l0(l0_box))

    def read_lattice(self, lattice: Lattice, box: Box) -> RGB:
        """Pixels of a box of lattice pixels. A pixel does not depend on the box it is read in."""
        if box.empty or box.size.area > MAX_READ_PIXELS:
            raise ConfigError(f"cannot read a box of {box.size}", subject=self.path)
        if lattice.level is None:
            return read_resampled(self, lattice, box)
        return self.read_level(lattice.level, box)

    def read_level(self, level: int, box: Box, reduce: int = 1) -> RGB:
        """Pixels of a box of one level as stored, or as reduced while decoding; white outside."""
        size = self.reduced_size(level, reduce)
        inside = box.intersect(Box(0, 0, *size))
        if inside == box:
            return self.backend.read(level, box, reduce)
        out = np.full((box.height, box.width, 3), 255, np.uint8)
        if not inside.empty:
            pixels = self.backend.read(level, inside, reduce)
            top, left = inside.y - box.y, inside.x - box.x
            out[top : top + inside.height, left : left + inside.width] = pixels
        return out

    @property
    def is_remote(self) -> bool:
        """Whether the slide is read from a URL."""
        return is_url(self.path)

    def plan_reads(self, lattice: Lattice, boxes: Sequence[Box]) -> None:
        """Announce the boxes that will be read, in this order: tiles of remote slides are fetched ahead."""
        plan = getattr(self.backend, "plan", None)
        if plan is None:
            return
        source = source_of(self, lattice)
        needed = (source_box(self, source, box) for box in boxes)
        plan(source.level, [box for box in needed if not box.empty], source.reduce)

    def reduced_size(self, level: int, reduce: int) -> Size:
        size = self.levels[level].size
        return Size(-(-size.width // reduce), -(-size.height // reduce))

    def thumbnail(self, longest: int = 1024) -> RGB:
        """The whole slide, its longest side at most `longest` pixels."""
        if longest < 1:
            raise ConfigError(f"a thumbnail needs a side of at least 1 px, not {longest}", subject=self.path)
        step = max(Fraction(1), Fraction(max(self.size), longest))
        lattice = Lattice(step, step, self.size, None)
        return read_resampled(self, lattice, Box(0, 0, *lattice.size))


FINEST_MPP, COARSEST_MPP = 1e-3, 1e4
"""Range of µm/px that a user may request: from the width of an atom to a slide in a few pixels."""


def check_mpp(mpp: float, subject: object) -> None:
    """Refuse a µm/px that cannot be the size of a pixel: zero, negative, NaN, infinite or absurd."""
    if not FINEST_MPP <= mpp <= COARSEST_MPP:
        raise ConfigError(
            f"µm/px must be between {FINEST_MPP:g} and {COARSEST_MPP:g}, not {mpp:g}",
            subject=subject,
            remedy="Scanners write 0.25 or 0.5 µm/px",
        )


def check_readable(path: str) -> None:
    """Refuse a path that no backend can read: missing, not a file, without permission, or empty."""
    if is_url(path):
        return
    try:
        file_or_folder = Path(path)
        if file_or_folder.is_dir():
            return
        if file_or_folder.exists() and not file_or_folder.is_file():
            raise NotReadable("this is a device or a pipe", subject=path, expected="a file")
    except OSError as error:
        raise not_readable(error, path) from error
    with open_url(path) as stream:
        if not stream.read(1):
            raise DamagedFile("the file is empty", subject=path, remedy="Copy it again from its source")


def _find_backend(path: str, requested: str | None) -> Backend:
    check_readable(path)
    readers = {"dicomweb": DICOMWEB_READER} if is_dicomweb_url(path) else READERS
    for name, reader in readers.items():
        if requested in (None, name) and (backend := _open_function(reader)(path)) is not None:
            return _with_checked_sizes(backend, path)
        if name == "tiff" and needs_local_copy(path):
            return copied_backend(path, lambda local: _find_backend(local, requested))
    if not is_url(path) and Path(path).is_dir():
        raise NotReadable(
            "the path is a folder, not a slide",
            subject=path,
            expected="a slide file, or a folder with the DICOM files of one slide",
            remedy="Give the file itself (for MRXS the .mrxs file next to its folder)",
        )
    unknown = "the file is not a slide that Lobule can read"
    raise UnknownFormat(
        unknown if requested is None else f"the backend '{requested}' cannot read this file",
        subject=path,
        expected="a tiled TIFF, SVS, NDPI, MRXS, SCN, BIF, DICOM or flat image",
        remedy="Convert it to a tiled, pyramidal TIFF in RGB: vips tiffsave --tile --pyramid",
    )


def _open_function(reader: str | Callable[[str], Backend | None]) -> Callable[[str], Backend | None]:
    if not isinstance(reader, str):
        return reader
    opener: Callable[[str], Backend | None] = import_module(reader).open_backend
    return opener


def _with_checked_sizes(backend: Backend, path: str) -> Backend:
    for index, level in enumerate(backend.levels):
        if not (0 < level.size.width <= MAX_SIDE and 0 < level.size.height <= MAX_SIDE):
            raise TooLarge(
                f"level {index} declares {level.size}", subject=path, expected=f"1 to {MAX_SIDE} px a side"
            )
    return backend
