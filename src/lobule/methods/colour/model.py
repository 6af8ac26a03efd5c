"""The colour model, its predictor and its training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from lobule.bundles import Bundle, trained_bundle, write_bundle
from lobule.cohort import Cohort
from lobule.errors import ModelError
from lobule.grid import MapGrid, cells_by_centre
from lobule.methods.colour.config import BATCH, Config
from lobule.results.result import Result
from lobule.scanning.contract import Batch, EngineSettings, OpenCase, ScanOptions, Steps, fill_map
from lobule.scanning.device import largest_cells, random_batch
from lobule.scanning.map_findings import map_findings
from lobule.scanning.open_case import slide_images
from lobule.training.job import TrainingJob, TrainOptions, training_job
from lobule.training.patch_pools import PatchStreams, cases_of, train_pool, validation_pool
from lobule.training.patch_sampling import Pool
from lobule.training.sampling import SampleConfig

VALIDATION_ROUND = 1
"""The sampling round of the validation windows; training windows are sampled in round 0."""
OFFSET = 128.0
"""Subtracted from every pixel before squares are summed, so that single precision is sufficient."""
BYTES_PER_PIXEL = 64
CELLS = 64


@dataclass(frozen=True)
class ColourMap:
    """Key of the pass that scores the windows of a map with this stride."""

    stride: int


class ColourModel:
    """Logistic regression on the six colour features of a window."""

    def __init__(self, config: Config, coefficients: torch.Tensor, intercept: torch.Tensor) -> None:
        if coefficients.shape != (6,) or intercept.shape != (1,):
            raise ModelError("these are not the weights of a colour model", expected="6 and 1 numbers")
        self.config = config
        self.coefficients, self.intercept = coefficients.double(), intercept.double()

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        def field_bytes(cells: int) -> int:
            return BYTES_PER_PIXEL * self._field_side(options, cells) ** 2

        cells = largest_cells(field_bytes, max_bytes, preferred=CELLS, purpose="field")
        return replace(engine, cells=cells, batch=1)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        """Do nothing: `forward` moves its seven weights to the device of the pixels."""

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[ColourMap, Batch]:
        side = self._field_side(options, engine.cells)
        return ColourMap(self.stride(options)), random_batch(engine, side, side)

    def forward(self, key: ColourMap, batch: Batch) -> dict[str, torch.Tensor]:
        rows = colour(batch.pixels, self.config.window, key.stride)
        weights = self.coefficients.to(rows)[None, :, None, None]
        logits = (rows * weights).sum(1, keepdim=True) + self.intercept.to(rows)
        return {"map": torch.sigmoid(logits)}

    def stride(self, options: ScanOptions) -> int:
        return options.stride or self.config.stride

    def _field_side(self, options: ScanOptions, cells: int) -> int:
        return self.config.window + self.stride(options) * (cells - 1)


class ColourPredictor:
    """Scores each window of a slide by its six colour features."""

    images = staticmethod(slide_images)

    def __init__(self, config: Config, coefficients: torch.Tensor, intercept: torch.Tensor) -> None:
        self.config, self.model = config, ColourModel(config, coefficients, intercept)

    def steps(self, case: OpenCase) -> Steps[Result]:
        config, stride = self.config, self.model.stride(case.options)
        lattice = case.images["slide"].lattice(mpp=config.mpp, upsample=case.options.upsample)
        grid = MapGrid(lattice, stride, config.window, case.engine.cells)
        tissue = case.tissue()
        has_tissue = cells_by_centre(grid, tissue.mask, tissue.l0_step)
        tumour = config.classes[1:]
        reader = yield from fill_map(ColourMap(stride), f"map-s{stride}", grid, tumour, has_tissue)
        return Result(*map_findings(reader, tumour, config.threshold))


def colour(pixels: torch.Tensor, window: int, stride: int) -> torch.Tensor:
    """Means and then standard deviations of each window: (n, height, width, 3) to (n, 6, rows, columns)."""
    x = pixels.permute(0, 3, 1, 2).float() - OFFSET
    mean, square = _window_means(x, window, stride), _window_means(x * x, window, stride)
    return torch.cat([mean + OFFSET, (square - mean * mean).clamp(min=0).sqrt()], dim=1)


def _window_means(x: torch.Tensor, window: int, stride: int) -> torch.Tensor:
    """The mean of each window. If the stride divides the window, squares of one stride are averaged first."""
    if window % stride:
        return F.avg_pool2d(x, window, stride)
    return F.avg_pool2d(F.avg_pool2d(x, stride), window // stride, 1)


def train(config: Config, cohort: Cohort, out: str | Path, **options: Unpack[TrainOptions]) -> Bundle:
    """Sample windows of both classes from outlined slides, fit the regression and write the bundle.

    An interrupted training starts from the beginning, because it takes only seconds.

    Args:
        config: The settings.
        cohort: Slides with tumour outlines, and normal slides.
        out: The folder of the bundle.
        **options: See `TrainOptions`.

    Returns:
        The bundle as written.
    """
    with training_job(config, cohort, out, **options) as job:
        pool, val_pool = train_pool(job), validation_pool(job)
        coefficients, intercept = _fit_regression(*_sample_windows(config, job, pool, 0, config.patches))
        metrics: dict[str, Any] = {}
        if val_pool is not None:
            from sklearn.metrics import roc_auc_score

            rows, labels = _sample_windows(config, job, val_pool, VALIDATION_ROUND, config.patches // 4)
            metrics["val_auc"] = float(roc_auc_score(labels, rows @ coefficients + intercept))
        # No choice depends on the validation windows, so their patients may be evaluated.
        record = job.record(cases_of(pool), (), metrics)
        bundle = trained_bundle("colour", config.to_dict(), config.classes, config.mpp, **record)
        weights = {"coefficients": coefficients, "intercept": np.array([intercept])}
        return write_bundle(
            job.out, bundle, {name: torch.from_numpy(value) for name, value in weights.items()}
        )


Rows = NDArray[np.float64]


def _sample_windows(
    config: Config, job: TrainingJob, pool: Pool, round_: int, count: int
) -> tuple[Rows, NDArray[np.int64]]:
    """Sample `count` windows; return their colour features and their classes."""
    rows, labels = [], []
    streams = PatchStreams(job, SampleConfig(config.mpp, config.window), BATCH)
    with streams.draw(pool, round_, count) as stream:
        for samples in stream:
            colours = colour(torch.from_numpy(samples.pixels), config.window, config.window)
            rows.append(colours[:, :, 0, 0].double().numpy())
            labels.append(samples.labels)
    return np.concatenate(rows), np.concatenate(labels)


def _fit_regression(rows: Rows, labels: NDArray[np.int64]) -> tuple[Rows, float]:
    """Fit logistic regression to standardised colours; return coefficients for unstandardised colours."""
    from sklearn.linear_model import LogisticRegression

    mean, spread = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-6)
    model = LogisticRegression(max_iter=2000).fit((rows - mean) / spread, labels)
    coefficients = model.coef_[0] / spread
    return coefficients, float(model.intercept_[0] - coefficients @ mean)


def load(bundle: Bundle, *, trust: bool = False) -> ColourPredictor:
    """Load a colour bundle as a predictor. The weights file contains only tensors; `trust` has no effect."""
    weights = bundle.weights()
    if set(weights) != {"coefficients", "intercept"}:
        raise ModelError(
            "the weights do not fit the method colour", subject=bundle.path, actual=", ".join(weights)
        )
    return ColourPredictor(Config.from_dict(bundle.config), weights["coefficients"], weights["intercept"])
