"""Atomic writing of files, and paths that may be URLs."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol, cast
from urllib.parse import quote

from lobule.errors import NotReadable, ResultsError, UsageError
from lobule.object_stores import ObjectFile, RangesNotSupported, is_object_url
from lobule.raw_files import flush_path, replace_file, temporary_name, tree

MIB = 1 << 20
_URL = re.compile(r"[a-z][a-z0-9+.-]*(::[a-z][a-z0-9+.-]*)*://", re.IGNORECASE)


def is_url(path: str | Path) -> bool:
    """Whether a path is a URL (`scheme://…`), which fsspec opens, and not a local path."""
    return isinstance(path, str) and _URL.match(path) is not None


def open_url(path: str | Path, mode: str = "rb") -> IO[Any]:
    """Open a local path or an fsspec URL.

    Raises:
        UsageError: The file system of the URL is unknown or not installed.
        NotReadable: The file cannot be read.
        ResultsError: The file cannot be written.
    """
    try:
        if is_url(path):
            if mode in ("r", "rb") and is_object_url(str(path)) and (file := _open_object(str(path))):
                return file if mode == "rb" else io.TextIOWrapper(file, encoding="utf-8")
            import fsspec

            opened = fsspec.open(str(path), mode)
            stream = cast(IO[Any], opened.open())
            with suppress(AttributeError):  # The file system of zip closes its file when it is freed.
                stream.opened = opened  # type: ignore[attr-defined]
            return stream
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


def _open_object(url: str) -> io.BufferedReader | None:
    """Open an object of a store, or return None if its server can only send complete files."""
    try:
        return io.BufferedReader(ObjectFile(url))
    except RangesNotSupported:
        if find_spec("aiohttp") is None:  # With it, fsspec downloads the file.
            raise
        return None


def not_readable(error: OSError, path: str | Path) -> NotReadable:
    """Return the error for a file that cannot be read."""
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
    """Return the error for a file that cannot be written, with its remedy."""
    problem, remedy = _REMEDIES.get(error.errno or 0, (f"cannot be written: {error.strerror or error}", None))
    return ResultsError(problem, subject=path, remedy=remedy)


LONGEST_FOLDER_NAME = 240
"""Largest length of a case's folder name in bytes. File systems allow 255, and writers add a suffix."""


def case_folder_name(case_id: str) -> str:
    """Return the name of a case's folder in the results."""
    # Letters of any script are not escaped, because long names would exceed the limit of the file system.
    name = "".join(letter if ord(letter) > 127 else quote(letter, safe=" ") for letter in case_id)
    return f"%2E{name[1:]}" if name.startswith(".") else name  # The name must not be `..`.


def fits_folder_name(case_id: str) -> bool:
    """Whether a case's name is short enough for the name of a folder."""
    return len(case_folder_name(case_id).encode(errors="surrogateescape")) <= LONGEST_FOLDER_NAME


def make_folder(path: str | Path) -> Path:
    """Create a folder and its parents. Raises `ResultsError` if this is not possible."""
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
def write_atomic(path: str | Path, flush_folder: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to. On success it is flushed to disk and renamed to `path`.

    If the process fails or is killed, `path` is unchanged. The temporary name starts with a dot and keeps the
    suffix, from which writers choose the format. If `path` is a URL, the complete file is uploaded.

    Args:
        path: The file to write.
        flush_folder: Make the new name permanent at once. Without it, the next file that is flushed in this
            folder does so.
    """
    if is_url(path):
        with _write_url(str(path)) as temporary_path:
            yield temporary_path
        return
    target = Path(path)
    temporary_path = Path(temporary_name(str(target)))
    try:
        yield temporary_path
        flush_path(str(temporary_path))
        temporary_path.replace(target)
        if flush_folder:
            flush_path(str(target.parent))
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


def flush_all(root: str | Path) -> None:
    """Flush all files and folders under a folder to disk."""
    for item in tree(os.fspath(root)):
        try:
            flush_path(item)
        except FileNotFoundError:  # A temporary file that its writer has just removed.
            continue
        except OSError as error:
            raise results_error(error, item) from error


def write_bytes(path: str | Path, data: bytes, flush_folder: bool = True) -> None:
    """Write a file atomically. `flush_folder` works as for `write_atomic`."""
    if is_url(path):
        with write_atomic(path) as temporary_path:
            temporary_path.write_bytes(data)
        return
    target = os.fspath(path)
    try:
        replace_file(target, data, temporary_name(target), flush=True)
        if flush_folder:
            flush_path(str(Path(target).parent))
    except OSError as error:
        raise results_error(error, path) from error


def write_text(path: str | Path, text: str, flush_folder: bool = True) -> None:
    """Write a UTF-8 file atomically. `flush_folder` works as for `write_atomic`.

    Bytes of file names that are not UTF-8 are written as escapes, which JSON reads back unchanged.
    """
    write_bytes(path, text.encode(errors="backslashreplace"), flush_folder)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def write_json(path: str | Path, value: object, flush_folder: bool = True) -> None:
    """Write a JSON file atomically. NaN and infinity are refused, because they are not valid JSON.

    `flush_folder` works as for `write_atomic`.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n", flush_folder)


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file atomically. A row may lack columns; values of other columns are left out."""
    write_text(path, csv_text(columns, [[row.get(name, "") for name in columns] for row in rows]))


def csv_rows(path: str | Path, largest: int = -1) -> list[tuple[int, list[str]]]:
    """Read the rows of a CSV file that are not blank, each with its number and with stripped cells.

    Raises:
        ValueError: The file, of which at most `largest` bytes are read, is not UTF-8 or not CSV.
    """
    with open_url(path) as file:
        data = file.read() if largest < 0 else read_at_most(file, largest)
    try:
        rows = enumerate(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")), start=1)
        stripped = [(number, [cell.strip() for cell in cells]) for number, cells in rows]
    except csv.Error as error:
        raise ValueError(str(error)) from error
    return [(number, cells) for number, cells in stripped if any(cells)]


class SupportsRead(Protocol):
    def read(self, size: int, /) -> bytes: ...


LARGEST_JSON = 256 * MIB
MOST_NESTED = 100


def read_at_most(file: SupportsRead, largest: int) -> bytes:
    """Read a file up to `largest` bytes.

    `file.read(largest)` would allocate that many bytes first, even for a small file. So the file is read in
    pieces, each as large as all before it.
    """
    pieces: list[bytes] = []
    done = 0
    while done < largest and (piece := file.read(min(largest - done, max(done, MIB)))):
        pieces.append(piece)
        done += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_json(path: str | Path, largest: int = LARGEST_JSON) -> Any:
    """Read a JSON file. Raises `ResultsError` if it is invalid or larger than `largest` bytes."""
    if not is_url(path):
        require_regular(path)
    with open_url(path) as file:
        data = read_at_most(file, largest + 1)
    if len(data) > largest:
        raise ResultsError("too large for this file", subject=path, expected=f"at most {largest:,} bytes")
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
        most_levels = data.count(b"{") + data.count(b"[")
        if most_levels > MOST_NESTED and _is_nested_deeper(value, MOST_NESTED):
            raise ValueError(f"nested more than {MOST_NESTED} deep")
        return value
    except (ValueError, RecursionError, MemoryError) as error:
        raise ResultsError(
            f"not JSON: {error}", subject=path, remedy="The file is damaged; write it again"
        ) from error


def _is_nested_deeper(value: Any, limit: int) -> bool:
    """Whether lists and dictionaries are nested in more than `limit` levels."""
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
    """Raise an error for a FIFO, a socket or a device, from which a read could block forever."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return  # Opening the file reports the error.
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise NotReadable("this is not a regular file", subject=path, expected="a file")
