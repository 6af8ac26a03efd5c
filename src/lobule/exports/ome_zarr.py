"""`ome-zarr`: each map as a multiscale OME-Zarr image in µm, with its cell states as labels.

The origin is the centre of level-0 pixel (0, 0), as OME-Zarr defines coordinates by pixel centres. Cells
without a score are NaN. A coarser level has the maximum of the scored cells. Chunks are two-dimensional.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from lobule.exports.case import ExportCase
from lobule.exports.export import CaseOutput, Export
from lobule.exports.options import ExportOptions
from lobule.files import case_folder_name
from lobule.results.maps import MapReader
from lobule.results.result import RESEARCH_USE
from lobule.stitch import State, reduce_map

CHUNK = 512
BLOCK = 2048
"""Cells per side that are read at once."""
SMALLEST = 256
"""The last level fits into this many cells per side."""
STATE_COLOURS = {
    State.PENDING: (160, 160, 160, 255), State.GLASS: (255, 255, 255, 0),
    State.SCORED: (0, 158, 115, 80), State.FAILED: (213, 94, 0, 255),
}  # fmt: skip


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    readers = dict(case.maps)
    if options.map_name is not None:
        chosen = case.map(options)
        readers = {} if chosen is None else {options.map_name: chosen}
    if not readers:
        return CaseOutput(("The result has no map; no file is written.",))
    for name, reader in readers.items():
        stem = case.file_name if len(readers) == 1 else f"{case.file_name}.{case_folder_name(name)}"
        _write_map(reader, folder / f"{stem}.ome.zarr", case, options)
    return CaseOutput()


def _write_map(reader: MapReader, path: Path, case: ExportCase, options: ExportOptions) -> None:
    zarr_format: Any = 3 if options.ngff == "0.5" else 2
    root = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    labels = root.create_group("labels")
    states_group = labels.create_group("state")
    factors = _factors(reader)
    info = reader.info
    for level, factor in enumerate(factors):
        shape = -(-info.rows // factor), -(-info.columns // factor)
        scores = _array(root, str(level), (len(info.classes), *shape), "float32", np.nan)
        states = _array(states_group, str(level), shape, "uint8", 0)
        for rows, columns in _blocks(shape, BLOCK // factor or 1):
            block_scores, block_states = _reduced(reader, rows, columns, factor)
            scores[:, rows, columns] = block_scores
            states[rows, columns] = block_states
    _set(root, options, _image_metadata(reader, factors, case, options))
    _set(labels, options, {"labels": ["state"]})
    _set(states_group, options, _label_metadata(reader, factors, options))


def _set(group: Any, options: ExportOptions, metadata: dict[str, Any]) -> None:
    """Set the metadata of a group, which version 0.5 keeps under `ome`."""
    lobule = metadata.pop("lobule", None)
    group.attrs.update({"ome": {"version": "0.5", **metadata}} if options.ngff == "0.5" else metadata)
    if lobule is not None:
        group.attrs.update({"lobule": lobule})


def _array(group: Any, name: str, shape: tuple[int, ...], dtype: str, fill: float) -> Any:
    *leading, rows, columns = shape
    chunks = (*[1] * len(leading), min(CHUNK, rows), min(CHUNK, columns))
    extra: dict[str, Any] = {}
    if group.metadata.zarr_format == 3:
        extra["dimension_names"] = ("c", "y", "x")[-len(shape) :]
    else:
        extra["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    return group.create_array(name, shape=shape, dtype=dtype, chunks=chunks, fill_value=fill, **extra)


def _factors(reader: MapReader) -> list[int]:
    factors = [1]
    while max(reader.info.rows, reader.info.columns) > SMALLEST * factors[-1]:
        factors.append(2 * factors[-1])
    return factors


def _blocks(shape: tuple[int, int], side: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, shape[0], side):
        for left in range(0, shape[1], side):
            yield slice(top, min(top + side, shape[0])), slice(left, min(left + side, shape[1]))


def _reduced(
    reader: MapReader, rows: slice, columns: slice, factor: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return the scores and the states of a block of a level. A cell without a score is NaN."""
    info = reader.info
    cell_rows = slice(rows.start * factor, min(rows.stop * factor, info.rows))
    cell_columns = slice(columns.start * factor, min(columns.stop * factor, info.columns))
    scores, states = reader.read(cell_rows, cell_columns)
    if factor > 1:
        scores, states = reduce_map(scores, states, factor)
    return np.where(states == State.SCORED, scores, np.float32(np.nan)), states


def _image_metadata(
    reader: MapReader, factors: list[int], case: ExportCase, options: ExportOptions
) -> dict[str, Any]:
    info = reader.info
    channel: dict[str, Any] = {"name": "c", "type": "channel"}
    colours = ("0072B2", "D55E00", "009E73", "CC79A7")
    channels = [
        {
            "label": name, "color": colours[index % len(colours)], "active": index == len(info.classes) - 1,
            "window": {"start": 0.0, "end": 1.0, "min": 0.0, "max": 1.0},
        }
        for index, name in enumerate(info.classes)
    ]  # fmt: skip
    multiscale = _multiscale(reader, factors, info.name, [channel], options)
    bundle = case.result.get("bundle") or {}
    return {
        "multiscales": [multiscale],
        "omero": {"channels": channels},
        "lobule": {"research_use": RESEARCH_USE, "case": case.name, "bundle": bundle.get("fingerprint")},
    }


def _label_metadata(reader: MapReader, factors: list[int], options: ExportOptions) -> dict[str, Any]:
    colours = [{"label-value": int(state), "rgba": list(colour)} for state, colour in STATE_COLOURS.items()]
    properties = [{"label-value": int(state), "state": state.name.lower()} for state in State]
    label: dict[str, Any] = {"colors": colours, "properties": properties, "source": {"image": "../../"}}
    if options.ngff == "0.4":
        label["version"] = "0.4"
    return {"multiscales": [_multiscale(reader, factors, "state", [], options)], "image-label": label}


def _multiscale(
    reader: MapReader,
    factors: list[int],
    name: str,
    leading: list[dict[str, Any]],
    options: ExportOptions,
) -> dict[str, Any]:
    info = reader.info
    mpp = info.l0_mpp
    unit = {} if mpp is None else {"unit": "micrometer"}
    l0_um = (1.0, 1.0) if mpp is None else (mpp.x, mpp.y)
    ones, zeros = [1.0] * len(leading), [0.0] * len(leading)
    datasets = []
    for level, factor in enumerate(factors):
        step = info.l0_stride[0] * factor, info.l0_stride[1] * factor
        # Positions are those of pixel centres: the first cell's centre is that of its level-0 pixels.
        scale = [*ones, step[1] * l0_um[1], step[0] * l0_um[0]]
        translation = [*zeros, (step[1] - 1) / 2 * l0_um[1], (step[0] - 1) / 2 * l0_um[0]]
        transforms = [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": translation},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    axes = [*leading, *({"name": axis, "type": "space", **unit} for axis in "yx")]
    version = {"version": "0.4"} if options.ngff == "0.4" else {}
    return {"name": name, "axes": axes, "datasets": datasets, "type": "maximum", **version}


EXPORT = Export(
    "ome-zarr",
    "OME-Zarr: maps as multiscale images in µm, with cell states as labels",
    write,
    kinds=frozenset({"slide", "image", "exam"}),
    supports=frozenset({"map_name", "ngff"}),
)
