"""The list of the files of a case in an object store (`files.json`), with sizes and hashes.

It is written last, so a case with this list is complete in the store. A reader reports an error for a
file whose size or hash differs from the list.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lobule.errors import DamagedResults, ResultsError
from lobule.files import results_error
from lobule.results.checks import LARGEST_JSON, is_count

FILES = "files.json"
FILES_FORMAT = "lobule-files/1"


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of a file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """Describe a file on this machine."""
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
            return cls(path.stat().st_size, digest.hexdigest())
        except OSError as error:
            raise results_error(error, path) from error

    def check(self, data: bytes, url: str) -> bytes:
        """Return bytes that a store sent, or raise `DamagedResults` if they are not those of the list."""
        actual = FileEntry(len(data), hashlib.sha256(data).hexdigest())
        if actual != self:
            raise DamagedResults(
                "the store returned other bytes than the scan wrote",
                subject=url,
                expected=f"{self.size:,} bytes, sha256 {self.sha256[:16]}",
                actual=f"{actual.size:,} bytes, sha256 {actual.sha256[:16]}",
                remedy=f"Delete the {FILES} of this case in the store and run the scan again",
            )
        return data


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case, by their path below the URL of the results."""

    files: Mapping[str, FileEntry]

    def to_bytes(self) -> bytes:
        files = {path: [entry.size, entry.sha256] for path, entry in sorted(self.files.items())}
        return (json.dumps({"format": FILES_FORMAT, "files": files}, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, url: str) -> CaseFiles:
        """Read a list.

        Raises:
            DamagedResults: It is not such a list, or names a file outside of the results.
        """
        try:
            if len(data) > LARGEST_JSON:
                raise ValueError("too large")
            content = json.loads(data)
            if content["format"] != FILES_FORMAT:
                raise ValueError(f"the format {content['format']}")
            files = {}
            for path, (size, sha256) in content["files"].items():
                names = PurePosixPath(path).parts
                if not names or path.startswith("/") or ".." in names or "\\" in path:
                    raise ValueError(f"the path {path}")
                if not is_count(size) or not isinstance(sha256, str):
                    raise ValueError(f"the entry of {path}")
                files[path] = FileEntry(size, sha256)
            return cls(files)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedResults(
                "the list of the files of a case is damaged", subject=url, actual=str(error)[:200]
            ) from error


def local_case_files(folder: Path) -> CaseFiles | None:
    """Return the list in a case folder on this machine. None if it is missing or damaged."""
    path = folder / FILES
    try:
        return CaseFiles.from_bytes(path.read_bytes(), str(path))
    except (OSError, ResultsError):
        return None
