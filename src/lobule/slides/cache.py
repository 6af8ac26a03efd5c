"""A bounded cache of decoded tiles, shared by threads. Each tile is decoded by only one thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]

DEFAULT_BYTES = 64 << 20
"""Budget of one slide's cache: two rows of 512-px tiles of a slide 20,000 px wide."""


PATIENCE = 4 << 20
"""Initial limit on bytes of fully read, never reused tiles; beyond it such tiles are not stored."""


class TileCache:
    """A least-recently-used cache of decoded tiles, limited to a number of bytes.

    If two threads request the same tile at once, it is decoded once and the second thread waits. Errors are
    not cached: the next request decodes the tile again.

    A tile that one read covers completely is requested again only if reads overlap. After `PATIENCE` bytes
    of such tiles without a repeated request, they are no longer stored, which saves copying them through
    memory. When a tile that was not stored is requested again, storing resumes with four times the limit.
    """

    def __init__(self, budget_bytes: int = DEFAULT_BYTES) -> None:
        self.budget_bytes = budget_bytes
        self.decodes = 0
        """Tiles decoded so far."""
        self._tiles: OrderedDict[Hashable, Array] = OrderedDict()
        self._bytes = 0
        self._being_decoded: dict[Hashable, threading.Lock] = {}  # held by the thread that decodes
        self._lock = threading.Lock()
        self._read_whole: set[Hashable] = set()  # stored tiles that one read covered and no read reused
        self._unused_bytes = 0  # bytes of such tiles since the last reuse
        self._patience = PATIENCE
        self._passed_by: OrderedDict[Hashable, int] = OrderedDict()  # tiles not stored, with their bytes
        self._passed_by_bytes = 0

    def get(
        self,
        key: Hashable,
        decode: Callable[[], Array],
        whole_tile: bool = False,
        decode_uncached: Callable[[], Array] | None = None,
    ) -> Array:
        """Return the tile of `key`, decoding it if it is not cached.

        The returned array is shared: do not write to it.

        Args:
            key: The identity of the tile.
            decode: Decodes the tile into memory that the cache may store.
            whole_tile: Whether the read covers the complete tile.
            decode_uncached: Decodes a tile that will not be stored; it may reuse the same memory each time.
        """
        while True:
            with self._lock:
                tile = self._tiles.get(key)
                if tile is not None:
                    self._tiles.move_to_end(key)
                    if key in self._read_whole:
                        self._read_whole.discard(key)
                        self._unused_bytes = 0
                    return tile
                other_lock = self._being_decoded.get(key)
                if other_lock is None:
                    my_lock = self._being_decoded[key] = threading.Lock()
                    my_lock.acquire()
                    keep = self._should_keep(key, whole_tile)
                    break
            with other_lock:  # wait until the other thread has decoded the tile
                pass
        tile = None
        try:
            tile = decode() if keep or decode_uncached is None else decode_uncached()
            return tile
        finally:
            try:
                with self._lock:
                    del self._being_decoded[key]
                    self.decodes += tile is not None
                    if tile is not None and keep:
                        self._store(key, tile, whole_tile)
                    elif tile is not None:
                        self._remember_passed_by(key, tile.nbytes)
            finally:
                my_lock.release()

    def clear(self) -> None:
        with self._lock:
            self._tiles.clear()
            self._read_whole.clear()
            self._bytes = 0

    def _should_keep(self, key: Hashable, whole_tile: bool) -> bool:
        returning_bytes = self._passed_by.pop(key, None)
        if returning_bytes is not None:
            self._passed_by_bytes -= returning_bytes
            self._unused_bytes = 0
            self._patience = min(4 * self._patience, self.budget_bytes)
        return not whole_tile or self._unused_bytes < min(self.budget_bytes, self._patience)

    def _store(self, key: Hashable, tile: Array, whole_tile: bool) -> None:
        if whole_tile:
            self._unused_bytes += tile.nbytes
            self._read_whole.add(key)
        self._tiles[key] = tile
        self._bytes += tile.nbytes
        while self._bytes > self.budget_bytes:
            oldest, evicted = self._tiles.popitem(last=False)
            self._bytes -= evicted.nbytes
            self._read_whole.discard(oldest)

    def _remember_passed_by(self, key: Hashable, nbytes: int) -> None:
        """Remember the key of a tile that is not stored, to notice when it is requested again."""
        self._passed_by[key] = nbytes
        self._passed_by_bytes += nbytes
        while self._passed_by_bytes > self.budget_bytes:
            self._passed_by_bytes -= self._passed_by.popitem(last=False)[1]
