"""Memory for slides that are decoded whole or in very large tiles, shared by all open cases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lobule.errors import TooLarge

GIB = 1 << 30

POLL_SECONDS = 0.2
"""Interval at which a waiting case checks whether the scan is being stopped."""


class DecodingMemory:
    """A number of bytes that cases reserve before they read, and release when they are closed.

    A case that does not fit waits until other cases are done. The thread of the case reserves the memory,
    never a reading thread, so that cases that have reserved memory can always finish.

    Args:
        total_bytes: Bytes that all cases together may reserve.
        max_ram: The memory limit of the scan, of which `total_bytes` is a share. Used in the error message.
    """

    def __init__(self, total_bytes: int, max_ram: int) -> None:
        self.total_bytes = total_bytes
        self.max_ram = max_ram
        self._reserved = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, nbytes: int, subject: str, raise_if_stopped: Callable[[], None]) -> Iterator[None]:
        """Reserve `nbytes` for the duration of a `with` block, after waiting until they are available.

        Raises:
            TooLarge: `nbytes` is more than the total.
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
