"""Small painted images of four classes, and settings under which everything takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lobule.cohort import Case, Cohort
from lobule.methods.rakhlin import Config
from lobule.methods.rakhlin.boosting import BoostingConfig
from lobule.methods.rakhlin.config import BACH
from lobule.training.fitting import TrainMachine

WIDTH, HEIGHT = 200, 160
MACHINE = TrainMachine(device="cpu", precision="float32", workers=2)
CONFIG = Config(
    encoders=("squeezenet1_1@features.3",), weights=("random",), mpp=1.0, sizes=(40, 60), augmentations=3,
    crops=2, window=160, stride=80,
    boosting=BoostingConfig(folds=2, seeds=2, rounds=6, min_data_in_leaf=2),
)  # fmt: skip
DOTS = {"normal": 0, "benign": 40, "in situ": 160, "invasive": 500}


def painted(label: str, seed: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Pink stroma with more dark nuclei the worse the class."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), (214.0, 160.0, 200.0)) + rng.normal(0, 9, (height, width, 3))
    for y, x in rng.integers(0, (height - 4, width - 4), (DOTS[label], 2)):
        pixels[y : y + 4, x : x + 4] = (92, 60, 140)
    return pixels.clip(0, 255).astype(np.uint8)


def cohort_in(folder: Path, per_class: int = 4, **options: Any) -> Cohort:
    """`per_class` images of each class, two images a patient, two sites."""
    cases = []
    for number in range(per_class * len(BACH)):
        label = BACH[number % len(BACH)]
        path = folder / f"i{number:02d}.png"
        Image.fromarray(painted(label, number)).save(path)
        patient = number % (2 * per_class)
        cases.append(
            Case(
                path.stem, f"p{patient}", "image", path=str(path), label=label, mpp=1.0,
                site=f"site {patient % 2}", **options,
            )
        )  # fmt: skip
    return Cohort(tuple(cases))
