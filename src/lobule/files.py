"""Files that are whole or absent, the fingerprints that results trust, and paths that may be URLs."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import quote
from uuid import uuid4

from lobule.errors import LobuleError, NotReadable, ResultsError, UsageError

MIB = 1 << 20
_URL = re.compile(r"[a-z][a-z0-9+.-]*(::[a-z][a-z0-9+.-]*)*://", re.IGNORECASE)


def is_url(path: str | Path) -> bool:
    """Whether a path is `scheme://…`, which fsspec opens, and not a place on this machine's disks."""
    return isinstance(path, str) and _URL.match(path) is not None


def open_url(path: str | Path, mode: str = "rb") -> IO[Any]:
    """Open a local path or an fsspec URL; what goes wrong is an error that names the remedy."""
    try:
        if is_url(path):
            import fsspec

            return cast(IO[Any], fsspec.open(str(path), mode).open())
        return Path(path).open(mode, encoding=None if "b" in mode else "utf-8")
    except (ImportError, ValueError) as error:
        scheme = str(path).partition("://")[0]
        raise UsageError(
            f"cannot open {scheme}:// paths: {error}",
            subject=path,
            remedy=f"Install the fsspec file system for {scheme}, or copy the file here",
        ) from error
    except OSError as error:
        if any(letter in mode for letter in "wax+"):
            raise results_error(error, path) from error
        raise not_readable(error, path) from error


def not_readable(error: OSError, path: str | Path) -> NotReadable:
    """The error of one case whose file does not open."""
    if isinstance(error, FileNotFoundError):
        return NotReadable("there is no such file", subject=path, remedy="Check the path")
    if isinstance(error, IsADirectoryError):
        return NotReadable("this is a folder", subject=path, expected="a file")
    if isinstance(error, PermissionError):
        return NotReadable("permission denied", subject=path, remedy="Ask its owner for read permission")
    return NotReadable(f"cannot be read: {error.strerror or error}", subject=path)


_MAKE_ROOM = "Free some space, or write elsewhere; what is done stays done"
_REMEDIES = {
    errno.ENOSPC: ("no space is left on the disk", _MAKE_ROOM),
    errno.EDQUOT: ("the disk quota is used up", _MAKE_ROOM),
    errno.EROFS: ("the file system is read-only", "Write to another folder"),
    errno.EACCES: ("permission denied", "Write to a folder of your own"),
    errno.EPERM: ("permission denied", "Write to a folder of your own"),
    errno.ENOENT: ("the folder does not exist", "Make the folder first"),
    errno.ENOTDIR: ("part of the path is a file, not a folder", "Write to another folder"),
    errno.EISDIR: ("this is a folder", "Give the name of a file"),
    errno.ENAMETOOLONG: ("the name is too long for this file system", "Use shorter names"),
    errno.EIO: ("the disk reports an input/output error", "Check the disk; what is done stays done"),
}  # fmt: skip


def results_error(error: OSError, path: str | Path) -> ResultsError:
    """The error of an output that cannot be written, with its remedy."""
    problem, remedy = _REMEDIES.get(error.errno or 0, (f"cannot be written: {error.strerror or error}", None))
    return ResultsError(problem, subject=path, remedy=remedy)


LONGEST_FOLDER_NAME = 240
"""Bytes of a case's folder name; file systems allow 255, and writers add a suffix."""


def case_folder_name(case_id: str) -> str:
    """The name of a case's folder in the results."""
    # letters of any script stay as they are: escaped, a long name would not fit a file system
    name = "".join(letter if ord(letter) > 127 else quote(letter, safe=" ") for letter in case_id)
    return f"%2E{name[1:]}" if name.startswith(".") else name  # `..` is a folder of nobody's


def fits_folder_name(case_id: str) -> bool:
    """Whether a file system takes a case's name as the name of a folder."""
    return len(case_folder_name(case_id).encode(errors="surrogateescape")) <= LONGEST_FOLDER_NAME


def make_folder(path: str | Path) -> Path:
    """Make a folder and its parents; a file in the way or a missing permission is a `ResultsError`."""
    if is_url(path):
        raise UsageError(
            "cannot write a folder to a URL",
            subject=path,
            expected="a folder on this machine",
            remedy="Write to a local folder, then copy it",
        )
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ResultsError("this is a file", subject=path, expected="a folder") from error
    except OSError as error:
        raise results_error(error, path) from error
    return Path(path)


# -- writing ------------------------------------------------------------------------------------------------


@contextmanager
def write_atomic(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to; on success it is flushed and takes the name `path`.

    Killed or failed at any instant, `path` is what it was before. The temporary name keeps the suffix
    (writers choose formats by it) and begins with a dot. `path` may be a URL: it is uploaded when whole.
    """
    if is_url(path):
        with _write_url(str(path)) as temporary_path:
            yield temporary_path
        return
    target = Path(path)
    temporary_path = target.with_name(f".{target.stem[:80]}.{uuid4().hex[:12]}.part{target.suffix}")
    try:
        yield temporary_path
        _flush(temporary_path)
        temporary_path.replace(target)
        _flush(target.parent)
    except OSError as error:
        if error.filename is None or Path(str(error.filename)).parent == target.parent:
            raise results_error(error, path) from error
        raise
    finally:
        with suppress(OSError):
            temporary_path.unlink(missing_ok=True)


@contextmanager
def _write_url(url: str) -> Iterator[Path]:
    import fsspec

    with tempfile.TemporaryDirectory(prefix="lobule-") as folder:
        temporary_path = Path(folder) / Path(url).name
        yield temporary_path
        try:
            file_system, remote_path = fsspec.core.url_to_fs(url)
            file_system.makedirs(file_system._parent(remote_path), exist_ok=True)
            file_system.put_file(str(temporary_path), remote_path)
        except OSError as error:
            raise results_error(error, url) from error


def _flush(path: Path) -> None:
    """Ask the disk to have it; folders too, where the system allows, so that the rename survives."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir():
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
    finally:
        os.close(descriptor)


def flush_all(root: str | Path) -> None:
    """Ask the disk to have every file under a folder, and the folders."""
    folder = Path(root)
    for item in sorted(folder.rglob("*")) if folder.is_dir() else ():
        try:
            _flush(item)
        except FileNotFoundError:  # a leftover that its writer takes away now
            continue
        except OSError as error:
            raise results_error(error, item) from error


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file or nothing."""
    with write_atomic(path) as temporary_path:
        temporary_path.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole UTF-8 file or nothing.

    A file name need not be UTF-8: its odd bytes are written as escapes, which JSON reads back as they were.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: str | Path, value: object) -> None:
    """Write JSON whole or not at all. NaN and infinity are refused: no other reader takes them."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


LARGEST_JSON = 256 * MIB
MOST_NESTED = 100


def read_json(path: str | Path, largest: int = LARGEST_JSON) -> Any:
    """Read JSON; what is not JSON, or larger than `largest` bytes, is a `ResultsError`."""
    if not is_url(path):
        require_regular(path)
    with open_url(path) as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise ResultsError("too large for this file", subject=path, expected=f"at most {largest:,} bytes")
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
        if _is_nested_deeper(value, MOST_NESTED):
            raise ValueError(f"nested more than {MOST_NESTED} deep")
        return value
    except (ValueError, RecursionError, MemoryError) as error:
        raise ResultsError(
            f"not JSON: {error}", subject=path, remedy="The file is damaged; write it again"
        ) from error


def _is_nested_deeper(value: Any, limit: int) -> bool:
    """Whether lists and mappings hold one another in more than so many levels."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        if not level:
            return False
        items = (item for box in level for item in (box.values() if isinstance(box, dict) else box))
        level = [item for item in items if isinstance(item, dict | list)]
    return bool(level)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def require_regular(path: str | Path) -> None:
    """Refuse a FIFO, a socket or a device, which a read could wait for without end."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return  # opening it says why it cannot be read
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise NotReadable("this is not a regular file", subject=path, expected="a file")


# -- fingerprints -------------------------------------------------------------------------------------------


def fingerprint(path: str | Path, full: bool = False) -> str:
    """The identity of a file's content; what results carry of their input.

    A file gives `sha256:` of all of its bytes, as sha256sum prints it. A folder, or a slide with a companion
    folder (MRXS), hashes the names and the fingerprints of all of its files.

    The hash of a large file is stored in the user's cache folder together with the file's size, modification
    time and inode. While those are unchanged, the stored hash is returned without reading the file again.

    Args:
        path: A file, a folder or an fsspec URL.
        full: Read everything, and trust no stored hash.
    """
    if is_url(path):
        return _hash_url(str(path), full)
    target = Path(path)
    try:
        if target.is_dir():
            return _hash_folder([target], full)
        companion = target.with_suffix("")
        if target.suffix.lower() == ".mrxs" and companion.is_dir():
            return _hash_folder([target, companion], full)
        return _hash_file(target, full)
    except OSError as error:
        raise not_readable(error, path) from error


def fingerprint_of_files(paths: Sequence[Path], full: bool = False) -> str:
    """One identity of several files that belong together, by their names and contents."""
    lines = [f"{path.name}\0{fingerprint(path, full)}\n" for path in sorted(paths)]
    return f"files-sha256:{hashlib.sha256(''.join(lines).encode(errors='surrogateescape')).hexdigest()}"


def _hash_file(path: Path, full: bool) -> str:
    require_regular(path)
    with path.open("rb") as file:
        state = _file_state(file)
        key = str(path.absolute())
        if not full and (stored := _stored_hash(key, state)) is not None:
            return stored
        identity = f"sha256:{_digest(file)}"
        if _file_state(file) == state and _is_settled(state):
            _store_hash(key, state, identity)
    return identity


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(4 * MIB):
        digest.update(block)
    return digest.hexdigest()


def _hash_url(url: str, full: bool) -> str:
    state = _url_state(url)
    if not full and state is not None and (stored := _stored_hash(url, state)) is not None:
        return stored
    with open_url(url) as file:
        identity = f"sha256:{_digest(file)}"
    if state is not None and _url_state(url) == state:
        _store_hash(url, state, identity)
    return identity


def _hash_folder(roots: list[Path], full: bool) -> str:
    digest = hashlib.sha256()
    for root in roots:
        files = sorted(item for item in root.rglob("*") if item.is_file()) if root.is_dir() else [root]
        for item in files:
            name = item.relative_to(root).as_posix() if root.is_dir() else "."
            digest.update(f"{name}\0{_hash_file(item, full)}\n".encode(errors="surrogateescape"))
    return f"folder-sha256:{digest.hexdigest()}"


# -- stored hashes of large files ---------------------------------------------------------------------------

STORE_FROM = 8 * MIB
"""Hashes of smaller files are not stored: reading the file again takes no longer than looking them up."""
SETTLED_S = 2.0
"""A file changed more recently than this may change again without a new modification time."""

_stored_hashes: dict[str, tuple[list[Any], str]] = {}


def cache_folder() -> Path:
    """The folder for what can be computed again: `$LOBULE_CACHE`, or `lobule` in the user's cache folder."""
    if chosen := os.environ.get("LOBULE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lobule"


def _file_state(file: IO[bytes]) -> list[Any]:
    """What changes when a file is written to: a stored hash is trusted while it stays the same."""
    status = os.fstat(file.fileno())
    return [status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns]


def _is_settled(state: list[Any]) -> bool:
    return bool(state[0] >= STORE_FROM and max(state[1], state[3]) / 1e9 < time.time() - SETTLED_S)


def _url_state(url: str) -> list[Any] | None:
    """Size and version of a remote file; None where its server tells no version."""
    import fsspec

    try:
        file_system, remote_path = fsspec.core.url_to_fs(url)
        info = file_system.info(remote_path)
    except Exception:  # file systems raise their own types; opening the URL reports the error
        return None
    version = [
        str(info[key]) for key in ("ETag", "etag", "LastModified", "mtime", "created") if info.get(key)
    ]
    large = isinstance(info.get("size"), int) and info["size"] >= STORE_FROM
    return [info["size"], *version] if version and large else None


def _hash_path(key: str) -> Path:
    name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    return cache_folder() / "content-hashes" / name[:2] / f"{name}.json"


def _stored_hash(key: str, state: list[Any]) -> str | None:
    stored_state, identity = _stored_hashes.get(key, (None, ""))
    if stored_state == state:
        return identity
    try:
        entry = json.loads(_hash_path(key).read_bytes())
        identity = entry["identity"]
        if entry["state"] == state and re.fullmatch(r"sha256:[0-9a-f]{64}", identity):
            return str(identity)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError):
        pass  # nothing is stored, or there is no home folder
    return None


def _store_hash(key: str, state: list[Any], identity: str) -> None:
    _stored_hashes[key] = (state, identity)
    with suppress(OSError, LobuleError, RuntimeError):  # a cache that cannot be written is done without
        path = _hash_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"path": ascii(key), "state": state, "identity": identity})


# -- what a folder has left ---------------------------------------------------------------------------------


def need_space(folder: str | Path, size: int) -> None:
    """Raise `ResultsError` where a local folder's disk has less than `size` bytes free."""
    if is_url(folder):
        return
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < size:
        raise ResultsError(
            "not enough space on the disk",
            subject=folder,
            expected=f"{size / 1e9:.1f} GB free",
            actual=f"{free / 1e9:.1f} GB",
            remedy="Free some space, or write elsewhere",
        )
