"""`dicom-gsps`: marked locations of an exam as grayscale presentation states, one per view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lobule.exports.case import ExportCase
from lobule.exports.dicom_exam import (
    ExamView,
    MarkedLocation,
    equipment,
    exam_uid,
    exam_views,
    marked_locations,
)
from lobule.exports.dicom_slide import content_identity, save
from lobule.exports.export import CaseOutput, Export
from lobule.exports.options import ExportOptions
from lobule.files import case_folder_name
from lobule.results.result import RESEARCH_USE

RADIUS_PX = 0.02
"""Radius of the ring at a location without a box, as a share of the width of the view."""


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    views = exam_views(case, options)
    locations = marked_locations(case, options)
    without = []
    for number, view in enumerate(views, 1):
        marked = [location for location in locations if location.view == view.name]
        if not marked:
            without.append(view.name)
            continue
        state = _presentation_state(case, views, view, marked, number, options)
        state.Laterality = view.name[:1]  # highdicom does not copy it from the image.
        save(state, folder / f"{case.file_name}.{case_folder_name(view.name)}.gsps.dcm", case)
    note = f"There is nothing to mark in {', '.join(without)}."
    return CaseOutput((note,) if without else ())


def _presentation_state(
    case: ExportCase,
    views: list[ExamView],
    view: ExamView,
    locations: list[MarkedLocation],
    number: int,
    options: ExportOptions,
) -> Any:
    from highdicom.pr import GraphicAnnotation, GraphicLayer, GrayscaleSoftcopyPresentationState

    key = (content_identity(case), "gsps", options.to_dict())
    layer = GraphicLayer("MARKS", order=1, description=RESEARCH_USE[:64])
    annotation = GraphicAnnotation(
        referenced_images=[view.dataset],
        graphic_layer=layer,
        graphic_objects=[_mark(location, view) for location in locations],
        text_objects=[_text(location, view) for location in locations],
    )
    return GrayscaleSoftcopyPresentationState(
        referenced_images=[view.dataset],
        series_instance_uid=exam_uid(views, *key, "series"),
        series_number=601,
        sop_instance_uid=exam_uid(views, *key, view.name),
        instance_number=number,
        content_label="FINDINGS",
        content_description=RESEARCH_USE[:64],
        content_creator_name="Lobule^",
        graphic_layers=[layer],
        graphic_annotations=[annotation],
        **equipment(case),
    )


def _mark(location: MarkedLocation, view: ExamView) -> Any:
    from highdicom.pr import GraphicObject

    if location.box is not None:
        box = location.box
        corners = [
            [box.x, box.y],
            [box.right, box.y],
            [box.right, box.bottom],
            [box.x, box.bottom],
            [box.x, box.y],
        ]
        # Presentation states count pixels from 1.
        return GraphicObject("POLYLINE", np.array(corners, np.float64) + 1, units="PIXEL")
    radius = max(2.0, RADIUS_PX * view.size.width)
    centre = np.array([location.x, location.y]) + 0.5
    return GraphicObject("CIRCLE", np.array([centre, [centre[0] + radius, centre[1]]]), units="PIXEL")


def _text(location: MarkedLocation, view: ExamView) -> Any:
    from highdicom.pr import TextObject

    x = float(np.clip(location.x, 1, view.size.width))
    y = float(np.clip(location.y, 1, view.size.height))
    return TextObject(
        f"{location.label} {location.score:.2f}, research use only", units="PIXEL", anchor_point=(x, y)
    )


EXPORT = Export(
    "dicom-gsps",
    "DICOM presentation states: marked locations of exams",
    write,
    kinds=frozenset({"exam"}),
    supports=frozenset({"min_score", "show_patients"}),
    extra="dicom",
    library="highdicom",
)
