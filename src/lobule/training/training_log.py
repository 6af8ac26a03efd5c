"""The log of a training: a CSV file, and event files if TensorBoard is installed."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LOG = "log.csv"
COLUMNS = "step,loss,rate,score\n"

log = logging.getLogger("lobule.train")
_logged_notes: list[str] = []
"""Notes already logged by this process, so that the one about a missing TensorBoard appears only once."""


class EventFile:
    """The TensorBoard event file of one round."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    @classmethod
    def opened(cls, folder: Path, step: int) -> EventFile | None:
        """Open the file to continue after `step`. Returns None if TensorBoard is not installed."""
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
