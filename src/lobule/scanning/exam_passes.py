"""Passes over the views of an exam, shared by several methods: tables of windows or patches, and heatmaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lobule.findings import Finding
from lobule.grid import MapGrid
from lobule.mammograms.breasts import GRADES
from lobule.mammograms.exam_views import BrokenView, ExamView, Heatmaps, HeatmapView, readable_views
from lobule.mammograms.published.crop import Window
from lobule.results.maps import MapReader
from lobule.results.result import Result
from lobule.results.tables import TableReader
from lobule.scanning.contract import Batch, EngineSettings, Fields, ImageSource, Steps, fill_map, fill_table
from lobule.scanning.device import largest_cells
from lobule.scanning.map_findings import by_score
from lobule.stitch import State

HEATMAP_CELLS = 64
"""Cells per side of a chunk of a stored heatmap."""

Rows = dict[int, NDArray[np.float32]]
"""Rows of a column of a table, by field; failed fields have none."""


def choose_windows(
    engine: EngineSettings, max_bytes: int, window_bytes: int, batch_on_gpu: int
) -> EngineSettings:
    """Choose the number of windows per batch that fits into memory.

    On a CPU the batch is one window, because several replicas run at the same time.
    """
    batch = largest_cells(
        lambda windows: windows * window_bytes,
        max_bytes,
        preferred=1 if engine.device == "cpu" else batch_on_gpu,
        purpose="batch of windows",
    )
    return replace(engine, batch=batch)


def sample_windows(engine: EngineSettings, size: tuple[int, int], channels: int, side: int) -> Batch:
    """Return a batch of random windows of at most `side` pixels per side, for measuring a model's speed."""
    shape = (engine.batch, min(side, size[0]), min(side, size[1]), channels)
    pixels = np.random.default_rng(0).standard_normal(shape, np.float32)
    return Batch(torch.from_numpy(pixels).to(engine.device))


@dataclass(frozen=True)
class CellMeans:
    """Key of a pass that averages two layers over the cells of a map."""

    cell: int

    def of(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute a batch (N, H, W, 3) of two layers and the mask of the pixels that they cover."""
        means = F.avg_pool2d(pixels.permute(0, 3, 1, 2), self.cell)
        # A cell that crosses the edge is averaged over its pixels inside the mask.
        return {"map": means[:, :2] / means[:, 2:].clamp_min(1e-6)}


def fill_view_table(
    key: Any,
    name: str,
    image: str,
    source: ImageSource,
    boxes: NDArray[np.int64],
    columns: tuple[str, ...],
    *,
    size: tuple[int, int] | None = None,
    chunk_rows: int = 1,
    batch: int | None = None,
) -> Steps[tuple[Rows, ...]]:
    """Fill a table with one row per box of a view, and return some of its columns.

    Args:
        key: The value that `Model.forward` receives.
        name: Name of the table.
        image: Name of the view.
        source: The view in the form in which the model reads it.
        boxes: (n, 4) x, y, width, height in pixels of the stored image.
        columns: Names of the columns to return.
        size: Height and width of what `source` returns for a box; by default those of the box.
        chunk_rows: Rows that are stored together. Expensive rows are stored one by one.
        batch: Boxes per batch; None uses the number in the engine settings.
    """
    sizes = None if size is None else np.tile(np.array([size[::-1]], np.int64), (len(boxes), 1))
    fields = Fields((image,), (source.lattice(),), np.zeros(len(boxes), np.int16), boxes, sizes=sizes)
    table = yield from fill_table(
        key, name, fields, chunk_rows=chunk_rows, batch=batch, sources={image: source}
    )
    return tuple(scored_rows(table, column) for column in columns)


def scored_rows(table: TableReader, column: str) -> Rows:
    """Return a column of the scored rows of a table.

    A chunk in which all rows failed has none of the model's columns.
    """
    rows = {}
    for chunk in table.iterate():
        for field, state, values in zip(chunk["field"], chunk["state"], chunk.get(column, ()), strict=False):
            if state == State.SCORED:
                rows[int(field)] = values
    return rows


def fill_heatmap(
    name: str, image: str, view: ExamView, heatmaps: Heatmaps, cell: int, inside: Window | None = None
) -> Steps[MapReader]:
    """Average two layers over the cells of a map of the stored image.

    `inside` is the window of the cropped view that the layers cover; by default, the whole view.
    """
    grid = MapGrid(view.lattice(), cell, cell, HEATMAP_CELLS)
    source = HeatmapView(view, heatmaps, inside)
    box = source.l0_box
    covered = np.zeros((grid.rows, grid.columns), np.bool_)
    covered[box.y // cell : -(-box.bottom // cell), box.x // cell : -(-box.right // cell)] = True
    key, sources = CellMeans(cell), {image: source}
    return fill_map(key, name, grid, GRADES, covered, image=image, batch=1, sources=sources)


def exam_result(
    scores: Mapping[str, float],
    images: Mapping[str, ImageSource],
    findings: Sequence[Finding],
    model: str,
    metadata: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> Result:
    """Return the result of an exam, with its images, and notes on unusual and on unreadable ones."""
    broken = [f"{name}: {image.error}" for name, image in images.items() if isinstance(image, BrokenView)]
    unusual: dict[str, list[str]] = {}
    for name, view in readable_views(images).items():
        for decision in view.mammogram.heading.allowances:
            unusual.setdefault(decision.sentence, []).append(name)
    allowed = [f"{', '.join(names)}: {sentence}" for sentence, names in unusual.items()]
    image_metadata = {name: image.metadata() for name, image in readable_views(images).items()}
    all_metadata = {"images": image_metadata, "model": model, **metadata}
    return Result(scores, by_score(findings), (*notes, *allowed, *broken), all_metadata)
