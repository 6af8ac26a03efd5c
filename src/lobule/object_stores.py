"""Reads byte ranges of objects in S3, Google Cloud, Azure and on HTTP servers, without downloading them.

The store is obstore, whose requests are made outside of Python. Failed requests are repeated with increasing
pauses. Credentials and endpoints come from the environment variables of each provider, such as
`AWS_ACCESS_KEY_ID` and `AWS_ENDPOINT_URL`.
"""

from __future__ import annotations

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from importlib.util import find_spec
from itertools import groupby
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from lobule.dicomweb import is_dicomweb_url
from lobule.errors import LobuleError, NotReadable, ResultsError, UsageError

SCHEMES = ("s3", "s3a", "gs", "az", "adl", "abfs", "abfss", "http", "https")
ATTEMPTS = 4
"""Attempts after which a range that arrives incomplete or with an error is given up."""
FIRST_PAUSE_S = 0.2
BLOCK_BYTES = 1 << 16
"""Bytes of a block that `ObjectFile` reads and caches: file headers are read in many small pieces."""
CACHED_BLOCKS = 64

T = TypeVar("T")


class RangesNotSupported(NotReadable):
    """The server ignores the range of a request, so that only the complete file can be downloaded."""


def is_object_url(url: str) -> bool:
    """Whether a URL is read with ranges of an object store, which needs the extra `remote`."""
    is_object = url.partition("://")[0].lower() in SCHEMES and not is_dicomweb_url(url)
    return is_object and find_spec("obstore") is not None


def split_url(url: str) -> tuple[str, str]:
    """Split the URL of an object into that of its bucket, container or server, and the name of the object.

    Raises:
        UsageError: The URL contains a password, a query or a fragment.
    """
    pieces = urlsplit(url)
    if pieces.password is not None:
        raise UsageError(
            "the URL contains a password, which results would record",
            subject=url.replace(f":{pieces.password}@", ":***@"),
            remedy="Use the environment variables of the store for credentials",
        )
    if pieces.query or pieces.fragment:
        raise UsageError(
            "the URL of an object must not contain '?' or '#'",
            subject=url.partition("?")[0],
            remedy="In names, write %3F for '?' and %23 for '#'. Signed URLs are not supported",
        )
    return f"{pieces.scheme}://{pieces.netloc}", unquote(pieces.path.lstrip("/"))


@lru_cache(maxsize=256)
def store_of(root: str) -> Any:
    """Return the store of a bucket, a container or a server."""
    import obstore.store

    pauses: Any = {
        "init_backoff": timedelta(seconds=FIRST_PAUSE_S),
        "max_backoff": timedelta(seconds=5),
        "base": 2,
    }
    retries: Any = {"max_retries": 6, "backoff": pauses, "retry_timeout": timedelta(seconds=120)}
    options: Any = {"allow_http": True, "timeout": timedelta(seconds=60)}
    return obstore.store.from_url(root, retry_config=retries, client_options=options)


def urls_under(prefix: str) -> dict[str, str]:
    """Return the URLs of all objects under a prefix, by their path relative to it.

    Raises:
        NotReadable: The store cannot list objects, as most HTTP servers.
    """
    import obstore
    from obstore.exceptions import BaseError

    root, folder = split_url(prefix)
    try:
        paths = [item["path"] for batch in obstore.list(store_of(root), folder) for item in batch]
    except (OSError, BaseError) as error:
        raise NotReadable(
            f"the objects cannot be listed: {_short(error)}",
            subject=prefix,
            remedy="Download the slide together with its data folder",
        ) from error
    return {path[len(folder) :]: f"{root}/{quote(path)}" for path in sorted(paths)}


class ObjectRanges:
    """One object of a store. Threads may read ranges at the same time.

    Every answer must have the version that was opened, so a changed object is an error instead of a mixture.

    Raises:
        NotReadable: There is no such object, or the store refuses or fails.
    """

    def __init__(self, url: str) -> None:
        import obstore

        self.url = url
        self._root, self._path = split_url(url)
        self.requests = self.bytes_read = 0
        self._lock = threading.Lock()
        metadata = self._repeated(lambda: obstore.head(store_of(self._root), self._path))
        self.size: int = metadata["size"]
        self.version: str | None = metadata.get("e_tag") or None
        """The version of the object that the store states, or None."""

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`.

        Raises:
            NotReadable: The range cannot be read, or the object has changed since it was opened.
        """
        import obstore

        options: dict[str, Any] = {"range": (start, end)}
        if self.version is not None and not self.version.startswith(
            "W/"
        ):  # Servers never match weak versions.
            options["if_match"] = self.version

        def attempt() -> bytes:
            answer = obstore.get(store_of(self._root), self._path, options=options)  # type: ignore[arg-type]
            self._require_version(answer.meta)
            data = bytes(answer.bytes())
            with self._lock:
                self.requests += 1
                self.bytes_read += len(data)
            if len(data) != end - start:
                raise OSError(f"only {len(data)} of {end - start} bytes arrived")
            return data

        return self._repeated(attempt)

    def _require_version(self, metadata: Any) -> None:
        version = metadata.get("e_tag") or self.version
        if version != self.version or metadata["size"] != self.size:
            raise self._changed()

    def _changed(self) -> NotReadable:
        return NotReadable(
            "the object changed after it was opened", subject=self.url, remedy="Run the command again"
        )

    def _repeated(self, attempt: Callable[[], T]) -> T:
        from obstore import exceptions

        try:
            return repeated(attempt, self.url)
        except exceptions.PreconditionError as error:
            raise self._changed() from error
        except exceptions.NotSupportedError as error:
            raise self._without_ranges() from error

    def _without_ranges(self) -> RangesNotSupported:
        return RangesNotSupported(
            "the server does not support range requests",
            subject=self.url,
            remedy="Download the file, or put it on a server that supports them",
        )


def repeated(attempt: Callable[[], T], url: str, is_writing: bool = False) -> T:
    """Call a function until it succeeds, with increasing pauses.

    Conditions of a request that are not met, and requests that a store does not support, are raised as they
    are.

    Args:
        attempt: Sends a request.
        url: The object, for messages.
        is_writing: Whether the request writes.

    Raises:
        NotReadable: The object does not exist, or cannot be read.
        ResultsError: The object cannot be written.
    """
    from obstore import exceptions

    kind = ResultsError if is_writing else NotReadable
    for number in range(1, ATTEMPTS + 1):
        problem: LobuleError
        try:
            return attempt()
        except (FileNotFoundError, exceptions.NotFoundError) as error:
            missing = "bucket or container" if is_writing else "object"
            raise kind(f"there is no such {missing}", subject=url, remedy="Check the URL") from error
        except (
            exceptions.PreconditionError,
            exceptions.AlreadyExistsError,
            exceptions.NotSupportedError,
        ):
            raise
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            problem = kind(
                f"the store refused the credentials: {_short(error)}",
                subject=url,
                remedy="Renew them, and set the variables of the store, such as AWS_ACCESS_KEY_ID",
            )
        except (OSError, exceptions.BaseError) as error:
            verb = "write" if is_writing else "read"
            problem = kind(
                f"{ATTEMPTS} attempts to {verb} the object failed: {_short(error)}",
                subject=url,
                remedy="Check the server and the network, then try again",
            )
        if number < ATTEMPTS:
            store_of.cache_clear()  # A new store reads the credentials again, which may have expired.
            time.sleep(FIRST_PAUSE_S * 2 ** (number - 1))
    raise problem


def _short(error: Exception) -> str:
    """The message of a store without the internal details that follow it."""
    return " ".join(str(error).partition("Debug source")[0].split())[:300].rstrip(": ")


class ObjectFile(io.RawIOBase):
    """A read-only file over an object. It reads and caches blocks, for code that reads a few small pieces.

    Its methods raise `NotReadable`, so that parsers do not take an error of the network for a damaged file.
    """

    def __init__(self, url: str) -> None:
        self.ranges = ObjectRanges(url)
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._bytes(0, min(self.ranges.size, BLOCK_BYTES))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.ranges.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._bytes(self._position, min(self._position + len(view), self.ranges.size))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _bytes(self, start: int, end: int) -> bytes:
        if start >= end:
            return b""
        first, last = start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        if last - first >= CACHED_BLOCKS // 2:
            return self.ranges.read(start, end)
        self._fetch([index for index in range(first, last + 1) if index not in self._blocks])
        data = bytearray()
        for index in range(first, last + 1):
            self._blocks.move_to_end(index)
            data += self._blocks[index]
        while len(self._blocks) > CACHED_BLOCKS:
            self._blocks.popitem(last=False)
        return bytes(memoryview(data)[start - first * BLOCK_BYTES : end - first * BLOCK_BYTES])

    def _fetch(self, missing: list[int]) -> None:
        """Read blocks, neighbouring ones with one request."""
        for _, group in groupby(enumerate(missing), key=lambda item: item[1] - item[0]):
            indices = [index for _, index in group]
            start = indices[0] * BLOCK_BYTES
            data = self.ranges.read(start, min((indices[-1] + 1) * BLOCK_BYTES, self.ranges.size))
            for number, index in enumerate(indices):
                self._blocks[index] = data[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
