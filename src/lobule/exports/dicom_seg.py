"""`dicom-seg`: outlined findings and tissue of a slide as a binary DICOM segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.annotations import Polygon, fill
from lobule.exports.case import ExportCase, rings_of
from lobule.exports.dicom_pm import LONG_TEXT
from lobule.exports.dicom_slide import (
    SlideLevel,
    algorithm_identification,
    base_level,
    levels_for_map,
    object_arguments,
    save,
)
from lobule.exports.export import CaseOutput, Export, ExportOptions
from lobule.geometry import Box
from lobule.results.result import RESEARCH_USE

PIXEL_UM = 8.0
"""µm per pixel of a segmentation if the case has no map."""
Masks = dict[str, NDArray[np.bool_]]


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    level = _level(case, options)
    masks, points = _masks(case, level, options)
    notes = [f"{points:,} findings are points without an outline and are left out."] if points else []
    if not masks:
        notes.append("There is no outlined finding and no tissue; no file is written.")
        return CaseOutput(tuple(notes))
    save(_segmentation(case, level, masks, options), folder / f"{case.file_name}.seg.dcm", case)
    return CaseOutput(tuple(notes), {"segments": list(masks)})


def _level(case: ExportCase, options: ExportOptions) -> SlideLevel:
    reader = case.map(options)
    if reader is not None:
        return levels_for_map(case, (reader.info.rows, reader.info.columns), reader.info.l0_stride, options)[0]
    size, mpp = base_level(case, options).size, case.frames["slide"].mpp
    assert mpp is not None
    stride = max(1, round(PIXEL_UM / mpp.x))
    shape = -(-size.height // stride), -(-size.width // stride)
    return levels_for_map(case, shape, (stride, stride), options)[0]


def _masks(case: ExportCase, level: SlideLevel, options: ExportOptions) -> tuple[Masks, int]:
    """Return a mask per segment, and the number of findings without an outline."""
    polygons: dict[str, list[Polygon]] = {}
    points, layers = 0, EXPORT.layers_of(options)
    if "tissue" in layers:
        for outline in case.tissue():
            polygons.setdefault("Tissue", []).append(Polygon(outline.exterior, holes=outline.holes))
    for _, finding in case.findings(options, "slide") if "findings" in layers else ():
        rings = rings_of(finding)
        points += not rings
        for exterior, *holes in rings:
            polygon = Polygon(exterior, holes=tuple(holes))
            polygons.setdefault(finding.label or case.label, []).append(polygon)
    for drawn in case.drawn_outlines() if "reviews" in layers else ():
        if drawn.image == "slide":
            polygons.setdefault(drawn.label or case.label, []).append(Polygon(drawn.ring))
    return {name: mask_of(level, listed) for name, listed in polygons.items()}, points


def mask_of(level: SlideLevel, polygons: list[Polygon]) -> NDArray[np.bool_]:
    """Return the pixels of a level whose centre lies inside one of the polygons."""
    scale = np.array(level.l0_step)
    moved = [
        Polygon(
            (polygon.points - level.l0_offset) / scale,
            holes=tuple((hole - level.l0_offset) / scale for hole in polygon.holes),
        )
        for polygon in polygons
    ]
    return fill(moved, 1, Box(0, 0, *level.size))


def _segmentation(case: ExportCase, level: SlideLevel, masks: Masks, options: ExportOptions) -> Any:
    from highdicom.seg import SegmentDescription, Segmentation
    from pydicom.sr.codedict import codes

    segments = [
        SegmentDescription(
            number, name[:LONG_TEXT],
            codes.SCT.Tissue if name == "Tissue" else codes.SCT.MorphologicallyAbnormalStructure,
            codes.SCT.Tissue if name == "Tissue" else codes.SCT.Neoplasm,
            algorithm_type="AUTOMATIC", algorithm_identification=algorithm_identification(case),
        )
        for number, name in enumerate(masks, 1)
    ]  # fmt: skip
    pixels = np.stack(list(masks.values()), axis=-1).astype(np.uint8)[None]
    return Segmentation(
        [level.dataset], pixels, "BINARY", segments, tile_pixel_array=True,
        content_label="FINDINGS", content_description=RESEARCH_USE[:LONG_TEXT], content_creator_name="Lobule^",
        **object_arguments(case, "seg", 101, options),
    )  # fmt: skip


EXPORT = Export(
    "dicom-seg",
    "DICOM segmentations: outlined findings and tissue",
    write,
    kinds=frozenset({"slide"}),
    supports=frozenset({"layers", "min_score", "map_name", "source", "show_patients"}),
    layers=("findings", "tissue", "reviews"),
    extra="dicom",
    library="highdicom",
)
