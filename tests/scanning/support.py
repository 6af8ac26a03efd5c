"""Small slides and predictors for testing the engine: their maps can be computed in one line of numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

from lobule.cohort import Case, Cohort
from lobule.geometry import Box
from lobule.grid import MapGrid, cells_by_centre
from lobule.results.result import Result
from lobule.scanning.contract import (
    Batch,
    EngineSettings,
    Fields,
    ImageSource,
    OpenCase,
    ScanOptions,
    Steps,
    fill_map,
    fill_table,
)
from lobule.scanning.scan import Machine
from lobule.slides.slide import open_slide

STRIDE, WINDOW = 16, 48
BUNDLE = {"method": "mean", "fingerprint": "0" * 64, "classes": ["mean"]}
EVERYWHERE = ScanOptions(tissue=None)
SMALL = Machine(
    device="cpu", precision="float32", batch=3, cells=4, readers=2, replicas=2, channels_last=True
)


def pixels_of(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth pseudo-tissue: every place differs from every other."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3)).astype(np.float32)
    fine = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    return (0.8 * fine + 0.2 * rng.integers(0, 256, (height, width, 3))).astype(np.uint8)


def write_slide(path: Path, pixels: NDArray[np.uint8], tile: int = 128, **write_options: Any) -> Path:
    """A lossless tiled TIFF of one level that says its µm/px."""
    settings: dict[str, Any] = {"compression": "zlib", "photometric": "rgb", "resolution": (20000, 20000)}
    settings |= {"resolutionunit": "CENTIMETER", **write_options}
    tifffile.imwrite(path, pixels, tile=(tile, tile), **settings)
    return path


def cohort_of(*paths: Path) -> Cohort:
    return Cohort(
        tuple(Case(path.stem, f"patient {path.stem}", "slide", str(path), mpp=0.5) for path in paths)
    )


def mean_map(pixels: NDArray[np.uint8], stride: int = STRIDE, window: int = WINDOW) -> NDArray[np.float64]:
    """What `MeanPredictor` must give, by definition: the mean of each cell's window, white outside."""
    height, width = pixels.shape[:2]
    rows, columns = -(-height // stride), -(-width // stride)
    pad = window
    padded = np.full((rows * stride + 2 * pad, columns * stride + 2 * pad, 3), 255.0)
    padded[pad : pad + height, pad : pad + width] = pixels
    start = pad + (stride - window) // 2
    out = np.empty((rows, columns))
    for row in range(rows):
        for column in range(columns):
            y, x = start + stride * row, start + stride * column
            out[row, column] = padded[y : y + window, x : x + window].mean() / 255
    return out


class MeanPredictor:
    """Scores each cell with the mean of its window: a dense net whose every output is known."""

    classes = ("mean",)

    def __init__(self) -> None:
        self.forwards = 0

    @property
    def model(self) -> MeanPredictor:
        """The object is predictor and model in one."""
        return self

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        assert case.path is not None
        return {"slide": open_slide(case.path, mpp=case.mpp)}

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        return replace(engine, cells=8, batch=2)

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None: ...

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[Any, Batch]:
        side = WINDOW + STRIDE * (engine.cells - 1)
        return "mean", Batch(torch.zeros((engine.batch, side, side, 3), dtype=torch.uint8))

    def grid(self, case: OpenCase) -> MapGrid:
        lattice = case.images["slide"].lattice(level=0)
        return MapGrid(lattice, STRIDE, WINDOW, case.engine.cells)

    def steps(self, case: OpenCase) -> Steps[Result]:
        grid = self.grid(case)
        tissue = case.tissue()
        required = cells_by_centre(grid, tissue.mask, tissue.l0_step)
        reader = yield from fill_map("mean", "mean", grid, self.classes, required)
        return Result({"mean": float(reader.scores().max())})

    def forward(self, key: Any, batch: Batch) -> dict[str, torch.Tensor]:
        self.forwards += 1
        x = batch.pixels.permute(0, 3, 1, 2).float() / 255
        return {"map": torch.nn.functional.avg_pool2d(x, WINDOW, STRIDE).mean(dim=1, keepdim=True)}


class TwoPassPredictor(MeanPredictor):
    """A map that feeds a second pass: the rows of the table receive the map's mean under their field."""

    def steps(self, case: OpenCase) -> Steps[Result]:
        grid = self.grid(case)
        everywhere = np.ones((grid.rows, grid.columns), np.bool_)
        first = yield from fill_map("mean", "mean", grid, self.classes, everywhere)
        top = np.unravel_index(int(first.scores().argmax()), everywhere.shape)
        x, y = int(top[1]) * STRIDE, int(top[0]) * STRIDE
        boxes = np.array([[x, y, 64, 64], [0, 0, 64, 64], [x, y, 32, 32]], np.int64)
        params = {"weight": np.array([1.0, 2.0, 3.0], np.float32), "mean": _means(first.scores(), boxes)}
        fields = Fields(("slide",), (grid.lattice,), np.zeros(3, np.int16), boxes, params=params)
        second = yield from fill_table("look", "look", fields, chunk_rows=2, batch=2)
        return Result({"sum": float(second.read(["value"])["value"].sum())})

    def forward(self, key: Any, batch: Batch) -> dict[str, torch.Tensor]:
        if key == "mean":
            return super().forward(key, batch)
        value = batch.params["mean"] * batch.params["weight"]
        return {"value": value, "pixels": batch.pixels.float().mean(dim=(1, 2))}


def _means(scores: NDArray[np.float32], boxes: NDArray[np.int64]) -> NDArray[np.float32]:
    """The mean over each box of the cells under its pixels; 0 outside the map."""
    means = []
    for x, y, width, height in boxes:
        rows = np.repeat(scores, STRIDE, axis=0)[y : y + height]
        means.append(np.repeat(rows, STRIDE, axis=1)[:, x : x + width].sum() / (width * height))
    return np.array(means, np.float32)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a results folder that is a result, by name: times and locks live apart."""
    skipped = {"run.json", ".lock"}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in skipped
    }


def whole_slide(path: Path) -> NDArray[np.uint8]:
    with open_slide(path) as slide:
        return slide.read_level(0, Box(0, 0, *slide.size))
