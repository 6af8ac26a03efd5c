"""Reads byte ranges of a remote file ahead of their use, with few requests that run at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

LARGEST_REQUEST = 1 << 20
LARGEST_GAP = 1 << 11
"""Bytes between two ranges that are fetched and discarded, rather than making two requests."""
AHEAD_BYTES = 32 << 20
"""Compressed bytes that are fetched and not yet used, per slide."""
REQUESTS = 16
"""Requests that run at the same time, for all slides of the process."""

Range = tuple[int, int]
"""Offset and length in bytes."""

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _requests() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(REQUESTS, "range-request")
        return _pool


@dataclass(eq=False)
class Request:
    """One request for several neighbouring ranges."""

    start: int
    end: int
    unused: set[Range] = field(default_factory=set)
    data: Future[bytes] | None = None


class ReadAhead:
    """The ranges that will be read, in this order. Reading one starts the requests for those that follow.

    Args:
        read: Reads the bytes from a start to an end. Threads call it at the same time.
        ranges: The ranges in the order of their use, each once.
        most_bytes: Bytes that may be fetched and not yet used.
    """

    def __init__(
        self, read: Callable[[int, int], bytes], ranges: Sequence[Range], most_bytes: int = AHEAD_BYTES
    ) -> None:
        self._read, self._most_bytes = read, most_bytes
        self._requests = coalesced(ranges)
        self._request_of = {
            item: index for index, request in enumerate(self._requests) for item in request.unused
        }
        self._next = 0
        self._fetched_bytes = 0
        self._lock = threading.Lock()

    def take(self, offset: int, length: int) -> bytes | None:
        """Return the bytes of a range; None if it was not planned, or was used before."""
        item = (offset, length)
        with self._lock:
            index = self._request_of.pop(item, None)
            if index is None:
                return None
            request = self._requests[index]
            if request.data is None:
                self._start(request)
            self._next = max(self._next, index + 1)
            self._start_more()
            data = request.data
        assert data is not None
        try:
            whole = data.result()
        finally:
            with self._lock:
                request.unused.discard(item)
                if not request.unused:
                    self._release(request)
        return whole[offset - request.start : offset - request.start + length]

    def close(self) -> None:
        """Forget everything that was fetched."""
        with self._lock:
            self._request_of.clear()
            for request in self._requests:
                if request.data is not None:
                    request.data.cancel()
                self._release(request)

    def _start_more(self) -> None:
        while self._next < len(self._requests):
            request = self._requests[self._next]
            size = request.end - request.start
            if self._fetched_bytes + size > self._most_bytes and self._fetched_bytes:
                return
            if request.data is None and request.unused:
                self._start(request)
            self._next += 1

    def _start(self, request: Request) -> None:
        request.data = _requests().submit(self._read, request.start, request.end)
        self._fetched_bytes += request.end - request.start

    def _release(self, request: Request) -> None:
        if request.data is not None:
            self._fetched_bytes -= request.end - request.start
            request.data = None
            self._start_more()


def coalesced(ranges: Sequence[Range]) -> list[Request]:
    """Join ranges that follow each other in the file and in the order of their use."""
    requests: list[Request] = []
    for offset, length in ranges:
        end = offset + length
        last = requests[-1] if requests else None
        if last is not None and 0 <= offset - last.end <= LARGEST_GAP and end - last.start <= LARGEST_REQUEST:
            last.end = end
            last.unused.add((offset, length))
        else:
            requests.append(Request(offset, end, {(offset, length)}))
    return requests
