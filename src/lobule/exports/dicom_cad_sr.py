"""`dicom-cad-sr`: the scores of an exam as a Mammography CAD structured report (TID 4000).

highdicom has no such report, so its content items are written here, with the codes of PS3.16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobule.exports.case import ExportCase
from lobule.exports.dicom_exam import (
    ExamView,
    MarkedLocation,
    angle_and_side,
    equipment,
    exam_uid,
    exam_views,
    marked_locations,
)
from lobule.exports.dicom_slide import content_identity, save
from lobule.exports.export import CaseOutput, Export
from lobule.exports.options import ExportOptions
from lobule.results.result import RESEARCH_USE

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

COPIED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
    "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Attributes of the patient and the study, which are those of the views."""
CAD_SR = "1.2.840.10008.5.1.4.1.1.88.50"
Code = tuple[str, str, str]
SELECTED_REGION: Code = ("111099", "DCM", "Selected region")
REGION = "marked by a research model; research use only"
PERCENT: Code = ("%", "UCUM", "percent")
IMAGES_BEFORE = 1
"""Content items of the root before the image library: the language."""


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    views = exam_views(case, options)
    locations = [one for one in marked_locations(case, options) if one.view in {view.name for view in views}]
    report = _document(case, views, options)
    report.ContentSequence = _content(case, views, locations)
    save(report, folder / f"{case.file_name}.cad-sr.dcm", case)
    generated = [view.name for view in views if view.is_generated]
    names = ", ".join(generated)
    note = f"The views {names} are not DICOM files or gone; the report refers to generated images."
    return CaseOutput((note,) if generated else (), {"locations": len(locations)})


def _document(case: ExportCase, views: Sequence[ExamView], options: ExportOptions) -> Dataset:
    """Return the report without its content: patient, study, equipment and the images that it refers to."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    first, report = views[0].dataset, Dataset()
    key = (content_identity(case), "cad-sr", options.to_dict())
    report.SOPClassUID, report.SOPInstanceUID = CAD_SR, exam_uid(list(views), *key)
    report.file_meta = FileMetaDataset()
    report.file_meta.MediaStorageSOPClassUID = CAD_SR
    report.file_meta.MediaStorageSOPInstanceUID = report.SOPInstanceUID
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    report.SpecificCharacterSet = "ISO_IR 192"
    for keyword in COPIED:
        setattr(report, keyword, first.get(keyword, ""))
    if not options.show_patients:
        report.PatientIdentityRemoved = "YES"
        report.DeidentificationMethod = "Names removed; export with the patients to keep them"
    report.Modality, report.SeriesNumber, report.InstanceNumber = "SR", 501, 1
    report.SeriesInstanceUID = exam_uid(list(views), *key, "series")
    report.ReferencedPerformedProcedureStepSequence = []
    made_by = equipment(case)
    report.Manufacturer, report.ManufacturerModelName = (
        made_by["manufacturer"],
        made_by["manufacturer_model_name"],
    )
    report.SoftwareVersions = made_by["software_versions"]
    report.DeviceSerialNumber = made_by["device_serial_number"]
    report.CompletionFlag, report.VerificationFlag = "COMPLETE", "UNVERIFIED"
    report.ContentDate = report.ContentTime = report.InstanceCreationDate = report.InstanceCreationTime = ""
    report.PerformedProcedureCodeSequence = []
    report.CurrentRequestedProcedureEvidenceSequence = _evidence(views)
    report.ValueType, report.ContinuityOfContent = "CONTAINER", "SEPARATE"
    report.ConceptNameCodeSequence = [_code(("111036", "DCM", "Mammography CAD Report"))]
    report.ContentTemplateSequence = [_template("4000")]
    return report


def _evidence(views: Sequence[ExamView]) -> list[Dataset]:
    from pydicom.dataset import Dataset

    studies: dict[str, dict[str, list[Dataset]]] = {}
    for view in views:
        series = studies.setdefault(str(view.dataset.StudyInstanceUID), {})
        series.setdefault(str(view.dataset.SeriesInstanceUID), []).append(_reference(view))
    evidence = []
    for study_uid, series in studies.items():
        study = Dataset()
        study.StudyInstanceUID, study.ReferencedSeriesSequence = study_uid, []
        for series_uid, images in series.items():
            item = Dataset()
            item.SeriesInstanceUID, item.ReferencedSOPSequence = series_uid, images
            study.ReferencedSeriesSequence.append(item)
        evidence.append(study)
    return evidence


def _content(
    case: ExportCase, views: Sequence[ExamView], locations: Sequence[MarkedLocation]
) -> list[Dataset]:
    finding_summary: Code = (
        ("111242", "DCM", "All algorithms succeeded; with findings")
        if locations
        else ("111241", "DCM", "All algorithms succeeded; without findings")
    )
    language = _coded(
        "HAS CONCEPT MOD", ("121049", "DCM", "Language of Content Item and Descendants"),
        ("en", "RFC5646", "English"),
    )  # fmt: skip
    summary = _coded("CONTAINS", ("111017", "DCM", "CAD Processing and Findings Summary"), finding_summary)
    summary.ContentSequence = _impression(case)
    if locations:
        summary.ContentSequence += _individual_impressions(case, views, locations)
    return [
        language,
        _container("CONTAINS", ("111028", "DCM", "Image Library"), [_library_entry(view) for view in views]),
        summary,
        _detections(case, views),
        _coded("CONTAINS", ("111065", "DCM", "Summary of Analyses"), ("111225", "DCM", "Not Attempted")),
    ]


def _library_entry(view: ExamView) -> Dataset:
    """Return an entry of the image library (TID 4020)."""
    angle, side = angle_and_side(view.name)
    entry = _item("CONTAINS", "IMAGE")
    entry.ReferencedSOPSequence = [_reference(view)]
    context = "HAS ACQ CONTEXT"
    rows, columns = view.dataset.get("PatientOrientation") or ("A", "F")
    spacing = view.dataset.get("ImagerPixelSpacing") or view.dataset.get("PixelSpacing")
    entry.ContentSequence = [
        _coded(context, ("111027", "DCM", "Image Laterality"), side),
        _coded(context, ("111031", "DCM", "Image View"), angle),
        _text(context, ("111044", "DCM", "Patient Orientation Row"), str(rows)),
        _text(context, ("111043", "DCM", "Patient Orientation Column"), str(columns)),
    ]
    if spacing:
        um: Code = ("um", "UCUM", "micrometer")
        entry.ContentSequence += [
            _number(context, ("111026", "DCM", "Horizontal Pixel Spacing"), float(spacing[1]) * 1000, um),
            _number(context, ("111066", "DCM", "Vertical Pixel Spacing"), float(spacing[0]) * 1000, um),
        ]
    return entry


def _impression(case: ExportCase) -> list[Dataset]:
    """Return the overall impression (TID 4002): the purpose, the algorithm, and the scores of the breasts."""
    items = [_text("HAS PROPERTIES", ("111033", "DCM", "Impression Description"), RESEARCH_USE)]
    items += _algorithm(case)
    for side, code in (("left", ("7771000", "SCT", "Left")), ("right", ("24028007", "SCT", "Right"))):
        score = case.result["scores"].get(f"{side}_malignant")
        if score is not None:
            probability = _number(
                "HAS PROPERTIES", ("111047", "DCM", "Probability of cancer"), 100 * score, PERCENT
            )
            probability.ContentSequence = [
                _coded("HAS CONCEPT MOD", ("272741003", "SCT", "Laterality"), code)
            ]
            items.append(probability)
    return items


def _individual_impressions(
    case: ExportCase, views: Sequence[ExamView], locations: Sequence[MarkedLocation]
) -> list[Dataset]:
    """Return a container (TID 4003) with one finding (TID 4006) for each location."""
    index_of = {view.name: index for index, view in enumerate(views, 1)}
    impressions = []
    for location in locations:
        intent = _rendering_intent()
        finding = _finding(case, location, index_of[location.view])
        impressions.append(
            _container(
                "INFERRED FROM", ("111034", "DCM", "Individual Impression/Recommendation"), [intent, finding]
            )
        )
    return impressions


def _finding(case: ExportCase, location: MarkedLocation, image_index: int) -> Dataset:
    finding = _coded("CONTAINS", ("111059", "DCM", "Single Image Finding"), SELECTED_REGION)
    share = min(100.0, max(0.0, 100 * location.score))
    finding.ContentSequence = [
        _rendering_intent(),
        _text(
            "HAS PROPERTIES", ("111058", "DCM", "Selected Region Description"), f"{location.label}, {REGION}"
        ),
        *_algorithm(case),
        _number("HAS PROPERTIES", ("111012", "DCM", "Certainty of Finding"), share, PERCENT),
        _coordinates(("111010", "DCM", "Center"), "POINT", [location.x, location.y], image_index),
    ]
    if location.box is not None:
        box = location.box
        ring = [box.x, box.y, box.right, box.y, box.right, box.bottom, box.x, box.bottom, box.x, box.y]
        finding.ContentSequence.append(
            _coordinates(("111041", "DCM", "Outline"), "POLYLINE", ring, image_index)
        )
    return finding


def _rendering_intent() -> Dataset:
    return _coded(
        "HAS CONCEPT MOD",
        ("111056", "DCM", "Rendering Intent"),
        ("111151", "DCM", "Presentation Optional: Rendering device may present"),
    )


def _detections(case: ExportCase, views: Sequence[ExamView]) -> Dataset:
    """Return the detections that were performed, on all views (TID 4015)."""
    detection = _coded("CONTAINS", ("111022", "DCM", "Detection Performed"), SELECTED_REGION)
    images = []
    for view in views:
        image = _item("HAS PROPERTIES", "IMAGE")
        image.ReferencedSOPSequence = [_reference(view)]
        images.append(image)
    detection.ContentSequence = [*_algorithm(case), *images]
    summary = _coded("CONTAINS", ("111064", "DCM", "Summary of Detections"), ("111222", "DCM", "Succeeded"))
    summary.ContentSequence = [
        _container("INFERRED FROM", ("111063", "DCM", "Successful Detections"), [detection])
    ]
    return summary


def _algorithm(case: ExportCase) -> list[Dataset]:
    """Return the identification of the algorithm (TID 4019)."""
    bundle = case.result.get("bundle") or {}
    return [
        _text(
            "HAS PROPERTIES",
            ("111001", "DCM", "Algorithm Name"),
            f"Lobule {bundle.get('method', '')}".strip(),
        ),
        _text(
            "HAS PROPERTIES",
            ("111003", "DCM", "Algorithm Version"),
            str(bundle.get("fingerprint", "unknown")),
        ),
    ]


# -- content items ------------------------------------------------------------------------------------------


def _item(relationship: str, value_type: str, name: Code | None = None) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.RelationshipType, item.ValueType = relationship, value_type
    if name is not None:
        item.ConceptNameCodeSequence = [_code(name)]
    return item


def _container(relationship: str, name: Code, content: Sequence[Dataset]) -> Dataset:
    item = _item(relationship, "CONTAINER", name)
    item.ContinuityOfContent, item.ContentSequence = "SEPARATE", list(content)
    return item


def _coded(relationship: str, name: Code, value: Code) -> Dataset:
    item = _item(relationship, "CODE", name)
    item.ConceptCodeSequence = [_code(value)]
    return item


def _text(relationship: str, name: Code, value: str) -> Dataset:
    item = _item(relationship, "TEXT", name)
    item.TextValue = value
    return item


def _number(relationship: str, name: Code, value: float, unit: Code) -> Dataset:
    from pydicom.dataset import Dataset

    item, measured = _item(relationship, "NUM", name), Dataset()
    measured.NumericValue = f"{value:.6g}"
    measured.MeasurementUnitsCodeSequence = [_code(unit)]
    item.MeasuredValueSequence = [measured]
    return item


def _coordinates(name: Code, graphic_type: str, values: Sequence[float], image_index: int) -> Dataset:
    from pydicom.dataset import Dataset

    item, selected = _item("HAS PROPERTIES", "SCOORD", name), Dataset()
    item.GraphicType, item.GraphicData = graphic_type, [float(value) for value in values]
    # A reference to the image in the image library, by its position in the tree of content items.
    selected.RelationshipType = "SELECTED FROM"
    selected.ReferencedContentItemIdentifier = [1, IMAGES_BEFORE + 1, image_index]
    item.ContentSequence = [selected]
    return item


def _code(code: Code) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code
    return item


def _template(identifier: str) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.MappingResource, item.TemplateIdentifier = "DCMR", identifier
    return item


def _reference(view: ExamView) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID = view.dataset.SOPClassUID
    item.ReferencedSOPInstanceUID = view.dataset.SOPInstanceUID
    return item


EXPORT = Export(
    "dicom-cad-sr",
    "DICOM Mammography CAD report (TID 4000): breast scores and marked locations of exams",
    write,
    kinds=frozenset({"exam"}),
    supports=frozenset({"min_score", "show_patients"}),
    extra="dicom",
    library="highdicom",
)
