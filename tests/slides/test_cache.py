"""The cache of decoded tiles: its budget, its order, and one decode for many threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobule.slides import RGB
from lobule.slides.cache import TileCache

TILE = 10 * 10 * 3


def tile(value: int) -> RGB:
    return np.full((10, 10, 3), value, np.uint8)


def stored_bytes(cache: TileCache) -> int:
    """The bytes that the cache counts, which are those of its tiles."""
    assert cache._bytes == sum(stored.nbytes for stored in cache._tiles.values())
    return cache._bytes


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 6))
def test_least_recently_used_tile_is_evicted_first(keys: list[int], room: int) -> None:
    """By definition, a tile is decoded unless it is among the last `room` different tiles requested."""
    cache, decodes, recent = TileCache(room * TILE), 0, []  # type: ignore[var-annotated]
    for key in keys:
        assert cache.get(key, partial(tile, key))[0, 0, 0] == key
        decodes += key not in recent
        recent = [key, *(k for k in recent if k != key)][:room]
        assert cache.decodes == decodes
        assert stored_bytes(cache) == len(recent) * TILE <= room * TILE


def test_tile_larger_than_the_budget_is_returned() -> None:
    cache = TileCache(TILE - 1)
    assert cache.get("a", lambda: tile(3)).sum() == 3 * TILE
    assert stored_bytes(cache) == 0


def test_concurrent_requests_decode_once() -> None:
    cache, inside, gate = TileCache(100 * TILE), [], threading.Event()

    def decode() -> RGB:
        inside.append(threading.get_ident())
        gate.wait(5)
        return tile(7)

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(cache.get, "a", decode) for _ in range(8)]
        gate.set()
        assert all(future.result() is futures[0].result() for future in futures)
    assert len(inside) == cache.decodes == 1


def test_error_reaches_all_threads_and_is_not_cached() -> None:
    cache, gate, tries = TileCache(100 * TILE), threading.Event(), []

    def fail() -> RGB:
        tries.append(1)
        gate.wait(5)
        raise ValueError("damaged")

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(cache.get, "a", fail) for _ in range(4)]
        gate.set()
        for future in futures:
            with pytest.raises(ValueError, match="damaged"):
                future.result()
    assert len(tries) == 4 and cache.decodes == 0
    assert cache.get("a", lambda: tile(2))[0, 0, 0] == 2


def test_slow_tile_does_not_delay_other_tiles() -> None:
    cache, gate = TileCache(100 * TILE), threading.Event()

    def slow() -> RGB:
        gate.wait(5)
        return tile(1)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cache.get, "slow", slow)
        assert cache.get("quick", lambda: tile(2))[0, 0, 0] == 2
        assert not waiting.done()
        gate.set()
        assert waiting.result()[0, 0, 0] == 1


def test_clear_empties_the_cache() -> None:
    cache = TileCache(100 * TILE)
    cache.get("a", lambda: tile(1))
    cache.clear()
    assert stored_bytes(cache) == 0
    cache.get("a", lambda: tile(2))
    assert cache.decodes == 2


def test_completely_read_tiles_are_not_stored_if_none_is_reused() -> None:
    """Ten tiles fit. After ten without reuse, completely read tiles are not stored; others still are."""
    cache = TileCache(10 * TILE)
    for key in range(30):
        cache.get(key, lambda: tile(1), whole_tile=True)
    assert stored_bytes(cache) == 10 * TILE
    cache.get("part", lambda: tile(2))
    cache.get("whole", lambda: tile(3), whole_tile=True)
    before = cache.decodes
    cache.get("part", lambda: tile(2))
    assert cache.decodes == before
    # The tile was not stored, so it is decoded again. From now on such tiles are stored.
    cache.get("whole", lambda: tile(3), whole_tile=True)
    assert cache.decodes == before + 1
    for key in range(100, 108):
        cache.get(key, lambda: tile(1), whole_tile=True)
    cache.get("whole", lambda: tile(3), whole_tile=True)
    assert cache.decodes == before + 1 + 8


def test_overlapping_reads_store_completely_read_tiles() -> None:
    """Every second tile is requested twice, and many more tiles are read than fit."""
    cache = TileCache(10 * TILE)
    for key in range(0, 400, 2):
        for requested in (key, key + 1, key - 1):
            if requested >= 0:
                cache.get(requested, lambda: tile(1), whole_tile=True)
    assert cache.decodes == 400


def test_waiting_thread_continues_even_if_storing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, inside, gate = TileCache(100 * TILE), threading.Event(), threading.Event()

    def decode() -> RGB:
        inside.set()
        gate.wait(5)
        return tile(7)

    def fail(*_: object) -> None:
        raise MemoryError

    with ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(cache, "_store", fail)
        first = pool.submit(cache.get, "a", decode)
        inside.wait(5)
        second = pool.submit(cache.get, "a", lambda: tile(8))
        gate.set()
        for future in (first, second):
            with pytest.raises(MemoryError):
                future.result(5)
