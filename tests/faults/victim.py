"""A scan to be killed: `python -m tests.faults.victim OUT SLIDE…` says "go" and scans slowly."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from lobule.scanning.contract import Batch
from lobule.scanning.scan import scan
from tests.scanning.support import BUNDLE, EVERYWHERE, SMALL, MeanPredictor, TwoPassPredictor, cohort_of

PAUSE_S = 0.004


class SlowPredictor(TwoPassPredictor):
    """Two passes, slow enough that a kill lands anywhere in them."""

    def forward(self, key: object, batch: Batch) -> dict[str, torch.Tensor]:
        time.sleep(PAUSE_S)
        return super().forward(key, batch)


def main() -> None:
    out, *slides = (Path(argument) for argument in sys.argv[1:])
    MeanPredictor()
    print("go", flush=True)
    scan(SlowPredictor(), BUNDLE, cohort_of(*slides), out, EVERYWHERE, SMALL)
    print("done", flush=True)


if __name__ == "__main__":
    main()
