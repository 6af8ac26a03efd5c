"""libjpeg-turbo's own library, where one is at hand: JPEG decoded into the rows of a larger picture.

The Python front ends of libjpeg-turbo write to contiguous memory alone. What they decode must be copied into
the box that was asked for, through caches that both do not fit in, at a tenth to a sixth of the decoding. The
library itself takes the distance between rows. Without it everything works, a little slower.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
import threading
import weakref
from collections.abc import Iterator
from ctypes.util import find_library
from functools import cache
from typing import Any

from lobule.slides.backend import RGB

_RGB, _ACCURATE_DCT = 0, 1 << 12
_SUFFIXES = {"darwin": ".dylib", "win32": ".dll"}


@cache
def library() -> TurboJpeg | None:
    """The first that loads: that of the `turbojpeg` wheel, then the system's."""
    for path in _candidates():
        try:
            return TurboJpeg(path)
        except (OSError, AttributeError):  # not to be loaded, or another library of that name
            continue
    return None


def _candidates() -> Iterator[str]:
    try:
        files = importlib.metadata.files("turbojpeg") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    suffix = _SUFFIXES.get(sys.platform, ".so")
    for file in files:
        # not the extension module beside it, which is named after Python
        if "turbojpeg" in file.name and suffix in file.name and "cpython" not in file.name:
            yield str(file.locate())
    if found := find_library("turbojpeg"):
        yield found


class TurboJpeg:
    """The functions that every version since 1.4 has. Any number of threads may decode at once."""

    def __init__(self, path: str) -> None:
        self.path = path
        functions = ctypes.CDLL(path)
        self._init, self._destroy = functions.tjInitDecompress, functions.tjDestroy
        self._decompress = functions.tjDecompress2
        address, number = ctypes.c_void_p, ctypes.c_int
        self._init.restype, self._destroy.argtypes = address, [address]
        self._decompress.argtypes = [
            address, address, ctypes.c_ulong, address, number, number, number, number, number
        ]  # fmt: skip
        self._threads = threading.local()

    def decode_into(self, stream: memoryview, spot: RGB) -> bool:
        """Whether a sound stream now fills `spot`, reduced to its size; `stream` must be writable memory.

        False, also for what is a mere warning, leaves anything in `spot`. Nothing is written beyond it: what
        does not fit is reduced or refused. A size that `spot` is no reduction of fills a part of it only, so
        the caller must know what the stream declares.
        """
        height, width, samples = spot.shape
        pitch, step, one = spot.strides
        if (samples, step, one) != (3, 3, 1) or pitch < 3 * width:
            raise ValueError("the place of a picture must be rows of RGB bytes")
        data, pixels = ctypes.c_char.from_buffer(stream), ctypes.c_char.from_buffer(spot[0])
        done: int = self._decompress(
            self._handle(), ctypes.byref(data), len(stream), ctypes.byref(pixels),
            width, pitch, height, _RGB, _ACCURATE_DCT,
        )  # fmt: skip
        return done == 0

    def _handle(self) -> int:
        """The decompressor of this thread."""
        try:
            mine: _Decompressor = self._threads.mine
        except AttributeError:
            mine = self._threads.mine = _Decompressor(self._init(), self._destroy)
        return mine.handle


class _Decompressor:
    """One thread's; let go with the thread."""

    def __init__(self, handle: int | None, destroy: Any) -> None:
        if not handle:
            raise MemoryError("libturbojpeg has no memory for a decompressor")
        self.handle = handle
        weakref.finalize(self, destroy, handle)
