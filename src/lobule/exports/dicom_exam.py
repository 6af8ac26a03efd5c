"""The views of an exam as DICOM objects refer to them, and the locations that a model marks in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lobule.dicomweb import is_dicomweb_url
from lobule.dicomweb.images import read_instance
from lobule.errors import CaseError
from lobule.exports.case import ExportCase, iterate_blocks
from lobule.exports.dicom_slide import uid
from lobule.exports.options import ExportOptions
from lobule.geometry import Box, Size
from lobule.mammograms.views import angle_of
from lobule.results import MapReader
from lobule.server.map_tiles import highest_cells
from lobule.slides.dicom_series import no_warnings
from lobule.stitch import State

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.2"
"""Digital Mammography X-Ray Image Storage, For Presentation."""
MARKED_FROM = 0.5
"""Smallest score of a location that is marked, unless `min_score` is set."""
MOST_PER_VIEW = 3
ANGLES = {
    "CC": ("399162004", "SCT", "cranio-caudal"),
    "MLO": ("399368009", "SCT", "medio-lateral oblique"),
}
SIDES = {"L": ("80248007", "SCT", "Left breast"), "R": ("73056007", "SCT", "Right breast")}
REQUIRED_EMPTY = (
    "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip
"""Attributes that derived objects must have, and that may be empty."""
REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns")
"""Attributes of a view without which nothing can refer to it."""
DEFAULT_MM = 0.1
"""mm/px of a view whose file does not state it; DICOM objects need a value."""


@dataclass(frozen=True)
class ExamView:
    """One view: its DICOM header, which is generated if the file is not DICOM."""

    name: str
    dataset: Dataset
    size: Size
    is_generated: bool


@dataclass(frozen=True)
class MarkedLocation:
    """A location of a view in pixels of the stored image."""

    view: str
    x: float
    y: float
    score: float
    label: str
    box: Box | None = None


def exam_views(case: ExportCase, options: ExportOptions) -> list[ExamView]:
    """Return the views of an exam in a fixed order."""
    return [_view(case, name, options) for name in sorted(case.frames)]


def _view(case: ExportCase, name: str, options: ExportOptions) -> ExamView:
    path = case.frames[name].path
    dataset = None if path is None else _header(path)
    if dataset is None:
        size = _size(case, name, path)
        return ExamView(name, _described(case, name, size, options), size, True)
    if not options.show_patients:
        dataset.PatientName = dataset.PatientID = dataset.PatientBirthDate = dataset.PatientSex = ""
        dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
        dataset.PatientIdentityRemoved = "YES"
        dataset.DeidentificationMethod = "Names removed; export with the patients to keep them"
    if missing := [keyword for keyword in REQUIRED if not dataset.get(keyword)]:
        raise CaseError(
            "the view lacks attributes that objects derived from it need", subject=f"{case.name}, {name}",
            expected=", ".join(REQUIRED), actual=f"no {', '.join(missing)}",
            remedy="Repair the header of the file, or convert it to PNG, which is then described",
        )  # fmt: skip
    for keyword in REQUIRED_EMPTY:
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    return ExamView(name, dataset, Size(int(dataset.Columns), int(dataset.Rows)), False)


def _header(path: str) -> Dataset | None:
    """Return the header of a DICOM file or of an image on a server, or None if the file is not DICOM."""
    import pydicom

    if is_dicomweb_url(path):
        return read_instance(path, pixels=False)
    try:
        with no_warnings():
            return pydicom.dcmread(path, stop_before_pixels=True)
    except pydicom.errors.InvalidDicomError:
        return None


def _size(case: ExportCase, name: str, path: str | None) -> Size:
    if path is not None:
        from PIL import Image

        with Image.open(path) as picture:
            return Size(*picture.size)
    for reader in case.maps.values():
        info = reader.info
        if info.image == name:
            return Size(round(info.columns * info.l0_stride[0]), round(info.rows * info.l0_stride[1]))
    raise CaseError(
        "the size of a view is not known, because its file is gone and it has no map",
        subject=f"{case.name}, {name}", remedy="Name the folder of the files with --slides",
    )  # fmt: skip


def _described(case: ExportCase, name: str, size: Size, options: ExportOptions) -> Dataset:
    """Describe a view as a DICOM mammogram without pixels. Its UIDs are made from the hash of the file."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    frame = case.frames[name]
    exam = sorted(str(other.fingerprint) for other in case.frames.values())
    identity = frame.fingerprint or f"case {case.name} view {name}"
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = FOR_PRESENTATION, uid(identity, name)
    dataset.StudyInstanceUID = uid(*exam, case.name, "study")
    dataset.SeriesInstanceUID = uid(*exam, case.name, "series")
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.Modality = 1, 1, "MG"
    dataset.SpecificCharacterSet = "ISO_IR 192"
    patient = case.patient if options.show_patients else None
    dataset.PatientName = "" if patient is None else patient if "^" in patient else f"{patient}^"
    dataset.PatientID = patient or hashlib.sha256(repr(exam).encode()).hexdigest()[:16]
    for keyword in REQUIRED_EMPTY:
        setattr(dataset, keyword, "")
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.Rows, dataset.Columns = size.height, size.width
    dataset.ImagerPixelSpacing = dataset.PixelSpacing = [DEFAULT_MM, DEFAULT_MM]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PatientOrientation = ["A", "F"] if name.startswith("L") else ["P", "F"]
    dataset.ImageLaterality = name[:1]
    return dataset


def marked_locations(case: ExportCase, options: ExportOptions) -> list[MarkedLocation]:
    """Return the findings of an exam or, without findings, the maxima of its heatmaps, highest first."""
    lowest = MARKED_FROM if options.min_score is None else options.min_score
    locations = [
        MarkedLocation(
            finding.image,
            finding.l0_x + 0.5,
            finding.l0_y + 0.5,
            finding.score,
            finding.label or case.label,
            finding.box,
        )
        for _, finding in case.findings(options)
        if np.isfinite(finding.score)
    ]
    if not locations:
        locations = [location for reader in case.maps.values() for location in _maxima(reader, lowest)]
    return sorted(locations, key=lambda location: (-location.score, location.view, location.y, location.x))


def _maxima(reader: MapReader, lowest: float) -> Iterator[MarkedLocation]:
    """Yield the highest cells of a heatmap, each in another square of cells."""
    info = reader.info
    for row, column, score in highest_cells(reader, len(info.classes) - 1, MOST_PER_VIEW):
        if score >= lowest:
            x, y = (column + 0.5) * info.l0_stride[0], (row + 0.5) * info.l0_stride[1]
            yield MarkedLocation(info.image, x, y, score, info.classes[-1])


def heatmap_mask(view: ExamView, reader: MapReader, lowest: float) -> NDArray[np.bool_]:
    """Return the pixels of a view that lie in cells of its heatmap with at least this score."""
    info = reader.info
    marked = np.zeros((info.rows, info.columns), np.bool_)
    for block, (scores, states) in iterate_blocks(reader):
        marked[block] = (states == State.SCORED) & (scores[-1] >= lowest)
    rows = (np.arange(view.size.height) / info.l0_stride[1]).astype(np.int64)
    columns = (np.arange(view.size.width) / info.l0_stride[0]).astype(np.int64)
    inside = (rows < info.rows)[:, None] & (columns < info.columns)[None, :]
    picked = marked[np.minimum(rows, info.rows - 1)][:, np.minimum(columns, info.columns - 1)]
    return np.asarray(picked & inside, np.bool_)


def angle_and_side(view: str) -> tuple[tuple[str, str, str], tuple[str, str, str]]:
    """Return the codes of the projection and of the breast of a view."""
    return ANGLES[angle_of(view.partition(" ")[0])], SIDES[view[:1]]


def exam_uid(views: list[ExamView], *keys: object) -> str:
    return uid(*(str(view.dataset.SOPInstanceUID) for view in views), *keys)


def equipment(case: ExportCase) -> dict[str, Any]:
    from lobule import __version__

    bundle = case.result.get("bundle") or {}
    return {
        "manufacturer": "Lobule",
        "manufacturer_model_name": str(bundle.get("method", "lobule")),
        "software_versions": __version__,
        "device_serial_number": str(bundle.get("fingerprint", "0"))[:16],
    }
