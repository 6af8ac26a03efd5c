"""The progress of a training, for a display."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class FitProgress:
    """The progress of a training. The training updates it, and a display may read it at any time."""

    stage: str = ""
    step: int = 0
    steps: int = 0
    loss: float = float("nan")
    score: float | None = None
    steps_per_s: float = 0.0
    on_stage: Callable[[FitProgress], None] | None = field(default=None, repr=False, compare=False)
    """Called whenever another stage begins."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, and call `on_stage` if it is a new stage."""
        is_new_stage = name == "stage" and value and value != getattr(self, "stage", "")
        super().__setattr__(name, value)
        listener = getattr(self, "on_stage", None)
        if is_new_stage and listener is not None:
            listener(self)
