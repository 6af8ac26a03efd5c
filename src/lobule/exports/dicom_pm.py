"""`dicom-pm`: the map of a slide as a pyramid of DICOM parametric maps, one pyramid per class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.errors import CaseError
from lobule.exports.case import ExportCase, iterate_blocks
from lobule.exports.dicom_slide import SlideLevel, levels_for_map, object_arguments, save, uid
from lobule.exports.export import CaseOutput, Export
from lobule.exports.options import ExportOptions
from lobule.results.maps import MapInfo, MapReader
from lobule.results.result import RESEARCH_USE
from lobule.stitch import State, reduce_map

SHORT_TEXT, LONG_TEXT = 16, 64


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    reader = require_map(case, options)
    info = reader.info
    levels = levels_for_map(case, (info.rows, info.columns), info.l0_stride, options)
    # With two classes, the first is the complement of the second.
    classes = info.classes if len(info.classes) > 2 else info.classes[-1:]
    for name in classes:
        scores, states = read_class(reader, info.classes.index(name))
        planes = [plane_of(level, info, scores, states) for level in levels]
        for number, one in enumerate(_pyramid(case, levels, planes, name, options)):
            save(one, folder / f"{case.file_name}.{name.replace('/', '_')}.{number}.pm.dcm", case)
    return CaseOutput(("Cells without a score have the value 0 in the parametric map.",))


def require_map(case: ExportCase, options: ExportOptions) -> MapReader:
    reader = case.map(options)
    if reader is None:
        raise CaseError(
            "the result has no map", subject=case.name, remedy="Export the findings, with --to dicom-ann"
        )
    return reader


def read_class(reader: MapReader, index: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return the scores of one class, 0 where a cell has none, and the states of the cells."""
    shape = reader.info.rows, reader.info.columns
    scores, states = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    for block, (block_scores, block_states) in iterate_blocks(reader):
        is_scored = (block_states == State.SCORED) & np.isfinite(block_scores[index])
        scores[block] = np.where(is_scored, block_scores[index], np.float32(0))
        states[block] = block_states
    return scores, states


def plane_of(
    level: SlideLevel, info: MapInfo, scores: NDArray[np.float32], states: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Return the values at the pixels of a level: the maximum of their cells, or the cell at the centre."""
    factor = np.array(level.l0_step) / info.l0_stride
    whole_factor = round(float(factor[0]))
    if whole_factor >= 1 and not any(level.l0_offset) and (factor == whole_factor).all():
        reduced, _ = (
            (scores[None], states) if whole_factor == 1 else reduce_map(scores[None], states, whole_factor)
        )
        if reduced.shape[1:] == (level.size.height, level.size.width):
            return np.ascontiguousarray(reduced[0])
    return sampled(level, info, scores)


def sampled(level: SlideLevel, info: MapInfo, values: NDArray[Any]) -> NDArray[Any]:
    """Return the value of the cell at the centre of each pixel of a level; 0 outside the map."""
    l0_x = level.l0_offset[0] + (np.arange(level.size.width) + 0.5) * level.l0_step[0]
    l0_y = level.l0_offset[1] + (np.arange(level.size.height) + 0.5) * level.l0_step[1]
    column, row = (l0_x / info.l0_stride[0]).astype(np.int64), (l0_y / info.l0_stride[1]).astype(np.int64)
    inside = (row < info.rows)[:, None] & (column < info.columns)[None, :]
    picked = values[np.minimum(row, info.rows - 1)][:, np.minimum(column, info.columns - 1)]
    return np.where(inside, picked, values.dtype.type(0))


def _pyramid(
    case: ExportCase, levels: list[SlideLevel], planes: list[NDArray[np.float32]], name: str,
    options: ExportOptions,
) -> list[Any]:  # fmt: skip
    from highdicom import VOILUTTransformation
    from highdicom.pm import ParametricMap, RealWorldValueMapping, create_parametric_map_pyramid
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    highest = max(1.0, float(max(plane.max(initial=0) for plane in planes)))
    lowest = min(0.0, float(min(plane.min(initial=0) for plane in planes)))
    mapping = RealWorldValueMapping(
        name[:SHORT_TEXT], f"score of the class {name}"[:LONG_TEXT], codes.UCUM.NoUnits, (lowest, highest),
        slope=1.0, intercept=0.0, quantity_definition=CodedConcept("score", "99LOBULE", "Score of the model"),
    )  # fmt: skip
    arguments = object_arguments(case, f"pm {name}", 201, options)
    instance = arguments.pop("sop_instance_uid")
    del arguments["instance_number"]
    shared: dict[str, Any] = {
        **arguments,
        "contains_recognizable_visual_features": False,
        "real_world_value_mappings": [mapping],
        "voi_lut_transformations": [
            VOILUTTransformation(window_center=(lowest + highest) / 2, window_width=highest - lowest)
        ],
        "content_label": "HEATMAP",
        "content_description": RESEARCH_USE[:LONG_TEXT],
        "content_creator_name": "Lobule^",
    }
    if len(levels) == 1:
        return [
            ParametricMap(
                [levels[0].dataset], planes[0][None], sop_instance_uid=instance, instance_number=1,
                tile_pixel_array=True, **shared,
            )
        ]  # fmt: skip
    pyramid: list[Any] = create_parametric_map_pyramid(
        [level.dataset for level in levels], planes, pyramid_uid=uid(instance, "pyramid"),
        sop_instance_uids=[uid(instance, number) for number in range(len(levels))], **shared,
    )  # fmt: skip
    return pyramid


EXPORT = Export(
    "dicom-pm",
    "DICOM parametric maps: the score map of a slide as a pyramid",
    write,
    kinds=frozenset({"slide"}),
    supports=frozenset({"map_name", "source", "show_patients"}),
    extra="dicom",
    library="highdicom",
)
