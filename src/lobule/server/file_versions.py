"""Versions of files: texts that change when a file changes, for caches here and in the browser."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path

from lobule.files import MIB

WHOLE_UP_TO = 16 * MIB
"""Files up to this size are hashed as a whole, which takes less than 50 ms."""
END_BYTES = 64 << 10
PIECE_BYTES = 4 << 10
PIECES = 16
SINGLE_FILES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".png", ".jpg", ".jpeg", ".bmp",
)  # fmt: skip
"""Endings of formats whose slides are one file each."""
MOST_VERSIONS = 1000

_versions: OrderedDict[str, tuple[str, str]] = OrderedDict()
"""The last state of each file and the version of its content then, by path."""
_versions_lock = threading.Lock()


def file_state(path: str) -> str:
    """Return a text that changes when the file is replaced or changed. Raises `OSError` if it is gone."""
    return _state(Path(path).stat())


def content_version(path: str) -> str:
    """Return a text that is the same for a copy of the file and changes when its content changes.

    A file of up to `WHOLE_UP_TO` bytes is hashed as a whole. Of a larger one, the size, the second of its
    last change, both ends and some pieces between them are hashed: a slide of gigabytes would delay its first
    view. Slides of several files, such as MRXS or a folder, have the state of the path that was opened. A
    file is read again only if its state has changed.

    Raises:
        OSError: The file is gone or cannot be read.
    """
    if not path.lower().endswith(SINGLE_FILES):
        return f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}-{file_state(path)}"
    state = file_state(path)
    with _versions_lock:
        last_state, version = _versions.get(path, ("", ""))
        if last_state == state:
            _versions.move_to_end(path)
            return version
    version = _hash(path)
    with _versions_lock:
        _versions[path] = state, version
        while len(_versions) > MOST_VERSIONS:
            _versions.popitem(last=False)
    return version


def _state(status: os.stat_result) -> str:
    # The time of the change of the inode tells a change whose time of change was set back.
    changed = status.st_ctime_ns if os.name == "posix" else 0
    return f"{status.st_size:x}-{status.st_mtime_ns:x}-{changed:x}-{status.st_ino:x}"


def _hash(path: str) -> str:
    digest = hashlib.sha256(Path(path).suffix.lower().encode() + b"\0")
    with Path(path).open("rb") as file:
        status = os.fstat(file.fileno())
        size = status.st_size
        if size <= WHOLE_UP_TO:
            digest.update(file.read())
        else:
            digest.update(f"{size} {int(status.st_mtime)}\0".encode())
            step = (size - END_BYTES) // (PIECES + 1)
            for start in range(0, size - END_BYTES, step):
                file.seek(start)
                digest.update(file.read(PIECE_BYTES if start else END_BYTES))
            file.seek(-END_BYTES, os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()[:32]
