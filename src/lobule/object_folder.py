"""A folder in an object store: reads, writes, lists and deletes complete objects below one URL."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from lobule.errors import MissingExtra, NotReadable, UsageError
from lobule.object_stores import SCHEMES, repeated, split_url, store_of

READ_ONLY = ("http", "https")
"""Schemes of servers that neither list nor store objects."""
REQUESTS_AT_ONCE = 16


@dataclass(frozen=True)
class StoredObject:
    """An object of a store, as a listing describes it."""

    size: int
    version: str


class ObjectFolder:
    """All objects whose URL begins with one prefix. Threads may use it at the same time.

    Raises:
        UsageError: The URL is not that of a folder in an object store.
        MissingExtra: The extra `remote` is not installed.
    """

    def __init__(self, url: str) -> None:
        pieces = urlsplit(url)
        if pieces.scheme.lower() not in SCHEMES or not pieces.netloc:
            raise UsageError(
                "this is not a folder in an object store",
                subject=url,
                expected="s3://BUCKET/FOLDER, gs://…, az://…, or https://… for reading",
            )
        if find_spec("obstore") is None:
            raise MissingExtra("remote", url)
        self.url = url.rstrip("/")
        self._root, path = split_url(url)
        self._prefix = path.strip("/")

    @property
    def is_read_only(self) -> bool:
        return self._root.partition("://")[0].lower() in READ_ONLY

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return (self._prefix or urlsplit(self._root).netloc).rpartition("/")[2]

    def url_of(self, path: str) -> str:
        return f"{self.url}/{quote(path)}"

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    def objects(self, folder: str = "") -> dict[str, StoredObject]:
        """Return all objects below a subfolder, by their path relative to this folder.

        Raises:
            NotReadable: The store cannot be read, or its server cannot list objects.
        """
        import obstore

        prefix = self._key(folder).rstrip("/") or None
        start = len(self._prefix) + 1 if self._prefix else 0

        def attempt() -> dict[str, StoredObject]:
            items = [item for batch in obstore.list(store_of(self._root), prefix) for item in batch]
            return {item["path"][start:]: StoredObject(item["size"], _version_of(item)) for item in items}

        return repeated(attempt, self.url)

    def read(self, path: str) -> tuple[bytes, str] | None:
        """Return the bytes and the version of an object, or None if there is no such object.

        Raises:
            NotReadable: The store refuses or fails.
        """
        import obstore

        def attempt() -> tuple[bytes, str] | None:
            try:
                answer = obstore.get(store_of(self._root), self._key(path))
            except FileNotFoundError:
                return None
            data = bytes(answer.bytes())
            if len(data) != answer.meta["size"]:
                raise OSError(f"only {len(data)} of {answer.meta['size']} bytes arrived")
            return data, _version_of(answer.meta)

        return repeated(attempt, self.url_of(path))

    def version(self, path: str) -> str | None:
        """Return the version of an object, or None if there is no such object."""
        import obstore

        def attempt() -> str | None:
            try:
                metadata = obstore.head(store_of(self._root), self._key(path))
            except FileNotFoundError:
                return None
            return _version_of(metadata)

        return repeated(attempt, self.url_of(path))

    def write(self, path: str, content: bytes | Path) -> str:
        """Write an object, also over an existing one, and return its version.

        Raises:
            ResultsError: The store refuses or fails.
        """
        return self._put(path, content, "overwrite")

    def create(self, path: str, content: bytes) -> str | None:
        """Write an object and return its version, or return None if it exists already."""
        from obstore.exceptions import AlreadyExistsError

        try:
            return self._put(path, content, "create")
        except AlreadyExistsError:
            return None

    def replace(self, path: str, content: bytes, version: str) -> str | None:
        """Write an object if it still has a version. Return its new version, or None if it has changed."""
        from obstore.exceptions import PreconditionError

        try:
            return self._put(path, content, {"e_tag": version})
        except PreconditionError:
            return None

    def _put(self, path: str, content: bytes | Path, mode: Any) -> str:
        import obstore

        self.require_writable()
        result = repeated(
            lambda: obstore.put(store_of(self._root), self._key(path), content, mode=mode),
            self.url_of(path),
            is_writing=True,
        )
        return str(result["e_tag"])

    def write_all(self, files: Iterable[tuple[str, Path]]) -> None:
        """Write several objects at the same time."""
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            list(pool.map(lambda item: self.write(*item), files))

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects. Those that do not exist are skipped."""
        import obstore

        self.require_writable()
        keys = [self._key(path) for path in paths]

        def attempt() -> None:
            try:
                obstore.delete(store_of(self._root), keys)
            except FileNotFoundError:
                return

        if keys:
            repeated(attempt, self.url, is_writing=True)

    def require_writable(self) -> None:
        """Raise `UsageError` for a server that stores nothing."""
        if self.is_read_only:
            raise UsageError(
                "an HTTP server stores no results",
                subject=self.url,
                expected="s3://…, gs://…, az://… or a local folder",
            )


def _version_of(metadata: Any) -> str:
    """Return the version that the store states, or else the time of the last change."""
    return str(metadata.get("e_tag") or metadata["last_modified"])


def read_existing(folder: ObjectFolder, path: str) -> bytes:
    """Return the bytes of an object that must exist.

    Raises:
        NotReadable: There is no such object, or the store refuses or fails.
    """
    answer = folder.read(path)
    if answer is None:
        raise NotReadable("there is no such object", subject=folder.url_of(path), remedy="Check the URL")
    return answer[0]
