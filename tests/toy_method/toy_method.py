"""A toy method: the mean colour of square windows, with weights learned from outlined slides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from lobule.annotations import rasterise, read_annotation
from lobule.bundles import Bundle, patient_hash, write_bundle
from lobule.cohort import Case, Cohort
from lobule.geometry import Box
from lobule.grid import MapGrid, cells_by_centre
from lobule.methods import Method
from lobule.results.result import Result
from lobule.scanning.contract import Batch, EngineSettings, OpenCase, ScanOptions, Steps, fill_map
from lobule.scanning.device import largest_cells, random_batch
from lobule.scanning.map_findings import map_findings
from lobule.scanning.open_case import slide_images
from lobule.settings import Settings
from lobule.slides import open_slide
from lobule.training.job import training_job


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the toy method."""

    mpp: float = 1.0
    """Resolution at which slides are read, in µm/px."""
    window: int = 32
    """Side of a window in pixels. A window is one cell of the map."""


class ToyModel:
    """Logistic regression on the mean red, green and blue of a window."""

    def __init__(self, config: Config, weights: Mapping[str, torch.Tensor]) -> None:
        self.config, self.weights = config, weights

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        cells = largest_cells(lambda n: 99 * (n * self.config.window) ** 2, max_bytes, preferred=16)
        return replace(engine, cells=cells, batch=1)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        self.weights = {name: tensor.to(engine.device) for name, tensor in self.weights.items()}

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[Config, Batch]:
        side = engine.cells * self.config.window
        return self.config, random_batch(engine, side, side)

    def forward(self, key: Config, batch: Batch) -> dict[str, torch.Tensor]:
        colours = F.avg_pool2d(batch.pixels.permute(0, 3, 1, 2).float() / 255, key.window)
        logits = F.conv2d(colours, self.weights["slope"][None, :, None, None], self.weights["offset"])
        return {"map": torch.sigmoid(logits)}


@dataclass(frozen=True)
class ToyPredictor:
    """Scores each window of tissue, and the slide by its highest window."""

    config: Config
    model: ToyModel

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, Any]:
        return slide_images(case, options)

    def steps(self, case: OpenCase) -> Steps[Result]:
        lattice = case.images["slide"].lattice(mpp=self.config.mpp, upsample=case.options.upsample)
        grid = MapGrid(lattice, self.config.window, self.config.window, case.engine.cells)
        tissue = case.tissue()
        required = cells_by_centre(grid, tissue.mask, tissue.l0_step)
        reader = yield from fill_map(self.config, "map", grid, ("tumour",), required)
        return Result(*map_findings(reader, ("tumour",), threshold=0.5))


def windows(case: Case, config: Config) -> np.ndarray:
    """Return one row per window of a training slide: its mean red, green and blue, and 1 for tumour."""
    with open_slide(case.path, mpp=case.mpp) as slide:
        step = config.window * config.mpp / slide.mpp.x
        columns, rows = int(slide.size.width / step), int(slide.size.height / step)
        pixels = slide.read(Box(0, 0, int(columns * step), int(rows * step)), mpp=config.mpp)
    colours = pixels.reshape(rows, config.window, columns, config.window, 3).mean(axis=(1, 3)) / 255
    tumour = np.zeros((rows, columns), bool)
    if case.annotation:
        tumour = rasterise(read_annotation(case.annotation), round(step), Box(0, 0, columns, rows))
    return np.column_stack([colours.reshape(-1, 3), tumour.ravel()])


def train(
    config: Config, cohort: Cohort, out: str | Path, *, val: str | None = "val", seed: int = 0, **run: Any
) -> Bundle:
    """Fit the regression to all windows of the training slides, and write the bundle."""
    with training_job(config, cohort, out, val=val, seed=seed, **run) as job:
        rows = np.concatenate([windows(case, config) for case in job.split.train])
        fitted = LogisticRegression(C=100.0, class_weight="balanced").fit(rows[:, :3], rows[:, 3])
        patients = tuple(sorted({patient_hash(case.patient) for case in job.split.train}))
        bundle = Bundle("toy", config.to_dict(), ("tumour",), config.mpp, patients=patients)
        slope, offset = torch.tensor(fitted.coef_[0]).float(), torch.tensor(fitted.intercept_).float()
        return write_bundle(out, bundle, {"slope": slope, "offset": offset})


def load(bundle: Bundle, *, trust: bool = False) -> ToyPredictor:
    """Load a bundle of the toy method."""
    config = Config.from_dict(bundle.config)
    return ToyPredictor(config, ToyModel(config, bundle.weights()))


METHOD = Method("toy", "Scores square windows of tissue by their mean colour.", Config, load, train)
