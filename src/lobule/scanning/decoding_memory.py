"""Memory for slides that are decoded whole or in very large tiles, shared by the cases that are open."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lobule.errors import TooLarge

GIB = 1 << 30

POLL_SECONDS = 0.2
"""Interval at which a waiting case looks whether the scan is being stopped."""


class DecodingMemory:
    """A number of bytes that cases reserve before they read, and give back when they are closed.

    A case that does not fit beside the others waits until they are done. Reserving happens in the thread of
    the case, never in a reading thread, so that the cases that hold memory can always finish.

    Args:
        total_bytes: What all cases together may reserve.
        max_ram: The ceiling of the scan that `total_bytes` is a share of; for the error.
    """

    def __init__(self, total_bytes: int, max_ram: int) -> None:
        self.total_bytes = total_bytes
        self.max_ram = max_ram
        self._reserved = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, nbytes: int, subject: str, raise_if_stopped: Callable[[], None]) -> Iterator[None]:
        """Hold `nbytes` for the duration of a block; wait until they are free.

        Raises:
            TooLarge: The bytes would not fit even alone.
        """
        if nbytes > self.total_bytes:
            needed = nbytes * self.max_ram / self.total_bytes / GIB
            share, ceiling = self.total_bytes / GIB, self.max_ram / GIB
            raise TooLarge(
                f"decoding it takes {nbytes / GIB:.2f} GiB at once",
                subject=subject,
                expected=f"at most {share:.2f} GiB, which --max-ram of {ceiling:.3g} GiB leaves for decoding",
                remedy=f"Pass --max-ram {needed + 0.05:.1f}GiB, or convert it to a tiled, pyramidal TIFF, "
                "which is read in pieces: vips tiffsave --tile --pyramid",
            )
        with self._changed:
            while self._reserved + nbytes > self.total_bytes:
                raise_if_stopped()
                self._changed.wait(POLL_SECONDS)
            self._reserved += nbytes
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= nbytes
                self._changed.notify_all()
