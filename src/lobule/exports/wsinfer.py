"""`wsinfer`: a results folder of WSInfer: a CSV and a GeoJSON file of tile scores per slide."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lobule import __version__
from lobule.errors import CaseError
from lobule.exports.case import ExportCase, iterate_blocks
from lobule.exports.export import CaseOutput, CaseRecord, Export
from lobule.exports.json_stream import json_list, number
from lobule.exports.options import ExportOptions
from lobule.exports.qupath import tile_features
from lobule.results.maps import MapReader
from lobule.results.result import RESEARCH_USE
from lobule.stitch import State


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    reader = case.map(options)
    if reader is None:
        raise CaseError(
            "the result has no map of tile scores",
            subject=case.name,
            remedy="Export the findings instead, with --to csv or --to qupath",
        )
    tables, shapes = folder / "model-outputs-csv", folder / "model-outputs-geojson"
    tables.mkdir()
    shapes.mkdir()
    with (tables / f"{case.file_name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [f"prob_{name}" for name in reader.info.classes]
        writer.writerow(["minx", "miny", "width", "height", *names])
        writer.writerows(_rows(reader, options))
    frame = case.frames["slide"]
    head = {"type": "FeatureCollection", "lobule": {"research_use": RESEARCH_USE}}
    with json_list(shapes / f"{case.file_name}.json", head, "features") as append:
        for feature in tile_features(reader, options, frame.crop_offset):
            append(feature)
    return CaseOutput(summary={"classes": list(reader.info.classes), "bundle": case.result.get("bundle")})


def _rows(reader: MapReader, options: ExportOptions) -> Iterator[list[int | float]]:
    info, lowest = reader.info, -np.inf if options.min_score is None else options.min_score
    for (rows, columns), (scores, states) in iterate_blocks(reader):
        chosen = (states == State.SCORED) & ~(scores[-1] < lowest)
        for row, column in np.argwhere(chosen).tolist():
            position = (columns.start + column) * info.l0_stride[0], (rows.start + row) * info.l0_stride[1]
            values = (round(float(value), 6) for value in scores[:, row, column])
            yield [*map(number, (*position, *info.l0_stride)), *values]


def finish(records: Sequence[CaseRecord], folder: Path, options: ExportOptions) -> None:
    exported = [record for record in records if record.exported]
    metadata = {
        "model": exported[0].summary["bundle"] if exported else None,
        "classes": exported[0].summary["classes"] if exported else [],
        "runtime": {"program": "lobule", "version": __version__},
        "research_use": RESEARCH_USE,
    }
    stamp = time.strftime("%Y%m%dT%H%M%S")
    (folder / f"run_metadata_{stamp}.json").write_text(json.dumps(metadata, indent=1), encoding="utf-8")


EXPORT = Export(
    "wsinfer",
    "a results folder of WSInfer: tile scores as CSV and GeoJSON",
    write,
    supports=frozenset({"min_score", "map_name"}),
    finish=finish,
)
