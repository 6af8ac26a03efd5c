"""`geoparquet`: findings as GeoParquet 1.1, one file per case, in level-0 pixels with y pointing down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from lobule.exports.case import ROWS_AT_ONCE, ExportCase, rings_of
from lobule.exports.export import CaseOutput, Export
from lobule.exports.options import ExportOptions
from lobule.findings import Finding
from lobule.results.result import RESEARCH_USE

COLUMNS: dict[str, Any] = {
    "number": pa.int64(), "image": pa.string(), "score": pa.float64(), "label": pa.string(),
    "l0_x": pa.int64(), "l0_y": pa.int64(), "size_um": pa.float64(), "area_um2": pa.float64(),
    "lesion_class": pa.string(), "review": pa.string(), "geometry": pa.binary(),
}  # fmt: skip


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    schema = pa.schema(list(COLUMNS.items())).with_metadata(_metadata(case))
    rows = _rows(case, options)
    with pq.ParquetWriter(folder / f"{case.file_name}.parquet", schema, compression="zstd") as writer:
        while block := list(islice(rows, ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(block, schema=schema))
    return CaseOutput()


def _metadata(case: ExportCase) -> dict[str, str]:
    geometry: dict[str, Any] = {"encoding": "WKB", "geometry_types": [], "crs": None, "edges": "planar"}
    frames = {
        frame.name: {
            "mpp": None if frame.mpp is None else [frame.mpp.x, frame.mpp.y],
            "size": None if frame.size is None else list(frame.size),
        }
        for frame in case.frames.values()
    }
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    lobule = {"research_use": RESEARCH_USE, "unit": "level-0 pixels, y down", "images": frames}
    return {"geo": json.dumps(geo), "lobule": json.dumps(lobule)}


def _rows(case: ExportCase, options: ExportOptions) -> Iterator[dict[str, Any]]:
    reviews = case.reviews_of_findings
    for number, finding in case.findings(options):
        values = finding.to_dict() | {"image": finding.image, "number": number}
        row = {name: values.get(name) for name in COLUMNS}
        row["label"] = finding.label or case.label
        row["review"] = "; ".join(reviews.get(number, [])) or None
        row["geometry"] = shapely.to_wkb(shape_of(finding))
        yield row


def shape_of(finding: Finding) -> Any:
    """Return the shape of a finding: a point, a polygon, or several polygons."""
    polygons = [shapely.Polygon(rings[0], rings[1:]) for rings in rings_of(finding)]
    if not polygons:
        return shapely.Point(finding.l0_x, finding.l0_y)
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)


EXPORT = Export(
    "geoparquet",
    "GeoParquet: findings as shapes, for GeoPandas and GIS programs",
    write,
    kinds=frozenset({"slide", "image", "exam"}),
    supports=frozenset({"min_score"}),
)
