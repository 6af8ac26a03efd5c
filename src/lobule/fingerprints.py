"""Fingerprints of file contents, by which results identify their input."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lobule.dicomweb import is_dicomweb_url
from lobule.dicomweb.images import identity as dicomweb_identity
from lobule.errors import ConfigError, LobuleError
from lobule.files import MIB, is_url, not_readable, open_url, require_regular, write_json
from lobule.object_stores import ObjectRanges, is_object_url


def fingerprint(path: str | Path, full: bool = False) -> str:
    """Return a hash of the content of a file, by which results identify their input.

    The hash of a file is `sha256:` and the hash that sha256sum prints. For a folder, or a slide with a
    companion folder (MRXS), the names and hashes of all of its files are hashed.

    The hash of a large file is stored in the user's cache folder together with the file's size, modification
    time and inode. While those are unchanged, the stored hash is returned without reading the file again.

    An object of a store is identified by the size and the version (ETag) that the store states, because its
    hash would require a download. Images of a DICOMweb server are identified by their UIDs, sizes and dates.

    Args:
        path: A file, a folder or an fsspec URL.
        full: Read all files, even if their hashes are stored.
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


def is_quickly_hashed(path: str) -> bool:
    """Whether `fingerprint` needs little time: the path is that of a small file, or its hash is stored."""
    try:
        status = Path(path).stat()
        is_small = status.st_size < STORE_FROM
        return stat.S_ISREG(status.st_mode) and (is_small or _hash_path(str(Path(path).absolute())).exists())
    except (OSError, ValueError, RuntimeError):  # A URL, or there is no such file or no home folder.
        return False


def fingerprint_of_files(paths: Sequence[Path], full: bool = False) -> str:
    """Return one hash of the names and contents of several files that belong together."""
    lines = [f"{path.name}\0{fingerprint(path, full)}\n" for path in sorted(paths)]
    return f"files-sha256:{hashlib.sha256(''.join(lines).encode(errors='surrogateescape')).hexdigest()}"


def _hash_file(path: Path, full: bool) -> str:
    require_regular(path)
    with path.open("rb") as file:
        state = _file_state(file)
        key = str(path.absolute())
        may_be_stored = not full and state[0] >= STORE_FROM
        if may_be_stored and (stored := _stored_hash(key, state)) is not None:
            return stored
        identity = f"sha256:{digest_of(file)}"
        if _file_state(file) == state and _is_settled(state):
            _store_hash(key, state, identity)
    return identity


def digest_of(file: IO[bytes]) -> str:
    """Return the SHA-256 of the rest of an open file, as sha256sum prints it."""
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _hash_url(url: str, full: bool) -> str:
    if is_dicomweb_url(url):
        return dicomweb_identity(url)
    if is_object_url(url) and (version := _object_version(url)) is not None:
        return version
    state = _url_state(url)
    if not full and state is not None and (stored := _stored_hash(url, state)) is not None:
        return stored
    with open_url(url) as file:
        identity = f"sha256:{digest_of(file)}"
    if state is not None and _url_state(url) == state:
        _store_hash(url, state, identity)
    return identity


def _object_version(url: str) -> str | None:
    """Return a hash of the size and the version of an object, so that it is not downloaded for its hash."""
    ranges = ObjectRanges(url)
    if ranges.version is None:
        return None
    text = f"{ranges.size} {ranges.version}"
    return f"object-sha256:{hashlib.sha256(text.encode()).hexdigest()}"


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

DEFAULT_CACHE_BYTES = 20 << 30
"""Largest size of a cache of slides or results."""

_stored_hashes: dict[str, tuple[list[Any], str]] = {}


def cache_folder() -> Path:
    """Return the folder of the caches: `$LOBULE_CACHE`, `$XDG_CACHE_HOME/lobule` or `~/.cache/lobule`.

    A relative `XDG_CACHE_HOME` is ignored, as the XDG specification requires.
    """
    if chosen := os.environ.get("LOBULE_CACHE"):
        return Path(chosen).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "lobule"


def cache_limit(variable: str) -> int:
    """Return the largest number of bytes of a cache, which an environment variable may set.

    Raises:
        ConfigError: The value of the variable is not a number of bytes.
    """
    text = os.environ.get(variable, "")
    if text and not text.isdecimal():
        raise ConfigError(f"{variable} is not a number of bytes", actual=text, expected="such as 20000000000")
    return int(text) if text else DEFAULT_CACHE_BYTES


def _file_state(file: IO[bytes]) -> list[Any]:
    """Return the state of a file. A stored hash is valid as long as the state does not change."""
    status = os.fstat(file.fileno())
    return [status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns]


def _is_settled(state: list[Any]) -> bool:
    return bool(state[0] >= STORE_FROM and max(state[1], state[3]) / 1e9 < time.time() - SETTLED_S)


def _url_state(url: str) -> list[Any] | None:
    """Return the size and version of a remote file, or None if its server does not state a version."""
    import fsspec

    try:
        file_system, remote_path = fsspec.core.url_to_fs(url)
        info = file_system.info(remote_path)
    except Exception:  # File systems raise various types; opening the URL reports the error.
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
        pass  # There is no valid stored hash, or no home folder.
    return None


def _store_hash(key: str, state: list[Any], identity: str) -> None:
    _stored_hashes[key] = (state, identity)
    with suppress(OSError, LobuleError, RuntimeError):  # The cache is optional.
        path = _hash_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"path": ascii(key), "state": state, "identity": identity})
