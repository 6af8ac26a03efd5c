"""Measure how well heatmaps point at lesions, by the rank of each lesion's centre in its view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lobule.cohort import Case
    from lobule.results.folder import CaseFolder, Results

TOP_SHARE = 0.02
"""A heatmap points at a lesion if the lesion's centre lies in this highest share of its view."""
GRADES = ("benign", "malignant")
"""The layers of a stored heatmap, in their order."""


@dataclass(frozen=True)
class LesionRank:
    """One lesion in one of its two views."""

    case_id: str
    view: str
    grade: str
    rank: float
    """Share of the view whose heat is greater than at the lesion's centre, from 0 (the hottest) to 1."""
    chance: float
    """Share of the view's breast that lies in the highest `TOP_SHARE` of the view: how often a position
    chosen at random in the breast would count as pointed at."""

    @property
    def is_pointed_at(self) -> bool:
        return self.rank <= TOP_SHARE


def rank_map(heat: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Compute for each cell the share of cells with greater heat; cells with equal heat count half."""
    _, inverse, counts = np.unique(heat, return_inverse=True, return_counts=True)
    hotter = counts[::-1].cumsum()[::-1] - counts
    ranks = (hotter + counts / 2) / heat.size
    result: NDArray[np.float64] = ranks[inverse].reshape(heat.shape)
    return result


def read_heatmaps(folder: CaseFolder, view: str) -> tuple[NDArray[np.float32], int]:
    """Read the (2, rows, columns) heat of a view, benign and malignant, and the width of a cell in pixels."""
    reader = folder.maps[f"heatmap {view}"]
    scores, _ = reader.read()
    # Cells outside the cropped breast have no score; nothing is suspected there.
    heat: NDArray[np.float32] = np.nan_to_num(scores)
    return heat, round(reader.info.l0_stride[0])


def breast_cells(pixels: NDArray[Any], shape: tuple[int, int], cell: int) -> NDArray[np.bool_]:
    """Find the cells of a heatmap that lie mostly in the breast; the background of a view is 0."""
    padded = np.zeros((shape[0] * cell, shape[1] * cell), np.float32)
    height, width = min(padded.shape[0], pixels.shape[0]), min(padded.shape[1], pixels.shape[1])
    padded[:height, :width] = pixels[:height, :width] > 0
    inside: NDArray[np.bool_] = padded.reshape(shape[0], cell, shape[1], cell).mean(axis=(1, 3)) > 0.5
    return inside


def lesion_ranks(cases: Sequence[Case], results: Results) -> list[LesionRank]:
    """Rank every outlined lesion of the cases, once for each view in which it is outlined."""
    return [rank for case in cases for rank in _ranks_of_case(case, results.case_folder(case.id))]


def _ranks_of_case(case: Case, folder: CaseFolder) -> Iterator[LesionRank]:
    from lobule.annotations import read_annotation
    from lobule.mammograms.exams import read_view, view_named

    polygons = read_annotation(case.annotation).polygons if case.annotation else ()
    for view in sorted({polygon.name for polygon in polygons}):
        heat, cell = read_heatmaps(folder, view)
        path = case.views[view.lower().replace("-", "_")][0]
        pixels = read_view(path, view=view_named(view)).pixels
        inside = breast_cells(pixels, (heat.shape[1], heat.shape[2]), cell)
        for layer, grade in zip(heat, GRADES, strict=True):
            ranks = rank_map(layer)
            chance = float((ranks[inside] <= TOP_SHARE).mean()) if inside.any() else 0.0
            for polygon in polygons:
                if (polygon.name, polygon.group) == (view, grade):
                    centre = shapely.Polygon(polygon.points).centroid
                    row, column = (int(value // cell) for value in (centre.y, centre.x))
                    yield LesionRank(case.id, view, grade, float(ranks[row, column]), chance)


def lesion_summary(ranks: Sequence[LesionRank], grade: str) -> dict[str, Any]:
    """Count the lesions of a grade that the heatmaps point at, and the share expected by chance."""
    chosen = [rank for rank in ranks if rank.grade == grade]
    count, hits = len(chosen), sum(rank.is_pointed_at for rank in chosen)
    return {
        "lesions": count,
        "pointed_at": hits,
        "share": hits / count if count else None,
        "chance": float(np.mean([rank.chance for rank in chosen])) if count else None,
    }
