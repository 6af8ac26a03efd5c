"""`dicom-sr`: findings of a slide as a structured report (TID 1500) with regions in mm of the slide."""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.exports.case import ExportCase, rings_of
from lobule.exports.dicom_slide import (
    SlideLevel,
    base_level,
    identity_of,
    object_arguments,
    save,
    uid,
)
from lobule.exports.export import CaseOutput, Export
from lobule.exports.options import ExportOptions
from lobule.findings import Finding
from lobule.results.result import RESEARCH_USE

MOST_FINDINGS = 1000
"""A report with more regions cannot be opened by viewers; `dicom-ann` has no limit."""


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    level = base_level(case, options)
    numbered_findings = case.findings(options, "slide")
    # At equal scores the first finding of the table comes first.
    highest = heapq.nlargest(
        MOST_FINDINGS, numbered_findings, key=lambda numbered: (numbered[1].score, -numbered[0])
    )
    save(_report(case, level, highest, options), folder / f"{case.file_name}.sr.dcm", case)
    notes = ["Holes of outlines are left out: regions of a report have none."]
    if case.finding_count > MOST_FINDINGS:
        left_out = case.finding_count - MOST_FINDINGS
        notes.append(f"The report has the {MOST_FINDINGS:,} highest findings; {left_out:,} are left out.")
    has_holes = any(len(rings) > 1 for _, finding in highest for rings in rings_of(finding))
    return CaseOutput(tuple(notes if has_holes else notes[1:]))


def _report(
    case: ExportCase, level: SlideLevel, findings: list[tuple[int, Finding]], options: ExportOptions
) -> Any:
    from highdicom.sr import (
        Comprehensive3DSR,
        DeviceObserverIdentifyingAttributes,
        MeasurementReport,
        ObservationContext,
        ObserverContext,
    )
    from pydicom.sr.codedict import codes

    arguments = object_arguments(case, "sr", 401, options)
    observer = ObserverContext(
        codes.DCM.Device,
        DeviceObserverIdentifyingAttributes(
            uid=uid(arguments["device_serial_number"], "device"),
            name=RESEARCH_USE[:64],
            manufacturer_name="Lobule",
            model_name=arguments["manufacturer_model_name"],
        ),
    )
    groups = [_slide_group(case, level)]
    groups += [group for number, finding in findings for group in _groups(case, level, number, finding)]
    report = MeasurementReport(
        ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    del (
        arguments["manufacturer_model_name"],
        arguments["software_versions"],
        arguments["device_serial_number"],
    )
    return Comprehensive3DSR(
        [level.dataset], report, is_complete=True, is_final=False, is_verified=False, **arguments
    )


def _slide_group(case: ExportCase, level: SlideLevel) -> Any:
    """Return the scores of the slide, which are also there if it has no findings."""
    from highdicom.sr import (
        CodedConcept,
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        SourceImageForMeasurementGroup,
        TrackingIdentifier,
    )
    from pydicom.sr.codedict import codes

    scores = [
        Measurement(
            CodedConcept(f"slide score {index}", "99LOBULE", f"Score of the slide: {name}"[:64]),
            round(value, 6), codes.UCUM.NoUnits,
        )
        for index, (name, value) in enumerate(case.result["scores"].items(), 1)
    ]  # fmt: skip
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=uid(identity_of(case), "slide scores"), identifier="slide"
        ),
        measurements=scores,
        source_images=[SourceImageForMeasurementGroup.from_source_image(level.dataset)],
    )


def _groups(case: ExportCase, level: SlideLevel, number: int, finding: Finding) -> list[Any]:
    """Return the measurement groups of a finding, one for each of its outlines."""
    from highdicom.sr import (
        AlgorithmIdentification,
        ImageRegion3D,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        TrackingIdentifier,
    )
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentification(
        name=f"Lobule {(case.result.get('bundle') or {}).get('method', '')}".strip(),
        version=str((case.result.get("bundle") or {}).get("fingerprint", "unknown")),
    )
    frame = level.dataset.FrameOfReferenceUID
    outlines = [rings[0] for rings in rings_of(finding)]
    regions = [ImageRegion3D("POLYGON", _closed(to_mm(level, ring)), frame) for ring in outlines]
    if not regions:
        point = to_mm(level, np.array([[finding.l0_x + 0.5, finding.l0_y + 0.5]]))
        regions = [ImageRegion3D("POINT", point, frame)]
    return [
        PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=TrackingIdentifier(
                uid=uid(case.name, content_key(case), number, index),
                identifier=f"{finding.label or case.label} {number}",
            ),
            referenced_region=region,
            finding_type=codes.SCT.Neoplasm,
            measurements=_measurements(finding, algorithm),
            algorithm_id=algorithm,
        )
        for index, region in enumerate(regions)
    ]


def content_key(case: ExportCase) -> str:
    return str((case.result.get("bundle") or {}).get("fingerprint", ""))


def _measurements(finding: Finding, algorithm: Any) -> list[Any]:
    from highdicom.sr import CodedConcept, Measurement
    from pydicom.sr.codedict import codes

    measurements = []
    if np.isfinite(finding.score):
        score = CodedConcept("score", "99LOBULE", "Score of the model")
        measurements.append(Measurement(score, round(finding.score, 6), codes.UCUM.NoUnits))
    if finding.size_um is not None:
        measurements.append(
            Measurement(
                codes.SCT.MajorAxis, round(finding.size_um, 3), CodedConcept("um", "UCUM", "micrometer")
            )
        )
    if finding.area_um2 is not None:
        unit = CodedConcept("um2", "UCUM", "square micrometer")
        measurements.append(Measurement(codes.SCT.Area, round(finding.area_um2, 3), unit))
    return measurements


def to_mm(level: SlideLevel, l0_points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return level-0 points (n, 2) in the slide coordinate system, in mm (n, 3)."""
    from highdicom.spatial import ImageToReferenceTransformer

    dataset = level.dataset
    origin = dataset.TotalPixelMatrixOriginSequence[0]
    position = [
        float(origin.XOffsetInSlideCoordinateSystem),
        float(origin.YOffsetInSlideCoordinateSystem),
        float(origin.get("ZOffsetInSlideCoordinateSystem", 0) or 0),
    ]
    spacing = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    orientation = [float(value) for value in dataset.ImageOrientationSlide]
    transform = ImageToReferenceTransformer(position, orientation, [float(value) for value in spacing])
    steps = np.array(level.l0_step) if level.l0_step[0] != 1 else np.ones(2)
    points: NDArray[np.float64] = transform((l0_points - np.array(level.l0_offset)) / steps)
    return points


def _closed(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([points, points[:1]])


EXPORT = Export(
    "dicom-sr",
    "DICOM structured report (TID 1500): findings in mm of the slide",
    write,
    kinds=frozenset({"slide"}),
    supports=frozenset({"min_score", "source", "show_patients"}),
    extra="dicom",
    library="highdicom",
)
