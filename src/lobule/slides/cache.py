"""A bounded cache of decoded tiles that threads share; each tile is decoded by one of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from lobule.slides.backend import RGB

DEFAULT_BYTES = 64 << 20
"""Budget of one slide's cache: two rows of 512-px tiles of a slide 20,000 px wide."""


PATIENCE = 4 << 20
"""Bytes of tiles taken whole and not asked for again after which such tiles pass by, to begin with."""


class TileCache:
    """Least recently used decoded tiles within a budget of bytes.

    Two threads that ask for the same tile at once get it decoded once: the second waits for the first. An
    error is not kept; whoever asks next tries again.

    A tile that a read took whole is wanted again only where reads overlap. Once `PATIENCE` bytes of such
    tiles have come and none was asked for again, no more of them are kept, which spares their way through
    memory. Each that would have been found again makes this begin anew, with four times the patience.
    """

    def __init__(self, budget_bytes: int = DEFAULT_BYTES) -> None:
        self.budget_bytes = budget_bytes
        self.decodes = 0
        """Tiles decoded so far."""
        self._tiles: OrderedDict[Hashable, RGB] = OrderedDict()
        self._bytes = 0
        self._under_way: dict[Hashable, threading.Lock] = {}  # each held by the thread that decodes
        self._lock = threading.Lock()
        self._taken_whole: set[Hashable] = set()  # those kept, and not asked for again
        self._unasked_bytes = 0  # of tiles taken whole since one was asked for again
        self._patience = PATIENCE
        self._let_go: OrderedDict[Hashable, int] = OrderedDict()  # not kept, with their bytes
        self._let_go_bytes = 0

    def get(
        self,
        key: Hashable,
        decode: Callable[[], RGB],
        whole: bool = False,
        in_passing: Callable[[], RGB] | None = None,
    ) -> RGB:
        """The tile of `key`, decoded now if need be; `whole` says that the read takes all of it.

        What comes back is shared: do not write to it. A tile that will not be kept is decoded by
        `in_passing`, where that is given, which may use the same memory for each.
        """
        while True:
            with self._lock:
                tile = self._tiles.get(key)
                if tile is not None:
                    self._tiles.move_to_end(key)
                    self._asked_again(key)
                    return tile
                other = self._under_way.get(key)
                if other is None:
                    mine = self._under_way[key] = threading.Lock()
                    mine.acquire()
                    keep = self._keeps(key, whole)
                    break
            with other:  # until the other thread is done
                pass
        tile = None
        try:
            tile = decode() if keep or in_passing is None else in_passing()
            return tile
        finally:
            try:
                with self._lock:
                    del self._under_way[key]
                    self.decodes += tile is not None
                    if tile is not None and keep:
                        self._keep(key, tile, whole)
                    elif tile is not None:
                        self._remember(key, tile.nbytes)
            finally:
                mine.release()

    @property
    def held_bytes(self) -> int:
        return self._bytes

    def clear(self) -> None:
        with self._lock:
            self._tiles.clear()
            self._taken_whole.clear()
            self._bytes = 0

    def _asked_again(self, key: Hashable) -> None:
        if key in self._taken_whole:
            self._taken_whole.discard(key)
            self._unasked_bytes = 0

    def _keeps(self, key: Hashable, whole: bool) -> bool:
        came_back = self._let_go.pop(key, None)
        if came_back is not None:
            self._let_go_bytes -= came_back
            self._unasked_bytes = 0
            self._patience = min(4 * self._patience, self.budget_bytes)
        return not whole or self._unasked_bytes < min(self.budget_bytes, self._patience)

    def _keep(self, key: Hashable, tile: RGB, whole: bool) -> None:
        if whole:
            self._unasked_bytes += tile.nbytes
            self._taken_whole.add(key)
        self._tiles[key] = tile
        self._bytes += tile.nbytes
        while self._bytes > self.budget_bytes:
            oldest, gone = self._tiles.popitem(last=False)
            self._bytes -= gone.nbytes
            self._taken_whole.discard(oldest)

    def _remember(self, key: Hashable, nbytes: int) -> None:
        """A budget's worth of tiles that the cache could have held, to know one that comes back."""
        self._let_go[key] = nbytes
        self._let_go_bytes += nbytes
        while self._let_go_bytes > self.budget_bytes:
            self._let_go_bytes -= self._let_go.popitem(last=False)[1]
