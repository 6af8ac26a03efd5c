"""The record of one mammogram: the fields of its file, the decisions based on them, and its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lobule.errors import TooLarge
from lobule.mammograms.views import Pointing, View

Outcome = Literal["accepted", "noted", "allowed", "refused"]
"""`allowed` is a property that is refused unless the user allows it by name."""
MOST_PIXELS = 200_000_000
"""Images that declare more pixels are refused before they are decoded."""


@dataclass(frozen=True)
class Decision:
    """One rule applied to one file."""

    rule: str
    outcome: Outcome
    sentence: str
    """The observation and its consequence, as a sentence."""
    value: float | None = None
    """The number that the rule used: of inverted values, the stored value that became 0."""


@dataclass(frozen=True)
class Heading:
    """The header of a file, before any pixel is decoded."""

    path: str
    decisions: tuple[Decision, ...] = ()
    view: View | None = None
    patient: str | None = None
    study: str | None = None
    instance: str | None = None
    acquired: str = ""
    """Date and time as YYYYMMDDHHMMSS, without unknown digits; later times sort after earlier ones."""
    height: int = 0
    width: int = 0
    mm_per_px: float | None = None
    pointing: Pointing | None = None
    """Direction stated by the header; the one found in the pixels takes precedence."""
    horizontal_flip: Literal["NO", "YES"] | None = None
    """Flip stated by the header."""

    @property
    def refusals(self) -> tuple[Decision, ...]:
        return tuple(decision for decision in self.decisions if decision.outcome == "refused")

    @property
    def allowances(self) -> tuple[Decision, ...]:
        """What makes the image unlike those that it is compared with, and was allowed by name."""
        return tuple(decision for decision in self.decisions if decision.outcome == "allowed")

    @property
    def is_usable(self) -> bool:
        return not self.refusals and self.view is not None


@dataclass(frozen=True)
class Mammogram:
    """One view, ready for cropping: breast bright, background exactly 0."""

    heading: Heading
    pixels: NDArray[np.uint16]
    """(H, W), as stored: not mirrored."""
    view: View | None
    """None if neither the file nor the manifest states it."""
    pointing: Pointing
    decisions: tuple[Decision, ...]
    """The decisions of the heading, followed by those based on the pixels."""

    @property
    def horizontal_flip(self) -> Literal["NO", "YES"]:
        """The value that matches the convention of exams for this image, whatever its header states."""
        if self.view is None:
            return "NO"
        return "NO" if (self.view[0] == "L") == (self.pointing == "right") else "YES"


def require_size(path: str | Path, width: int, height: int, values_per_pixel: int = 1) -> None:
    """Raise `TooLarge` if an image declares too many pixels."""
    if width * height * values_per_pixel > MOST_PIXELS:
        depth = f" × {values_per_pixel}" if values_per_pixel > 1 else ""
        raise TooLarge(
            "the image declares too many pixels",
            subject=path,
            expected=f"at most {MOST_PIXELS:,}",
            actual=f"{width} × {height}{depth}",
        )
