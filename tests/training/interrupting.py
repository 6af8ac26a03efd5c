"""Progress that interrupts a training, as Ctrl-C or a kill would."""

from __future__ import annotations

from typing import Any

from lobule.training.progress import FitProgress


class InterruptingProgress(FitProgress):
    """Interrupts the training when a stage begins, or at one of its steps."""

    def __init__(self, stage: str, step: int | None = None) -> None:
        """`stage` is the beginning of the stage's name."""
        self.at_step, self.at_stage = step, stage
        super().__init__()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        is_due = name == "stage" if self.at_step is None else (name, value) == ("step", self.at_step)
        if is_due and self.stage.startswith(self.at_stage):
            raise KeyboardInterrupt
