"""`dicom-seg`: binary DICOM segmentations: findings and tissue of a slide, or heatmaps of an exam."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.annotations import Polygon, fill
from lobule.exports.case import ExportCase, rings_of
from lobule.exports.dicom_exam import MARKED_FROM, equipment, exam_uid, exam_views, heatmap_mask
from lobule.exports.dicom_pm import LONG_TEXT
from lobule.exports.dicom_slide import (
    SlideLevel,
    algorithm_identification,
    base_level,
    content_identity,
    levels_for_map,
    object_arguments,
    save,
)
from lobule.exports.export import CaseOutput, Export
from lobule.exports.options import ExportOptions
from lobule.files import case_folder_name
from lobule.geometry import Box
from lobule.results.result import RESEARCH_USE

PIXEL_UM = 8.0
"""µm per pixel of a segmentation if the case has no map."""
Masks = dict[str, NDArray[np.bool_]]


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    if case.kind == "exam":
        return _write_exam(case, folder, options)
    level = _level(case, options)
    masks, points = _masks(case, level, options)
    notes = [f"{points:,} findings are points without an outline and are left out."] if points else []
    if not masks:
        notes.append("There is no outlined finding and no tissue; no file is written.")
        return CaseOutput(tuple(notes))
    arguments = object_arguments(case, "seg", 101, options)
    save(
        _segmentation(case, level.dataset, masks, arguments, tiled=True),
        folder / f"{case.file_name}.seg.dcm",
        case,
    )
    return CaseOutput(tuple(notes), {"segments": list(masks)})


def _write_exam(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    """Write one segmentation per view, of the area where its heatmap reaches the threshold."""
    lowest = MARKED_FROM if options.min_score is None else options.min_score
    views, notes = exam_views(case, options), []
    for number, view in enumerate(views, 1):
        reader = next((one for one in case.maps.values() if one.info.image == view.name), None)
        mask = None if reader is None else heatmap_mask(view, reader, lowest)
        if reader is None or mask is None or not mask.any():
            notes.append(f"The heatmap of {view.name} nowhere reaches {lowest:g}; no file is written.")
            continue
        arguments = equipment(case) | {
            "series_instance_uid": exam_uid(views, content_identity(case), "seg", lowest),
            "series_number": 101,
            "sop_instance_uid": exam_uid(views, content_identity(case), "seg", lowest, view.name),
            "instance_number": number,
        }
        name = reader.info.classes[-1]
        segmentation = _segmentation(case, view.dataset, {name: mask}, arguments, tiled=False)
        if "PatientOrientation" not in segmentation:  # highdicom does not copy it from the image.
            segmentation.PatientOrientation = view.dataset.get("PatientOrientation")
        save(segmentation, folder / f"{case.file_name}.{case_folder_name(view.name)}.seg.dcm", case)
    return CaseOutput(tuple(notes), {"threshold": lowest})


def _level(case: ExportCase, options: ExportOptions) -> SlideLevel:
    reader = case.map(options)
    if reader is not None:
        return levels_for_map(case, (reader.info.rows, reader.info.columns), reader.info.l0_stride, options)[
            0
        ]
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
    for sketch in case.drawn_outlines() if "reviews" in layers else ():
        if sketch.image == "slide":
            polygons.setdefault(sketch.label or case.label, []).append(Polygon(sketch.ring))
    return {name: mask_of(level, of_name) for name, of_name in polygons.items()}, points


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


def _segmentation(
    case: ExportCase, source: Any, masks: Masks, arguments: dict[str, Any], *, tiled: bool
) -> Any:
    from highdicom.seg import Segmentation, SegmentDescription
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
        [source], pixels, "BINARY", segments, tile_pixel_array=tiled,
        content_label="FINDINGS", content_description=RESEARCH_USE[:LONG_TEXT],
        content_creator_name="Lobule^", **arguments,
    )  # fmt: skip


EXPORT = Export(
    "dicom-seg",
    "DICOM segmentations: findings and tissue of slides, heatmaps of exams",
    write,
    kinds=frozenset({"slide", "exam"}),
    supports=frozenset({"layers", "min_score", "map_name", "source", "show_patients"}),
    layers=("findings", "tissue", "reviews"),
    extra="dicom",
    library="highdicom",
)
