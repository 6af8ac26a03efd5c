"""Painted slides for reverse distillation, and settings for a training that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lobule.annotations import Annotation, Polygon, write_annotation
from lobule.cohort import Case
from lobule.measures.calibration import Platt
from lobule.methods.reverse_distillation import Config
from lobule.methods.reverse_distillation.calibration import Calibration, FormAgreement, SlideFit
from lobule.tissue import TissueConfig
from lobule.training.fitting import TrainMachine
from tests.scanning.support import write_slide

MPP = 0.5
WIDTH, HEIGHT, MARGIN = 900, 700, 50
SMALL: dict[str, Any] = {
    "teacher": "tiny", "weights": "random", "mpp": MPP, "patch": 32, "input": 32, "stride": 16,
    "slides": 2, "tumour_patches": 40, "normal_patches": 60, "epochs": 6, "batch": 20, "rate": 5e-3,
    "val_patches": 60,
}  # fmt: skip
CONFIG = Config(**SMALL)
MACHINE = TrainMachine(device="cpu", precision="float32", workers=2)
TISSUE = TissueConfig(mpp=8.0)
CALIBRATION = Calibration(Platt(3.0, -4.0), {"exact": SlideFit(1.2, 2.0, -1.0)}, FormAgreement(0.9, 0.1, 50))
TUMOUR_COLOUR = (120, 60, 150)

Square = tuple[int, int, int]
"""Left, top and side, in level-0 pixels."""


def painted(folder: Path, name: str, tumour: Square | None, seed: int, split: str, **overrides: Any) -> Case:
    """A slide with pink tissue and, optionally, an outlined square of striped purple tumour."""
    rng = np.random.default_rng(seed)
    pixels = np.full((HEIGHT, WIDTH, 3), 244.0)
    inner = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    pixels[inner] = (205, 140, 190)
    if tumour is not None:
        x, y, side = tumour
        pixels[y : y + side, x : x + side] = TUMOUR_COLOUR
        pixels[y : y + side : 6, x : x + side] = (220, 190, 225)
    pixels[inner] += rng.normal(0, 12, (HEIGHT - 2 * MARGIN, WIDTH - 2 * MARGIN, 3))
    path = write_slide(folder / f"{name}.tif", pixels.clip(0, 255).astype(np.uint8))
    annotation = None
    if tumour is not None:
        annotation = str(folder / f"{name}.xml")
        x, y, side = tumour
        ring = np.array([(x, y), (x + side, y), (x + side, y + side), (x, y + side)], np.float64)
        write_annotation(Path(annotation), Annotation((Polygon(ring),)))
    fields: dict[str, Any] = {"label": "tumor" if tumour else "normal", "annotation": annotation} | overrides
    return Case(name, f"patient {name}", "slide", str(path), mpp=MPP, split=split, **fields)
