"""`spatialdata`: tissue, tiles with their scores, and findings in the layout of scverse's tools for slides.

Coordinates are level-0 pixels in the system `global`, and µm in the system `micrometers`. SpatialData keeps a
case in memory while it is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.errors import TooLarge
from lobule.exports.case import ExportCase, iterate_blocks, rings_of
from lobule.exports.export import CaseOutput, Export
from lobule.exports.options import ExportOptions
from lobule.findings import Outline
from lobule.results.maps import MapReader
from lobule.results.result import RESEARCH_USE
from lobule.stitch import State

MOST_TILES = 2_000_000
"""Largest number of tiles of a case; each takes about a kilobyte of memory."""
TILES, TISSUES, FINDINGS, POINTS = "tiles", "tissues", "findings", "finding_points"


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    from spatialdata import SpatialData

    reader = case.map(options)
    elements: dict[str, Any] = {}
    notes = []
    tissue = case.tissue()
    if tissue:
        elements[TISSUES] = _shapes(case, [_polygon(one) for one in tissue], tissue_id=range(len(tissue)))
    attributes: dict[str, Any] = {"lobule": _provenance(case)}
    if reader is not None:
        cells, scores = _scored_cells(reader, case)
        if len(cells):
            elements |= _tiles(case, reader, cells, scores, tissue)
            attributes["tile_spec"] = {TILES: _tile_spec(reader)}
    elements |= _findings(case, options)
    if reader is None:
        notes.append("The result has no map, so there are no tiles.")
    data = SpatialData.init_from_elements(elements, attrs=attributes)
    data.write(folder / f"{case.file_name}.zarr")
    return CaseOutput(tuple(notes), {"elements": sorted(elements)})


def _provenance(case: ExportCase) -> dict[str, Any]:
    bundle = case.result.get("bundle") or {}
    return {
        "research_use": RESEARCH_USE, "case": case.name, "method": bundle.get("method"),
        "bundle": bundle.get("fingerprint"), "scores": dict(case.result["scores"]),
    }  # fmt: skip


# -- tiles --------------------------------------------------------------------------------------------------


def _scored_cells(reader: MapReader, case: ExportCase) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return row and column (n, 2) and scores (n, classes) of the scored cells, row by row."""
    cells, scores, total = [], [], 0
    for (rows, columns), (block_scores, states) in iterate_blocks(reader):
        row, column = np.nonzero(states == State.SCORED)
        total += len(row)
        if total > MOST_TILES:
            raise TooLarge(
                "the map has too many cells for SpatialData, which keeps all of them in memory",
                subject=case.name, expected=f"at most {MOST_TILES:,} scored cells",
                remedy="Choose a coarser map with --map, or export with --to ome-zarr",
            )  # fmt: skip
        cells.append(np.stack([row + rows.start, column + columns.start], axis=1))
        scores.append(block_scores[:, row, column].T)
    if not cells:
        return np.zeros((0, 2), np.int64), np.zeros((0, len(reader.info.classes)), np.float32)
    all_cells, all_scores = np.concatenate(cells).astype(np.int64), np.concatenate(scores)
    order = np.lexsort((all_cells[:, 1], all_cells[:, 0]))
    return all_cells[order], np.ascontiguousarray(all_scores[order], np.float32)


def _tiles(
    case: ExportCase,
    reader: MapReader,
    cells: NDArray[np.int64],
    scores: NDArray[np.float32],
    tissue: list[Outline],
) -> dict[str, Any]:
    """Return the boxes of the cells, and the table of their scores."""
    import anndata
    import pandas as pd
    import shapely
    from spatialdata.models import TableModel

    step_x, step_y = reader.info.l0_stride
    x = np.asarray(cells[:, 1] * step_x, np.float64)
    y = np.asarray(cells[:, 0] * step_y, np.float64)
    boxes = shapely.box(x, y, x + step_x, y + step_y, ccw=False)
    tissue_ids = _tissue_of(np.stack([x + step_x / 2, y + step_y / 2], axis=1), tissue)
    numbers = np.arange(len(cells))
    shapes = _shapes(case, list(boxes), tile_id=numbers, x=x, y=y, tissue_id=tissue_ids)
    rows = pd.DataFrame(
        {"tile_id": numbers, "library_id": pd.Categorical([TILES] * len(cells))}, index=numbers.astype(str)
    )
    table = anndata.AnnData(scores, obs=rows, var=pd.DataFrame(index=list(reader.info.classes)))
    name = f"{(case.result.get('bundle') or {}).get('method') or 'lobule'}_{TILES}"
    return {
        TILES: shapes,
        name: TableModel.parse(table, region=TILES, region_key="library_id", instance_key="tile_id"),
    }


def _tissue_of(points: NDArray[Any], tissue: list[Outline]) -> NDArray[np.int64]:
    """Return the number of the tissue outline around each point (n, 2), -1 for none."""
    import shapely

    numbers = np.full(len(points), -1, np.int64)
    for number, outline in enumerate(tissue):
        polygon = _polygon(outline)
        shapely.prepare(polygon)
        numbers[shapely.contains_xy(polygon, points)] = number
    return numbers


def _tile_spec(reader: MapReader) -> dict[str, Any]:
    """Return the description of tiles that slide tools read."""
    info = reader.info
    step_x, step_y = (round(step) for step in info.l0_stride)
    mpp = info.l0_mpp
    return {
        "tissue_name": TISSUES, "height": step_y, "width": step_x, "stride_height": step_y,
        "stride_width": step_x, "mpp": None if mpp is None else mpp.x, "ops_level": 0, "ops_downsample": 1.0,
        "base_level": 0, "base_downsample": 1.0,
    }  # fmt: skip


# -- findings -----------------------------------------------------------------------------------------------


def _findings(case: ExportCase, options: ExportOptions) -> dict[str, Any]:
    """Return outlined findings as polygons, and the others as circles of one pixel."""
    import shapely

    columns: dict[str, dict[str, list[Any]]] = {
        name: {"geometry": [], "number": [], "score": [], "label": []} for name in (FINDINGS, POINTS)
    }
    for number, finding in case.findings(options, "slide"):
        polygons = [shapely.Polygon(rings[0], rings[1:]) for rings in rings_of(finding)]
        shape = shapely.MultiPolygon(polygons) if len(polygons) > 1 else next(iter(polygons), None)
        target = columns[POINTS if shape is None else FINDINGS]
        target["geometry"].append(shape or shapely.Point(finding.l0_x + 0.5, finding.l0_y + 0.5))
        target["number"].append(number)
        target["score"].append(finding.score)
        target["label"].append(finding.label or case.label)
    elements = {}
    for name, values in columns.items():
        geometry = values.pop("geometry")
        if geometry:
            radius = {"radius": [0.5] * len(geometry)} if name == POINTS else {}
            elements[name] = _shapes(case, geometry, **values, **radius)
    return elements


def _polygon(outline: Outline) -> Any:
    import shapely

    return shapely.Polygon(outline.exterior, outline.holes)


def _shapes(case: ExportCase, geometry: list[Any], **columns: Any) -> Any:
    """Return shapes with their transformations to level-0 pixels and to µm."""
    import geopandas
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity, Scale

    frame = case.frames.get("slide")
    mpp = None if frame is None else frame.mpp
    systems: dict[str, Any] = {"global": Identity()}
    if mpp is not None:
        systems["micrometers"] = Scale([mpp.x, mpp.y], axes=("x", "y"))
    return ShapesModel.parse(geopandas.GeoDataFrame(columns, geometry=geometry), transformations=systems)


EXPORT = Export(
    "spatialdata",
    "SpatialData: tissue, tiles with scores, and findings for LazySlide, squidpy and napari",
    write,
    kinds=frozenset({"slide", "image"}),
    supports=frozenset({"map_name", "min_score"}),
    extra="spatialdata",
    library="spatialdata",
)
