"""Basic operations on files by their names as text, for scans of many small cases.

A scan of a small case consists mostly of writing small files. With objects of `pathlib`, such a write takes
twice the processor time, apart from the flush. Errors are those of the operating system; `lobule.files`
converts them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def temporary_name(path: str) -> str:
    """Return a name for writing a file: in the same folder, hidden, with the same suffix."""
    folder, name = os.path.split(path)
    stem, suffix = os.path.splitext(name)
    return os.path.join(folder, f".{stem[:80]}.{os.urandom(6).hex()}.part{suffix}")


def replace_file(path: str, data: bytes, temporary: str, flush: bool) -> None:
    """Write a file under a temporary name, flush it to disk if that is requested, and rename it.

    If the process fails or is killed, `path` is unchanged.
    """
    try:
        descriptor = os.open(temporary, _NEW_FILE, 0o666)
        try:
            _write_all(descriptor, data)
            if flush:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def write_new_file(path: str, data: bytes) -> None:
    """Write a file that does not exist yet, without flushing it."""
    descriptor = os.open(path, _NEW_FILE, 0o666)
    try:
        _write_all(descriptor, data)
    finally:
        os.close(descriptor)


def read_file(path: str) -> bytes:
    """Return the contents of a file."""
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _write_all(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    while written < len(data):  # One call may write fewer bytes.
        written += os.write(descriptor, memoryview(data)[written:])


def flush_path(path: str) -> None:
    """Flush a file to disk. Flushing its folder, where the system allows it, makes a rename permanent."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not os.path.isdir(path) or error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
    finally:
        os.close(descriptor)


def tree(root: str) -> Iterator[str]:
    """Yield the files and folders under a folder, which may be missing. What is in a folder precedes it."""
    try:
        with os.scandir(root) as entries:
            paths = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except OSError:  # The folder does not exist, or was removed.
        return
    for path, is_folder in paths:
        if is_folder:
            yield from tree(path)
        yield path


def files_in_subfolders(root: str) -> Iterator[str]:
    """Yield the paths `root/*/*`."""
    for folder in _names_in(root):
        for name in _names_in(f"{root}/{folder}"):
            yield f"{root}/{folder}/{name}"


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def path_exists(path: str) -> bool:
    """Whether a file or folder exists."""
    return os.path.exists(path)


def is_file(path: str) -> bool:
    """Whether a path is that of a regular file."""
    return os.path.isfile(path)


def make_new_folders(paths: Iterable[str]) -> None:
    """Create folders in this order. Those that exist stay."""
    for path in paths:
        with suppress(FileExistsError):
            os.mkdir(path)
