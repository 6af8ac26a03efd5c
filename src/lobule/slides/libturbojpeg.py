"""libjpeg-turbo's own library, where one is at hand: JPEG decoded into the rows of a larger picture.

The Python front ends of libjpeg-turbo write to contiguous memory alone. What they decode must be copied into
the box that was asked for, through caches that both do not fit in, at a tenth to a sixth of the decoding. The
library itself takes the distance between rows. Without it everything works, a little slower.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from functools import cache

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
        self._header, self._decompress = functions.tjDecompressHeader3, functions.tjDecompress2
        address, number, answer = ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int)
        stream = address, ctypes.c_ulong
        self._init.restype, self._destroy.argtypes = address, [address]
        self._header.argtypes = [address, *stream, answer, answer, answer, answer]
        self._decompress.argtypes = [address, *stream, address, number, number, number, number, number]

    def decode_into(self, stream: memoryview, width: int, height: int, spot: RGB) -> bool:
        """Whether a sound stream of `width` × `height` px now fills `spot`, reduced to its size.

        `stream` must be writable memory. False, also for what is a mere warning, leaves anything in `spot`,
        and nothing beyond it.
        """
        rows, columns, samples = spot.shape
        pitch, step, one = spot.strides
        if (samples, step, one) != (3, 3, 1) or pitch < 3 * columns:
            raise ValueError("the place of a picture must be rows of RGB bytes")
        data, pixels = ctypes.c_char.from_buffer(stream), ctypes.c_char.from_buffer(spot[0])
        # a decompressor keeps the tables of one stream, and would lend them to the next that lacks its own
        handle = self._init()
        if not handle:
            return False
        try:
            # the library's own word on the size: a smaller picture would leave a part of `spot` as it was
            answers = [ctypes.c_int() for _ in range(4)]
            said = map(ctypes.byref, answers)
            if self._header(handle, ctypes.byref(data), len(stream), *said):
                return False
            if (answers[0].value, answers[1].value) != (width, height):
                return False
            done: int = self._decompress(
                handle, ctypes.byref(data), len(stream), ctypes.byref(pixels),
                columns, pitch, rows, _RGB, _ACCURATE_DCT,
            )  # fmt: skip
            return done == 0
        finally:
            self._destroy(handle)
