"""Decode JPEG tiles directly into the rows of a larger picture, if the libjpeg-turbo library is installed.

The Python interfaces of libjpeg-turbo write only to contiguous memory. Copying a decoded tile into the
requested box costs a tenth to a sixth of the decoding time, because tile and box do not both fit in the CPU
caches. The C library accepts a distance between rows. Without it everything works, only slightly slower.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from functools import cache

from lobule.geometry import Size
from lobule.slides.backend import RGB

_RGB, _ACCURATE_DCT = 0, 1 << 12
_SUFFIXES = {"darwin": ".dylib", "win32": ".dll"}


@cache
def library() -> TurboJpeg | None:
    """The first library that loads: that of the `turbojpeg` wheel, then the system's; None without either."""
    for path in _candidates():
        try:
            return TurboJpeg(path)
        except (OSError, AttributeError):  # it cannot be loaded, or another library has that name
            continue
    return None


def _candidates() -> Iterator[str]:
    try:
        files = importlib.metadata.files("turbojpeg") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    suffix = _SUFFIXES.get(sys.platform, ".so")
    for file in files:
        # The wheel also contains an extension module, whose name contains "cpython".
        if "turbojpeg" in file.name and suffix in file.name and "cpython" not in file.name:
            yield str(file.locate())
    if system_library := find_library("turbojpeg"):
        yield system_library


class TurboJpeg:
    """The functions that every version since 1.4 has. Several threads may decode at once."""

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

    def decode_into(self, stream: memoryview, size: Size, destination: RGB) -> bool:
        """Decode a stream of an image of `size` into `destination`, reduced to the size of the latter.

        `stream` must be writable memory. Returns False on any error or warning; `destination` may then
        contain anything, but nothing outside it is written.
        """
        rows, columns, samples = destination.shape
        pitch, step, one = destination.strides
        if (samples, step, one) != (3, 3, 1) or pitch < 3 * columns:
            raise ValueError("the output must consist of rows of RGB bytes")
        data, pixels = ctypes.c_char.from_buffer(stream), ctypes.c_char.from_buffer(destination[0])
        # A decompressor would reuse the tables of one stream for a later stream that lacks them.
        handle = self._init()
        if not handle:
            return False
        try:
            # Check the size that the library reads: a smaller picture would leave some rows unwritten.
            answers = [ctypes.c_int() for _ in range(4)]
            answer_pointers = map(ctypes.byref, answers)
            if self._header(handle, ctypes.byref(data), len(stream), *answer_pointers):
                return False
            if (answers[0].value, answers[1].value) != tuple(size):
                return False
            status: int = self._decompress(
                handle, ctypes.byref(data), len(stream), ctypes.byref(pixels),
                columns, pitch, rows, _RGB, _ACCURATE_DCT,
            )  # fmt: skip
            return status == 0
        finally:
            self._destroy(handle)
