"""A process that decodes tiles for the server, which starts a few of them when many tiles are requested.

Requests come on its standard input, one line of JSON each, and tiles go to its standard output in the same
order. The process ends when its input ends, also if the server was killed.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys

from lobule.errors import LobuleError
from lobule.server.slide_tiles import OpenedImage, Slides

LENGTH = struct.Struct("<i")
"""The number of bytes of the tile that follows."""
FAILED = -1
"""Instead of the length: the tile cannot be decoded, or its file has changed."""
MOST_OPEN = 4
CACHE_BYTES = 16 << 20
"""Memory for decoded tiles of each slide. Only computed levels read a tile more than once."""


def request_line(image: OpenedImage, level: int, column: int, row: int) -> bytes:
    """Return the request of a tile."""
    return json.dumps([str(image.slide.path), image.mpp, image.state, level, column, row]).encode() + b"\n"


def main() -> None:
    """Answer requests until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends this process.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # What a library prints must not be read as a tile.
    slides = Slides(MOST_OPEN, CACHE_BYTES, has_versions=False)
    try:
        _send(answers.fileno(), LENGTH.pack(0))  # Everything is imported.
        for line in sys.stdin.buffer:
            tile = _tile(slides, line)
            _send(answers.fileno(), LENGTH.pack(FAILED) if tile is None else LENGTH.pack(len(tile)) + tile)
    except BrokenPipeError:
        pass  # The server has ended.


def _send(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _tile(slides: Slides, line: bytes) -> bytes | None:
    path, mpp, state, level, column, row = json.loads(line)
    try:
        image = slides.open(path, mpp)
        return slides.decoded_tile(image, level, column, row) if image.state == state else None
    except (OSError, LobuleError, ValueError, MemoryError):
        return None  # The server decodes it again and reports the error.


if __name__ == "__main__":
    main()
