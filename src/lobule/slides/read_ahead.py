"""Reads byte ranges of a remote file ahead of their use, with few requests that run at the same time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

LARGEST_REQUEST = 1 << 20
LARGEST_GAP = 1 << 11
"""Bytes between two ranges that are fetched and discarded, rather than making two requests."""
AHEAD_BYTES = 32 << 20
"""Compressed bytes that are fetched and not yet used, per slide."""
USED_BYTES = 32 << 20
"""Compressed bytes that remain after their use, per slide: two rows of tiles of a slide 100,000 px wide."""
REQUESTS = 16
"""Requests that run at the same time, for all slides of the process."""

Range = tuple[int, int]
"""Offset and length in bytes."""

Data = TypeVar("Data", bound=Sequence[Any])
"""What is read: bytes of a file, or frames, of which `offset` and `length` then are numbers."""

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _requests() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(REQUESTS, "range-request")
        return _pool


def read_all(read: Callable[[int, int], bytes], start: int, end: int, chunk: int) -> list[bytes]:
    """Read the bytes from `start` to `end` in chunks, with requests that run at the same time."""
    starts = range(start, end, chunk)
    return list(_requests().map(read, starts, [min(begin + chunk, end) for begin in starts]))


@dataclass(eq=False)
class Request(Generic[Data]):
    """One request for several neighbouring ranges."""

    number: int
    start: int
    end: int
    unused: set[Range]
    data: Future[Data] | None = None

    @property
    def size(self) -> int:
        return self.end - self.start


class ReadAhead(Generic[Data]):
    """The ranges that will be read, in this order. Reading one starts the requests for those that follow.

    Args:
        read: Reads the bytes from a start to an end. Threads call it at the same time.
        ranges: The ranges in the order of their use, each once.
        most_bytes: Bytes that may be fetched and not yet used.
        used_bytes: Bytes that remain after their use, because tiles under two rows of fields are read twice.
        largest_request: Most bytes of a request that joins ranges.
        largest_gap: Most bytes between two joined ranges.
    """

    def __init__(
        self,
        read: Callable[[int, int], Data],
        ranges: Sequence[Range],
        most_bytes: int = AHEAD_BYTES,
        used_bytes: int = USED_BYTES,
        largest_request: int = LARGEST_REQUEST,
        largest_gap: int = LARGEST_GAP,
    ) -> None:
        self._read = read
        self._most_bytes, self._most_used_bytes = most_bytes, used_bytes
        self._requests: list[Request[Data]] = coalesced(ranges, largest_request, largest_gap)
        self._request_of = {item: request for request in self._requests for item in request.unused}
        self._next = 0
        self._fetched_bytes = self._used_bytes = 0
        self._used: OrderedDict[Request[Data], None] = OrderedDict()
        """Requests of which every range was used, those used last at the end."""
        self._lock = threading.Lock()

    def covers(self, ranges: Sequence[Range]) -> bool:
        """Whether all ranges are planned."""
        return all(item in self._request_of for item in ranges)

    def take(self, offset: int, length: int) -> Data | None:
        """Return the data of a range; None if it was not planned, or was used too long ago."""
        item = (offset, length)
        with self._lock:
            request = self._request_of.get(item)
            if request is None or (request.data is None and not request.unused):
                return None
            if request.data is None:
                self._start(request)
            self._next = max(self._next, request.number + 1)
            self._start_more()
            data = request.data
        assert data is not None
        try:
            request_bytes = data.result()
        except BaseException:
            with self._lock:
                self._forget_failed(request, data)
            raise
        with self._lock:
            self._mark_used(request, item)
        return cast(Data, request_bytes[offset - request.start : offset - request.start + length])

    def close(self) -> None:
        """Forget everything that was fetched."""
        with self._lock:
            self._request_of.clear()
            self._used.clear()
            self._next = len(self._requests)
            for request in self._requests:
                if request.data is not None:
                    request.data.cancel()
                request.data = None

    def _start_more(self) -> None:
        while self._next < len(self._requests):
            request = self._requests[self._next]
            if self._fetched_bytes + request.size > self._most_bytes and self._fetched_bytes:
                return
            if request.data is None and request.unused:
                self._start(request)
            self._next += 1

    def _start(self, request: Request[Data]) -> None:
        request.data = _requests().submit(self._read, request.start, request.end)
        self._fetched_bytes += request.size

    def _forget_failed(self, request: Request[Data], data: Future[Data]) -> None:
        """Let the ranges of a request that failed be read one by one, if they are read again."""
        if request.data is data:
            request.data = None
            request.unused.clear()
            self._fetched_bytes -= request.size

    def _mark_used(self, request: Request[Data], item: Range) -> None:
        """Note that a range was used. The requests that were used the longest time ago are forgotten."""
        if request.data is None:
            return  # Everything was forgotten in the meantime.
        if item in request.unused:
            request.unused.discard(item)
            if not request.unused:
                self._fetched_bytes -= request.size
                self._used_bytes += request.size
                self._used[request] = None
        elif request in self._used:
            self._used.move_to_end(request)
        while self._used_bytes > self._most_used_bytes and self._used:
            oldest, _ = self._used.popitem(last=False)
            oldest.data = None
            self._used_bytes -= oldest.size
        self._start_more()


def coalesced(
    ranges: Sequence[Range], largest_request: int = LARGEST_REQUEST, largest_gap: int = LARGEST_GAP
) -> list[Request[Any]]:
    """Join ranges that follow each other in the file and in the order of their use."""
    requests: list[Request[Any]] = []
    for offset, length in ranges:
        end = offset + length
        last = requests[-1] if requests else None
        if last is not None and 0 <= offset - last.end <= largest_gap and end - last.start <= largest_request:
            last.end = end
            last.unused.add((offset, length))
        else:
            requests.append(Request(len(requests), offset, end, {(offset, length)}))
    return requests
