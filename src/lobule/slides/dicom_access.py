"""How the images of a DICOM series are opened and read: from files, or from a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


class FrameReader(Protocol):
    """Reads the compressed frames of one image from a server."""

    def read(self, index: int) -> bytes: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class SeriesAccess:
    """How the images of a series are opened and read."""

    open: Callable[[], Any]
    """Returns a source of wsidicom."""
    names_of: Callable[[Any], set[str]]
    """The names of the files of an instance, as in `Header.file`."""
    frames_of: Callable[[Any], FrameReader | None] = lambda instance: None
    """The reader of the frames of an instance; None if wsidicom reads them from files."""
