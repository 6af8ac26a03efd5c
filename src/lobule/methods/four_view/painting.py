"""Heatmaps of a view, computed patch by patch as published, or from one run over the whole view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from lobule.errors import ModelError
from lobule.findings import Finding, components
from lobule.grid import MapGrid
from lobule.methods.four_view.config import Config
from lobule.methods.four_view.crop import Window
from lobule.methods.four_view.images import ExamView, Heatmaps, HeatmapView, PatchView
from lobule.methods.four_view.patches import BENIGN, MALIGNANT, PatchGrid, heatmap_of
from lobule.methods.four_view.plan import PlannedImage, distinct_patches, fields_of, patch_frame
from lobule.methods.four_view.scores import GRADES, scored_rows
from lobule.nets.painter import CELL
from lobule.results.maps import MapReader
from lobule.results.tables import TableReader
from lobule.scanning.contract import EngineSettings, Steps, fill_map, fill_table
from lobule.stitch import State

PATCHES = 8
"""Number of patches that take the time and memory of one window."""
HALO = 4
"""Cells above and below a band that are processed with it, if a view is processed in several bands."""
COMPARED_PATCHES = 8
"""Number of patches of a view that are also scored exactly, with `painting="fast"`."""
HEATMAP_CELLS = 64


@dataclass(frozen=True)
class PatchScores:
    """Key of a pass that scores patches with one of the bundle's patch networks."""

    net: int = 0


@dataclass(frozen=True)
class PatchEvidence:
    """Key of a pass that computes the evidence of bands of a view with one of the patch networks."""

    net: int = 0


@dataclass(frozen=True)
class CellMeans:
    """Key of a pass that averages two layers over the cells of a map."""

    cell: int


def paint(
    planned: PlannedImage, grid: PatchGrid, engine: EngineSettings, config: Config, number: int = 0
) -> Steps[tuple[Heatmaps, NDArray[np.float64]]]:
    """Compute the heatmaps of one image with one of the bundle's patch networks.

    Returns:
        The heatmaps, and the differences of some patches' scores from the exact ones.
    """
    assert isinstance(planned.image, ExamView)
    source = PatchView(planned.image, patch_frame(planned.image, config))
    scores: NDArray[np.floating[Any]]
    differences = np.zeros(0)
    if config.painting == "exact":
        scores = yield from _exact(planned, source, grid, engine, number)
    else:
        scores, differences = yield from _fast(planned, source, grid, engine, number)
    shape = planned.image.crop.window.shape
    benign, malignant = (heatmap_of(shape, grid, scores[:, index]) for index in (BENIGN, MALIGNANT))
    if source.frame.mirrored != planned.image.frame.mirrored:
        benign, malignant = benign[:, ::-1], malignant[:, ::-1]
    return (benign, malignant), differences


def pass_name(kind: str, image: str, number: int) -> str:
    """Return the name of a table; it contains the number of the patch network, if that is not the first."""
    return f"{kind} {image}" + (f" by {number + 1}" if number else "")


def _exact(
    planned: PlannedImage, source: PatchView, grid: PatchGrid, engine: EngineSettings, number: int
) -> Steps[NDArray[np.float32]]:
    """Score every patch separately. Patches without breast are all equal, so only one is computed."""
    rows, row_of = distinct_patches(grid, source.pixels)
    scored = yield from score_rows(planned, source, grid, rows, engine, number)
    return np.stack([scored[int(row)] for row in row_of])


def score_rows(
    planned: PlannedImage,
    source: PatchView,
    grid: PatchGrid,
    rows: Sequence[int],
    engine: EngineSettings,
    number: int = 0,
) -> Steps[dict[int, NDArray[np.float32]]]:
    """Return the scores of some patches of the grid, by their index in `rows`."""
    table = yield from fill_patches(planned, source, grid, rows, engine, number)
    scored = scored_rows(table, "scores")
    if len(scored) < len(rows):
        raise ModelError(f"{len(rows) - len(scored)} patches of {planned.name} could not be scored")
    return scored


def fill_patches(
    planned: PlannedImage,
    source: PatchView,
    grid: PatchGrid,
    rows: Sequence[int],
    engine: EngineSettings,
    number: int = 0,
) -> Steps[TableReader]:
    """Fill a table with the scores of some patches of the grid."""
    corners = list(grid.corners())
    boxes = np.empty((len(rows), 4), np.int64)
    for index, row in enumerate(rows):
        top, left = corners[row]
        box = source.frame.to_l0(Window(top, top + grid.patch, left, left + grid.patch))
        boxes[index] = box.x, box.y, box.width, box.height
    return fill_table(
        PatchScores(number),
        pass_name("patches", planned.name, number),
        fields_of(planned, boxes),
        chunk_rows=8 * PATCHES,
        batch=engine.batch * PATCHES,
        sources={planned.name: source},
    )


def _fast(
    planned: PlannedImage, source: PatchView, grid: PatchGrid, engine: EngineSettings, number: int
) -> Steps[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Score every patch from the evidence under it, and compare a few patches with their exact scores."""
    bands = Bands.over(source.pixels.shape, engine.cells**2)
    boxes = np.empty((bands.count, 4), np.int64)
    for index, window in enumerate(bands.windows()):
        box = source.frame.to_l0(window)
        boxes[index] = box.x, box.y, box.width, box.height
    table = yield from fill_table(
        PatchEvidence(number),
        pass_name("evidence", planned.name, number),
        fields_of(planned, boxes),
        chunk_rows=1,
        batch=1,
        sources={planned.name: source},
    )
    evidence = scored_rows(table, "evidence")
    if len(evidence) < bands.count:
        raise ModelError(f"{planned.name} could not be scored as a whole")
    scores = pooled_scores(bands.joined([evidence[index] for index in range(bands.count)]), grid)
    rows, _ = distinct_patches(grid, source.pixels)
    rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, COMPARED_PATCHES).round().astype(int))]
    exact = yield from score_rows(planned, source, grid, rows, engine, number)
    classes = [BENIGN, MALIGNANT]
    differences = np.abs(np.stack([exact[i][classes] - scores[row][classes] for i, row in enumerate(rows)]))
    return scores, differences.ravel().astype(np.float64)


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


def store_heatmaps(planned: PlannedImage, heatmaps: Heatmaps, config: Config) -> Steps[list[Finding]]:
    """Store the heatmaps as a map over the stored image, and return their high regions as findings."""
    assert isinstance(planned.image, ExamView)
    reader = yield from fill_heatmap(f"heatmap {planned.name}", planned, heatmaps, config.heatmap_cell)
    scores, states = reader.read()
    findings = []
    for layer, grade in zip(scores, GRADES, strict=True):
        scored = np.where(states == State.SCORED, layer, np.float32(0))
        above = components(
            scored,
            config.heatmap_cell,
            mpp=planned.image.mpp,
            threshold=config.finding_threshold,
            label=grade,
        )
        findings += [replace(finding, image=planned.name) for finding in above]
    return findings


def fill_heatmap(
    name: str, planned: PlannedImage, heatmaps: Heatmaps, cell: int, inside: Window | None = None
) -> Steps[MapReader]:
    """Average two layers over the cells of a map of the stored image.

    `inside` is the window of the cropped view that the layers cover; by default, the whole view.
    """
    assert isinstance(planned.image, ExamView)
    grid = MapGrid(planned.image.lattice(), cell, cell, HEATMAP_CELLS)
    view = HeatmapView(planned.image, heatmaps, inside)
    box = view.l0_box
    covered = np.zeros((grid.rows, grid.columns), np.bool_)
    covered[box.y // cell : -(-box.bottom // cell), box.x // cell : -(-box.right // cell)] = True
    return fill_map(
        CellMeans(cell),
        name,
        grid,
        GRADES,
        covered,
        image=planned.name,
        batch=1,
        sources={planned.name: view},
    )
