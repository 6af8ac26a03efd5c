"""What a training writes down as it goes: a CSV, and event files where TensorBoard is installed."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LOG = "log.csv"
COLUMNS = "step,loss,rate,score\n"

log = logging.getLogger("lobule.train")
_logged_notes: list[str] = []
"""That TensorBoard is missing, said once a process."""


class EventFile:
    """TensorBoard's file of one round."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    @classmethod
    def opened(cls, folder: Path, step: int) -> EventFile | None:
        """A file that goes on after `step`; None where TensorBoard is not installed."""
        if find_spec("tensorboard") is None:
            if not _logged_notes:
                _logged_notes.append("no events")
                log.info("no TensorBoard events are written: install lobule[tensorboard] to have them")
            return None
        from torch.utils.tensorboard import SummaryWriter

        return cls(SummaryWriter(str(folder), purge_step=step + 1 if step else None))

    def add(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
