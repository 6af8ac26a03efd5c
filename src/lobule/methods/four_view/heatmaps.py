"""Heatmaps of a view, from the scores of its patches: computed by a scan, or read again by a training.

The patches are scored one by one as published, or all at once from one run over the whole view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from lobule.cohort import Cohort
from lobule.errors import DamagedResults, ModelError
from lobule.findings import Finding
from lobule.mammograms.breasts import GRADES
from lobule.mammograms.exam_views import ExamView, Heatmaps, PatchView, readable_views
from lobule.mammograms.published.crop import Window
from lobule.mammograms.published.patches import PatchGrid, distinct_patches, heatmap_of
from lobule.methods.four_view.config import Config, Painting
from lobule.methods.four_view.planning import draw_patch_grids, image_shapes_of, patch_frame
from lobule.nets.painter import CELL
from lobule.nets.published import PATCH_CLASSES
from lobule.results.folder import CaseFolder, Results, open_results
from lobule.results.result import Result
from lobule.scanning.contract import EngineSettings, OpenCase, Predictor, ScanOptions, Steps
from lobule.scanning.exam_passes import Rows, fill_heatmap, fill_view_table, scored_rows
from lobule.scanning.map_findings import map_findings
from lobule.scanning.scan import Machine, scan

PATCHES = 8
"""Number of patches that take the time and memory of one window."""
HALO = 4
"""Cells above and below a band that are processed with it, if a view is processed in several bands."""
COMPARED_PATCHES = 8
"""Number of patches of a view that are also scored exactly, with `painting="fast"`."""
PAINTED = [PATCH_CLASSES.index(grade) for grade in GRADES]
"""Indices of benign and malignant among the patch network's classes; the other classes are not used."""


@dataclass(frozen=True)
class PatchScores:
    """Key of a pass of a patch network: `scores` of patches, or the `evidence` of each cell of a band."""

    column: Literal["scores", "evidence"]
    net: int = 0
    """Number of the patch network."""


@dataclass(frozen=True, eq=False)
class ViewPatches:
    """The patches of one view, scored by one of the bundle's patch networks."""

    name: str
    view: ExamView
    source: PatchView
    grid: PatchGrid
    engine: EngineSettings
    net: int = 0
    """Number of the patch network."""

    def heatmaps(self, painting: Painting) -> Steps[tuple[Heatmaps, NDArray[np.float64]]]:
        """Return the heatmaps, and the differences of some patches' scores from the exact ones."""
        differences = np.zeros(0)
        scores: NDArray[np.floating[Any]]
        if painting == "exact":
            rows, row_of = distinct_patches(self.grid, self.source.pixels)
            scored = yield from self.scores(rows)
            scores = np.stack([scored[int(row)] for row in row_of])
        else:
            scores, differences = yield from self._fast()
        mirrored = self.source.frame.mirrored != self.view.frame.mirrored
        return heatmaps_of(self.view.shape, self.grid, scores, mirrored=mirrored), differences

    def scores(self, rows: Sequence[int]) -> Steps[Rows]:
        """Score some patches of the grid; the result is keyed by their index in `rows`."""
        corners, side = list(self.grid.corners()), self.grid.patch
        windows = [Window(top, top + side, left, left + side) for top, left in (corners[i] for i in rows)]
        batch = self.engine.batch * PATCHES
        key = PatchScores("scores", self.net)
        return self._table("patches", key, windows, chunk_rows=8 * PATCHES, batch=batch)

    def _table(
        self, kind: str, key: PatchScores, windows: Sequence[Window], *, chunk_rows: int, batch: int
    ) -> Steps[Rows]:
        name, boxes = table_name(kind, self.name, self.net), self.source.frame.boxes(windows)
        (rows,) = yield from fill_view_table(
            key, name, self.name, self.source, boxes, (key.column,), chunk_rows=chunk_rows, batch=batch
        )
        if len(rows) < len(windows):
            raise ModelError(f"{len(windows) - len(rows)} {kind} of {self.name} could not be scored")
        return rows

    def _fast(self) -> Steps[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Score every patch from the evidence under it, and compare a few patches with their exact scores."""
        bands = Bands.over(self.source.pixels.shape, self.engine.cells**2)
        key = PatchScores("evidence", self.net)
        evidence = yield from self._table("evidence", key, bands.windows(), chunk_rows=1, batch=1)
        scores = pooled_scores(bands.joined([evidence[index] for index in range(bands.count)]), self.grid)
        rows, _ = distinct_patches(self.grid, self.source.pixels)
        compared = np.unique(np.linspace(0, len(rows) - 1, COMPARED_PATCHES).round().astype(int))
        rows = [rows[index] for index in compared]
        exact = yield from self.scores(rows)
        differences = [np.abs(exact[i][PAINTED] - scores[row][PAINTED]) for i, row in enumerate(rows)]
        return scores, np.concatenate(differences).astype(np.float64)


def table_name(kind: str, image: str, net: int) -> str:
    """Return the name of a table; it contains the number of the patch network, if that is not the first."""
    return f"{kind} {image}" + (f" by {net + 1}" if net else "")


def heatmaps_of(
    shape: tuple[int, int], grid: PatchGrid, scores: NDArray[np.floating[Any]], *, mirrored: bool
) -> Heatmaps:
    """Return the heatmaps of a view from the scores (patches, classes); `mirrored` patches point left."""
    maps = heatmap_of(shape, grid, scores[:, PAINTED])
    return maps[:, :, ::-1] if mirrored else maps


def store_heatmaps(name: str, view: ExamView, heatmaps: Heatmaps, config: Config) -> Steps[list[Finding]]:
    """Store the heatmaps as a map over the stored image, and return their high regions as findings."""
    cell, threshold = config.architecture.heatmap_cell, config.reading.finding_threshold
    reader = yield from fill_heatmap(f"heatmap {name}", name, view, heatmaps, cell)
    _, findings = map_findings(reader, GRADES, threshold)
    return [replace(finding, image=name) for finding in findings]


# -- all patches of a view at once --------------------------------------------------------------------------


@dataclass(frozen=True)
class Bands:
    """A view divided into bands of whole rows of cells, each as wide as the view."""

    rows: int
    """Rows of cells of the view."""
    columns: int
    band_rows: int
    halo: int

    @classmethod
    def over(cls, shape: tuple[int, ...], cells: int) -> Bands:
        """Divide a view into as few bands as possible with at most `cells` cells each, where possible."""
        rows, columns = -(-shape[0] // CELL), -(-shape[1] // CELL)
        max_rows = cells // columns
        if max_rows >= rows:
            return cls(rows, columns, rows, 0)
        count = -(-rows // max(1, max_rows - 2 * HALO))
        return cls(rows, columns, -(-rows // count), HALO)

    @property
    def count(self) -> int:
        return -(-self.rows // self.band_rows)

    def windows(self) -> list[Window]:
        """Return the window that is read for each band.

        It may extend past the view, where pixels are blank.
        """
        tops = [CELL * (band * self.band_rows - self.halo) for band in range(self.count)]
        height = CELL * (self.band_rows + 2 * self.halo)
        return [Window(top, top + height, 0, CELL * self.columns) for top in tops]

    def joined(self, evidence: Sequence[NDArray[np.floating[Any]]]) -> NDArray[np.float64]:
        """Join the flattened evidence of the bands to (classes, rows, columns)."""
        height = self.band_rows + 2 * self.halo
        bands = [np.asarray(flat, np.float64).reshape(-1, height, self.columns) for flat in evidence]
        cropped = [band[:, self.halo : self.halo + self.band_rows] for band in bands]
        return np.concatenate(cropped, axis=1)[:, : self.rows]


def pooled_scores(evidence: NDArray[np.float64], grid: PatchGrid) -> NDArray[np.float64]:
    """Return probabilities (patches, classes) in the grid's order, from the mean evidence in each patch."""
    rows = _shares(grid.row_starts, grid.patch, evidence.shape[1])
    columns = _shares(grid.column_starts, grid.patch, evidence.shape[2])
    logits = np.einsum("pr,krc,qc->qpk", rows, evidence, columns, optimize=True)
    scores: NDArray[np.float64] = softmax(logits.reshape(len(grid), -1), axis=1)
    return scores


def _shares(starts: Sequence[int], length: int, cells: int) -> NDArray[np.float64]:
    """Return (starts, cells): the share of each span that lies on each cell."""
    first = np.asarray(starts, np.float64)[:, None]
    edges = CELL * np.arange(cells, dtype=np.float64)[None, :]
    over = np.minimum(first + length, edges + CELL) - np.maximum(first, edges)
    shares: NDArray[np.float64] = np.clip(over, 0, None) / length
    return shares


# -- heatmaps for training ----------------------------------------------------------------------------------


class PatchScorer:
    """Predictor that runs only the patch network: it fills one table of scores per image of an exam."""

    def __init__(self, predictor: Predictor, config: Config) -> None:
        self.model, self.images, self.config = predictor.model, predictor.images, config

    def steps(self, case: OpenCase) -> Steps[Result]:
        images = readable_views(case.images)
        for name, grid in draw_patch_grids(image_shapes_of(images), self.config).items():
            source = PatchView(images[name], patch_frame(images[name], self.config))
            rows, _ = distinct_patches(grid, source.pixels)
            yield from ViewPatches(name, images[name], source, grid, case.engine).scores(rows)
        return Result({})


def score_patches(
    predictor: Predictor, config: Config, fingerprint: str, cohort: Cohort, folder: Path, machine: Machine
) -> tuple[Results, dict[str, str]]:
    """Run the patch network over a cohort, or continue an interrupted run.

    Returns:
        The results, which have a few kilobytes for each view, and the cause of failure of each failed case.
    """
    bundle = {"method": "four_view", "fingerprint": fingerprint, "classes": list(PATCH_CLASSES)}
    report = scan(PatchScorer(predictor, config), bundle, cohort, folder, ScanOptions(), machine)
    return open_results(folder), dict(report.failed)


def stored_heatmaps(
    case: CaseFolder, name: str, grid: PatchGrid, pixels: NDArray[Any], mirrored: bool
) -> Heatmaps:
    """Return the heatmaps of a view from the stored scores of its patches.

    Args:
        case: The folder of the exam in the results of `score_patches`.
        name: The view.
        grid: Its patches.
        pixels: The cropped, right-pointing view (H, W).
        mirrored: Whether patches are cut from the left-pointing view.
    """
    rows, row_of = distinct_patches(grid, pixels[:, ::-1] if mirrored else pixels)
    table = case.tables[table_name("patches", name, 0)]
    scored = scored_rows(table, "scores")
    if len(scored) < len(rows):
        raise DamagedResults(f"{len(rows) - len(scored)} patches of {name} have no score", subject=table.path)
    scores = np.stack([scored[int(row)] for row in row_of])
    return heatmaps_of((pixels.shape[0], pixels.shape[1]), grid, scores, mirrored=mirrored)
