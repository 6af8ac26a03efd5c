"""What is known of one mammogram: what its file says, what was decided because of it, and its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lobule.mammograms.views import Pointing, View

Outcome = Literal["accepted", "noted", "refused"]


@dataclass(frozen=True)
class Decision:
    """One rule applied to one file."""

    rule: str
    outcome: Outcome
    sentence: str
    """What was found and what follows from it, in plain words."""


@dataclass(frozen=True)
class Heading:
    """What a file says of itself, before any pixel is decoded."""

    path: str
    decisions: tuple[Decision, ...] = ()
    view: View | None = None
    patient: str | None = None
    study: str | None = None
    instance: str | None = None
    taken: str = ""
    """Date and time as YYYYMMDDHHMMSS, as far as they are known; later ones sort after earlier ones."""
    height: int = 0
    width: int = 0
    mm_per_px: float | None = None
    pointing: Pointing | None = None
    """By the header; the pixels have the last word."""
    horizontal_flip: Literal["NO", "YES"] | None = None
    """By the header."""

    @property
    def refusals(self) -> tuple[Decision, ...]:
        return tuple(decision for decision in self.decisions if decision.outcome == "refused")

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
    """None where neither file nor manifest says."""
    pointing: Pointing
    decisions: tuple[Decision, ...]
    """Those of the heading and those that needed the pixels."""

    @property
    def horizontal_flip(self) -> Literal["NO", "YES"]:
        """The value that makes the convention of exams true of this image, whatever its header claims."""
        if self.view is None:
            return "NO"
        return "NO" if (self.view[0] == "L") == (self.pointing == "right") else "YES"
