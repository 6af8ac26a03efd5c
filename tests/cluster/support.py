"""A source of predictors for workers on Ray, slow enough that a worker can be killed while it scans."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lobule.scanning.contract import Batch, OpenCase, Predictor, Steps
from tests.scanning.support import BUNDLE, MeanPredictor


class SlowPredictor(MeanPredictor):
    """Scores like `MeanPredictor`, with a pause per batch. It ends its process at a case named `deadly`."""

    def __init__(self, pause_s: float) -> None:
        super().__init__()
        self.pause_s = pause_s

    def steps(self, case: OpenCase) -> Steps[Any]:
        if case.case.id == "deadly":
            os._exit(1)
        return super().steps(case)

    def forward(self, key: Any, batch: Batch) -> dict[str, torch.Tensor]:
        time.sleep(self.pause_s)
        return super().forward(key, batch)


@dataclass(frozen=True)
class SlowSource:
    """Loads a `SlowPredictor` and notes the process, so that a test can kill it."""

    pause_s: float = 0.0
    processes: str | None = None
    """Folder with a file per worker process."""

    @property
    def bundle(self) -> Mapping[str, Any]:
        return BUNDLE

    def load(self) -> Predictor:
        if self.processes is not None:
            Path(self.processes, str(os.getpid())).touch()
        return SlowPredictor(self.pause_s)
