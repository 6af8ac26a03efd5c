"""`open_slide` and `Slide`: one way to read any slide, whichever library knows its format."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

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
from lobule.slides.backend import RGB, Backend, FoundMpp, Level
from lobule.slides.cache import TileCache
from lobule.slides.resample import choose_source, read_resampled
from lobule.units import Mpp

READERS: dict[str, str] = {
    "tiff": "lobule.slides.tiff",
    "dicom": "lobule.slides.dicom",
    "openslide": "lobule.slides.openslide",
    "flat": "lobule.slides.flat",
}
"""Backends in the order they are asked; each module has `open_backend(path) -> Backend | None`.

None means "not mine"; an error means "mine, and broken". A value may also be the function itself.
"""

NEAR = 0.10
"""A level whose µm/px is within this share of what is wanted is read unscaled."""

MAX_READ_PIXELS = 1 << 30
"""Pixels one `read` may ask for; more is a mistake or a bomb."""


def open_slide(path: str | Path, *, mpp: Mpp | float | None = None, backend: str | None = None) -> Slide:
    """Open a whole-slide image (or a flat image) of any supported format.

    `mpp` overrides what the file says of its µm/px. `backend` names one of `READERS`; by default they are
    asked in order. The file is touched at the first use, and pickling carries the path, not the pixels.
    """
    if backend is not None and backend not in READERS:
        raise ConfigError(f"no backend '{backend}'", expected=f"one of {', '.join(READERS)}")
    given = Mpp.square(mpp) if isinstance(mpp, int | float) else mpp
    if given is not None:
        for value in (given.x, given.y):
            check_mpp(value, path)
    slide = Slide(str(path), mpp=given, backend=backend)
    slide.levels  # noqa: B018 - opens the file now, so that a bad path fails here
    return slide


def open_mask(path: str | Path) -> Slide:
    """Open a class mask kept as a slide: tiles that its file leaves out hold class 0, and are not white."""
    slide = open_slide(path)
    if hasattr(slide.backend, "blank"):
        slide.backend.blank = 0
    return slide


class Slide:
    """A whole-slide image. Thread-safe; opens its file at the first use in each process."""

    def __init__(self, path: str, *, mpp: Mpp | None = None, backend: str | None = None) -> None:
        self.path = path
        self._given_mpp = mpp
        self._wanted_backend = backend
        self._backend: Backend | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "mpp": self._given_mpp, "backend": self._wanted_backend}

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
    def backend(self) -> Backend:
        with self._lock:
            if self._backend is None:
                self._backend = _find_backend(self.path, self._wanted_backend)
            return self._backend

    def use_cache(self, budget_bytes: int) -> None:
        """Let the backend keep so many bytes of decoded tiles, where it keeps any."""
        cache = getattr(self.backend, "cache", None)
        if isinstance(cache, TileCache):
            cache.budget_bytes = budget_bytes

    def row_bytes(self, lattice: Lattice, height: int) -> int:
        """Bytes of decoded tiles under a row of boxes across the slide and where the next row begins."""
        level, reduce, ratio = lattice.level, 1, Fraction(1)
        if level is None:
            source = choose_source(self, lattice)
            level, reduce, ratio = source.level, source.reduce, source.ratio_y
        size, tile = self.levels[level].size, self.levels[level].tile
        return 3 * (size.width // reduce) * (int(height * ratio) + 3 * (tile.height // reduce))

    @property
    def decoding_bytes(self) -> int:
        """Memory that decoding takes at its peak, beside the cache of tiles; 0 where it is little."""
        return int(getattr(self.backend, "decoding_bytes", 0))

    @property
    def tiles_decoded(self) -> int:
        """Compressed tiles decoded since the file was opened; 0 where the backend does not count."""
        return int(getattr(self.backend, "decoded_tiles", 0))

    # -- facts --------------------------------------------------------------------------------------------

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
        """The level-0 box that holds pixels; the whole slide where the file declares none."""
        return self.backend.bounds or Box(0, 0, *self.size)

    @property
    def found_mpp(self) -> FoundMpp | None:
        """µm/px of level 0 with its provenance; what was given overrides what the file says."""
        if self._given_mpp is not None:
            return FoundMpp(self._given_mpp, "given by the user")
        return self.backend.found_mpp

    @property
    def mpp(self) -> Mpp:
        """µm/px of level 0. Raises `MissingMpp` where nobody knows it."""
        found = self.found_mpp
        if found is None:
            raise MissingMpp(self.path)
        return found.mpp

    @property
    def associated(self) -> Mapping[str, Size | None]:
        return self.backend.associated

    def read_associated(self, name: str) -> RGB:
        if name not in self.associated:
            have = ", ".join(self.associated) or "none"
            raise ConfigError(f"no associated image '{name}'", subject=self.path, actual=have)
        return self.backend.read_associated(name)

    def steps(self, level: int) -> tuple[Fraction, Fraction]:
        """Level-0 pixels per pixel of a level, in x and y, as exact ratios."""
        size = self.levels[level].size
        return level_step(self.size.width, size.width), level_step(self.size.height, size.height)

    # -- lattices -----------------------------------------------------------------------------------------

    def lattice(
        self, *, mpp: float | None = None, level: int | None = None, upsample: bool = False
    ) -> Lattice:
        """The lattice for a wanted µm/px (or a level): where a level is near enough, that level's own."""
        if (mpp is None) == (level is None):
            raise ConfigError("say which resolution: exactly one of mpp and level")
        known = self.found_mpp.mpp if self.found_mpp else None
        if level is not None:
            if not 0 <= level < len(self.levels):
                raise ConfigError(f"no level {level}", subject=self.path, actual=f"{len(self.levels)} levels")
            return self._level_lattice(level, known)
        base = self.mpp
        assert mpp is not None
        check_mpp(mpp, self.path)
        near = [
            (abs(own / mpp - 1), index)
            for index in range(len(self.levels))
            for own in [base.scaled(*map(float, self.steps(index))).mean]
            if abs(own / mpp - 1) <= NEAR
        ]
        if near:
            return self._level_lattice(min(near)[1], known)
        if mpp < base.mean and not upsample:
            raise FinerThanSlide(
                f"{mpp:g} µm/px is finer than the slide",
                subject=self.path,
                actual=f"{base} at level 0",
                remedy="Pass --upsample to enlarge it, or use a model for a coarser resolution",
            )
        step_x = Fraction(mpp).limit_denominator(10**6) / Fraction(base.x).limit_denominator(10**6)
        step_y = Fraction(mpp).limit_denominator(10**6) / Fraction(base.y).limit_denominator(10**6)
        return Lattice(step_x, step_y, self.size, Mpp.square(mpp))

    def _level_lattice(self, level: int, base: Mpp | None) -> Lattice:
        step_x, step_y = self.steps(level)
        mpp = None if base is None else base.scaled(float(step_x), float(step_y))
        return Lattice(step_x, step_y, self.size, mpp, level)

    # -- pixels -------------------------------------------------------------------------------------------

    def read(
        self, l0_box: Box, *, mpp: float | None = None, level: int | None = None, upsample: bool = False
    ) -> RGB:
        """Pixels of a level-0 box at a µm/px or a level; white outside the slide.

        The box is moved to the nearest pixels of the lattice (`Lattice.of_l0` says how), so neighbouring
        reads meet without a seam.
        """
        lattice = self.lattice(mpp=mpp, level=level, upsample=upsample)
        return self.read_lattice(lattice, lattice.of_l0(l0_box))

    def read_lattice(self, lattice: Lattice, box: Box) -> RGB:
        """Pixels of a box of lattice pixels. A pixel does not depend on the box it was read in."""
        if box.empty or box.size.area > MAX_READ_PIXELS:
            raise ConfigError(f"cannot read a box of {box.size}", subject=self.path)
        if lattice.level is None:
            return read_resampled(self, lattice, box)
        return self.read_level(lattice.level, box)

    def read_level(self, level: int, box: Box, reduce: int = 1) -> RGB:
        """Pixels of a box of one level as the file stores it (or decodes it reduced); white outside."""
        size = self.reduced_size(level, reduce)
        inside = box.intersect(Box(0, 0, *size))
        if inside == box:
            return self.backend.read(level, box, reduce)
        out = np.full((box.height, box.width, 3), 255, np.uint8)
        if not inside.empty:
            top, left = inside.y - box.y, inside.x - box.x
            out[top : top + inside.height, left : left + inside.width] = self.backend.read(
                level, inside, reduce
            )
        return out

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
"""Range of µm/px that a person may ask for: an atom's width to a slide in a few pixels."""


def check_mpp(mpp: float, subject: object) -> None:
    """Refuse a µm/px that is no length of a pixel: zero, negative, NaN, infinite or absurd."""
    if not FINEST_MPP <= mpp <= COARSEST_MPP:
        raise ConfigError(
            f"µm/px must be between {FINEST_MPP:g} and {COARSEST_MPP:g}, not {mpp:g}",
            subject=subject,
            remedy="Scanners write 0.25 or 0.5 µm/px",
        )


def check_readable(path: str) -> None:
    """Refuse what no backend could read, before any is asked: missing, not a file, forbidden, empty."""
    if is_url(path):
        return
    try:
        place = Path(path)
        if place.is_dir():
            return
        if place.exists() and not place.is_file():
            raise NotReadable("this is a device or a pipe", subject=path, expected="a file")
    except OSError as error:
        raise not_readable(error, path) from error
    with open_url(path) as stream:
        if not stream.read(1):
            raise DamagedFile("the file is empty", subject=path, remedy="Copy it again from its source")


def _find_backend(path: str, wanted: str | None) -> Backend:
    check_readable(path)
    for name, where in READERS.items():
        if wanted is not None and name != wanted:
            continue
        backend = _opener(where)(path)
        if backend is not None:
            return _checked(backend, path)
    if not is_url(path) and Path(path).is_dir():
        raise NotReadable(
            "a folder, not a slide",
            subject=path,
            expected="a slide file, or a folder with the DICOM files of one slide",
            remedy="Name the file itself (for MRXS the .mrxs file beside its folder)",
        )
    raise UnknownFormat(
        "not a slide that Lobule can read"
        if wanted is None
        else f"the backend '{wanted}' does not take this file",
        subject=path,
        expected="a tiled TIFF, SVS, NDPI, MRXS, SCN, BIF, DICOM or flat image",
        remedy="Convert it to a tiled, pyramidal TIFF in RGB: vips tiffsave --tile --pyramid",
    )


def _opener(where: str | Callable[[str], Backend | None]) -> Callable[[str], Backend | None]:
    if not isinstance(where, str):
        return where
    opener: Callable[[str], Backend | None] = import_module(where).open_backend
    return opener


MAX_SIDE = 4_000_000
"""Pixels a side that a slide may declare; the largest real ones have about 300,000."""


def _checked(backend: Backend, path: str) -> Backend:
    for index, level in enumerate(backend.levels):
        if not (0 < level.size.width <= MAX_SIDE and 0 < level.size.height <= MAX_SIDE):
            raise TooLarge(
                f"level {index} declares {level.size}", subject=path, expected=f"1 to {MAX_SIDE} px a side"
            )
    return backend
