"""A cache of remote slides on this machine, for formats whose libraries read local files only.

The cache is bounded: copies that were not used for the longest time are deleted first, and an open slide is
never deleted. Copies that a killed process left incomplete are deleted before the next download.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from lobule.errors import LobuleError, NotReadable, TooLarge
from lobule.fingerprints import cache_folder, cache_limit
from lobule.object_stores import ObjectRanges, is_object_url, urls_under
from lobule.slides.backend import Backend
from lobule.slides.read_ahead import read_all

LIMIT_VARIABLE = "LOBULE_SLIDE_CACHE_BYTES"
CHUNK_BYTES = 8 << 20
CHUNKS_AT_ONCE = 4
DATA_FOLDER_SUFFIX = ".mrxs"
"""Slides whose tiles are in a folder of the same name beside the file."""
FLAT_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".jp2", ".pnm", ".ppm", ".pgm")
"""Images that are read completely, and need no copy."""


def needs_local_copy(path: str) -> bool:
    """Whether a path that is not a TIFF of the backend `tiff` is copied before it is opened."""
    return is_object_url(path) and _name_of(path).suffix.lower() not in FLAT_SUFFIXES


def copied_backend(url: str, open_local: Callable[[str], Backend]) -> Backend:
    """Open the local copy of a remote slide. The copy may be deleted when the backend is no longer used."""
    path, lock = local_copy(url)
    try:
        backend = open_local(str(path))
    except BaseException as error:
        lock.close()
        if isinstance(error, LobuleError):
            error.subject = url
            error.args = (error.message(),)
        raise
    weakref.finalize(backend, lock.close)
    return backend


def local_copy(url: str) -> tuple[Path, IO[str]]:
    """Download a slide, unless the cache has it in the same version.

    Returns:
        Its path, and the open file of its lock. While that is open, the copy is not deleted.

    Raises:
        NotReadable: The slide cannot be downloaded.
        TooLarge: The cache cannot make room for the slide.
    """
    objects = _objects_of(url)
    text = "\n".join(
        f"{name} {source.url} {source.size} {source.version}" for name, source in objects.items()
    )
    folder = cache_folder() / "slides"
    entry = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            lock = _lock_of(entry, shared=True)
            if entry.exists():
                os.utime(entry)
                return entry / _name_of(url).name, lock
            lock.close()
            with _lock_of(entry, shared=False):  # Another process may download the same slide.
                if not entry.exists():
                    _make_room(folder, url, sum(source.size for source in objects.values()))
                    _download(objects, entry)
    except OSError as error:
        raise NotReadable(
            f"the slide cannot be copied to {folder}: {error.strerror or error}",
            subject=url,
            remedy="Free some space, or set LOBULE_CACHE to a folder on another disk",
        ) from error


def _name_of(url: str) -> PurePosixPath:
    return PurePosixPath(unquote(urlsplit(url).path))


def _objects_of(url: str) -> dict[str, ObjectRanges]:
    """The objects of a slide by their path relative to its folder."""
    name = _name_of(url)
    objects = {name.name: ObjectRanges(url)}
    if name.suffix.lower() == DATA_FOLDER_SUFFIX:
        prefix = f"{url[: -len(DATA_FOLDER_SUFFIX)]}/"
        objects |= {f"{name.stem}/{path}": ObjectRanges(other) for path, other in urls_under(prefix).items()}
    return objects


def _download(objects: dict[str, ObjectRanges], entry: Path) -> None:
    incomplete = entry.with_name(f"{entry.name}.{uuid4().hex[:8]}.part")
    try:
        for name, source in objects.items():
            target = incomplete / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                step = CHUNK_BYTES * CHUNKS_AT_ONCE
                for start in range(0, source.size, step):
                    end = min(start + step, source.size)
                    file.writelines(read_all(source.read, start, end, CHUNK_BYTES))
        incomplete.rename(entry)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)


@dataclass(frozen=True)
class _Entry:
    path: Path
    used: float
    size: int


def _make_room(folder: Path, url: str, size: int) -> None:
    """Delete incomplete copies, and the copies that were not used for the longest time."""
    for path in folder.glob("*.part"):
        _delete(path, path.with_name(path.name.partition(".")[0]))
    limit = cache_limit(LIMIT_VARIABLE)
    entries = [
        _Entry(path, path.stat().st_mtime, _size_of(path)) for path in folder.iterdir() if path.is_dir()
    ]
    total = sum(entry.size for entry in entries)
    for entry in sorted(entries, key=lambda entry: entry.used):
        if total + size > limit and _delete(entry.path, entry.path):
            total -= entry.size
    if total + size > limit:
        raise TooLarge(
            "the cache of remote slides has no room for this slide",
            subject=url,
            expected=f"at most {limit - total:,} bytes",
            actual=f"{size:,} bytes",
            remedy=f"Set {LIMIT_VARIABLE} to more bytes than {limit}, then use --retry-failed",
        )


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _delete(path: Path, entry: Path) -> bool:
    """Delete a folder of the cache unless a process uses it."""
    try:
        lock = _lock_of(entry, shared=False, wait=False)
    except BlockingIOError:
        return False
    with lock:
        shutil.rmtree(path, ignore_errors=True)
        entry.with_suffix(".lock").unlink(missing_ok=True)
    return True


def _lock_of(entry: Path, shared: bool, wait: bool = True) -> IO[str]:
    """Open and lock the lock file of a copy. Without `wait`, raise `BlockingIOError` if it is locked."""
    while True:
        file = entry.with_suffix(".lock").open("a+")
        try:
            _flock(file, shared, wait)
            if os.fstat(
                file.fileno()
            ).st_nlink:  # Otherwise another process deleted the file in the meantime.
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _flock(file: IO[str], shared: bool, wait: bool) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has no such locks, but refuses to delete an open file.
        return
    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
