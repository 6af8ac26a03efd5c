"""Memory of tensors on a CPU: what one layer lets go of is kept for the next.

By default glibc hands large blocks back to the system as soon as they are freed, and the next layer takes
every page of its own anew, one fault each. Of a dense net on two cores that is a third of the time.

Only the arena of the main thread can hold large blocks, so threads must have none of their own: what calls
this before a library has begun some (the command line does) has all of it, what calls later a part.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
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
    """Whether freed memory now stays with this process; not without glibc, or where the user said how."""
    libc = _glibc()
    if libc is None or any(name in os.environ for name in _MALLOC_VARIABLES):
        return False
    libc.mallopt(_ARENA_MAX, 1)
    libc.mallopt(_TRIM_THRESHOLD, -1)
    if not libc.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD):  # an older one takes no large threshold
        libc.mallopt(_MMAP_MAX, 0)
    return True


def give_back() -> None:
    """Hand what was kept back to the system, at the end of the work that it was kept for.

    Traced nets hold themselves in circles, which only the collector of circles frees.
    """
    gc.collect()
    return_free_pages()


def return_free_pages() -> None:
    """Hand the pages that hold nothing back to the system, in the midst of the work.

    Blocks of ever other sizes (slides and their overviews differ) leave gaps that the next ones do not fit
    in. Memory that is kept would therefore grow with the number of cases.
    """
    if keep_freed_memory.cache_info().currsize and keep_freed_memory():
        _glibc().malloc_trim(0)


def _glibc() -> Any:
    if sys.platform != "linux":
        return None
    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return None
        libc = ctypes.CDLL(None)
    except (OSError, ValueError):  # another C library, which does not know the question
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
