"""Keep freed tensor memory in the process, so that the next layer can reuse it.

By default glibc returns large blocks to the system as soon as they are freed. The next layer then requests
new pages, and each page costs a page fault. For a dense network on two cores this takes a third of the time.

Only the arena of the main thread can hold large blocks, so other threads must use that arena as well. Call
`keep_freed_memory` before any library starts threads, as the command line does. Threads that already
run keep their arenas, and a later call has no effect on them.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_LARGEST_THRESHOLD = 2**31 - 1
_MALLOC_VARIABLES = (
    "GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)  # fmt: skip


@cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory in this process.

    Returns:
        Whether the setting was applied. It is not applied without glibc, or if an environment variable
        already configures malloc.
    """
    libc = _glibc()
    if libc is None or any(name in os.environ for name in _MALLOC_VARIABLES):
        return False
    libc.mallopt(_ARENA_MAX, 1)
    libc.mallopt(_TRIM_THRESHOLD, -1)
    if not libc.mallopt(
        _MMAP_THRESHOLD, _LARGEST_THRESHOLD
    ):  # older versions of glibc refuse a large threshold
        libc.mallopt(_MMAP_MAX, 0)
    return True


def return_freed_memory() -> None:
    """Return all freed memory to the operating system; called at the end of a scan or a training.

    Traced networks contain reference cycles, so garbage is collected first.
    """
    gc.collect()
    return_free_pages()


def return_free_pages() -> None:
    """Return empty pages to the system while work continues.

    Slides and their overviews differ in size, so freed blocks leave gaps that the next blocks do not fit.
    Without this call the memory of the process would grow with the number of cases.
    """
    if keep_freed_memory.cache_info().currsize and keep_freed_memory():
        _glibc().malloc_trim(0)


@contextmanager
def old_objects_ignored() -> Iterator[None]:
    """Within this context, garbage is collected among new objects only.

    Otherwise each full collection visits all objects of the libraries and networks, which takes a tenth of a
    second, and small cases cause many of them. If the application froze its objects itself, they stay frozen.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _glibc() -> Any:
    if sys.platform != "linux":
        return None
    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return None
        libc = ctypes.CDLL(None)
    except (OSError, ValueError):  # another C library does not define this name
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
