"""The progress of a running scan, for a display."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lobule.scanning.pipeline import Counters

log = logging.getLogger("lobule.scan")


@dataclass
class Progress:
    """The progress of a running scan, for a display. The scan waits only for `on_preliminary`."""

    cases: int = 0
    finished: dict[str, str] = field(default_factory=dict)
    """Status of each finished case: complete, partial, failed, unscored or skipped."""
    counters: Counters = field(default_factory=Counters)
    inputs: dict[str, str] = field(default_factory=dict)
    """The hashes of the files of each case."""
    active: dict[str, str] = field(default_factory=dict)
    """The current pass of each open case."""
    precision: str = ""
    on_preliminary: Callable[[str, Mapping[str, float]], None] = lambda case, scores: None
    """Called with a case and its preliminary scores, such as those of a coarse map."""
    began: float = field(default_factory=time.monotonic)

    def tell_preliminary_scores(self, case: str, scores: Mapping[str, float]) -> None:
        try:
            self.on_preliminary(case, scores)
        except Exception:  # A display that fails must not end the case.
            log.debug("The preliminary scores of case %s could not be shown", case, exc_info=True)
