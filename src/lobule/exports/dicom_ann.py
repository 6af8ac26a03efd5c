"""`dicom-ann`: findings as Microscopy Bulk Simple Annotations, in pixels of the slide's pixel matrix."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lobule.exports.case import ExportCase, Ring, rings_of
from lobule.exports.dicom_slide import (
    SlideLevel,
    algorithm_identification,
    base_level,
    object_arguments,
    save,
    uid,
)
from lobule.exports.export import CaseOutput, Export
from lobule.exports.options import ExportOptions
from lobule.findings import Finding
from lobule.results.result import RESEARCH_USE

GRAPHIC_TYPE = {"point": "POINT", "box": "RECTANGLE", "polygon": "POLYGON"}


@dataclass
class Group:
    """The annotations of one label and shape, as flat arrays, so that a million need little memory."""

    label: str
    graphic_type: str
    manual: bool = False
    coordinates: array[float] = field(default_factory=lambda: array("f"))
    starts: array[int] = field(default_factory=lambda: array("I"))
    """Index of the first coordinate of each annotation, counted from 1."""
    scores: array[float] = field(default_factory=lambda: array("f"))

    def add(self, ring: Ring, level: SlideLevel, score: float | None) -> None:
        self.starts.append(len(self.coordinates) + 1)
        points = (ring - np.array(level.l0_offset)).astype(np.float32)
        self.coordinates.frombytes(points.tobytes())
        self.scores.append(np.nan if score is None else score)


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    level = base_level(case, options)
    groups, holes = _groups(case, level, options)
    if not groups:
        return CaseOutput(("There are no findings, and this format needs at least one; no file is written.",))
    save(_annotations(case, level, groups, options), folder / f"{case.file_name}.ann.dcm", case)
    note = f"{holes:,} holes of outlines were left out: these annotations have none."
    return CaseOutput((note,) if holes else ())


def _groups(case: ExportCase, level: SlideLevel, options: ExportOptions) -> tuple[list[Group], int]:
    groups: dict[tuple[str, str, bool], Group] = {}
    holes = 0

    def group(label: str, graphic_type: str, manual: bool = False) -> Group:
        return groups.setdefault((label, graphic_type, manual), Group(label, graphic_type, manual))

    layers = EXPORT.layers_of(options)
    for _, finding in case.findings(options, "slide") if "findings" in layers else ():
        holes += sum(len(rings) - 1 for rings in rings_of(finding))
        kind = "polygon" if finding.polygon else "box" if finding.box is not None else "point"
        target = group(finding.label or case.label, GRAPHIC_TYPE[kind])
        for ring in _rings(finding):
            target.add(ring, level, finding.score)
    for sketch in case.drawn_outlines() if "reviews" in layers else ():
        if sketch.image == "slide":
            group(sketch.label or case.label, "POLYGON", manual=True).add(sketch.ring, level, None)
    return list(groups.values()), holes


def _rings(finding: Finding) -> list[Ring]:
    rings = [polygon[0] for polygon in rings_of(finding)]
    # The centre of the pixel: pixel (0, 0) of the total pixel matrix covers 0 to 1.
    return rings or [np.array([[finding.l0_x + 0.5, finding.l0_y + 0.5]])]


def _annotations(case: ExportCase, level: SlideLevel, groups: list[Group], options: ExportOptions) -> Any:
    from highdicom.ann import MicroscopyBulkSimpleAnnotations

    arguments = object_arguments(case, "ann", 301, options)
    items = [
        _annotation_group(case, number, group, arguments["sop_instance_uid"])
        for number, group in enumerate(groups, 1)
    ]
    return MicroscopyBulkSimpleAnnotations(
        [level.dataset], "2D", items, content_label="FINDINGS",
        content_description=RESEARCH_USE[:64], content_creator_name="Lobule^", **arguments,
    )  # fmt: skip


def _annotation_group(case: ExportCase, number: int, group: Group, instance: str) -> Any:
    from highdicom.ann import AnnotationGroup, Measurements
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    first = np.frombuffer(group.coordinates, np.float32)[: _first_length(group)].reshape(-1, 2)
    item = AnnotationGroup(
        number, uid(instance, "group", number), group.label[:64],
        annotated_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        annotated_property_type=codes.SCT.Neoplasm,
        graphic_type=group.graphic_type,
        graphic_data=[first],
        algorithm_type="MANUAL" if group.manual else "AUTOMATIC",
        algorithm_identification=None if group.manual else algorithm_identification(case),
        measurements=None if group.manual else [
            Measurements(
                CodedConcept("score", "99LOBULE", "Score of the model"),
                np.array([group.scores[0]], np.float32), codes.UCUM.NoUnits,
            )
        ],
        description=RESEARCH_USE,
    )  # fmt: skip
    # highdicom takes one array per annotation, which is too much memory for a million of them.
    # The flat arrays replace its single example.
    item.NumberOfAnnotations = len(group.starts)
    item.PointCoordinatesData = group.coordinates.tobytes()
    if "LongPrimitivePointIndexList" in item:
        item.LongPrimitivePointIndexList = np.frombuffer(group.starts, np.uint32).astype("<u4").tobytes()
    if not group.manual:
        values = item.MeasurementsSequence[0].MeasurementValuesSequence[0]
        values.FloatingPointValues = group.scores.tobytes()
    return item


def _first_length(group: Group) -> int:
    return group.starts[1] - 1 if len(group.starts) > 1 else len(group.coordinates)


EXPORT = Export(
    "dicom-ann",
    "DICOM bulk annotations: findings of slides",
    write,
    kinds=frozenset({"slide"}),
    supports=frozenset({"layers", "min_score", "source", "show_patients"}),
    layers=("findings", "reviews"),
    extra="dicom",
    library="highdicom",
)
